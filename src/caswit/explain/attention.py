"""Explain how one pixel got its class: attention by stage (figures 6 and 11) and the effect of its context.

The context is compared with two others that keep the tile's own part: masked (black outside the tile) and swapped
(taken from another place of the scene). The paper compares models trained with and without context; these two
conditions ask the same of one trained model.

Shapes: T tile_px, K classes, h heads, H/W rows and columns of context tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from caswit.config import context_factors
from caswit.data.reader import Region, SceneReader, context_window
from caswit.errors import ConfigError, ModelError
from caswit.inference.devices import autocast
from caswit.inference.predictor import Predictor, class_map, mask_context, swap_context
from caswit.nn.caswit import CASWiT
from caswit.nn.fusion import CrossAttention
from caswit.nn.swin import PATCH_PX
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Tile, Window, owner, some_of, starts

Floats = NDArray[np.float32]

AS_IS, MASKED, SWAPPED = "as is", "masked", "swapped"
"""The context with which a pixel was labelled."""
_SWAP_CANDIDATES = 3
"""Along each axis, tiles whose context may be swapped in."""


class StageAttention(NamedTuple):
    """Attention of one hr token over a context after a stage."""

    stage: int
    """From 1."""
    heads: Floats
    """(h, H, W): attention of each head, which sums to 1 over the context, over all of several."""
    context: int = 0
    """Which of several contexts, narrowest first."""
    on_padding: float = 0.0
    """Share of the attention, as the mean over the heads, that lies on padding."""
    gate: float | None = None
    """tanh(g), by which the stage scales what it reads; None where it is not gated."""

    @property
    def share(self) -> float:
        """Share of the stage's attention that lies on this context, as the mean over the heads."""
        return float(self.mean.sum())

    @property
    def mean(self) -> Floats:
        """(H, W): the mean over the heads."""
        mean: Floats = self.heads.mean(0)
        return mean


class SeenContext(NamedTuple):
    """A context of the tile as the network sees it."""

    factor: int
    image: UInt8
    """(n, T, T) of n bands: averaged, the tile in its centre."""
    padding: Floats
    """(T, T): share of each pixel that is padding: black, outside the image or without data."""


class Explanation(NamedTuple):
    """The input, attention and predictions behind the class of one pixel."""

    row: int
    col: int
    tile: Tile
    """The tile from which ``predict`` takes the pixel's class, in pixels that are read."""
    pixel: tuple[int, int]
    """(row, column) of the pixel in the tile."""
    image: UInt8
    """(n, T, T) of n bands: the tile."""
    contexts: tuple[SeenContext, ...]
    """Narrowest first."""
    stages: tuple[StageAttention, ...]
    """Of every stage, in each context."""
    probabilities: Mapping[str, Floats]
    """Kind of context -> (K,) probabilities of the pixel; SWAPPED only if the scene has another tile."""
    classes: Mapping[str, UInt8]
    """AS_IS and MASKED -> (T, T) class indices of the tile, IGNORE_INDEX where there are no data."""

    @property
    def changed(self) -> Bool:
        """(T, T): pixels that get another class with masked context."""
        changed: Bool = self.classes[AS_IS] != self.classes[MASKED]
        return changed


