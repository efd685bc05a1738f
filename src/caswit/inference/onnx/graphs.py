"""What an exported graph takes and gives: the network, and around it what a caller would otherwise have to do.

Shapes: B batch, T tile_px, f context_factor, S = f T side of the context window (T without a context), K classes.
"""

import copy
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.nn.baselines.smp import Network
from caswit.nn.caswit import CASWiT
from caswit.weights.model_folder import LoadedModel

Form = Literal["tile and context", "single input", "deepness"]

SCORES = 2**24
"""Most scores of attention that are held at once, for one image and head: 64 MB."""


class Graph(NamedTuple):
    """A module to export, and the names of what goes in and comes out."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """An example of each, of a batch of two."""
    output: str
    to_uint8: float
    """What the inputs are multiplied by to be pixels of 0-255."""


class InSlices(nn.Module):
    """Fusion's attention, some rows of queries after the other.

    torch never stores the scores of all queries. The operators of ONNX do, and for a tile of 512 px there are
    16384 x 16384 for each head.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, hr: Tensor, context: Tensor) -> Tensor:
        """(B, H, W, C), (B, H', W', C) -> (B, H, W, C)."""
        scores_of_row = hr.shape[2] * context.shape[1] * context.shape[2]
        rows = max(1, SCORES // scores_of_row)
        return torch.cat([self.attention(part, context) for part in hr.split(rows, dim=1)], dim=1)


class TileAndContext(nn.Module):
    """The network as it is."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, 3, T, T) twice, 0-255 -> logits (B, K, T, T)."""
        logits: Tensor = self.network(tile, context)
        return logits


class SingleInput(nn.Module):
    """The network behind a window of the image, which makes tile and context as reading does.

    Args:
        network: In evaluation mode.
        factor: f; 1 without a context.
    """

    def __init__(self, network: Network, factor: int) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, window: Tensor) -> Tensor:
        """(B, 3, S, S), whole numbers 0-255 -> logits (B, K, T, T) of the middle."""
        margin = self.margin_px(window)
        tile = window[:, :, margin : window.shape[2] - margin, margin : window.shape[3] - margin]
        context = averaged(window, self.factor) if self.network.reads_context else None
        logits: Tensor = self.network(tile, context)
        return logits

    def margin_px(self, window: Tensor) -> int:
        """From the window's edge to the tile's."""
        return window.shape[2] * (self.factor - 1) // (2 * self.factor)


class Deepness(SingleInput):
    """The same for the QGIS plugin Deepness, whose output is as large as its input and adds up to 1."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S), 0-1 -> probabilities (B, 1 + K, S, S); the first class is all that is not the tile."""
        window = (image * 255).round().clamp(0, 255)
        probabilities = super().forward(window).softmax(1)
        around = (self.margin_px(window),) * 4
        not_mapped = F.pad(torch.zeros_like(probabilities[:, :1]), around, value=1.0)
        return torch.cat([not_mapped, F.pad(probabilities, around)], dim=1)


def averaged(window: Tensor, factor: int) -> Tensor:
    """What ``caswit.raster.resample.area_average`` makes of whole numbers 0-255: (B, 3, S, S) -> (B, 3, S / f, S / f).

    A mean is a multiple of 1 / f^2. The border between up and down lies in the middle between two multiples, so that no
    error of floating point decides.
    """
    squares = factor**2
    return (F.avg_pool2d(window.float(), factor) + (squares // 2 + 0.5) / squares).floor()


def make_graph(loaded: LoadedModel, form: Form) -> Graph:
    """The module of a form, on the CPU and in fp32, which leaves the model as it was."""
    network = copy.deepcopy(loaded.network).float().eval().requires_grad_(False)
    if isinstance(network, CASWiT):
        for fusion in network.fusion.values():
            fusion.add_module("attention", InSlices(fusion.get_submodule("attention")))
    factor = loaded.info.tile.context_factor if network.reads_context else 1
    tile_px = loaded.info.tile.tile_px
    tile = torch.zeros(2, 3, tile_px, tile_px, dtype=torch.uint8)
    window = torch.zeros(2, 3, factor * tile_px, factor * tile_px, dtype=torch.uint8)
    if form == "tile and context":
        # Tensors of their own: tracing takes the same one for the same image.
        inputs = {"tile": tile} | ({"context": tile.clone()} if network.reads_context else {})
        return Graph(TileAndContext(network), inputs, "logits", 1)
    if form == "single input":
        return Graph(SingleInput(network, factor).eval(), {"window": window}, "logits", 1)
    return Graph(Deepness(network, factor).eval(), {"image": window.float()}, "probabilities", 255)
