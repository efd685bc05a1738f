"""The range of ``--rescale auto``: one for a whole mosaic, from a sample of bounded size."""

import numpy as np
import pytest
import rasterio

from caswit.config import PredictConfig
from caswit.errors import ConfigError, DataError
from caswit.mapping.run import predict
from caswit.raster import windows
from caswit.raster.mosaic import build_mosaic
from caswit.raster.reader import PixelEncoding, Raster
from caswit.raster.stretch import usual_range
from conftest import georeference, picture

ANY = PixelEncoding((0.0, 1.0))
BANDS = (1, 2, 3)
EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}


def range_of(*paths, nodata=None):
    return usual_range(*build_mosaic([str(path) for path in paths], BANDS, ANY), BANDS, ANY._replace(nodata=nodata))


def test_it_is_that_of_all_values_of_a_small_image(make_raster):
    values = np.random.default_rng(0).normal(3000, 500, (3, 90, 130)).astype(np.uint16)
    assert range_of(make_raster(values, **georeference())) == pytest.approx(np.percentile(values, [1, 99]), abs=0.5)


def test_it_is_that_of_the_whole_mosaic_and_not_of_its_first_file(make_raster):
    dark, light = (np.full((3, 40, 50), value, np.float32) for value in (10.5, 900.25))
    paths = [make_raster(dark, "a.tif", **georeference()), make_raster(light, "b.tif", **georeference(x=700_025))]
    assert range_of(*paths) == (10.5, 900.25)


def test_pixels_without_data_do_not_count(make_raster):
    values = np.random.default_rng(1).integers(200, 300, (3, 60, 60)).astype(np.float32)
    values[:, :30], values[:, 30:40], values[:, 40:45] = 65_000, np.nan, -9999
    path = make_raster(values, nodata=65_000, **georeference())
    low, high = range_of(path, nodata=-9999)
    assert 200 <= low < high <= 299
    with pytest.raises(DataError, match="no pixel with data"):
        range_of(make_raster(np.full((3, 9, 9), 7, np.uint16), "b.tif", nodata=7, **georeference()))


def test_what_is_read_does_not_grow_with_the_image(make_raster, monkeypatch):
    monkeypatch.setattr(windows, "_SAMPLE_PX", 4)
    monkeypatch.setattr(windows, "_SAMPLES", 5)
    values = np.repeat(np.arange(3000, dtype=np.uint16)[None, None], 3, 0).repeat(200, 1)
    read = []
    monkeypatch.setattr(Raster, "sample", lambda self, window, bands: read.append(window) or np.arange(5.0))
    range_of(make_raster(values, **georeference()))
    assert len(read) == 25
    assert sum(each.height * each.width for each in read) == 25 * 16
    assert {each.col for each in read} >= {0, 2996}  # from end to end


def test_8_bits_are_left_as_they_are_and_one_value_is_no_division_by_zero(make_raster):
    assert range_of(make_raster(picture(20, 20), **georeference())) is None
    assert range_of(make_raster(np.full((3, 9, 9), 7, np.uint16), "b.tif", **georeference())) == (7, 8)


def test_a_map_with_auto_is_the_map_with_these_numbers(make_raster, model_folder, tmp_path):
    values = picture(90, 130).astype(np.uint16) * 40
    path = make_raster(values, **georeference())
    auto = predict(path, tmp_path / "a.tif", model_folder, PredictConfig(**EXACT, block_px=64, rescale="auto"))
    told = predict(path, tmp_path / "b.tif", model_folder, PredictConfig(**EXACT, block_px=64, rescale=auto.rescaled))
    with rasterio.open(tmp_path / "a.tif") as one, rasterio.open(tmp_path / "b.tif") as other:
        np.testing.assert_array_equal(one.read(), other.read())
        assert one.tags()["CASWIT_RESCALE"] == other.tags()["CASWIT_RESCALE"] == "{:g} {:g}".format(*told.rescaled)
    eight = make_raster(picture(40, 50), "eight.tif", **georeference())
    assert predict(eight, tmp_path / "c.tif", model_folder, PredictConfig(**EXACT, rescale="auto")).rescaled is None


def test_the_journal_holds_the_numbers(make_raster, model_folder, tmp_path, monkeypatch):
    path = make_raster(picture(90, 130).astype(np.uint16) * 40, **georeference())
    manifests = []
    monkeypatch.setattr(
        "caswit.mapping.run.open_journal", lambda out, manifest, **_: manifests.append(manifest) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        predict(path, tmp_path / "a.tif", model_folder, PredictConfig(**EXACT, rescale="auto"))
    low, high = range_of(path)
    assert manifests[0]["rescale"] == f"({low}, {high})"


def test_impossible_numbers_are_still_refused():
    with pytest.raises(ConfigError, match="the lower one first"):
        PredictConfig(rescale=(5, 5))


@pytest.mark.parametrize("size", [(60, 70), (1500, 40)])
def test_the_refusal_of_other_pixels_names_the_range_that_auto_takes(make_raster, size):
    values = np.random.default_rng(3).gamma(2, 400, (3, *size)).astype(np.uint16)
    values[:, :, :5] = 60_000
    path = make_raster(values, nodata=60_000, **georeference())
    low, high = range_of(path)
    with pytest.raises(DataError, match=rf"98 of 100 pixels lie in {low:g} {high:g}\)"):
        build_mosaic([str(path)], BANDS, PixelEncoding())


@pytest.mark.parametrize(
    ("dtype", "nodata", "words"),
    [
        ("uint8", 300, "pixels are uint8, whole numbers 0 to 255, so none has --nodata 300"),
        ("uint8", -1, "so none has --nodata -1"),
        ("uint8", 1.5, "so none has --nodata 1.5"),
        ("int16", 40_000, "whole numbers -32768 to 32767, so none has --nodata 40000"),
    ],
)
def test_nodata_that_no_pixel_can_have(make_raster, image, dtype, nodata, words):
    path = make_raster(image.astype(dtype), **georeference())
    with pytest.raises(DataError, match=words) as caught:
        build_mosaic([str(path)], BANDS, ANY._replace(nodata=nodata))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "nodata"), [("uint8", 255), ("uint8", 0.0), ("uint16", 300), ("float32", -9999)])
def test_nodata_that_pixels_can_have(make_raster, image, dtype, nodata):
    build_mosaic([str(make_raster(image.astype(dtype), **georeference()))], BANDS, ANY._replace(nodata=nodata))
