"""Reading rasters as they come."""

import os
import resource
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.env import get_gdal_config
from torch.utils.data import DataLoader

from caswit.errors import DataError
from caswit.raster.reader import CACHE_MB, PixelEncoding, Raster, write_raster
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


def test_white_nodata_is_black_too_and_one_white_channel_is_a_colour(make_raster, image):
    image[:, 10:20, 10:20] = 255
    image[1:, 40, 40] = 255
    with Raster(make_raster(image, nodata=255)) as raster:
        pixels, valid = raster.read_image(WHOLE)
    assert not pixels[:, 10:20, 10:20].any()
    assert valid.sum() == 90 * 130 - 100
    np.testing.assert_array_equal(pixels[:, 40, 40], image[:, 40, 40])


def test_a_band_is_filled_outside_and_at_nodata(make_raster, label):
    """Where the fill did not fit into the raster's type, nodata became 0: a class."""
    label[0, 3, 4] = 99
    with Raster(make_raster(label, nodata=99)) as raster:
        values = raster.read_band(Window(-2, -3, 95, 140), fill=65_536)
    expected = np.full((95, 140), 65_536)
    expected[2:92, 3:133] = np.where(label[0] == 99, 65_536, label[0].astype(int))
    np.testing.assert_array_equal(values, expected)


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
        (georeference(1, x=0, y=8_399_738, crs="EPSG:3857"), 0.5),  # 60 degrees north
        (georeference(2, x=980_000, y=200_000, crs="EPSG:2263"), 0.6096),  # US feet
        (georeference(1e-5, x=7, y=46, crs="EPSG:4326"), 0.928),  # metres north-south times cos(46), square root
        ({}, None),
        (georeference(0.1, crs='LOCAL_CS["Local Coordinates (m)",UNIT["metre",1]]'), None),  # photogrammetry
    ],
)
def test_ground_size_of_a_pixel_in_metres(make_raster, image, where, gsd_m):
    with Raster(make_raster(image, **where)) as raster:
        found = raster.grid.source_gsd_m
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

    def test_a_map_of_ours(self, make_raster, image):
        """In the folder of the images it covered them."""
        path = make_raster(image)
        with rasterio.open(path, "r+") as src:
            src.update_tags(CASWIT_MODEL_SHA256="0" * 64)
        assert "is a map that caswit made, not an image" in self.refused(path)

    def test_sixteen_bits(self, make_raster, image):
        message = self.refused(make_raster(image.astype(np.uint16) * 10))
        assert "gdal_translate -ot Byte -scale" in message
        assert "--rescale LOW HIGH" in message

    def test_a_fifth_band_of_three(self, make_raster, image):
        assert "has 3 bands, bands [1, 2, 5] are needed" in self.refused(make_raster(image), (1, 2, 5))

    def test_a_truncated_file(self, make_raster, image):
        path = make_raster(image, tiled=True, blockxsize=32, blockysize=32, compress="deflate")
        path.write_bytes(path.read_bytes()[:12_000])
        with (
            pytest.raises(DataError, match=r"image\.tif: cannot read rows 0-90, columns 0-130; the file may be trunc"),
            Raster(path) as raster,
        ):
            raster.read_image(WHOLE)

    def test_a_mask_that_was_cut_off(self, make_raster, image):
        """Reading the mask raised rasterio's own error."""
        rng = np.random.default_rng(0)
        path = make_raster(image, mask=rng.choice([0, 255], (90, 130)).astype(np.uint8), tiled=True, compress="deflate")
        with Raster(path) as raster:
            assert not raster.read_image(WHOLE)[1].all()
        path.write_bytes(path.read_bytes()[:-500])  # the mask comes last
        with pytest.raises(DataError, match="may be truncated"), Raster(path) as raster:
            raster.read_image(WHOLE)

    def test_a_truncated_png(self, make_raster, image):
        """GDAL returned black rows for what is missing, and no error."""
        path = make_raster(image, "image.png")
        path.write_bytes(path.read_bytes()[:15_000])
        with pytest.raises(DataError, match="may be truncated"), Raster(path) as raster:
            raster.read_image(WHOLE)


