"""Labels on another grid than their image: equal to warping the whole with rasterio, whatever window is read."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import Affine
from rasterio.io import MemoryFile
from rasterio.vrt import WarpedVRT
from rasterio.warp import Resampling, reproject, transform_bounds

from caswit.raster.georef import Grid
from caswit.raster.reader import Raster
from caswit.raster.warped import WarpedLabel, overlap
from caswit.raster.windows import Window
from conftest import georeference

EXACT = 1e-12
"""Tolerance in pixels of the places that GDAL computes; 0 is refused, and ``reproject`` does not take one."""
HEIGHT, WIDTH = 45, 60
IMAGE = Affine(0.5, 0, 700_000, 0, -0.5, 6_600_000)
NODATA = 255
CRS = ("EPSG:2154", "EPSG:32631", "EPSG:4326", "EPSG:3857", "EPSG:3035")


def image_grid(transform=IMAGE, crs="EPSG:2154"):
    return Grid(HEIGHT, WIDTH, rasterio.CRS.from_string(crs), transform, ([], None))


def ids(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 200, (1, height, width)).astype(np.uint8)


def placed(grid, crs, side, turn, shift, scale):
    """Transform of ``side`` pixels in a CRS, about ``scale`` times the image's, around its middle."""
    (a, b, c), (d, e, f) = grid.matrix[:2].tolist()
    x, y = a * WIDTH / 2 + b * HEIGHT / 2 + c, d * WIDTH / 2 + e * HEIGHT / 2 + f
    left, bottom, right, top = transform_bounds(grid.crs, crs, x - 1, y - 1, x + 1, y + 1)
    pixel = 0.5 * scale * (right - left) / 2, 0.5 * scale * (top - bottom) / 2
    middle = Affine.translation((left + right) / 2, (bottom + top) / 2)
    return (
        middle
        * Affine.rotation(turn)
        * Affine.scale(pixel[0], -pixel[1])
        * Affine.translation(-side / 2 + shift[0], -side / 2 + shift[1])
    )


@settings(max_examples=60)
@given(
    crs=st.sampled_from(CRS),
    turned=st.sampled_from([0, 0, 17.3]),
    image_turned=st.sampled_from([0, 0, -8.1]),
    scale=st.floats(0.3, 4),
    shift=st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
    window=st.tuples(st.integers(-30, 50), st.integers(-30, 70), st.integers(1, 70), st.integers(1, 70)),
    seed=st.integers(0, 5),
)
def test_windows_equal_warping_the_whole(crs, turned, image_turned, scale, shift, window, seed):
    grid = image_grid(IMAGE * Affine.rotation(image_turned))
    side = 48
    profile = {"driver": "GTiff", "height": side, "width": side, "count": 1, "dtype": "uint8", "nodata": NODATA}
    place = {"crs": crs, "transform": placed(grid, crs, side, turned, shift, scale)}
    with MemoryFile() as memory:
        with memory.open(**profile, **place) as out:
            out.write(ids(side, side, seed))
        to = {"crs": grid.crs, "transform": grid.transform, "height": HEIGHT, "width": WIDTH}
        with memory.open() as src, WarpedVRT(src, resampling=Resampling.nearest, tolerance=EXACT, **to) as warped:
            whole = warped.read(1)
        read = Window(*window)
        with WarpedLabel(Raster(memory.name), grid) as label:
            found, known = label.read_ids(read)
    expected = np.full((read.height, read.width), NODATA, np.uint8)
    part = read.clipped(HEIGHT, WIDTH)
    if part.height and part.width:
        rows, cols = slice(part.row, part.row + part.height), slice(part.col, part.col + part.width)
        expected[part.inside(read)] = whole[rows, cols]
    np.testing.assert_array_equal(np.where(known, found, NODATA), expected)


@pytest.mark.parametrize(("factor", "offset"), [(0.5, 0), (2, 0), (1, 3), (0.25, 1.5), (4, -2), (1, 0.5)])
def test_places_on_edges_of_pixels_go_where_rasterio_puts_them(make_raster, factor, offset):
    """Half or twice the image's pixel: the centres of all pixels lie on edges or corners of the label's."""
    transform = IMAGE * Affine.translation(offset, offset) * Affine.scale(factor)
    pixels = ids(80, 90)
    path = make_raster(pixels, "label.tif", crs="EPSG:2154", transform=transform, nodata=NODATA)
    whole = np.full((HEIGHT, WIDTH), NODATA, np.uint8)
    source = {"src_transform": transform, "src_crs": "EPSG:2154", "src_nodata": NODATA}
    to = {"dst_transform": IMAGE, "dst_crs": "EPSG:2154", "dst_nodata": NODATA}
    reproject(pixels[0], whole, **source, **to, resampling=Resampling.nearest)
    with WarpedLabel(Raster(path), image_grid()) as label:
        found, known = label.read_ids(Window(0, 0, HEIGHT, WIDTH))
    np.testing.assert_array_equal(np.where(known, found, NODATA), whole)


def test_colours_and_a_label_much_finer_than_the_image(make_raster, monkeypatch):
    """Three bands; cut into parts until few enough pixels of the label are read at once."""
    pixels = np.concatenate([ids(450, 600, seed) for seed in range(3)])
    where = georeference(0.05)
    path = make_raster(pixels, "label.tif", **where)
    with WarpedLabel(Raster(path), image_grid()) as label:
        whole, known = label.read_image(Window(0, 0, HEIGHT, WIDTH))
        read, boxes = label.label.read_image, []

        def counted(window, *bands):
            boxes.append(window.height * window.width)
            return read(window, *bands)

        monkeypatch.setattr(label.label, "read_image", counted)
        monkeypatch.setattr("caswit.raster.warped._MOST_PX", 1000)
        np.testing.assert_array_equal(label.read_image(Window(0, 0, HEIGHT, WIDTH))[0], whole)
    assert known.all()
    np.testing.assert_array_equal(whole, pixels[:, 5::10, 5::10])
    assert len(boxes) > 100
    assert max(boxes) <= 1000


def test_an_error_finds_the_pixel_of_the_file(make_raster):
    pixels = ids(30, 30)
    path = make_raster(pixels, "label.tif", **georeference(1, x=700_004, y=6_599_998))
    with WarpedLabel(Raster(path), image_grid()) as label:
        row, col = label.at(20, 31)
        found, _ = label.read_ids(Window(20, 31, 1, 1))
    assert (row, col) == (8, 11)
    assert found[0, 0] == pixels[0, row, col]


@pytest.mark.parametrize(
    ("x", "y", "gsd", "crs", "covered", "outside"),
    [
        (700_000, 6_600_000, 0.5, "EPSG:2154", 1, 0),
        (700_015, 6_600_000, 0.5, "EPSG:2154", 0.5, 0.5),
        (700_100, 6_600_000, 0.5, "EPSG:2154", 0, 1),
        (600_000, 600_000, 0.5, "EPSG:32755", 0, 1),  # the other side of the globe
    ],
)
def test_overlap(x, y, gsd, crs, covered, outside):
    found = overlap(image_grid(), image_grid(Affine(gsd, 0, x, 0, -gsd, y), crs))
    assert found == pytest.approx((covered, outside), abs=0.02)
