"""Each dataset.yaml of docs/labels.md is read as the page says, from the files that its pictures are made of."""

import re
import runpy
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import rasterio

from caswit.config import IGNORE_INDEX
from caswit.data.dataset import load_dataset
from caswit.data.reader import check_scenes, open_dataset_scene
from caswit.raster.reader import write_raster
from caswit.raster.windows import Window
from conftest import picture

pytest.importorskip("pyogrio", reason="no pyogrio: pip install '.[vector]'")
DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "labels.md").read_text(encoding="utf-8")
EXAMPLES = dict(re.findall(r'```yaml title="my/(labels-[\w-]+).yaml"\n(.*?)```', PAGE, re.DOTALL))
FILES = runpy.run_path(str(DOCS / "images" / "label_files.py"))
HEIGHT, WIDTH, GSD_M = 120, 160, 0.5
BOXES = ((10, 10, 40, 30), (30, 70, 20, 20), (70, 20, 12, 50), (60, 110, 8, 8), (95, 90, 20, 40))


@pytest.fixture
def mask():
    found = np.zeros((HEIGHT, WIDTH), bool)
    for row, col, height, width in BOXES:
        found[row : row + height, col : col + width] = True
    return found


@pytest.fixture
def read(tmp_path, monkeypatch, mask):
    """Function from the name of an example to the class indices that are read of it."""
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    write_raster(tmp_path / "north.tif", picture(HEIGHT, WIDTH), crs="EPSG:2154", gsd_m=GSD_M)
    FILES["write_label_files"](tmp_path, tmp_path / "north.tif", mask)

    def labels(name):
        file = tmp_path / f"{name}.yaml"
        file.write_text(EXAMPLES[name])
        data = load_dataset(file)
        check_scenes(data, data.scenes)
        with open_dataset_scene(data, data.scenes[0]) as opened:
            return opened.labels(Window(0, 0, HEIGHT, WIDTH), np.ones((HEIGHT, WIDTH), bool))

    return labels


def test_every_example_has_its_picture():
    assert len(EXAMPLES) == 7
    for name in EXAMPLES:
        assert f"(images/{name}.jpg)" in PAGE, name
        assert (DOCS / "images" / f"{name}.jpg").is_file(), name


def test_another_grid(read, mask):
    """Its pixels are 1.5 times as large: outlines move by up to a pixel."""
    found = read("labels-grid")
    around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))) - cv2.erode(mask.astype(np.uint8), np.ones((5, 5)))
    np.testing.assert_array_equal(found[around == 0], mask[around == 0])
    assert (found == mask)[around == 1].mean() > 0.7


@pytest.mark.parametrize("name", ["labels-mask", "labels-kinds"])
def test_values_that_mean_one_class(read, mask, name, tmp_path):
    np.testing.assert_array_equal(read(name), mask)
    with rasterio.open(tmp_path / "north_kinds.tif") as kinds:
        assert set(np.unique(kinds.read(1))) == {0, 1, 2, 5}


def test_values_with_a_class_table_of_their_own(read, mask, tmp_path):
    found = read("labels-values")
    with rasterio.open(tmp_path / "north_kinds.tif") as kinds:
        unknown = kinds.read(1) == 5
    assert unknown.any()
    np.testing.assert_array_equal(found, np.where(unknown, IGNORE_INDEX, mask))


def test_polygons(read, mask):
    found = read("labels-polygons")
    np.testing.assert_array_equal(found > 0, mask)
    assert [found[row, col] for row, col, _, _ in BOXES] == [1, 2, 1, 2, 1]


def test_few_polygons(read, mask):
    """The area is a polygon: pixels whose centres it covers."""
    corners = np.array([[x * WIDTH - 0.5, y * HEIGHT - 0.5] for x, y in FILES["AREA"]])
    rows, cols = np.indices((HEIGHT, WIDTH))
    inside = np.ones((HEIGHT, WIDTH), bool)
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, 0), strict=True):
        inside &= (x1 - x0) * (rows - y0) - (y1 - y0) * (cols - x0) > 0
    found = read("labels-sparse")
    np.testing.assert_array_equal(found, np.where(inside, mask, IGNORE_INDEX))


def test_lines_and_points(read):
    """A pixel is a tree if its centre is at most 3 m from one, and else a road within 2.5 m of a line."""
    rows, cols = np.indices((HEIGHT, WIDTH)) + 0.5
    trees = np.array(FILES["TREES"]) * (WIDTH, HEIGHT)
    tree = min_distance([(t, t) for t in trees], rows, cols) * GSD_M
    pieces = [np.array(p) * (WIDTH, HEIGHT) for road in FILES["ROADS"] for p in pairwise(road)]
    road = min_distance(pieces, rows, cols) * GSD_M
    expected = np.where(tree <= 3, 2, np.where(road <= 2.5, 1, 0))
    doubtful = (np.abs(tree - 3) < 0.1) | (np.abs(road - 2.5) < 0.1)  # a circle is drawn with corners
    np.testing.assert_array_equal(read("labels-lines")[~doubtful], expected[~doubtful])


def min_distance(pieces, rows, cols):
    """Distance in pixels from the nearest of some straight pieces ((x, y), (x, y))."""
    found = np.full(rows.shape, np.inf)
    for a, b in pieces:
        along = np.array(b) - a
        share = ((cols - a[0]) * along[0] + (rows - a[1]) * along[1]) / max(1e-9, float(along @ along))
        share = share.clip(0, 1)
        found = np.minimum(found, np.hypot(cols - a[0] - share * along[0], rows - a[1] - share * along[1]))
    return found
