"""How well does a model label pixels beside holes and edges of an image, by what it sees there?

python benchmarks/holes.py MODEL DATASET [SPLIT]

Six polygons of 40 to 110 px radius (seed 0) are cut out of the first scene of the split by a mask, and the scene is
cropped to 0.75 x 0.7 of its sides. Pixels within 40 px of a hole, and of the crop's edge where the scene goes on, are
scored under each ``--fill``, beside the map of the whole scene.
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

import caswit
from caswit.data.classes import ClassTable
from caswit.data.dataset import load_dataset

NEAR_PX = 40
HOLES = 6
Mask = NDArray[np.bool_]


def holes(height: int, width: int) -> Mask:
    """(H, W): True inside six polygons with 7 to 12 corners."""
    rng, cut = np.random.default_rng(0), np.zeros((height, width), np.uint8)
    for _ in range(HOLES):
        corners = int(rng.integers(7, 13))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        middle = rng.uniform((150, 150), (width - 150, height - 150))
        points = middle + rng.uniform(40, 110, (corners, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        cv2.fillPoly(cut, [points.astype(np.int32)], 1)
    return cut > 0


def near(mask: Mask) -> Mask:
    """Pixels outside a mask that are at most ``NEAR_PX`` from it."""
    square = np.ones((2 * NEAR_PX + 1, 2 * NEAR_PX + 1), np.uint8)
    return (cv2.dilate(mask.astype(np.uint8), square) > 0) & ~mask


def write(file: Path, pixels: NDArray[Any], profile: dict[str, Any], known: Mask | None = None) -> Path:
    """Write an image, with a mask inside the file if some pixels are not known."""
    size = {"height": pixels.shape[1], "width": pixels.shape[2], "count": len(pixels)}
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), rasterio.open(file, "w", **(profile | size)) as out:
        out.write(pixels)
        if known is not None:
            out.write_mask(known)
    return file


def mean_iou(found: NDArray[Any], truth: NDArray[Any], where: Mask, table: ClassTable) -> str:
    """Mean IoU of the classes that the truth has there; with two classes that of the one which is not background."""
    scores = []
    for each, shown in zip(table.predicted, table.mapped, strict=True):
        if len(table) == 2 and each.is_background:
            continue
        real, said = np.isin(truth, each.ids) & where, (found == shown.id) & where
        if real.any():
            scores.append((real & said).sum() / (real | said).sum())
    return f"{np.mean(scores):.3f}"


def main() -> None:
    """Print the table."""
    model, dataset, *split = sys.argv[1:]
    data = load_dataset(Path(dataset))
    scene = data.split(*(split or ["val"]))[0]
    assert isinstance(scene.label, Path)
    with rasterio.open(scene.image) as src, rasterio.open(scene.label) as labels:
        pixels, truth = src.read((1, 2, 3)), labels.read(1)
        profile = {"driver": "GTiff", "dtype": "uint8", "crs": src.crs, "transform": src.transform}
    height, width = truth.shape
    cut = holes(height, width)
    rows, cols = int(0.75 * height), int(0.7 * width)
    labelled = np.isin(truth, [i for c in data.classes.predicted for i in c.ids])
    beside_hole = near(cut) & labelled
    beside_edge = labelled.copy()
    beside_edge[: rows - NEAR_PX, : cols - NEAR_PX] = False
    beside_edge[rows:], beside_edge[:, cols:] = False, False
    with tempfile.TemporaryDirectory() as folder:
        images = {
            "whole": write(Path(folder) / "whole.tif", pixels, profile),
            "holes": write(Path(folder) / "holes.tif", np.where(cut, 0, pixels), profile, ~cut),
            "crop": write(Path(folder) / "crop.tif", pixels[:, :rows, :cols], profile),
        }

        def mapped(name: str, fill: str) -> NDArray[Any]:
            out = Path(folder) / f"{name}_{fill}_map.tif"
            caswit.predict(images[name], out, model, fill=fill)
            with rasterio.open(out) as found:
                part = found.read(1, window=Window(0, 0, width, height), boundless=True, fill_value=255)
            return np.asarray(part)

        print(f"{scene.image.name}: {beside_hole.sum()} px beside holes, {beside_edge.sum()} px beside the crop's edge")
        whole = mapped("whole", "mirror")
        print("| fill | beside holes | beside edges |\n|---|---:|---:|")
        rest = [mean_iou(whole, truth, where, data.classes) for where in (beside_hole, beside_edge)]
        print(f"| the whole scene | {' | '.join(rest)} |")
        for fill in ("black", "holes", "mirror"):
            places = (("holes", beside_hole), ("crop", beside_edge))
            rest = [mean_iou(mapped(name, fill), truth, where, data.classes) for name, where in places]
            print(f"| {fill} | {' | '.join(rest)} |")


if __name__ == "__main__":
    main()