def explain_pixel(model: Predictor, scene: SceneReader, row: int, col: int, tile_px: int) -> Explanation:
    """Explain the class of one pixel.

    Args:
        model: A network that reads its context, on its device.
        scene: The scene of the pixel.
        row: Row of the pixel in the raster.
        col: Column of the pixel in the raster.
        tile_px: Side of the model's tiles.

    Raises:
        ModelError: The network reads no context.
        ConfigError: The pixel lies outside the scene, or has no data.
    """
    check_reads_context(model)
    _check_inside(scene, row, col)
    read_row, read_col = pixel_as_read(scene, row, col)
    # The overlap of `predict`'s default: the pixel is explained in the very tile that labels it on the map.
    tile = owner(scene.height, scene.width, tile_px, tile_px // 4, read_row, read_col)
    region = scene.region(context_window(tile.window, model.context_factor))
    valid = region.valid[tile.window.inside(region.window)]
    pixel = read_row - tile.window.row, read_col - tile.window.col
    if not valid[pixel]:
        raise ConfigError(f"{scene.scene.image.name} has no data at row {row}, column {col}; choose another pixel")
    hr, context = _batch(model, region, tile.window)
    assert isinstance(model.network, CASWiT)  # as checked
    with recorded_attention(model.network, *pixel, tile_px) as stages:
        logits = {AS_IS: _logits(model, hr, context)}
    factor = model.context_factor
    seen = tuple(_seen_context(region, tile.window, each) for each in context_factors(factor))
    gates = model.network.gates
    logits[MASKED] = _logits(model, hr, mask_context(context, factor))
    if (other := _least_similar_context(model, scene, tile.window)) is not None:
        logits[SWAPPED] = _logits(model, hr, swap_context(context, other, factor))
    return Explanation(
        row=row,
        col=col,
        tile=tile,
        pixel=pixel,
        image=region.tile(tile.window),
        contexts=seen,
        stages=tuple(
            s._replace(on_padding=share_on(s.mean, seen[s.context].padding), gate=gates.get(s.stage)) for s in stages
        ),
        probabilities={kind: x[:, pixel[0], pixel[1]].softmax(0).cpu().numpy() for kind, x in logits.items()},
        classes={kind: class_map(logits[kind], valid) for kind in (AS_IS, MASKED)},
    )


def _seen_context(region: Region, tile: Window, factor: int) -> SeenContext:
    missing = np.where(region.valid[context_window(tile, factor).inside(region.window)], 0.0, 1.0).astype(np.float32)
    padding = missing.reshape(tile.height, factor, tile.width, factor).mean((1, 3))
    return SeenContext(factor, region.context(tile, factor), padding)


def share_on(attention: Floats, padding: Floats) -> float:
    """Return the share of attention (H, W) over tokens that lies on padding (T, T) of the pixels under them, 0..1."""
    side = PATCH_PX * 2 ** round(np.log2(len(padding) / len(attention) / PATCH_PX))
    # The last tokens may reach beyond the context, where the network adds zeros.
    reach = side * len(attention) - len(padding)
    tokens = np.pad(padding, (0, reach), mode="edge").reshape(len(attention), side, -1, side).mean((1, 3))
    return float((attention * tokens).sum() / attention.sum())


def pixel_as_read(scene: SceneReader, row: int, col: int) -> tuple[int, int]:
    """Convert (row, col) of the raster to the pixels that are read, which may be resampled to ``read_gsd_m``."""
    read_row, read_col = (int((at + 0.5) / scene.ratio) for at in (row, col))
    return min(read_row, scene.height - 1), min(read_col, scene.width - 1)


def shows_attention(network: nn.Module) -> bool:
    """Return whether a network has cross-attention to a context: CASWiT with fusion."""
    return isinstance(network, CASWiT) and network.reads_context


def check_reads_context(model: Predictor) -> None:
    """Raise ModelError for a network without cross-attention, such as the baseline."""
    if not isinstance(model.network, CASWiT):
        raise ModelError("this model is not of arch caswit, so there is no cross-attention to show")
    if not model.network.reads_context:
        raise ModelError(
            "this model reads no context (fusion_stages is empty), so there is no attention to show; "
            "choose one with context"
        )


@contextmanager
def recorded_attention(network: CASWiT, row: int, col: int, tile_px: int) -> Iterator[list[StageAttention]]:
    """Fill a list, stage by stage, with the attention of one pixel in the first image of the next forward pass.

    Args:
        network: In evaluation mode.
        row: Row of the pixel in the tile.
        col: Column of the pixel in the tile.
        tile_px: Side of the tile.
    """
    # Fused attention kernels never store the matrix of weights, and for every token it would not fit into memory. The
    # row of the one queried token is computed a second time beside them, so what the network returns stays the same.
    recorded: list[StageAttention] = []
    hooks = []

    def record(stage: int) -> Any:
        def hook(module: CrossAttention, images: tuple[Tensor, Tensor]) -> None:
            hr, context = (image[:1] for image in images)
            stride = PATCH_PX * 2 ** (stage - 1)
            token = min(row // stride, hr.shape[1] - 1), min(col // stride, hr.shape[2] - 1)
            weights = module.weights(hr, context, *token)[0].float().cpu().numpy()
            # The maps of several contexts lie one under another.
            for number, heads in enumerate(np.split(weights, network.contexts, axis=1)):
                recorded.append(StageAttention(stage, heads, number))

        return hook

    try:
        for stage in network.fusion_stages:
            attention = network.fusion[str(stage)].get_submodule("attention")
            hooks.append(attention.register_forward_pre_hook(record(stage)))
        yield recorded
    finally:
        for hook in hooks:
            hook.remove()


def _check_inside(scene: SceneReader, row: int, col: int) -> None:
    height, width = scene.image.height, scene.image.width
    if not (0 <= row < height and 0 <= col < width):
        raise ConfigError(
            f"row {row}, column {col} lies outside {scene.scene.image.name}, which has rows 0-{height - 1} "
            f"and columns 0-{width - 1}"
        )


@torch.inference_mode()
def _logits(model: Predictor, hr: Tensor, context: Tensor) -> Tensor:
    """Return the (K, T, T) fp32 logits of a batch of one."""
    network = model.network.to(model.device)  # a map on a GPU is made by a copy
    with autocast(model.device, model.bf16):
        logits: Tensor = network(hr, context)
    return logits[0].float()


def _batch(model: Predictor, region: Region, tile: Window) -> tuple[Tensor, Tensor]:
    """Return tile and context as batches of one, on the model's device."""
    images = region.tile(tile), region.context(tile, model.context_factor)
    hr, context = (torch.from_numpy(np.ascontiguousarray(x))[None].to(model.device) for x in images)
    return hr, context


def _least_similar_context(model: Predictor, scene: SceneReader, tile: Window) -> Tensor | None:
    """Return the context whose mean colour differs most, of tiles spread over the scene that do not overlap this one.

    Another real context, unlike a black one, is an input of the kind that the network was trained on: if the class
    holds here and falls with a masked context, black was the reason and not the missing information.
    """
    factor, side = model.context_factor, tile.height
    rows, cols = (some_of(starts(length, side, 0), _SWAP_CANDIDATES) for length in (scene.height, scene.width))
    mean_colour = scene.region(context_window(tile, factor)).context(tile, factor).mean((-2, -1))
    farthest, distance = None, 0.0
    for window in (Window(row, col, side, side) for row in rows for col in cols):
        if abs(window.row - tile.row) < side and abs(window.col - tile.col) < side:
            continue
        region = scene.region(context_window(window, factor))
        context = region.context(window, factor)
        apart = float(np.abs(context.mean((-2, -1)) - mean_colour).sum())
        if apart > distance and region.valid.mean() > 0.5:  # beyond the raster all is black: that would be masking
            farthest, distance = context, apart
    return None if farthest is None else torch.from_numpy(farthest)[None].to(model.device)
