"""Prediction of tiles and blocks of a scene.

A block is a pure function of (scene, model, settings). Evaluation and mapping share it.
Shapes: T tile_px, B tiles in a batch, K classes.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from caswit.config import IGNORE_INDEX, ComputeConfig
from caswit.data.reader import Region, SceneReader, context_window
from caswit.inference.cpu.network import fast_network
from caswit.inference.devices import autocast, pick_device, uses_bf16
from caswit.nn.baselines.smp import Network
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Block, Tile, Window
from caswit.weights.lazy import LazyWeights
from caswit.weights.model_folder import LoadedModel

T = TypeVar("T")


class BlockPixels(NamedTuple):
    """What is read for a block."""

    region: Region
    """Its tiles and their context, in pixels that are read."""
    native: Window
    """The native pixels it owns."""
    valid: Bool
    """(H, W): which of them have data."""


class Predictor:
    """A network on a device that turns tiles into class indices.

    Args:
        network: In evaluation mode.
        context_factor: What it was trained with.
        batch: Tiles per forward pass.
        device: Where to compute.
        bf16: Compute in bfloat16.
        fast: Arrange the network for inference where that is possible. Its weights must not change any more.
        weights: What the network's lie in, if that is a file: arranged, they need not stay in memory.
    """

    def __init__(
        self,
        network: Network,
        *,
        context_factor: int,
        batch: int,
        device: torch.device,
        bf16: bool,
        fast: bool = False,
        weights: LazyWeights | None = None,
    ) -> None:
        self.network = network.to(device)
        self.fast = fast_network(self.network, device=device, bf16=bf16, weights=weights) if fast else None
        self.context_factor = context_factor if network.reads_context else 1
        self.batch, self.device, self.bf16 = batch, device, bf16

    @torch.inference_mode()
    def logits(self, region: Region, tiles: Sequence[Tile]) -> Tensor:
        """(B, K, T, T) fp32 logits of tiles whose context lies in ``region``."""
        hr = self._stack([region.tile(t.window) for t in tiles])
        context = None
        if self.network.reads_context:
            context = self._stack([region.context(t.window, self.context_factor) for t in tiles])
        return self.network_logits(hr, context)

    def network_logits(self, hr: Tensor, context: Tensor | None) -> Tensor:
        """(B, K, T, T) fp32 logits of images that are on the device."""
        if self.fast is not None:
            return self.fast(hr, context)
        with autocast(self.device, self.bf16):
            logits: Tensor = self.network(hr, context)
        return logits.float()

    def _stack(self, images: list[UInt8]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self.device)

    def read(self, scene: SceneReader, block: Block) -> "BlockPixels":
        """Read everything that a block needs of its scene."""
        tile_px = block.tiles[0].window.height
        margin = tile_px * (self.context_factor - 1) // 2
        region = scene.region(block.reach.grown(margin))
        native = scene.native(block.window)
        if scene.ratio == 1:
            return BlockPixels(region, native, region.valid[native.inside(region.window)])
        return BlockPixels(region, native, scene.native_image(native)[1])

    def native_logits(
        self, scene: SceneReader, region: Region, tiles: Sequence[tuple[Tile, Window]]
    ) -> Iterator[tuple[Tile, Window, Tensor]]:
        """Logits (K, H, W) of the native window beside each tile, batch by batch."""
        for some in batched(tiles, self.batch):
            for (tile, native), logits in zip(some, self.logits(region, [t for t, _ in some]), strict=True):
                yield tile, native, _native_logits(logits, scene, tile, native)

    def block(self, scene: SceneReader, block: Block) -> UInt8:
        """Class indices of the native pixels of a block: (H, W), IGNORE_INDEX where the scene has no data."""
        region, native, valid = self.read(scene, block)
        classes = np.full((native.height, native.width), IGNORE_INDEX, np.uint8)
        tiles = [(t, scene.native(t.owned)) for t in block.tiles]
        with_data = [(t, owned) for t, owned in tiles if valid[owned.inside(native)].any()]
        for _, owned, logits in self.native_logits(scene, region, with_data):
            classes[owned.inside(native)] = logits.argmax(0).byte().cpu().numpy()
        classes[~valid] = IGNORE_INDEX
        return classes

    def tile(self, scene: SceneReader, tile: Window) -> UInt8:
        """Class indices of one tile as it is read: (T, T), IGNORE_INDEX where the scene has no data."""
        region = scene.region(context_window(tile, self.context_factor))
        (logits,) = self.logits(region, [Tile(tile, tile)])
        valid = region.valid[tile.inside(region.window)]
        return np.where(valid, logits.argmax(0).byte().cpu().numpy(), IGNORE_INDEX).astype(np.uint8)


def _native_logits(logits: Tensor, scene: SceneReader, tile: Tile, owned: Window) -> Tensor:
    """Logits (K, T, T) of a tile at the native pixels it owns (K, H, W), linear between the pixels that were read."""
    if scene.ratio == 1:
        rows, cols = owned.inside(tile.window)
        return logits[:, rows, cols]
    rows_at = scene.rows.positions(owned.row, owned.row + owned.height) - tile.window.row
    cols_at = scene.cols.positions(owned.col, owned.col + owned.width) - tile.window.col
    across = _interpolate(logits, torch.from_numpy(cols_at))
    return _interpolate(across.transpose(1, 2), torch.from_numpy(rows_at)).transpose(1, 2)


def _interpolate(values: Tensor, positions: Tensor) -> Tensor:
    """Linear between the entries of the last axis; the outermost ones reach on."""
    positions = positions.clamp(0, values.shape[-1] - 1)
    below = positions.floor().clamp(max=max(values.shape[-1] - 2, 0)).long()
    share = (positions - below).to(values)
    below = below.to(values.device)
    return torch.lerp(values[..., below], values[..., below + 1], share)


def classifier(model: LoadedModel, settings: ComputeConfig) -> Predictor:
    """Put a loaded model on the device that the settings ask for."""
    device = pick_device(settings.device)
    return Predictor(
        model.network,
        context_factor=model.info.tile.context_factor,
        batch=settings.batch,
        device=device,
        bf16=uses_bf16(settings.precision, device),
        fast=settings.precision != "fp32",
        weights=model.weights,
    )


def batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Consecutive groups of at most ``size`` (itertools has it from Python 3.12 on)."""
    rest = iter(items)
    while group := tuple(islice(rest, size)):
        yield group
