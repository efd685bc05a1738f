"""Training samples per second per worker, against reading nine neighbour files per sample.

python benchmarks/reading.py FOLDER [ROUNDS SAMPLES]

FOLDER gets 16 x 16 patches of 512 px in three layouts if they are not there.

ours: a sample of the training (tile, context, label, context label) through the mosaic, every file opened afresh.
(a): the nine images and nine labels around a patch opened with rasterio, read whole, pasted, cut and averaged alike.
(b): rasterio decoding the same bytes once: the patch's own 1024 px of image and label, files open, from one raster.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

import trees
from caswit.config import IGNORE_INDEX
from caswit.data.samples import open_dataset_scene
from caswit.data.scene import Dataset, Scene, load_dataset
from caswit.raster.resample import area_average, nearest
from caswit.raster.windows import Window

SIDE, PX = 16, 512
ROUNDS, SAMPLES = map(int, sys.argv[2:4] or (7, 12))
NAME = "D001-2020_{}/AA-S1-1/D001-2020_{}_AA-S1-1_{}-{}.tif"


def main(folder: Path) -> None:
    """Print medians over alternating rounds, and their ratios."""
    for layout, options in trees.LAYOUTS.items():
        root = folder / layout
        if not (root / "GENERATED_TRAIN.csv").exists():
            trees.region(root, "AA-S1-1", SIDE, SIDE, PX, options)
        file = folder / f"{layout}.yaml"
        file.write_text(f"name: generated\nsource: {{kind: flair_hub, root: {layout}}}\n")
        with tempfile.TemporaryDirectory() as cache:
            os.environ["CASWIT_CACHE"] = cache
            dataset = load_dataset(file)
            mosaic = merge(dataset.scenes[0], folder / f"{layout}-mosaic")
            compare(f"patches, {layout}", dataset, dataset.scenes[0], root, mosaic)
            large = Scene(image=mosaic[0], label=mosaic[1])
            compare(f"one raster, {layout}", dataset, large, root, mosaic)


def compare(what: str, dataset: Dataset, scene: Scene, root: Path, mosaic: tuple[Path, Path]) -> None:
    """One line of the table."""
    table = dataset.classes.ids

    def ours(row: int, col: int) -> tuple[np.ndarray, ...]:
        with open_dataset_scene(dataset, scene) as opened:
            return opened.read(Window(row * PX, col * PX, PX, PX), 2)

    def nine(row: int, col: int) -> tuple[np.ndarray, ...]:
        image = np.zeros((3, 3 * PX, 3 * PX), np.uint8)
        label = np.full((3 * PX, 3 * PX), IGNORE_INDEX, np.uint8)
        for i in range(3):
            for j in range(3):
                here = np.s_[..., i * PX : (i + 1) * PX, j * PX : (j + 1) * PX]
                place = row + i - 1, col + j - 1
                with rasterio.open(root / NAME.format(*["AERIAL_RGBI"] * 2, *place)) as src:
                    image[here] = src.read([1, 2, 3])
                with rasterio.open(root / NAME.format(*["AERIAL_LABEL-COSIA"] * 2, *place)) as src:
                    label[here] = src.read(1)
        wide, labels = image[:, 256:-256, 256:-256], label[256:-256, 256:-256]
        return wide[:, 256:768, 256:768], area_average(wide, 2), labels[256:768, 256:768], nearest(labels, 2)

    for one, other in zip(ours(3, 4), nine(3, 4), strict=True):
        assert np.array_equal(table[one] if one.ndim == 2 else one, other), "both must read the same"
    with rasterio.Env(GDAL_CACHEMAX=0), rasterio.open(mosaic[0]) as image, rasterio.open(mosaic[1]) as label:

        def decode(row: int, col: int) -> None:
            window = RasterioWindow(col * PX - 256, row * PX - 256, 1024, 1024)
            image.read([1, 2, 3], window=window)
            label.read(1, window=window)

        seconds = alternate([ours, nine, decode])
    mine, theirs, floor = seconds
    print(
        f"| {what} | {1 / mine:.1f} | {1 / theirs:.1f} | {1 / floor:.1f} | {theirs / mine:.2f} | {floor / mine:.2f} |",
        flush=True,
    )


def alternate(readers: list[Callable[[int, int], object]]) -> list[float]:
    """Median seconds of a core per sample; the same random patches for each, the readers taking turns."""
    rng = np.random.default_rng(0)
    seconds: list[list[float]] = [[] for _ in readers]
    for _ in range(ROUNDS):
        places = rng.integers(1, SIDE - 1, (SAMPLES, 2)).tolist()
        for reader, taken in zip(readers, seconds, strict=True):
            began_s = time.process_time()
            for row, col in places:
                reader(row, col)
            taken.append((time.process_time() - began_s) / SAMPLES)
    return [statistics.median(taken) for taken in seconds]


def merge(scene: Scene, stem: Path) -> tuple[Path, Path]:
    """The mosaics as one tiled raster each."""
    assert scene.label is not None
    paths = Path(f"{stem}.tif"), Path(f"{stem}-label.tif")
    for source, path in zip((scene.image, scene.label), paths, strict=True):
        if not path.exists():
            with rasterio.open(source) as src:
                pixels, profile = src.read(), src.profile
            profile |= {"driver": "GTiff", "tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
            with rasterio.open(path, "w", **profile) as dst:
                dst.write(pixels)
    return paths


if __name__ == "__main__":
    print("| data | ours/s | (a)/s | (b)/s | times (a) | share of (b) |\n|---|---:|---:|---:|---:|---:|")
    main(Path(sys.argv[1]))
