"""Samples per second of one worker: FLAIR-like patches and a large raster, against pasting nine neighbour files.

python benchmarks/reading.py FOLDER [ROUNDS SAMPLES]

FOLDER gets 200 regions of 9 x 9 patches of 512 px in three layouts if they are not there; all regions are the same
files under other names, so that no reader waits for the disk.

ours: a sample of the training (tile, context, label, context label), read as a worker of the training does it:
through mosaics, of which the last ones stay open.
(a): the nine images and nine labels around a patch opened with rasterio, read whole, pasted, cut and averaged alike.
(b): rasterio decoding the same bytes once: the 1024 px of image and label around a patch, from files that are open.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window as RasterioWindow

from caswit.config import IGNORE_INDEX
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import SceneReaders
from caswit.data.scene import Scene
from caswit.raster.resample import area_average, nearest
from caswit.raster.windows import Window
from common import trees

REGIONS, SIDE, PX = 200, 9, 512
ROUNDS, SAMPLES = map(int, sys.argv[2:4] or (9, 10))
CACHE_BYTES = 32 << 20
"""Size of GDAL's cache for all readers: little more than a sample, so that none gains from how few files there are."""
Place = tuple[int, int, int]
"""Number of the region, row and column of the patch."""
Reader = Callable[[int, int, int], tuple[np.ndarray, ...]]


def main(folder: Path) -> None:
    """Print medians over alternating rounds, and their ratios."""
    for layout, options in trees.LAYOUTS.items():
        root = folder / layout
        if not (root / "GENERATED_TRAIN.csv").exists():
            trees.region(root, roi(0), SIDE, SIDE, PX, options)
            for number in range(1, REGIONS):
                trees.same_region(root, roi(number), SIDE, SIDE, roi(0))
        file = folder / f"{layout}.yaml"
        file.write_text(f"name: generated\nsource: {{kind: flair_hub, root: {layout}}}\n")
        with tempfile.TemporaryDirectory() as cached, rasterio.Env(GDAL_CACHEMAX=CACHE_BYTES):
            os.environ["CASWIT_CACHE"] = cached
            dataset = load_dataset(file)
            large = merge(dataset.scenes[0], folder / f"{layout}-large", options)
            nine = nine_files(root)
            apart = [open_parts(root, kind) for kind in (trees.IMAGES, trees.LABELS)]
            decode = [decode_parts(*apart), decode_one(*(rasterio.open(path) for path in large))]
            one_raster = [Scene(image=large[0], label=large[1])]
            cases = [
                ("patches, one region", dataset.scenes[:1], decode[0]),
                (f"patches, any of {REGIONS} regions", dataset.scenes, decode[0]),
                ("one raster", one_raster, decode[1]),
            ]
            for what, scenes, floor in cases:
                compare(f"{what}, {layout}", dataset, scenes, nine, floor)


def roi(number: int) -> str:
    """Name of a region; they are read in the order of these names."""
    return f"AA-S1-{number:03}"


def compare(what: str, dataset: Dataset, scenes: Sequence[Scene], nine: Reader, decode: Reader) -> None:
    """One line of the table."""
    table = dataset.classes.ids
    opened = SceneReaders(dataset, scenes)

    def ours(region: int, row: int, col: int) -> tuple[np.ndarray, ...]:
        return opened[region].read(Window(row * PX, col * PX, PX, PX), 2)

    there = (len(scenes) - 1, 3, 4)
    for one, other in zip(ours(*there), nine(*there), strict=True):
        assert np.array_equal(table[one] if one.ndim == 2 else one, other), "both must read the same"
    mine, theirs, floor = alternate([ours, nine, decode], len(scenes))
    print(
        f"| {what} | {1 / mine:.1f} | {1 / theirs:.1f} | {1 / floor:.1f} | {theirs / mine:.2f} | {floor / mine:.2f} |",
        flush=True,
    )


