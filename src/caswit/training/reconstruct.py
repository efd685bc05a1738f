"""Draw what pretraining sees and how it reconstructs it (paper figures 2 and 10)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from caswit.config import MaskConfig, TileConfig
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.files import atomic_write_bytes
from caswit.inference.devices import autocast
from caswit.nn.simmim import SimMIM, pixel_mask, random_cells
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Window, some_of, tile_grid
from caswit.viz.pictures import channels_last, png_bytes, stack, strip
from caswit.weights.image_bands import bands_to_read
from caswit.weights.model_folder import load_pretrained

HIDDEN = (128, 128, 128)
"""Colour of masked pixels in pictures."""


class Reconstruction(NamedTuple):
    """A tile, the tile and its context with painted masks, and the reconstruction. Images are (3, T, T).

    Several contexts are (N, 3, T, T), narrowest first.
    """

    tile: UInt8
    masked_tile: UInt8
    masked_context: UInt8
    reconstruction: UInt8
    """Reconstructed where the tile is masked, elsewhere the tile itself, which the loss ignores."""

    def picture(self, names: Sequence[str]) -> UInt8:
        """Return the four side by side, (H, W, 3); ``names`` are those of the bands."""
        titles = ("tile", "masked tile", "masked context", "reconstruction")
        panels: list[tuple[str, UInt8]] = []
        for title, image in zip(titles, self, strict=True):
            panels += [(title, each) for each in (image if image.ndim == 4 else [image]) if each.size]
        return strip([(title, channels_last(x, names)) for title, x in panels])


class Reconstructor:
    """A pretrained network on a device.

    Args:
        network: Put into evaluation mode while it works.
        tile: Geometry of the tiles.
        mask: Which cells to mask.
        device: Where to compute.
        bf16: Autocast to bfloat16.
    """

    def __init__(self, network: SimMIM, tile: TileConfig, mask: MaskConfig, device: torch.device, bf16: bool) -> None:
        self.network, self.tile, self.mask, self.device, self.bf16 = network.to(device), tile, mask, device, bf16

    @torch.inference_mode()
    def __call__(self, scene: SceneReader, window: Window, seed: int) -> Reconstruction:
        """Mask cells of a tile, chosen by the seed, and reconstruct them."""
        network, side = self.network, self.tile.tile_px
        factor = self.tile.context_factor if network.network.reads_context else None
        sample = scene.read(window, factor)
        cells = random_cells(side, self.mask.mask_cell_px, self.mask.ratio, np.random.default_rng(seed))
        hr, mask = (torch.from_numpy(x)[None].to(self.device) for x in (sample.tile, cells))
        context = torch.from_numpy(sample.context)[None].to(self.device) if factor else None
        was_training = network.training
        network.eval()
        with autocast(self.device, self.bf16):
            pixels = network(hr, context, mask).float()
        network.train(was_training)
        pixels = pixels * network.network.std + network.network.mean
        found = pixels.round().clamp(0, 255).byte().cpu().numpy()[0]
        hidden = pixel_mask(mask, side, side)[0, 0].cpu().numpy()
        masked_context = sample.context
        if context is not None:
            middle = pixel_mask(network.context_masks(context), *context.shape[-2:]).cpu().numpy()
            masked_context = _painted(sample.context, middle if sample.context.ndim == 4 else middle[0])
        return Reconstruction(
            sample.tile, _painted(sample.tile, hidden), masked_context, np.where(hidden, found, sample.tile)
        )


def _painted(image: UInt8, hidden: Bool) -> UInt8:
    colour = np.resize(np.array(HIDDEN, np.uint8), image.shape[-3])[:, None, None]
    return np.where(hidden, colour, image)


def sheet(make: Reconstructor, dataset: Dataset, tiles: Sequence[tuple[Scene, Window]]) -> UInt8:
    """Return a picture (H, W, 3) with a row for each tile; the same cells are masked in every call."""
    rows = []
    for number, (scene, window) in enumerate(tiles):
        with SceneReader(scene, None, dataset.bands, dataset.read_gsd_m, ranges=dataset.ranges) as opened:
            rows.append(make(opened, window, number).picture(dataset.band_names))
    return stack(rows)


def reconstruct(
    model: Path | str, image: Path, out: Path, *, count: int = 4, seed: int = 0, device: torch.device, bf16: bool
) -> None:
    """Draw tiles of an image, spread over it, as a pretrained network sees and reconstructs them.

    Args:
        model: Folder of pretrained weights, or hf:owner/name.
        image: Raster with the bands that the weights read.
        out: PNG to write.
        count: Number of tiles.
        seed: Chooses the masked cells.
        device: Where to compute.
        bf16: Autocast to bfloat16.

    Raises:
        CaswitError: The weights or the image cannot be used.
    """
    network, info = load_pretrained(model)
    make = Reconstructor(network, info.tile, info.mask, device, bf16)
    bands, ranges = bands_to_read(image, info), info.model.ranges
    with SceneReader(Scene(image=image), None, bands, info.tile.read_gsd_m, ranges=ranges) as scene:
        grid = [t.window for t in tile_grid(scene.height, scene.width, info.tile.tile_px, 0)]
        shown = [w for w in grid if scene.region(w).valid.any()]
        if not shown:
            raise DataError(f"{image}: has no valid pixels; give an image with data")
        chosen = some_of(shown, count, ends=False)
        names = info.model.band_names
        rows = [make(scene, window, seed + number).picture(names) for number, window in enumerate(chosen)]
    atomic_write_bytes(out, png_bytes(stack(rows)))