def test_a_full_disk_is_noticed(tmp_path, capfd):
    """GDAL says nothing to us when closing a file fails, so a broken raster looked finished."""
    noise = np.random.default_rng(0).integers(0, 250, (3, 600, 600), dtype=np.uint8)
    write_raster(tmp_path / "whole.tif", noise)
    size = (tmp_path / "whole.tif").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.01, 0.5, 0.99, 0.9999):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), before[1]))
        try:
            with pytest.raises((DataError, OSError)):
                write_raster(tmp_path / "cut.tif", noise)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    capfd.readouterr()


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32])
def test_values_of_other_types_are_rescaled(make_raster, image, dtype):
    wide = image.astype(dtype) * 10 + 100
    with Raster(make_raster(wide), PixelEncoding(rescale=(100, 2650))) as raster:
        raster.check_image(BANDS)
        np.testing.assert_array_equal(raster.read_image(WHOLE)[0], image)


def test_values_beyond_the_range_are_clipped_and_nan_is_no_data(make_raster):
    values = np.array([-5, 0, 50, 100, 1e9, np.nan], np.float32)
    with Raster(make_raster(np.tile(values, (3, 2, 1))), PixelEncoding(rescale=(0, 100))) as raster:
        pixels, valid = raster.read_image(Window(0, 0, 2, 6))
    assert pixels[0, 0].tolist() == [0, 0, 128, 255, 255, 0]
    assert valid[1].tolist() == [True] * 5 + [False]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_nodata_that_the_file_does_not_declare(make_raster, image, dtype):
    """A value in one band only is a colour; the value is the file's own, before it is rescaled."""
    holed = image.astype(dtype) * (1 if dtype == np.uint8 else 10)
    holed[:, 20:30, 40:60] = 255
    holed[0, 5, 7] = 255
    rescale = None if dtype == np.uint8 else (0, 2550)
    with Raster(make_raster(holed), PixelEncoding(rescale=rescale, nodata=255)) as raster:
        pixels, valid = raster.read_image(WHOLE)
    np.testing.assert_array_equal(valid, (holed != 255).any(0))
    assert valid[5, 7]
    assert not valid[20:30, 40:60].any()
    expected = np.where(valid, image, 0)
    expected[0, 5, 7] = 255 if dtype == np.uint8 else 26
    np.testing.assert_array_equal(pixels, expected)


def test_a_palette_image_is_its_colours(make_raster):
    index = np.arange(4, dtype=np.uint8).reshape(1, 2, 2)
    palette = {0: (10, 20, 30, 255), 1: (40, 50, 60, 255), 2: (70, 80, 90, 255), 3: (1, 2, 3, 0)}
    with Raster(make_raster(index, "image.png", palette=palette)) as raster:
        raster.check_image(BANDS)
        pixels, valid = raster.read_image(Window(0, 0, 2, 2))
        swapped, _ = raster.read_image(Window(0, 0, 2, 2), (3, 2, 1))
    assert pixels[:, 0, 1].tolist() == [40, 50, 60]
    assert swapped[:, 1, 0].tolist() == [90, 80, 70]
    assert valid.tolist() == [[True, True], [True, False]]
    with Raster(make_raster(index, "image.png", palette=palette), PixelEncoding(nodata=1)) as raster:
        assert raster.read_image(Window(0, 0, 2, 2))[1].tolist() == [[True, False], [True, False]]
    assert not pixels[:, 1, 1].any()


def test_holes_of_a_sparse_file_are_known_without_reading(make_raster, image, monkeypatch, tmp_path):
    path = tmp_path / "sparse.tif"
    layout = {"tiled": True, "blockxsize": 32, "blockysize": 32, "sparse_ok": True, "nodata": 0, **georeference()}
    with rasterio.open(path, "w", driver="GTiff", count=3, height=90, width=130, dtype="uint8", **layout) as dst:
        dst.write(image[:, :32, :32], window=rasterio.windows.Window(64, 32, 32, 32))
    with Raster(path) as raster:
        monkeypatch.setattr(raster, "_read", None)
        assert raster.is_empty(Window(0, 0, 32, 130))
        assert raster.is_empty(Window(0, 0, 90, 64))
        assert raster.is_empty(Window(200, 0, 5, 5))
        assert not raster.is_empty(Window(0, 0, 33, 65))
        assert not raster.is_empty(Window(63, 95, 5, 5))
    with Raster(make_raster(image, "dense.tif", tiled=True)) as raster:
        assert not raster.is_empty(Window(0, 0, 5, 5))