def nine_files(root: Path) -> Reader:
    """(a)."""

    def read(region: int, row: int, col: int) -> tuple[np.ndarray, ...]:
        image = np.zeros((3, 3 * PX, 3 * PX), np.uint8)
        label = np.full((3 * PX, 3 * PX), IGNORE_INDEX, np.uint8)
        for i in range(3):
            for j in range(3):
                here = np.s_[..., i * PX : (i + 1) * PX, j * PX : (j + 1) * PX]
                place = roi(region), row + i - 1, col + j - 1
                with rasterio.open(root / trees.patch(trees.IMAGES, *place)) as src:
                    image[here] = src.read([1, 2, 3])
                with rasterio.open(root / trees.patch(trees.LABELS, *place)) as src:
                    label[here] = src.read(1)
        wide, labels = image[:, 256:-256, 256:-256], label[256:-256, 256:-256]
        return wide[:, 256:768, 256:768], area_average(wide, 2), labels[256:768, 256:768], nearest(labels, 2)

    return read


def open_parts(root: Path, kind: str) -> Callable[[int, int], rasterio.DatasetReader]:
    """The patches of a region by row and column; each is opened once."""
    return cache(lambda row, col: rasterio.open(root / trees.patch(kind, roi(0), row, col)))


def decode_parts(images: Callable, labels: Callable) -> Reader:
    """(b) of patches."""

    def read(_region: int, row: int, col: int) -> tuple[np.ndarray, ...]:
        for i, (top, height) in enumerate(((256, 256), (0, 512), (0, 256)), row - 1):
            for j, (left, width) in enumerate(((256, 256), (0, 512), (0, 256)), col - 1):
                window = RasterioWindow(left, top, width, height)
                images(i, j).read([1, 2, 3], window=window)
                labels(i, j).read(1, window=window)
        return ()

    for i in range(SIDE):
        for j in range(SIDE):
            images(i, j), labels(i, j)
    return read


def decode_one(image: rasterio.DatasetReader, label: rasterio.DatasetReader) -> Reader:
    """(b) of one raster."""

    def read(_region: int, row: int, col: int) -> tuple[np.ndarray, ...]:
        window = RasterioWindow(col * PX - 256, row * PX - 256, 1024, 1024)
        return image.read([1, 2, 3], window=window), label.read(1, window=window)

    return read


def alternate(readers: Sequence[Reader], regions: int) -> list[float]:
    """Median seconds of a core per sample; the same random patches for each, the readers taking turns."""
    rng = np.random.default_rng(0)
    seconds: list[list[float]] = [[] for _ in readers]
    for _ in range(ROUNDS):
        places: list[Place] = [(int(rng.integers(regions)), *rng.integers(1, SIDE - 1, 2)) for _ in range(SAMPLES)]
        for reader, taken in zip(readers, seconds, strict=True):
            began_s = time.process_time()
            for place in places:
                reader(*map(int, place))
            taken.append((time.process_time() - began_s) / SAMPLES)
    return [statistics.median(taken) for taken in seconds]


def merge(scene: Scene, stem: Path, options: dict) -> tuple[Path, Path]:
    """The mosaics of a region as one raster each, in the layout of its patches."""
    assert scene.label is not None
    paths = Path(f"{stem}.tif"), Path(f"{stem}-label.tif")
    for source, path in zip((scene.image, scene.label), paths, strict=True):
        if not path.exists():
            with rasterio.open(source) as src:
                pixels, shape = src.read(), {"count": src.count, "height": src.height, "width": src.width}
                where = {"crs": src.crs, "transform": src.transform, "nodata": src.nodata, "dtype": "uint8"}
            with rasterio.open(path, "w", driver="GTiff", **shape, **where, **options) as dst:
                dst.write(pixels)
    return paths


if __name__ == "__main__":
    print("| data | ours/s | (a)/s | (b)/s | times (a) | share of (b) |\n|---|---:|---:|---:|---:|---:|")
    main(Path(sys.argv[1]))
