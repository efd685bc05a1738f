"""White and black areas that a file does not declare as nodata."""

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from caswit.raster.blanks import blank_areas, find_blanks
from caswit.raster.mosaic import Mosaic, build_mosaic
from caswit.raster.reader import PixelEncoding, Raster
from caswit.raster.windows import Window
from conftest import georeference, picture

RGB = (1, 2, 3)


def holed(value: int, seed: int = 0) -> np.ndarray:
    """(3, 200, 300): a hole, a wedge at the edge, scattered pixels of the same value, and a rim as of compression."""
    image = picture(200, 300, seed)
    rng = np.random.default_rng(seed)
    image[:, rng.random((200, 300)) < 0.01] = value
    row, col = rng.integers(40, 120, 2)
    image[:, row - 3 : row + 43, col - 3 : col + 53] = abs(value - 9)
    image[:, row : row + 40, col : col + 50] = value
    image[:, 170:, 200:] = value
    return image


@settings(max_examples=25)
@given(st.integers(0, 100), st.sampled_from([0, 255]), st.integers(-20, 180), st.integers(-20, 280), st.integers(1, 90))
def test_windows_agree_with_the_whole(tmp_path_factory, seed, value, row, col, side):
    """Whichever block asks: what is blank follows from the surroundings that are read with a window."""
    image, file = holed(value, seed), tmp_path_factory.mktemp("blank") / "image.tif"
    with rasterio.open(
        file, "w", driver="GTiff", count=3, height=200, width=300, dtype="uint8", **georeference()
    ) as dst:
        dst.write(image)
    whole = blank_areas(image, value)
    window = Window(row, col, side, side)
    with Raster(file, PixelEncoding(blank=value)) as raster:
        pixels, valid = raster.read_image(window)
    part = window.clipped(200, 300)
    expected = np.zeros((side, side), bool)
    if part.height and part.width:
        expected[part.inside(window)] = ~whole[part.inside(Window(0, 0, 200, 300))]
    np.testing.assert_array_equal(valid, expected)
    assert not pixels[:, ~valid].any()


def test_a_hole_goes_with_its_rim_and_scattered_pixels_stay():
    image = holed(255)
    blank = blank_areas(image, 255)
    assert blank[185, 250]
    exact = (image == 255).all(0)
    rim = (image == 246).all(0)
    assert blank[rim].all()
    assert 0 < blank[exact].mean() < 1  # most of the scattered ones are not blank
    assert not blank[:20].any()
    assert not blank[~(image >= 231).all(0)].any()


@pytest.mark.parametrize("value", [0, 255])
def test_what_is_found(make_raster, value):
    image = np.tile(holed(value), (1, 3, 3))
    with Raster(make_raster(image, **georeference())) as raster:
        found = find_blanks(raster, RGB)
        assert list(found.shares) == [value]
        assert found.shares[value] == pytest.approx(blank_areas(image, value).mean(), rel=0.2)
    plain = picture(400, 300)
    plain[:, 100:120, 100:120] = value  # a saturated roof, and not at the edge
    with Raster(make_raster(plain, "plain.tif", **georeference())) as raster:
        assert find_blanks(raster, RGB).shares == {}


def test_what_the_file_declares_is_not_found(make_raster):
    with Raster(make_raster(holed(0), nodata=0, **georeference())) as raster:
        assert find_blanks(raster, RGB).shares == {}


def near_infrared(make_raster, name="nir.tif"):
    nir = np.random.default_rng(0).integers(0, 8, (1, 200, 300), dtype=np.uint8) * 30
    file = make_raster(np.concatenate([picture(200, 300), nir]), name, photometric="RGB", alpha="yes",
                       **georeference())  # fmt: skip
    with rasterio.open(file) as src:
        assert src.colorinterp[3] == rasterio.enums.ColorInterp.alpha
    return file, nir[0]


def test_near_infrared_called_alpha(make_raster):
    file, nir = near_infrared(make_raster)
    window = Window(0, 0, 200, 300)
    with Raster(file) as raster:
        found = find_blanks(raster, RGB)
        assert found.transparent == pytest.approx((nir == 0).mean(), abs=0.01)  # windows of a sample overlap
        assert found.half_transparent == pytest.approx((nir > 0).mean(), abs=0.01)
        np.testing.assert_array_equal(raster.read_image(window)[1], nir > 0)
    with Raster(file, PixelEncoding(ignore_alpha=True)) as raster:
        assert raster.read_image(window)[1].all()
        assert find_blanks(raster, RGB).half_transparent == 0
    sources, grid = build_mosaic([str(file), str(make_raster(picture(200, 300), "b.tif", **georeference(y=6_599_900)))])
    with Mosaic(sources, grid) as mosaic:
        assert find_blanks(mosaic, RGB).half_transparent > 0.2
