"""Prediction of rasters of any size, block by block.

A block is a pure function of (scene, model, settings). Evaluation and prediction share it.
Shapes: T tile_px, B tiles in a batch, K classes.
"""

import datetime
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from caswit.baselines import Network
from caswit.checkpoint import LoadedModel, load_model
from caswit.config import IGNORE_INDEX, ComputeConfig, PredictConfig
from caswit.data.samples import OpenScene, Region, context_window
from caswit.data.scene import Scene
from caswit.devices import autocast, pick_device, uses_bf16
from caswit.errors import ConfigError
from caswit.files import atomic_path
from caswit.progress import Progress
from caswit.raster.io import Bool, ClassMapWriter, UInt8, bounded_cache
from caswit.raster.windows import Block, Tile, Window, blocks
from caswit.version import __version__

T = TypeVar("T")


class Classifier:
    """A network on a device that turns tiles into class indices.

    Args:
        network: In evaluation mode.
        context_factor: What it was trained with.
        batch: Tiles per forward pass.
        device: Where to compute.
        bf16: Autocast to bfloat16.
    """

    def __init__(self, network: Network, *, context_factor: int, batch: int, device: torch.device, bf16: bool) -> None:
        self.network = network.to(device)
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
        with autocast(self.device, self.bf16):
            logits: Tensor = self.network(hr, context)
        return logits.float()

    def _stack(self, images: list[UInt8]) -> Tensor:
        return torch.from_numpy(np.stack(images)).to(self.device)

    def block(self, scene: OpenScene, block: Block) -> UInt8:
        """Class indices of the native pixels of a block: (H, W), IGNORE_INDEX where the scene has no data."""
        tile_px = block.tiles[0].window.height
        margin = tile_px * (self.context_factor - 1) // 2
        region = scene.region(block.reach.grown(margin))
        native = scene.native(block.window)
        valid = self._native_valid(scene, native, region)
        classes = np.full((native.height, native.width), IGNORE_INDEX, np.uint8)
        with_data = [t for t in block.tiles if valid[scene.native(t.owned).inside(native)].any()]
        for tiles in batched(with_data, self.batch):
            for tile, logits in zip(tiles, self.logits(region, tiles), strict=True):
                owned = scene.native(tile.owned)
                found = _native_logits(logits, scene, tile, owned).argmax(0).byte()
                classes[owned.inside(native)] = found.cpu().numpy()
        classes[~valid] = IGNORE_INDEX
        return classes

    @staticmethod
    def _native_valid(scene: OpenScene, native: Window, region: Region) -> Bool:
        """Where a native window has data; ``region`` holds it where native pixels were read."""
        if scene.ratio == 1:
            return region.valid[native.inside(region.window)]
        return scene.native_image(native)[1]

    def tile(self, scene: OpenScene, tile: Window) -> UInt8:
        """Class indices of one tile as it is read: (T, T), IGNORE_INDEX where the scene has no data."""
        region = scene.region(context_window(tile, self.context_factor))
        (logits,) = self.logits(region, [Tile(tile, tile)])
        valid = region.valid[tile.inside(region.window)]
        return np.where(valid, logits.argmax(0).byte().cpu().numpy(), IGNORE_INDEX).astype(np.uint8)


def _native_logits(logits: Tensor, scene: OpenScene, tile: Tile, owned: Window) -> Tensor:
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


def classifier(model: LoadedModel, settings: ComputeConfig) -> Classifier:
    """Put a loaded model on the device that the settings ask for."""
    device = pick_device(settings.device)
    return Classifier(
        model.network,
        context_factor=model.info.tile.context_factor,
        batch=settings.batch,
        device=device,
        bf16=uses_bf16(settings.precision, device),
    )


def predict(image: Path, out: Path, model: Path, settings: PredictConfig | None = None) -> None:
    """Write the class map of an image of any size as a GeoTIFF on the image's grid.

    Memory does not grow with the image. ``out`` appears under its name only when it is complete.

    Args:
        image: Any three-band uint8 raster that GDAL opens.
        out: GeoTIFF to write; its folder must exist.
        model: Model folder.
        settings: How to cut and compute.

    Raises:
        CaswitError: The image, the model, the settings or the place to write to cannot be used.
    """
    settings = settings or PredictConfig()
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist; create it first")
    if out.exists() and not out.is_file():  # renaming onto a device would replace it
        raise ConfigError(f"{out}: is {'a folder' if out.is_dir() else 'not a plain file'}; give another name")
    if out.exists() and image.exists() and out.samefile(image):
        raise ConfigError(f"{out}: is the input image; give another name")
    if out.suffix.lower() not in (".tif", ".tiff"):
        raise ConfigError(f"{out}: maps are GeoTIFFs; give a name that ends in .tif")
    loaded = load_model(model)
    overlap_px = _overlap(settings, loaded.info.tile.tile_px)
    reading = OpenScene(Scene(image=image), bands=loaded.info.bands, gsd_m=loaded.info.tile.gsd_m)
    with bounded_cache(), reading as scene, atomic_path(out) as partial:
        _write_map(partial, scene, loaded, settings, overlap_px)


def _write_map(path: Path, scene: OpenScene, loaded: LoadedModel, settings: PredictConfig, overlap_px: int) -> None:
    table, grid = loaded.info.classes, scene.image.grid
    tile_px = loaded.info.tile.tile_px
    model = classifier(loaded, settings)
    writer = ClassMapWriter(
        path,
        grid,
        nodata=IGNORE_INDEX,
        palette={c.id: c.rgb for c in table.predicted},
        tags=_provenance(scene.scene.image, loaded, overlap_px, "bf16" if model.bf16 else "fp32"),
    )
    block_px = max(1, round(settings.block_px / scene.ratio))
    try:
        writer.tag_classes({c.id: c.name for c in table.predicted})
        with Progress(
            f"predict {scene.scene.image.name} with {loaded.name}", grid.height * grid.width / 1e6, "Mpx"
        ) as progress:
            for block in blocks(scene.height, scene.width, tile_px, overlap_px, block_px):
                window = scene.native(block.window)
                writer.write(window, table.ids[model.block(scene, block)])
                progress.advance(window.height * window.width / 1e6)
    finally:
        writer.close()
    writer.check_complete()


def _overlap(settings: PredictConfig, tile_px: int) -> int:
    if settings.overlap_px is None:
        return tile_px // 4
    if settings.overlap_px >= tile_px:
        raise ConfigError(
            f"overlap_px must be below the model's tile_px={tile_px}, got {settings.overlap_px}; try {tile_px // 4}"
        )
    return settings.overlap_px


def _provenance(image: Path, loaded: LoadedModel, overlap_px: int, precision: str) -> dict[str, str]:
    return {
        "TIFFTAG_SOFTWARE": f"caswit {__version__}",
        "TIFFTAG_DATETIME": datetime.datetime.now().strftime("%Y:%m:%d %H:%M:%S"),
        "CASWIT_MODEL": loaded.name,
        "CASWIT_MODEL_SHA256": loaded.digest,
        "CASWIT_IMAGE": image.name,
        "CASWIT_TILE_PX": str(loaded.info.tile.tile_px),
        "CASWIT_CONTEXT_FACTOR": str(loaded.info.tile.context_factor),
        "CASWIT_OVERLAP_PX": str(overlap_px),
        "CASWIT_PRECISION": precision,
    }


def batched(items: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Consecutive groups of at most ``size`` (itertools has it from Python 3.12 on)."""
    rest = iter(items)
    while group := tuple(islice(rest, size)):
        yield group
