"""The forms of exported graphs: the network, with what a program would otherwise have to do before and after it.

``TileAndContext`` leaves everything to the program. ``SingleInput`` takes one window of an image and makes tile and
context of it. ``Deepness`` is that with the conventions of a QGIS plugin.

Shapes: B batch, T tile_px, f context_factor (of several contexts the largest), S = f T side of the context window (T
without a context), K classes, n bands, W side of the window that Deepness gives. Several contexts are (B, N, n, T, T).
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.nn.caswit import CASWiT
from caswit.nn.network import Network
from caswit.weights.model_folder import LoadedModel

Form = Literal["tile and context", "single input", "deepness"]

SCORES = 2**24
"""Highest number of attention scores that are held at once, for one image and head: 64 MB."""


class Graph(NamedTuple):
    """A module to export, with the names of its inputs and output."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """Example of each input, a batch of two."""
    output: str
    to_uint8: float
    """Factor from the inputs to pixels of 0-255."""


class InSlices(nn.Module):
    """Attention of a fusion, computed for some rows of queries at a time.

    torch never stores all scores. The operators of ONNX do, and at stage 1 of a tile of 512 px there are 16384 x 16384
    for each head. Every query has a softmax of its own, so that the slices give the same result.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hr: Tensor, context: Tensor) -> Tensor:
        """Read from the context: (B, H, W, C), (B, H', W', C) -> (B, H, W, C)."""
        scores_of_row = hr.shape[2] * context.shape[1] * context.shape[2]
        rows = max(1, SCORES // scores_of_row)
        return torch.cat([self.attention(part, context) for part in hr.split(rows, dim=1)], dim=1)


class TileAndContext(nn.Module):
    """The network as it is, in evaluation mode."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile: Tensor, context: Tensor | None = None) -> Tensor:
        """Label tile (B, 3, T, T) and context, 0-255: logits (B, K, T, T)."""
        logits: Tensor = self.network(tile, context)
        return logits


class SingleInput(nn.Module):
    """The network with one input, a window of an image, which it makes tile and context of as ``caswit predict`` does.

    Args:
        network: Network in evaluation mode.
        factors: Of every context, narrowest first; 1 without a context.
    """

    def __init__(self, network: Network, factors: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.factors, self.factor = network, factors, factors[-1]

    def forward(self, window: Tensor) -> Tensor:
        """Label the tile in the middle of windows (B, 3, S, S), whole numbers 0-255: logits (B, K, T, T)."""
        margin = self.margin_px(window)
        tile = window[:, :, margin : window.shape[2] - margin, margin : window.shape[3] - margin]
        context = self.context(window) if self.network.reads_context else None
        logits: Tensor = self.network(tile, context)
        return logits

    def context(self, window: Tensor) -> Tensor:
        """Average the window; of several contexts, the middle of it that each covers."""
        each = []
        for factor in self.factors:
            margin = window.shape[2] * (self.factor - factor) // (2 * self.factor)
            inner = window
            if margin:
                inner = window[:, :, margin : window.shape[2] - margin, margin : window.shape[3] - margin]
            each.append(averaged(inner, factor))
        return each[0] if len(each) == 1 else torch.stack(each, 1)

    def margin_px(self, window: Tensor) -> int:
        """Return how far the tile's edges lie inside the window's, in pixels."""
        return window.shape[2] * (self.factor - 1) // (2 * self.factor)


def deepness_slack_px(tile_px: int) -> int:
    """Return by how many pixels a tile can be moved in the window of Deepness: at most as far as its windows lie apart.

    Deepness lets its last windows end outside the image, ``caswit predict`` moves its last tiles back into it: a tile
    that is half black is nothing that the network has learned from. So the graph moves tiles too, together with their
    context, which the window has to hold.
    """
    return 3 * tile_px // 4


def deepness_window_px(tile_px: int, factor: int) -> int:
    """Return the side of the windows that Deepness gives: a tile with its context, wherever it may be moved to."""
    return factor * tile_px + 2 * deepness_slack_px(tile_px)


class Deepness(SingleInput):
    """The single input with the conventions of the QGIS plugin Deepness: inputs of 0-1, outputs as large as inputs.

    Args:
        network: Network in evaluation mode.
        factors: Of every context, narrowest first; 1 without a context.
        tile_px: Side of a tile.
    """

    def __init__(self, network: Network, factors: tuple[int, ...], tile_px: int) -> None:
        super().__init__(network, factors)
        self.tile_px, self.slack_px = tile_px, deepness_slack_px(tile_px)

    def forward(self, image: Tensor) -> Tensor:
        """Map windows (B, 3, W, W), 0-1, to probabilities (B, 1 + K, W, W); the first class is all around the tile."""
        pixels = (image * 255).round().clamp(0, 255)
        seen = pixels.amax(1)
        row, col = self._moved(seen.amax(2)), self._moved(seen.amax(1))
        context_px = self.factor * self.tile_px
        probabilities = super().forward(_cut(pixels, self.slack_px + row, self.slack_px + col, context_px)).softmax(1)
        margin = self.slack_px + self.margin_px(torch.empty(1, 1, context_px))
        return _placed(probabilities, margin + row, margin + col, image.shape[-1])

    def _moved(self, brightest: Tensor) -> Tensor:
        """Return (B, 1), by how much a tile is moved: into the image, which ends where all is black.

        Args:
            brightest: (B, W), the largest value in every row, or in every column, of the windows.
        """
        side = brightest.shape[1]
        place = torch.arange(side)
        image = (brightest > 0).long()
        first = side - (image * (side - place)).amax(1, keepdim=True)
        end = (image * (place + 1)).amax(1, keepdim=True)
        start = (side - self.tile_px) // 2
        forward = (first - start).clamp(0, self.slack_px)
        # Not beyond where the image begins: one smaller than a tile lies at the tile's beginning.
        back = torch.minimum(start + self.tile_px - end, start - first).clamp(0, self.slack_px)
        return forward - back


def _cut(pixels: Tensor, row: Tensor, col: Tensor, side: int) -> Tensor:
    """Cut squares (B, C, side, side) out of (B, C, W, W), each at a place of its own (B, 1)."""
    batch, bands, width = pixels.shape[0], pixels.shape[1], pixels.shape[-1]
    rows, cols = row + torch.arange(side), col + torch.arange(side)
    number = torch.arange(batch)[:, None, None] * width**2 + rows[:, :, None] * width + cols[:, None, :]
    table = pixels.permute(0, 2, 3, 1).reshape(-1, bands)
    return F.embedding(number, table).permute(0, 3, 1, 2)


def _placed(probabilities: Tensor, row: Tensor, col: Tensor, side: int) -> Tensor:
    """Lay squares (B, K, T, T) into (B, 1 + K, side, side), each at a place of its own (B, 1)."""
    batch, classes, tile_px = probabilities.shape[:3]
    mapped = F.pad(probabilities, (0, 0, 0, 0, 1, 0)).permute(0, 2, 3, 1).reshape(-1, 1 + classes)
    table = torch.cat([mapped, F.pad(torch.ones(1, 1), (0, classes))])  # the last row is what is not mapped
    rows, cols = torch.arange(side) - row, torch.arange(side) - col
    inside = ((rows >= 0) & (rows < tile_px))[:, :, None] & ((cols >= 0) & (cols < tile_px))[:, None, :]
    number = torch.arange(batch)[:, None, None] * tile_px**2 + rows[:, :, None] * tile_px + cols[:, None, :]
    return F.embedding(torch.where(inside, number, batch * tile_px**2), table).permute(0, 3, 1, 2)


def averaged(window: Tensor, factor: int) -> Tensor:
    """Average whole numbers 0-255 as ``caswit.raster.resample.area_average`` does: (B, 3, S, S) -> (B, 3, S/f, S/f)."""
    # A mean is a multiple of 1 / f^2 and is rounded to a whole number. The limit between up and down is put half-way
    # between two multiples, so that no rounding error of the mean decides.
    squares = factor**2
    return (F.avg_pool2d(window.float(), factor) + (squares // 2 + 0.5) / squares).floor()


def make_graph(loaded: LoadedModel, form: Form) -> Graph:
    """Return the graph of a form, of a copy of the network on the CPU in fp32."""
    network = copy.deepcopy(loaded.network).float().eval().requires_grad_(False)
    if isinstance(network, CASWiT):
        for fusion in network.fusion.values():
            fusion.add_module("attention", InSlices(fusion.get_submodule("attention")))
    factors = loaded.info.tile.context_factors if network.reads_context else (1,)
    factor = factors[-1]
    tile_px, bands = loaded.info.tile.tile_px, len(loaded.info.model.band_names)
    tile = torch.zeros(2, bands, tile_px, tile_px, dtype=torch.uint8)
    window = torch.zeros(2, bands, factor * tile_px, factor * tile_px, dtype=torch.uint8)
    if form == "tile and context":
        # Two tensors, since tracing would take the same one twice for one input.
        context = tile.clone() if len(factors) == 1 else tile[:, None].repeat(1, len(factors), 1, 1, 1)
        inputs = {"tile": tile} | ({"context": context} if network.reads_context else {})
        return Graph(TileAndContext(network), inputs, "logits", 1)
    if form == "single input":
        return Graph(SingleInput(network, factors).eval(), {"window": window}, "logits", 1)
    side = deepness_window_px(tile_px, factor)
    image = torch.zeros(2, bands, side, side)
    return Graph(Deepness(network, factors, tile_px).eval(), {"image": image}, "probabilities", 255)
