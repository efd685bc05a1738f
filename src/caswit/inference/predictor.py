"""Prediction of tiles and blocks of a scene with a trained network.

A block is a pure function of (scene, model, settings). Evaluation and mapping share it. Nothing here knows how a
network is arranged for a processor: ``caswit.inference.load`` makes the predictor that the commands use.

Shapes: T tile_px, B tiles in a batch, K classes, H/W rows and columns, f context_factor. Contexts are (B, 3, T, T);
where there are N of them, narrowest first, they are (B, N, 3, T, T).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import reduce
from itertools import count, groupby, islice
from math import lcm, pi
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caswit.config import IGNORE_INDEX, ContextFactor, context_factors
from caswit.config.inference import Fill
from caswit.data.reader import Region, SceneReader, context_window
from caswit.inference.devices import autocast
from caswit.inference.transfers import Transfers
from caswit.nn.network import Network, stride_px
from caswit.raster.mirror import mirrored
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Block, Tile, Window, bounds, slice_middle

Averaged = Mapping[int, Mapping[Window, UInt8]]
"""By factor and tile: its context (3, T, T), in memory that those of other tiles share."""
Forward = Callable[[Tensor, Tensor | None], Tensor]
"""Tiles (B, 3, T, T) and contexts -> logits (B, K, T, T)."""

_LEAST_PROBABILITY = 1e-12
"""Lower ones count as this, so that every probability has a logarithm."""
_LEAST_WEIGHT = 1e-6
"""Weight of a tile's outermost pixels: where no other tile sees them, they still need one."""


class TestTimeAugmentation:
    """The mean of a network's probabilities over symmetries of the square.

    Args:
        count: 1 takes images as they are, 2 adds the mirror image, 4 are the quarter turns, 8 both.
    """

    def __init__(self, count: int) -> None:
        mirrors = (False,) if count in (1, 4) else (False, True)
        self.symmetries = [(quarter, mirror) for mirror in mirrors for quarter in range(4 if count >= 4 else 1)]
        assert len(self.symmetries) == count, count

    def __call__(self, run: Forward, hr: Tensor, context: Tensor | None) -> Tensor:
        """Run a network: logarithms of mean probabilities (B, K, T, T), or its own logits where ``count`` is 1."""
        if len(self.symmetries) == 1:
            return run(hr, context)
        # Probabilities are averaged, not logits, so that one very sure answer cannot outvote the others.
        each = (self._probabilities(run, hr, context, *symmetry) for symmetry in self.symmetries)
        return (reduce(torch.add, each) / len(self.symmetries)).clamp(min=_LEAST_PROBABILITY).log()

    def _probabilities(self, run: Forward, hr: Tensor, context: Tensor | None, quarter: int, mirror: bool) -> Tensor:
        seen = None if context is None else self.apply(context, quarter, mirror)
        return self.undo(run(self.apply(hr, quarter, mirror), seen).softmax(1), quarter, mirror)

    @staticmethod
    def apply(image: Tensor, quarter: int, mirror: bool) -> Tensor:
        """Mirror over the last axis where asked, then turn by quarters; the last two axes are rows and columns."""
        return torch.rot90(image.flip(-1) if mirror else image, quarter, (-2, -1))

    @staticmethod
    def undo(image: Tensor, quarter: int, mirror: bool) -> Tensor:
        """Undo ``apply``."""
        straight = torch.rot90(image, -quarter, (-2, -1))
        return straight.flip(-1) if mirror else straight


def mask_context(context: Tensor, factor: ContextFactor) -> Tensor:
    """Return contexts with black around the tile's own part in each."""
    return swap_context(context, torch.zeros_like(context), factor)


def swap_context(context: Tensor, other: Tensor, factor: ContextFactor) -> Tensor:
    """Return contexts with everything around the tile's own part in each taken from another place's."""
    if not isinstance(factor, int):
        each = zip(context.unbind(-4), other.unbind(-4), factor, strict=True)
        return torch.stack([swap_context(*one) for one in each], -4)
    # The middle, which is the tile once more, averaged, stays: black around it is what the network met in training at
    # every edge of the data, a black middle it never met.
    rows, cols = (slice_middle(side, factor) for side in context.shape[-2:])
    swapped = other.clone()
    swapped[..., rows, cols] = context[..., rows, cols]
    return swapped


