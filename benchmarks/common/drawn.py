"""Images and models that a benchmark makes for itself, the same on every machine, so that it needs no data."""

import warnings
from pathlib import Path

import numpy as np
import rasterio
import torch

from caswit.config import ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.weights.model_folder import ModelInfo, build, save_model

STEP_PX = 1024


def classes(count: int) -> ClassTable:
    """Return a table of classes with ids from 1."""
    return ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#808080") for i in range(1, count + 1)))


def random_model(folder: Path, *, size: str = "nano", tile_px: int = 512, table: ClassTable | None = None) -> Path:
    """Write a model folder with random weights."""
    info = ModelInfo(model=ModelConfig(size=size), tile=TileConfig(tile_px=tile_px), classes=table or classes(5))
    torch.manual_seed(0)
    save_model(build(info), info, folder / "model")
    return folder / "model"


def orthophoto(file: Path, side: int, *, gsd_m: float = 0.2, sparse: bool = False) -> Path:
    """Write a picture that compresses about like an orthophoto, in squares so that any size fits into memory.

    ``sparse`` fills four places and leaves holes elsewhere. A JPEG has no georeference.
    """
    profile = {"count": 3, "dtype": "uint8", "width": side, "height": side, "driver": "JPEG"}
    if file.suffix == ".tif":
        profile |= {"driver": "GTiff", "tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        profile |= {"nodata": 0, "sparse_ok": True, "bigtiff": "yes", "num_threads": "all_cpus", "crs": "EPSG:2154"}
        profile |= {"transform": rasterio.Affine(gsd_m, 0, 700_000, 0, -gsd_m, 6_600_000)}
    rng = np.random.default_rng(0)
    places = [(row, col) for row in range(0, side, STEP_PX) for col in range(0, side, STEP_PX)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(file, "w", **profile) as dst:
            for row, col in [places[i * (len(places) - 1) // 3] for i in range(4)] if sparse else places:
                height, width = min(STEP_PX, side - row), min(STEP_PX, side - col)
                rough = rng.integers(40, 200, (3, height // 16 + 1, width // 16 + 1)).repeat(16, 1).repeat(16, 2)
                pixels = (rough[:, :height, :width] + rng.integers(0, 24, (3, height, width))).astype(np.uint8)
                dst.write(pixels, window=rasterio.windows.Window(col, row, width, height))
    return file
