"""What the network looked at when it labelled a pixel, and how much its surroundings matter (figures 6 and 11).

Shapes: T tile_px, K classes, h heads, H/W rows and columns of context tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from caswit.data.reader import Region, SceneReader, context_window
from caswit.errors import ConfigError, ModelError
from caswit.inference.devices import autocast
from caswit.inference.predictor import Predictor, class_map, mask_context, swap_context
from caswit.nn.caswit import CASWiT
from caswit.nn.fusion import CrossAttention
from caswit.nn.swin import PATCH_PX
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Tile, Window, owner, starts

Floats = NDArray[np.float32]

AS_IT_IS, BLACK, ELSEWHERE = "as they are", "black", "from elsewhere"
"""The surroundings a pixel was labelled with."""
_SWAP_SIDE = 3
"""Places along each axis from which other surroundings may come."""


class StageAttention(NamedTuple):
    """What one hr token reads from the context after a stage."""

    stage: int
    """From 1."""
    heads: Floats
    """(h, H, W): how much each head reads where; sums to 1 over the context."""

    @property
    def mean(self) -> Floats:
        """(H, W): the mean over the heads."""
        mean: Floats = self.heads.mean(0)
        return mean


class Explanation(NamedTuple):
    """Everything about how one pixel got its class."""

    row: int
    col: int
    tile: Tile
    """The tile in which ``predict`` labels the pixel, in pixels that are read."""
    place: tuple[int, int]
    """(row, column) of the pixel in the tile."""
    image: UInt8
    """(3, T, T): the tile."""
    context: UInt8
    """(3, T, T): the averaged surroundings, the tile in their middle."""
    stages: tuple[StageAttention, ...]
    probabilities: Mapping[str, Floats]
    """Surroundings -> (K,) probabilities of the pixel; ELSEWHERE only if the scene has another tile."""
    classes: Mapping[str, UInt8]
    """AS_IT_IS and BLACK -> (T, T) class indices of the tile, IGNORE_INDEX where there are no data."""

    @property
    def changed(self) -> Bool:
        """(T, T): pixels whose class is another one without the surroundings."""
        changed: Bool = self.classes[AS_IT_IS] != self.classes[BLACK]
        return changed


def explain_pixel(model: Predictor, scene: SceneReader, row: int, col: int, tile_px: int) -> Explanation:
    """Explain the class of one pixel.

    Args:
        model: A network that reads its context, on its device.
        scene: Where the pixel lies.
        row: Of the pixel, in the raster.
        col: Of the pixel, in the raster.
        tile_px: Side of the model's tiles.

    Raises:
        ModelError: The network reads no context.
        ConfigError: The pixel lies outside the scene, or has no data.
    """
    check_reads_context(model)
    _check_inside(scene, row, col)
    at = read_pixel(scene, row, col)
    tile = owner(scene.height, scene.width, tile_px, tile_px // 4, *at)
    region = scene.region(context_window(tile.window, model.context_factor))
    valid = region.valid[tile.window.inside(region.window)]
    place = at[0] - tile.window.row, at[1] - tile.window.col
    if not valid[place]:
        raise ConfigError(f"{scene.scene.image.name} has no data at row {row}, column {col}; choose another pixel")
    hr, context = _batch(model, region, tile.window)
    assert isinstance(model.network, CASWiT)  # only it reads context
    with recorded_attention(model.network, *place, tile_px) as stages:
        logits = {AS_IT_IS: _logits(model, hr, context)}
    factor = model.context_factor
    logits[BLACK] = _logits(model, hr, mask_context(context, factor))
    if (elsewhere := _elsewhere(model, scene, tile.window)) is not None:
        logits[ELSEWHERE] = _logits(model, hr, swap_context(context, elsewhere, factor))
    return Explanation(
        row=row,
        col=col,
        tile=tile,
        place=place,
        image=region.tile(tile.window),
        context=region.context(tile.window, factor),
        stages=tuple(stages),
        probabilities={name: x[:, place[0], place[1]].softmax(0).cpu().numpy() for name, x in logits.items()},
        classes={name: class_map(logits[name], valid) for name in (AS_IT_IS, BLACK)},
    )


def read_pixel(scene: SceneReader, row: int, col: int) -> tuple[int, int]:
    """The pixel that is read where a pixel of the raster lies; the same one but for models of a fixed ground size."""
    read_row, read_col = ((int((at + 0.5) / scene.ratio)) for at in (row, col))
    return min(read_row, scene.height - 1), min(read_col, scene.width - 1)


def check_reads_context(model: Predictor) -> None:
    """Raise ModelError for the baseline, which has no attention to show."""
    if not model.network.reads_context:
        raise ModelError("this model reads no context (fusion_stages is empty), so there is no attention to show")


@contextmanager
def recorded_attention(network: CASWiT, row: int, col: int, tile_px: int) -> Iterator[list[StageAttention]]:
    """A list that gets the attention of the first image of the next forward pass, stage by stage.

    The weights of the queried token are computed beside the network's own attention, so what the network
    returns does not change.

    Args:
        network: In evaluation mode.
        row: Of the queried pixel, in the tile.
        col: Of the queried pixel, in the tile.
        tile_px: Side of the tile.
    """
    found: list[StageAttention] = []
    hooks = []

    def record(stage: int) -> Any:
        def hook(module: CrossAttention, images: tuple[Tensor, Tensor]) -> None:
            hr, context = (image[:1] for image in images)
            stride = PATCH_PX * 2 ** (stage - 1)
            place = min(row // stride, hr.shape[1] - 1), min(col // stride, hr.shape[2] - 1)
            weights = module.weights(hr, context, *place)[0]
            found.append(StageAttention(stage, weights.float().cpu().numpy()))

        return hook

    try:
        for stage in network.fusion_stages:
            attention = network.fusion[str(stage)].get_submodule("attention")
            hooks.append(attention.register_forward_pre_hook(record(stage)))
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _check_inside(scene: SceneReader, row: int, col: int) -> None:
    height, width = scene.image.height, scene.image.width
    if not (0 <= row < height and 0 <= col < width):
        raise ConfigError(
            f"row {row}, column {col} lie outside {scene.scene.image.name}, which has rows 0-{height - 1} "
            f"and columns 0-{width - 1}"
        )


@torch.inference_mode()
def _logits(model: Predictor, hr: Tensor, context: Tensor) -> Tensor:
    """(K, T, T) fp32."""
    with autocast(model.device, model.bf16):
        logits: Tensor = model.network(hr, context)
    return logits[0].float()


def _batch(model: Predictor, region: Region, tile: Window) -> tuple[Tensor, Tensor]:
    """Tile and context as batches of one, on the device."""
    images = region.tile(tile), region.context(tile, model.context_factor)
    hr, context = (torch.from_numpy(np.ascontiguousarray(x))[None].to(model.device) for x in images)
    return hr, context


def _elsewhere(model: Predictor, scene: SceneReader, tile: Window) -> Tensor | None:
    """The context of the tile, out of some spread over the scene, whose surroundings differ most in colour."""
    factor, side = model.context_factor, tile.height
    rows, cols = (_spread(starts(length, side, 0)) for length in (scene.height, scene.width))
    here = scene.region(context_window(tile, factor)).context(tile, factor).mean((1, 2))
    farthest, distance = None, 0.0
    for window in (Window(row, col, side, side) for row in rows for col in cols):
        if abs(window.row - tile.row) < side and abs(window.col - tile.col) < side:
            continue
        region = scene.region(context_window(window, factor))
        context = region.context(window, factor)
        apart = float(np.abs(context.mean((1, 2)) - here).sum())
        if apart > distance and region.valid.mean() > 0.5:
            farthest, distance = context, apart
    return None if farthest is None else torch.from_numpy(farthest)[None].to(model.device)


def _spread(items: list[int]) -> list[int]:
    """At most ``_SWAP_SIDE`` of them, from the first to the last."""
    picks = np.linspace(0, len(items) - 1, num=min(_SWAP_SIDE, len(items)))
    return [items[round(i)] for i in picks]