def class_map(scores: Tensor, valid: Bool) -> UInt8:
    """Return the classes (H, W) with the highest of scores (K, H, W), IGNORE_INDEX where not valid."""
    return np.where(valid, scores.argmax(0).byte().cpu().numpy(), np.uint8(IGNORE_INDEX))


class BlockPixels(NamedTuple):
    """The pixels that are read for a block."""

    region: Region
    """Its tiles and their context, in pixels that are read."""
    native: Window
    """The native pixels it owns."""
    valid: Bool
    """(H, W): which of them have data."""


def read_block(scene: SceneReader, block: Block, context_factor: ContextFactor) -> BlockPixels:
    """Read everything that a block of a scene needs for a network with these context factors; 1 reads no context."""
    region = scene.region(bounds([context_window(tile.window, context_factor) for tile in block.tiles]))
    native = scene.native(block.window)
    if scene.ratio == 1:
        return BlockPixels(region, native, region.valid[native.inside(region.window)])
    # The region's mask has the resolution that is read; the map needs the native one.
    return BlockPixels(region, native, scene.native_image(native)[1])


class Prediction(NamedTuple):
    """Scores of the classes in a part of a block."""

    window: Window
    """The part, in native pixels."""
    scores: Tensor
    """(K, H, W): the highest is the class. Logits, or probabilities where tiles are blended."""
    blended: bool

    def probabilities(self) -> Tensor:
        """Return the probabilities of the classes (K, H, W)."""
        return self.scores if self.blended else self.scores.softmax(0)

    def confidence(self) -> Tensor:
        """Return the probability of the class with the highest score, in percent: (H, W) uint8."""
        return (self.probabilities().amax(0) * 100).round().byte()