def test_ids_say_where_there_are_any(make_raster, label):
    """Whatever stood for outside was silently ignored where a label raster held it: 65536, or -1."""
    wide = label.astype(np.int32)
    wide[0, 3, 4], wide[0, 5, 6], wide[0, 7, 8] = 65_536, -1, 99
    with Raster(make_raster(wide, nodata=99)) as raster:
        values, known = raster.read_ids(Window(-2, -3, 95, 140))
    assert (values[5, 7], values[7, 9]) == (65_536, -1)
    assert known.sum() == 90 * 130 - 1
    assert not known[9, 11]


def test_a_window_of_nothing_is_nothing(make_raster, image, label):
    with Raster(make_raster(image)) as raster, Raster(make_raster(label, "label.tif", nodata=0)) as labels:
        for window in (Window(3, 4, 0, 5), Window(3, 4, 5, 0)):
            pixels, valid = raster.read_image(window)
            assert (pixels.shape, valid.shape) == ((3, *window[2:]), window[2:])
            assert [x.shape for x in labels.read_ids(window)] == [window[2:]] * 2


def test_the_cache_of_blocks_is_bounded_and_there():
    """It had room for 256 bytes: blocks were decoded once for the mask, again for the pixels, and for each window."""
    assert get_gdal_config("GDAL_CACHEMAX") == CACHE_MB * 1024 * 1024


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 0), ("uint8", 255), ("int16", -1), ("uint16", 65_535)])
def test_nodata_of_ids_is_what_gdals_mask_says(make_raster, dtype, nodata):
    """Seen from the values, without asking GDAL for its mask."""
    ids = np.random.default_rng(0).integers(0, 3, (1, 90, 130)).astype(dtype)
    ids[0, ::3, ::5] = nodata
    path = make_raster(ids, nodata=nodata)
    with Raster(path) as raster, rasterio.open(path) as src:
        values, known = raster.read_ids(Window(-2, -3, 95, 140))
        mask = src.dataset_mask() > 0
    assert np.array_equal(known[2:92, 3:133], mask)
    assert np.array_equal(values[2:92, 3:133], ids[0])
    assert known.sum() == mask.sum() < mask.size


def test_the_cache_is_bounded_in_every_process_that_reads():
    """36 reading processes wanted 180 % of a machine's memory. Workers are forked here, or import the module anew."""
    # Two forks of one process, which takes its seconds to import torch.
    code = """
import os, torch
for own in (None, "64"):
    if own:
        os.environ["GDAL_CACHEMAX"] = own
    if not os.fork():
        import caswit.data.sampler
        from rasterio.env import get_gdal_config
        print(get_gdal_config("GDAL_CACHEMAX"), flush=True)
        os._exit(0)
    os.wait()
"""
    environment = {name: value for name, value in os.environ.items() if name != "GDAL_CACHEMAX"}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
    assert [int(bound) for bound in done.stdout.split()] == [CACHE_MB << 20, 64 << 20]
    loader = DataLoader([0], num_workers=1, collate_fn=lambda _: get_gdal_config("GDAL_CACHEMAX"))
    assert list(loader) == [CACHE_MB << 20]


@pytest.mark.parametrize("dtype", ["complex64", "complex_int16"])
def test_complex_numbers_are_no_image(tmp_path, dtype):
    """Their usual range, which the message names, was a traceback of numpy."""
    file = tmp_path / "radar.tif"
    with rasterio.open(file, "w", driver="GTiff", count=3, height=9, width=9, dtype=dtype, **georeference()) as dst:
        dst.write(np.ones((3, 9, 9), np.complex64))
    with pytest.raises(DataError, match=f"radar.tif: pixels are {dtype}, which are neither colours nor class ids"):
        Raster(file)
