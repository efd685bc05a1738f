"""One block of a map: a pure function of the images, the model and the settings, whoever calls it.

Shapes: K classes, H x W native pixels of the block. A finished block is (bands, H, W) uint8, NODATA where nothing
is mapped: band 1 class ids, where the class is probable enough, then the probability of that class, then those of all
classes, in percent, as asked for.
"""

from collections.abc import Sequence
from itertools import groupby
from math import pi
from typing import Self

import numpy as np
import torch
from torch import Tensor

from caswit.inference.predictor import BlockPixels, classifier
from caswit.inference.tta import averaged
from caswit.mapping.plan import MapPlan
from caswit.raster.cog import NODATA
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Block, Tile, Window, block_at
from caswit.weights.model_folder import LoadedModel, load_model

_LEAST_WEIGHT = 1e-6


class BlockMapper:
    """Maps blocks of one plan: holds the open images and the model. Use as a context manager.

    One thread may read while another computes.

    Args:
        job: The plan of the map.
        loaded: The plan's model, where it is loaded already.
    """

    def __init__(self, job: MapPlan, loaded: LoadedModel | None = None) -> None:
        self.job = job
        loaded = loaded or load_model(job.model)
        self.tile_px, self.overlap_px = job.layout.tile_px, job.layout.overlap_px
        self.model = averaged(classifier(loaded, job.settings), job.settings.tta)
        self.ids = torch.from_numpy(loaded.info.classes.ids).to(self.model.device)
        self.classes = len(loaded.info.classes)
        self.scene = job.open()

    @property
    def precision(self) -> str:
        """What is computed in: bf16 or fp32."""
        return "bf16" if self.model.bf16 else "fp32"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.scene.close()

    def block(self, window: Window) -> Block:
        """The block with one of the windows of the plan."""
        size = self.scene.height, self.scene.width
        return block_at(window, *size, self.tile_px, self.overlap_px, halo=self.job.settings.blend)

    def read(self, block: Block) -> BlockPixels | None:
        """Read what a block needs; None where there is nothing to map.

        Raises:
            DataError: It cannot be read.
        """
        native = self.scene.native(block.window)
        if self.scene.image.is_empty(native):
            return None
        pixels = self.model.read(self.scene, block)
        if self.job.area is not None:
            pixels = pixels._replace(valid=pixels.valid & self.job.area.mask(native))
        return pixels if pixels.valid.any() else None

    def compute(self, block: Block, pixels: BlockPixels) -> UInt8:
        """Map what was read."""
        shape = self.job.bands.count(self.classes), pixels.native.height, pixels.native.width
        out = np.full(shape, NODATA, np.uint8)
        (self._blend if self.job.settings.blend else self._own)(block, pixels, out)
        out[:, ~pixels.valid] = NODATA
        return out

    def _own(self, block: Block, pixels: BlockPixels, out: UInt8) -> None:
        """Every tile keeps what it owns."""
        tiles = [(tile, self.scene.native(tile.owned)) for tile in block.tiles]
        for _, owned, logits in self.model.native_logits(self.scene, pixels.region, _wanted(tiles, pixels)):
            out[:, *owned.inside(pixels.native)] = self._values(logits, None)

    def _blend(self, block: Block, pixels: BlockPixels, out: UInt8) -> None:
        """Every pixel is the weighted mean of all tiles that see it. Holds the rows of one row of tiles.

        Tiles are summed in the order of the whole raster's grid, so no block size changes a sum.
        """
        native = pixels.native
        rows = [list(row) for _, row in groupby(block.tiles, lambda tile: tile.window.row)]
        tops = [self._seen(row[0], native).row for row in rows[1:]]
        sums = torch.zeros(self.classes + 1, 0, native.width, device=self.model.device)  # the last one: weights
        top = native.row
        for row, final in zip(rows, [*tops, native.row + native.height], strict=True):
            seen = [(tile, self._seen(tile, native)) for tile in row]
            missing = max(part.row + part.height for _, part in seen) - top - sums.shape[1]
            sums = torch.cat([sums, sums.new_zeros(len(sums), max(missing, 0), native.width)], dim=1)
            held = Window(top, native.col, sums.shape[1], native.width)
            for tile, part, logits in self.model.native_logits(self.scene, pixels.region, _wanted(seen, pixels)):
                weight = self._weight(tile, part)
                sums[:, *part.inside(held)] += torch.cat([logits.softmax(0) * weight, weight[None]])
            done, sums = sums[:, : final - top], sums[:, final - top :]
            blended = done[:-1] / done[-1].clamp(min=_LEAST_WEIGHT**2)
            out[:, top - native.row : final - native.row] = self._values(blended, blended)
            top = final

    def _seen(self, tile: Tile, native: Window) -> Window:
        inside = tile.window.clipped(self.scene.height, self.scene.width)
        return self.scene.native(inside).common(native)

    def _weight(self, tile: Tile, part: Window) -> Tensor:
        """(H, W): how much each native pixel trusts a tile: a Hann window."""
        along = []
        axes = ((self.scene.rows, tile.window.row, part.row, part.height),
                (self.scene.cols, tile.window.col, part.col, part.width))  # fmt: skip
        for axis, start, first, length in axes:
            at = torch.from_numpy(axis.positions(first, first + length) - start)
            along.append(torch.sin(pi * (at + 0.5) / self.tile_px).square().clamp(min=_LEAST_WEIGHT))
        return torch.outer(*along).float().to(self.model.device)

    def _values(self, scores: Tensor, probabilities: Tensor | None) -> UInt8:
        """(bands, H, W) from scores (K, H, W), whose softmax are the probabilities where these are not given."""
        values = [self.ids[scores.argmax(0)][None]]
        least = self.job.settings.min_confidence
        if least or any(self.job.bands):
            percent = (scores.softmax(0) if probabilities is None else probabilities) * 100
            percent = percent.round().byte()
            confidence = percent.amax(0, keepdim=True)
            values[0][confidence < least] = NODATA
            values += [confidence] * self.job.bands.confidence
            values += [percent] * self.job.bands.probabilities
        return torch.cat(values).cpu().numpy()


def _wanted(tiles: Sequence[tuple[Tile, Window]], pixels: BlockPixels) -> list[tuple[Tile, Window]]:
    """Tiles with something to map in the native window beside them."""
    return [(t, part) for t, part in tiles if _any(pixels.valid, part.inside(pixels.native))]


def _any(valid: Bool, where: tuple[slice, slice]) -> bool:
    return bool(valid[where].any())