class Predictor:
    """A network on a device that labels tiles and blocks of scenes.

    Args:
        network: In evaluation mode.
        context_factor: f that it was trained with, or those of several contexts.
        batch: Tiles per forward pass.
        device: Where to compute.
        bf16: Compute in bfloat16.
        int8: ``arranged`` computes in integers what it can.
        arranged: The same network in another form, which is run instead; None runs ``network`` itself.
        tta: Symmetries over which ``TestTimeAugmentation`` averages: 1, 2, 4 or 8.
        masked_context: Black out the context around every tile.
        fill: What the network sees where there is no data: ``black``; the image mirrored at the edges of ``holes``
            only; ``mirror``, at its outer edges too.
    """

    def __init__(
        self,
        network: Network,
        *,
        context_factor: ContextFactor,
        batch: int,
        device: torch.device,
        bf16: bool,
        int8: bool = False,
        arranged: Forward | None = None,
        tta: int = 1,
        masked_context: bool = False,
        fill: Fill = "black",
    ) -> None:
        # On a GPU the other form is a copy: two would be a gigabyte more than one.
        copied = arranged is not None and device.type == "cuda"
        self.network, self.arranged = network if copied else network.to(device), arranged
        # The baseline reads no margin: with a factor of 1, the context window is the tile itself.
        self.context_factor: ContextFactor = context_factor if network.reads_context else 1
        self.batch, self.device, self.bf16, self.int8 = batch, device, bf16, int8
        self.tta, self.masked_context, self.fill = TestTimeAugmentation(tta), masked_context, fill
        self._others: Iterator[Tensor] | None = None
        self.transfers = Transfers(device)

    @property
    def precision(self) -> str:
        """The precision that is computed in: int8, bf16 or fp32."""
        return "int8" if self.int8 else "bf16" if self.bf16 else "fp32"

    @property
    def step_px(self) -> int:
        """Sides of images must be multiples of this, where they are not the model's own tiles."""
        # Both branches must have whole pixels, and the tile whole pixels of its context on either side of its middle.
        return lcm(stride_px(self.network), *(2 * factor for factor in context_factors(self.context_factor)))

    def with_masked_context(self) -> "Predictor":
        """Return the same predictor with masked context; it shares the network."""
        masked = copy.copy(self)
        masked.masked_context = True
        return masked

    def with_swapped_context(self, others: Tensor, tiles: int) -> "Predictor":
        """Return the same predictor, which shows each tile another place's context around its own part.

        Args:
            others: Contexts (P, 3, T, T), or (P, N, 3, T, T), of places spread over the tiles in their order.
            tiles: Number of tiles that will be labelled; tile n sees the place half of them away.
        """
        swapped = copy.copy(self)
        places = len(others)
        swapped._others = (others[(n * places // max(tiles, 1) + places // 2) % places] for n in count())
        return swapped

    def logits(self, region: Region, tiles: Sequence[Tile], averaged: Averaged | None = None) -> Tensor:
        """Return fp32 logits (B, K, T, T) of tiles whose context lies in ``region``, which may be averaged already."""
        hr = torch.stack([self._shown_tile(region, t.window) for t in tiles])
        context = None
        if self.network.reads_context:
            context = torch.stack([self.context(region, t.window, averaged) for t in tiles])
            if self._others is not None:
                context = swap_context(context, torch.stack([*islice(self._others, len(tiles))]), self.context_factor)
        return self.image_logits(hr, context)

    def context(self, region: Region, tile: Window, averaged: Averaged | None = None) -> Tensor:
        """Return the context of a tile, on the device, as the network is to see it: (3, T, T), or (N, 3, T, T)."""
        if isinstance(self.context_factor, int):
            return self._context(region, tile, self.context_factor, averaged)
        return torch.stack([self._context(region, tile, each, averaged) for each in self.context_factor])

    def _context(self, region: Region, tile: Window, factor: int, averaged: Averaged | None) -> Tensor:
        """Return the context of a tile with one factor, on the device, as the network is to see it: (3, T, T)."""
        window = context_window(tile, factor)
        uploaded = self._on_device(region, window, factor)
        if uploaded is not None:
            return _area_average(uploaded, factor)
        context = region.context(tile, factor) if averaged is None else averaged[factor][tile]
        return self._sent(self._shown(region, context, window, factor))

    def _contexts(self, region: Region, tiles: Sequence[Window]) -> Averaged | None:
        """Return the contexts of tiles of one region; None where the device averages them itself."""
        if self.device.type != "cpu" or not self.network.reads_context:
            return None
        return {factor: region.contexts(tiles, factor) for factor in context_factors(self.context_factor)}

    def _shown_tile(self, region: Region, window: Window) -> Tensor:
        """Return a tile, on the device, as the network is to see it: (3, T, T)."""
        uploaded = self._on_device(region, window)
        return self._sent(self._shown(region, region.tile(window), window)) if uploaded is None else uploaded

    def _on_device(self, region: Region, window: Window, factor: int = 1) -> Tensor | None:
        """Return a window of a region that is on the device already: (3, H, W); None where it is to be made here."""
        # A GPU cuts and averages itself: pixels of a block are sent once, not once for each context they lie in.
        if self.device.type == "cpu" or not self._is_whole(region, window, factor):
            return None
        return self.transfers.pixels(region.image)[:, *window.inside(region.window)]

    def _is_whole(self, region: Region, window: Window, factor: int) -> bool:
        """Return whether nothing is to be filled in a window."""
        return self.fill == "black" or bool(region.known(window, factor, around=self.fill == "holes").all())

    def _sent(self, image: UInt8) -> Tensor:
        """Return an image on the device."""
        return self.transfers.small(torch.from_numpy(image))

    def _shown(self, region: Region, image: UInt8, window: Window, factor: int = 1) -> UInt8:
        """Return a tile or context as the network is to see it."""
        # From the tile's own pixels alone, so that it does not depend on the block that is read.
        if self.fill == "black":
            return image
        known = region.known(window, factor, around=False)
        holes = ~region.known(window, factor, around=True) if self.fill == "holes" else None
        return mirrored(image, known, holes)

    @torch.inference_mode()
    def image_logits(self, hr: Tensor, context: Tensor | None) -> Tensor:
        """Return fp32 logits (B, K, T, T) of images that are on the device."""
        if context is not None and self.masked_context:
            context = mask_context(context, self.context_factor)
        return self.tta(self._plain if self.arranged is None else self.arranged, hr, context)

    def _plain(self, hr: Tensor, context: Tensor | None) -> Tensor:
        with autocast(self.device, self.bf16):
            logits: Tensor = self.network(hr, context)
        # Interpolation and weighted sums follow, for which bf16 has too few digits.
        return logits.float()

    def shown(self, scene: SceneReader, tile: Tile) -> tuple[Tensor, Tensor | None]:
        """Read one tile, and return the images that the network is handed: (1, n, T, T), and those of its context."""
        region = scene.region(context_window(tile.window, self.context_factor))
        context = self.context(region, tile.window)[None] if self.network.reads_context else None
        return self._shown_tile(region, tile.window)[None], context

    def tile(self, scene: SceneReader, tile: Window) -> UInt8:
        """Read and label one tile: class indices (T, T) of the pixels that are read, IGNORE_INDEX without data."""
        region = scene.region(context_window(tile, self.context_factor))
        (logits,) = self.logits(region, [Tile(tile, tile)])
        return class_map(logits, region.valid[tile.inside(region.window)])

    def classes(self, scene: SceneReader, block: Block) -> UInt8:
        """Read and label a block: class indices (H, W) of its native pixels, IGNORE_INDEX without data."""
        return self.sure_classes(scene, block, self.read(scene, block))[0]

    def sure_classes(
        self, scene: SceneReader, block: Block, pixels: BlockPixels, *, mean: bool = False
    ) -> tuple[UInt8, UInt8]:
        """Label a block that was read: class indices as ``classes`` returns them, and confidence in percent, (H, W).

        Args:
            scene: Where the block lies.
            block: Its tiles; for the mean, those of its neighbours that reach into it too.
            pixels: As ``read`` returned them.
            mean: Average the logits of all tiles that see a pixel, each with the same weight.
        """
        # On the device until the block is whole: one copy, and nothing that waits for each tile.
        found = torch.zeros(2, *pixels.valid.shape, dtype=torch.uint8, device=self.device)
        for part in self._averaged(scene, block, pixels, even=True) if mean else self.block(scene, block, pixels):
            here = torch.stack([part.scores.argmax(0).byte(), part.confidence()])
            found[:, *part.window.inside(pixels.native)] = here
        classes, percent = self.transfers.fetch(found).numpy()
        return np.where(pixels.valid, classes, np.uint8(IGNORE_INDEX)), percent

    def read(self, scene: SceneReader, block: Block) -> BlockPixels:
        """Read everything that a block needs of its scene; one thread may read while another computes."""
        return read_block(scene, block, self.context_factor)

    def send(self, pixels: BlockPixels) -> None:
        """Begin to copy what was read to a GPU; the thread that reads may do so while another computes."""
        if self.device.type == "cuda":
            self.transfers.send(pixels.region.image)

    def block(
        self, scene: SceneReader, block: Block, pixels: BlockPixels, *, blend: bool = False
    ) -> Iterator[Prediction]:
        """Predict a block part by part; no two parts share a pixel, and those without data may be left out.

        Args:
            scene: Where the block lies.
            block: Its tiles; to be blended, those of its neighbours that reach into it too.
            pixels: As ``read`` returned them. Tiles that see no valid pixel are not computed.
            blend: Average all tiles that see a pixel; otherwise each tile keeps the part it owns.
        """
        if blend:
            return self._averaged(scene, block, pixels, even=False)
        parts = [(tile, scene.native(tile.owned)) for tile in block.tiles]
        return (Prediction(part, logits, False) for _, part, logits in self._native_logits(scene, pixels, parts))

    def _averaged(self, scene: SceneReader, block: Block, pixels: BlockPixels, *, even: bool) -> Iterator[Prediction]:
        """Average tiles, row of tiles by row of tiles. Holds the rows that one row of tiles covers.

        Logits with equal weights if ``even``, as GLNet and FCtL add up the scores of their patches; else probabilities
        with less weight towards a tile's edges, as maps are blended.
        """
        # Tiles are added up in the order of the whole raster's grid, so that no block size changes a sum.
        native = pixels.native
        rows = [list(row) for _, row in groupby(block.tiles, lambda tile: tile.window.row)]
        tops = [_seen(scene, row[0], native).row for row in rows[1:]]
        sums = torch.zeros(self.network.num_classes + 1, 0, native.width, device=self.device)  # the last one: weights
        top = native.row
        for row, final in zip(rows, [*tops, native.row + native.height], strict=True):
            parts = [(tile, _seen(scene, tile, native)) for tile in row]
            missing = max(part.row + part.height for _, part in parts) - top - sums.shape[1]
            sums = torch.cat([sums, sums.new_zeros(len(sums), max(missing, 0), native.width)], dim=1)
            held = Window(top, native.col, sums.shape[1], native.width)
            for tile, part, logits in self._native_logits(scene, pixels, parts):
                weight = torch.ones(part.height, part.width) if even else _weight(scene, tile, part)
                weight = self.transfers.small(weight)
                scores = logits if even else logits.softmax(0)
                sums[:, *part.inside(held)] += torch.cat([scores * weight, weight[None]])
            # The next row of tiles begins at ``final``: what lies above gets no more terms.
            done, sums = sums[:, : final - top], sums[:, final - top :]
            # Weights add up to 0 where no tile was computed. The least weight is that of a corner, a product of two.
            mean = done[:-1] / done[-1].clamp(min=_LEAST_WEIGHT**2)
            yield Prediction(Window(top, native.col, final - top, native.width), mean, not even)
            top = final

    def _native_logits(
        self, scene: SceneReader, pixels: BlockPixels, parts: Sequence[tuple[Tile, Window]]
    ) -> Iterator[tuple[Tile, Window, Tensor]]:
        """Yield tiles with logits (K, H, W) of the native window beside each, batch by batch, where it has data."""
        with_data = [(tile, part) for tile, part in parts if pixels.valid[part.inside(pixels.native)].any()]
        averaged = self._contexts(pixels.region, [tile.window for tile, _ in with_data])
        for first in range(0, len(with_data), self.batch):
            some = with_data[first : first + self.batch]
            logits_of_some = self.logits(pixels.region, [t for t, _ in some], averaged)
            for (tile, part), logits in zip(some, logits_of_some, strict=True):
                yield tile, part, _at_native(logits, scene, tile, part)


def _area_average(image: Tensor, factor: int) -> Tensor:
    """Return what ``raster.resample.area_average`` returns, on the image's device."""
    if factor == 1:
        return image
    squares = image.unflatten(-1, (-1, factor)).unflatten(-3, (-1, factor))
    # 255 times 16 times 16, the largest factor, and half of a square, which rounds half up, fit into 32 bits.
    return ((squares.sum((-3, -1), dtype=torch.int32) + factor**2 // 2) // factor**2).byte()


def _at_native(logits: Tensor, scene: SceneReader, tile: Tile, part: Window) -> Tensor:
    """Return the logits (K, T, T) of a tile at native pixels (K, H, W), linear between the pixels that were read."""
    if scene.ratio == 1:
        rows, cols = part.inside(tile.window)
        return logits[:, rows, cols]
    # Logits, since classes cannot be interpolated: edges then lie between pixels that were read (docs/decisions/0006).
    rows_at, cols_at = _positions(scene, tile, part)
    return _interpolate(_interpolate(logits, cols_at).transpose(1, 2), rows_at).transpose(1, 2)


def _interpolate(values: Tensor, positions: Tensor) -> Tensor:
    """Interpolate linearly between the entries of the last axis; the outermost ones reach on."""
    positions = positions.clamp(0, values.shape[-1] - 1)
    below = positions.floor().clamp(max=max(values.shape[-1] - 2, 0)).long()
    later = values.device.type == "cuda"  # copies of so little need not wait for what the GPU computes
    share = (positions - below).to(values, non_blocking=later)
    below = below.to(values.device, non_blocking=later)
    return torch.lerp(values[..., below], values[..., below + 1], share)


def _seen(scene: SceneReader, tile: Tile, native: Window) -> Window:
    """Return the pixels of a native window that a tile sees."""
    return scene.native(tile.window.clipped(scene.height, scene.width)).common(native)


def _weight(scene: SceneReader, tile: Tile, part: Window) -> Tensor:
    """Return (H, W) the weight of a tile at native pixels: a Hann window, since its edges see the least around them."""
    along = (
        torch.sin(pi * (at + 0.5) / tile.window.height).square().clamp(min=_LEAST_WEIGHT)
        for at in _positions(scene, tile, part)
    )
    return torch.outer(*along).float()


def _positions(scene: SceneReader, tile: Tile, part: Window) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of a tile, in fractions of its pixels, at which native pixels lie."""
    rows = scene.rows.positions(part.row, part.row + part.height) - tile.window.row
    cols = scene.cols.positions(part.col, part.col + part.width) - tile.window.col
    return torch.from_numpy(rows), torch.from_numpy(cols)
