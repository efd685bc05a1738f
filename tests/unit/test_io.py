"""Reading rasters as they come."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caswit.errors import DataError
from caswit.raster.io import Raster
from caswit.raster.windows import Window
from conftest import georeference

WHOLE = Window(0, 0, 90, 130)
BANDS = (1, 2, 3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(-60, 120), st.integers(-60, 150), st.integers(1, 80), st.integers(1, 80))
def test_any_window_is_cut_out_of_the_black_padded_whole(make_raster, image, row, col, height, width):
    padded = np.pad(image, ((0, 0), (100, 200), (100, 200)))
    inside = np.pad(np.ones((90, 130), bool), ((100, 200), (100, 200)))
    part = slice(row + 100, row + 100 + height), slice(col + 100, col + 100 + width)
    with Raster(make_raster(image, tiled=True, blockxsize=32, blockysize=32)) as raster:
        pixels, valid = raster.read_image(Window(row, col, height, width))
    np.testing.assert_array_equal(pixels, padded[:, *part])
    np.testing.assert_array_equal(valid, inside[part])


def test_nodata_is_black_and_invalid_but_one_black_channel_is_a_colour(make_raster, image):
    image[:, 10:20, 10:20] = 0  # nodata in all bands
    image[0, 40, 40] = 0  # a colour without red
    with Raster(make_raster(image, nodata=0)) as raster:
        _, valid = raster.read_image(WHOLE)
    assert not valid[10:20, 10:20].any()
    assert valid.sum() == 90 * 130 - 100


def test_an_internal_mask_says_where_there_are_data(make_raster, image):
    mask = np.full((90, 130), 255, np.uint8)
    mask[:, :50] = 0
    with Raster(make_raster(image, mask=mask)) as raster:
        pixels, valid = raster.read_image(WHOLE)
    np.testing.assert_array_equal(valid, mask > 0)
    assert not pixels[:, :, :50].any()


def test_an_alpha_band_says_where_there_are_data(make_raster, image):
    alpha = np.full((1, 90, 130), 255, np.uint8)
    alpha[0, :30] = 0
    path = make_raster(np.concatenate([image, alpha]), photometric="RGB", alpha="yes")
    with Raster(path) as raster:
        _, valid = raster.read_image(WHOLE)
    np.testing.assert_array_equal(valid, alpha[0] > 0)


def test_bands_are_read_in_the_order_asked_for(make_raster, image):
    four = np.concatenate([image, image[:1] // 2])
    with Raster(make_raster(four, photometric="RGB")) as raster:
        pixels, _ = raster.read_image(WHOLE, (4, 1, 2))
    np.testing.assert_array_equal(pixels, four[[3, 0, 1]])


@pytest.mark.parametrize(
    ("where", "gsd_m"),
    [
        (georeference(0.2), 0.2),
        (georeference(0.15, x=9_500_000, y=3_200_000, crs="EPSG:3857"), 0.1329),  # cos of 27.6 degrees north
        (georeference(1e-5, x=7, y=46, crs="EPSG:4326"), 0.928),  # metres north-south times cos(46), square root
        ({}, None),
    ],
)
def test_ground_size_of_a_pixel_in_metres(make_raster, image, where, gsd_m):
    with Raster(make_raster(image, **where)) as raster:
        found = raster.grid.gsd_m
    assert found == pytest.approx(gsd_m, rel=2e-3) if gsd_m else found is None


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg", "plain.tif"])
def test_images_without_a_georeference_are_welcome(make_raster, image, name, recwarn):
    with Raster(make_raster(image, name)) as raster:
        assert raster.read_image(WHOLE)[1].all()
        assert raster.grid.crs is None
    assert not recwarn.list


class TestRefusals:
    def refused(self, path, bands=BANDS) -> str:
        with pytest.raises(DataError) as caught, Raster(path) as raster:
            raster.check_image(bands)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        return message

    def test_a_missing_file(self, tmp_path):
        assert "no such file" in self.refused(tmp_path / "none.tif")

    def test_a_file_that_is_no_raster(self, tmp_path):
        (tmp_path / "text.tif").write_text("hello")
        assert "not a raster" in self.refused(tmp_path / "text.tif")

    def test_two_bands(self, make_raster, image):
        assert "has 2 bands, bands [1, 2, 3] are needed" in self.refused(make_raster(image[:2]))

    def test_sixteen_bits(self, make_raster, image):
        assert "gdal_translate -ot Byte -scale" in self.refused(make_raster(image.astype(np.uint16)))

    def test_a_palette_image(self, make_raster, image):
        path = make_raster(image[:1], palette={0: (255, 0, 0, 255)})
        assert "palette" in self.refused(path, (1, 1, 1))

    def test_a_truncated_file(self, make_raster, image):
        path = make_raster(image, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
        path.write_bytes(path.read_bytes()[:12_000])
        with pytest.raises(DataError, match=r"truncated|not a raster"), Raster(path) as raster:
            raster.read_image(WHOLE)
