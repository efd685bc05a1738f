"""Labels as shapes in place of rasters: are they the same pixels, and what do they cost?

    python benchmarks/vector_labels.py banepa FOLDER    # the buildings of label rasters as a GeoPackage
    python benchmarks/vector_labels.py memory [SHAPES]  # a million polygons: memory and time of a window

`banepa` makes the outlines of the buildings in Banepa's label rasters along the edges of pixels, writes them to
FOLDER/buildings.gpkg, and compares the labels that are read from them with the rasters, pixel by pixel. It prints the
commands that train from both at equal steps.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyogrio.raw
import shapely
import yaml
from rasterio.features import shapes

from caswit.config import IGNORE_INDEX
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.raster.georef import Grid
from caswit.raster.reader import Raster
from caswit.raster.windows import Window

BUILDING = 1
CORNER_M, SPREAD_M = np.array([700_000, 6_600_000]), 50_000
"""Corner and side of the square in which the polygons of ``memory`` lie."""


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["banepa", "memory", "measure"])
    parser.add_argument("given", nargs="*")
    asked = parser.parse_args()
    match asked.what:
        case "banepa":
            banepa(Path(asked.given[0]))
        case "memory":
            memory(int(asked.given[0]) if asked.given else 1_000_000)
        case "measure":
            measure(Path(asked.given[0]))


def banepa(folder: Path) -> None:
    """Write GeoPackage and dataset.yaml, compare labels, print commands."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ["CASWIT_DATA"], "banepa")
    content = yaml.safe_load((data / "dataset.yaml").read_text())
    found, crs = [], None
    for scene in content["scenes"]:
        if "label" in scene:
            with Raster(data / scene["label"]) as label:
                ids = label.read_band(Window(0, 0, label.height, label.width), fill=0)
                found += outlines(ids == BUILDING, label.grid)
                crs = label.grid.crs.to_string()
            scene["label"] = {"file": "buildings.gpkg", "class": "building"}
        scene["image"] = f"$CASWIT_DATA/banepa/{scene['image']}"
    file = folder / "buildings.gpkg"
    file.unlink(missing_ok=True)
    wkb = np.array(shapely.to_wkb(found), object)
    pyogrio.raw.write(file, wkb, [], [], crs=crs, geometry_type="Polygon", layer="buildings")
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    print(f"{len(found)} polygons in {file}\n")
    compare(data / "dataset.yaml", folder / "dataset.yaml")
    print("\nequal steps, two seeds:\n")
    for seed in (0, 1):
        for kind, more in (("raster", ""), ("vector", f" --data.dataset {folder}/dataset.yaml")):
            out = f"runs/{kind}-{seed}"
            print(f"caswit train recipes/banepa-nano.yaml --out {out} --train.seed {seed}{more}")
            print(f"caswit evaluate {out}/model $CASWIT_DATA/banepa/dataset.yaml --split val --out {out}/scores")


def outlines(mask: np.ndarray, grid: Grid) -> list[shapely.Polygon]:
    """Return the outlines of a mask along the edges of its pixels, in the CRS of its grid."""
    # Areas that touch at a corner only would be one polygon that touches itself, which is invalid.
    found = shapes(mask.astype(np.uint8), mask=mask, connectivity=4, transform=grid.transform)
    return [shapely.geometry.shape(shape) for shape, _ in found]


def compare(raster_file: Path, vector_file: Path) -> None:
    """Count the pixels whose labels differ."""
    of_rasters, of_shapes = load_dataset(raster_file), load_dataset(vector_file)
    for one, other in zip(of_rasters.scenes, of_shapes.scenes, strict=True):
        if one.label is None:
            continue
        with open_dataset_scene(of_rasters, one) as first, open_dataset_scene(of_shapes, other) as second:
            valid = first.native_image(first.raster)[1]
            a, b = (scene.native_labels(scene.raster, valid) for scene in (first, second))
        counted = f"{(a == 1).sum():,} of building, {(a == IGNORE_INDEX).sum():,} ignored"
        print(f"{one.name}: {a.size:,} pixels ({counted}), {(a != b).sum():,} differ")


def memory(count: int) -> None:
    """Write files of few and of many polygons; measure memory and processor time, each in a process of its own."""
    print("| polygons | file | first opening | memory for it | opening again | 512 px window | memory for windows |")
    print("|---:|---:|---:|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for number in (1000, count):
            file = Path(folder, f"{number}.gpkg")
            corners = np.random.default_rng(0).uniform(CORNER_M, CORNER_M + SPREAD_M, (number, 2))
            # As dense in the window that is read, however many there are in all.
            corners[:900] = np.random.default_rng(1).uniform(CORNER_M, CORNER_M + 500, (900, 2))
            wkb = shapely.to_wkb(shapely.box(*corners.T, *(corners + 8).T))
            pyogrio.raw.write(file, wkb, [], [], crs="EPSG:2154", geometry_type="Polygon")
            said = []
            for _ in range(2):  # the second finds the index
                call = [sys.executable, __file__, "measure", str(file)]
                caches = os.environ | {"CASWIT_CACHE": folder}
                said.append(subprocess.run(call, env=caches, check=True, capture_output=True, text=True).stdout.split())
            (first_s, first_mb, *_), (again_s, _, window_ms, window_mb) = said
            size = f"{file.stat().st_size / 1e6:.0f} MB"
            row = (f"{number:,}", size, f"{first_s} s", f"{first_mb} MB", f"{again_s} s", f"{window_ms} ms")
            print("| " + " | ".join([*row, f"{window_mb} MB"]) + " |")


def measure(file: Path) -> None:
    """Print seconds and memory of opening a file, then those of a window."""
    import pyarrow  # noqa: F401  # the libraries themselves are in memory before

    from caswit.raster.vector_drawing import Drawing
    from caswit.raster.vector_index import ShapeIndex

    with tempfile.TemporaryDirectory() as folder:
        from caswit.raster.reader import write_raster

        image = Path(folder, "image.tif")
        write_raster(image, np.zeros((3, 64, 64), np.uint8), crs="EPSG:2154")
        with Raster(image) as raster:
            small = raster.grid
    grid = small._replace(height=5000, width=5000, transform=type(small.transform)(0.1, 0, 700_000, 0, -0.1, 6_600_500))
    before, began_s = peak_mb(), time.process_time()
    index = ShapeIndex(file)
    opened_s, opened = time.process_time() - began_s, peak_mb()
    drawing = Drawing(index, grid, {"": 0})
    times = []
    for row in range(0, 4400, 200):
        began_s = time.process_time()
        drawing.draw(Window(row, row, 512, 512))
        times.append(time.process_time() - began_s)
    windows = f"{1000 * statistics.median(times):.1f} {peak_mb() - opened:.0f}"
    print(f"{opened_s:.2f} {opened - before:.0f} {windows}")


def peak_mb() -> float:
    """Return the largest memory that this process has had."""
    # Not getrusage: there a process begins with the peak of the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
