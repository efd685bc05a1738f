"""Any bands: names and numbers, rasters beside the image, ranges and statistics, and augmentation of each band."""

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.enums import Resampling
from rasterio.warp import reproject

from caswit.config import RGB, AugmentConfig, ModelConfig
from caswit.data.dataset import load_dataset
from caswit.data.reader import Sample, open_dataset_scene
from caswit.data.statistics import BandStatistics, measure, with_statistics
from caswit.data.transforms import augment, coloured, without_band
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import georeference

CLASSES = [{"id": 0, "name": "a", "color": "#000000"}, {"id": 1, "name": "b", "color": "#ffffff"}]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def dataset(tmp_path, **content):
    scene = {"image": "image.tif", "label": "label.tif", "split": "train", **content.pop("scene", {})}
    file = tmp_path / "dataset.yaml"
    file.write_text(yaml.safe_dump({"name": "d", "classes": CLASSES, "scenes": [scene], **content}, sort_keys=False))
    return load_dataset(file)


def write(make_raster, rng, bands=4, side=64, dtype=np.uint8, top=256, **options):
    pixels = rng.integers(1, top, (bands, side, side)).astype(dtype)
    make_raster(pixels, **(georeference() | options))
    make_raster(np.zeros((1, side, side), np.uint8), "label.tif", **georeference())
    return pixels


@pytest.mark.parametrize(
    ("said", "names", "numbers"),
    [
        ({"red": 1, "nir": 4}, ("red", "nir"), (1, 4)),
        ([4, 1, 2], RGB, (4, 1, 2)),
        ([2], ("band_2",), (2,)),
        (["red", "green", "blue", "nir"], ("red", "green", "blue", "nir"), ("red", "green", "blue", "nir")),
    ],
)
def test_bands_have_names_and_numbers(tmp_path, make_raster, rng, said, names, numbers):
    pixels = write(make_raster, rng)
    data = dataset(tmp_path, bands=said)
    assert (data.band_names, data.bands) == (names, numbers)
    expected = [n - 1 if isinstance(n, int) else names.index(n) for n in numbers]
    with open_dataset_scene(data, data.scenes[0]) as opened:
        sample = opened.read(Window(0, 0, 32, 32), 2)
    np.testing.assert_array_equal(sample.tile, pixels[expected, :32, :32])
    assert sample.context.shape == (len(names), 32, 32)


def test_names_are_looked_for_in_the_file(tmp_path, make_raster, rng):
    pixels = write(make_raster, rng)
    with rasterio.open(tmp_path / "image.tif", "r+") as dst:
        dst.descriptions = ("NIR", "Red", "Green", "Blue")
    data = dataset(tmp_path, bands=["red", "nir"])
    with open_dataset_scene(data, data.scenes[0]) as opened:
        np.testing.assert_array_equal(opened.region(opened.raster).image, pixels[[1, 0]])
    lacking = dataset(tmp_path, bands=["red", "swir"])
    with pytest.raises(DataError, match="has no band 'swir'; its bands: NIR, Red, Green, Blue"):
        open_dataset_scene(lacking, lacking.scenes[0])


@pytest.mark.parametrize("said", [[], {}, [0], [1, 1], {"red": "x"}, {"red": 1.5}, 4, [1, 2, True], {1: 2}])
def test_wrong_bands_are_one_line(tmp_path, make_raster, rng, said):
    write(make_raster, rng)
    with pytest.raises(DataError, match="bands must be numbers from 1") as error:
        dataset(tmp_path, bands=said)
    assert "\n" not in str(error.value)


def test_a_name_is_one_band(tmp_path, make_raster, rng):
    """Before, the raster replaced the band without a word."""
    write(make_raster, rng)
    make_raster(np.ones((1, 64, 64), np.float32), "dsm.tif", **georeference())
    with pytest.raises(DataError, match="also names nir, which is band 4 of the images"):
        dataset(tmp_path, bands={"red": 1, "nir": 4}, also={"nir": "dsm.tif"})
    with pytest.raises(DataError, match="bands names a band twice, got"):
        dataset(tmp_path, bands=["red", "red", "blue"])
    assert dataset(tmp_path, bands=["red", "nir"], also={"nir": "dsm.tif"}).bands == ("red", "nir")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"bands": [1, 2, 9]}, r"image\.tif: has 4 bands, bands \[1, 2, 9\] are needed"),
        ({"also": {"dsm": {"file": "dsm.tif", "band": 2}}}, r"dsm\.tif: has 1 band, bands \[2\] are needed"),
    ],
)
def test_a_number_that_no_band_has_is_not_a_damaged_file(tmp_path, make_raster, rng, content, said):
    write(make_raster, rng)
    make_raster(np.ones((1, 64, 64), np.float32), "dsm.tif", **georeference())
    data = dataset(tmp_path, **content)
    with pytest.raises(DataError, match=said):
        measure(data, data.scenes)


def test_a_fourth_band_that_the_file_calls_alpha_is_read_as_it_is(tmp_path, make_raster, rng):
    """Near infrared often is called alpha, as in FLAIR-HUB: where it is 0 the pixel still has data."""
    pixels = write(make_raster, rng)
    pixels[3, :9] = 0
    make_raster(pixels, **georeference())
    with rasterio.open(tmp_path / "image.tif") as src:
        assert src.colorinterp[3].name == "alpha"
    data = dataset(tmp_path, bands={"red": 1, "nir": 4})
    with open_dataset_scene(data, data.scenes[0]) as opened:
        region = opened.region(opened.raster)
    assert region.valid.all()
    np.testing.assert_array_equal(region.image, pixels[[0, 3]])


@pytest.mark.equivalence
def test_statistics_are_those_of_numpy_without_nodata(tmp_path, make_raster, rng):
    pixels = write(make_raster, rng, bands=2, dtype=np.uint16, top=3000)
    pixels[:, :20] = 0
    make_raster(pixels, **georeference(), nodata=0)
    data = dataset(tmp_path, bands={"red": 1, "nir": 2})
    found = measure(data, data.scenes)
    for band, limits, mean, std, count in zip(pixels, *found[1:], strict=True):
        values = band[(pixels != 0).any(0)].astype(float)
        low, high = np.percentile(values, (1, 99))
        assert count == values.size
        assert limits == pytest.approx((low, high), rel=1e-5)
        stretched = np.floor(np.clip((values - low) / (high - low) * 255 + 0.5, 0, 255))
        assert (mean, std) == pytest.approx((stretched.mean(), stretched.std()), rel=1e-3)
    # With nodata counted, the 1st percentile were 0.
    assert found.ranges[0][0] > 0
    read = data.with_bands(data.band_names, found.ranges)
    with open_dataset_scene(read, read.scenes[0]) as opened:
        region = opened.region(opened.raster)
    assert region.valid[:20].sum() == 0
    assert region.image.dtype == np.uint8
    assert region.image[:, 20:].mean(axis=(1, 2)) == pytest.approx(found.mean, abs=0.5)


@pytest.mark.equivalence
def test_a_raster_beside_the_image_is_warped_to_its_grid(tmp_path, make_raster, rng):
    write(make_raster, rng, bands=3)
    heights = np.add.outer(np.arange(40), np.arange(40)).astype(np.float32)[None] + 100
    heights[0, 8:12, 8:12] = -9999
    make_raster(heights, "dsm.tif", **georeference(gsd=1.0, y=6_600_002), nodata=-9999)
    data = dataset(tmp_path, scene={"also": {"dsm": "dsm.tif"}})
    assert data.band_names == (*RGB, "dsm")
    found = measure(data, data.scenes)
    assert found.ranges[:3] == (None,) * 3
    read = data.with_bands(data.band_names, found.ranges)
    with open_dataset_scene(read, read.scenes[0]) as opened:
        region = opened.region(opened.raster)
    expected = np.full((64, 64), np.nan, np.float32)
    with rasterio.open(tmp_path / "dsm.tif") as src, rasterio.open(tmp_path / "image.tif") as onto:
        where = {"dst_transform": onto.transform, "dst_crs": onto.crs, "dst_nodata": np.nan}
        reproject(rasterio.band(src, 1), expected, **where, resampling=Resampling.bilinear)
    low, high = found.ranges[3]
    stretched = np.floor(np.clip((expected - low) / (high - low) * 255 + 0.5, 0, 255))
    np.testing.assert_allclose(region.image[3], np.nan_to_num(stretched), atol=1)
    # A pixel has data where the image has, though the other raster has none.
    assert region.valid.all()
    assert np.isnan(expected).any()


def test_one_raster_may_lie_under_all_scenes(tmp_path, make_raster, rng):
    write(make_raster, rng, bands=3)
    heights = rng.integers(0, 200, (2, 64, 64)).astype(np.uint8)
    make_raster(heights, "dem.tif", **georeference())
    data = dataset(tmp_path, also={"dsm": {"file": "dem.tif", "band": 2}})
    assert data.band_names == (*RGB, "dsm")
    with open_dataset_scene(data, data.scenes[0]) as opened:
        np.testing.assert_array_equal(opened.region(opened.raster).image[3], heights[1])
    with pytest.raises(DataError, match=r"also: no such file .*none.tif; paths are relative to"):
        dataset(tmp_path, also={"dsm": "none.tif"})


def test_a_raster_elsewhere_is_one_line(tmp_path, make_raster, rng):
    write(make_raster, rng, bands=3)
    make_raster(np.ones((1, 9, 9), np.float32), "dsm.tif", **georeference(x=900_000))
    data = dataset(tmp_path, scene={"also": {"dsm": "dsm.tif"}})
    with pytest.raises(DataError, match=r"dsm.tif: lies elsewhere than the image .*image.tif; give a raster of"):
        measure(data, data.scenes)
    make_raster(np.ones((1, 9, 9), np.float32), "dsm.tif")
    with pytest.raises(DataError, match="has no CRS, so where it lies"):
        measure(data, data.scenes)
    with pytest.raises(DataError, match="lacks nir, which the model reads; its bands are red, green, blue, dsm"):
        data.with_bands((*RGB, "nir"))
    with pytest.raises(DataError, match="no such file"):
        dataset(tmp_path, scene={"also": {"dsm": "none.tif"}})


def test_colours_keep_the_numbers_of_weights_and_other_bands_are_measured():
    names = (*RGB, "nir", "dsm")
    measured = BandStatistics(names, (None,) * 4 + ((1.0, 9.0),), tuple(range(5)), (9.0,) * 5, (1,) * 5)
    settings = with_statistics(ModelConfig(), measured)
    assert settings.mean == (*ModelConfig.mean, 3, 4)
    assert settings.std == (*ModelConfig.std, 9, 9)
    assert settings.ranges == measured.ranges
    learned = ModelConfig(bands=("nir", "red"), mean=(7.0, 8.0), std=(1.0, 2.0))
    assert with_statistics(ModelConfig(), measured, learned).mean == (8, *ModelConfig.mean[1:], 7, 4)
    # Colours that are stretched are no longer what those numbers are of.
    stretched = measured._replace(ranges=((0.0, 5.0),) * 5)
    assert with_statistics(ModelConfig(), stretched).mean == measured.mean


def test_each_band_has_changes_of_its_own(rng):
    image = rng.integers(1, 256, (5, 32, 32)).astype(np.uint8)
    image[:] = image[:1]
    sample = Sample(image, image[None].repeat(2, 0), np.zeros((0, 0), np.uint8), np.zeros((0, 0), np.uint8))
    alike = AugmentConfig(brightness=0.2, contrast=0.3, gamma=0.3)
    same = augment(sample, alike, np.random.default_rng(1), factor=(2, 4))
    assert (same.tile == same.tile[:1]).all()
    apart = augment(sample, AugmentConfig(**{**vars(alike), "per_band": True}), np.random.default_rng(1), factor=(2, 4))
    assert len({band.tobytes() for band in apart.tile}) == 5
    np.testing.assert_array_equal(apart.context[1], apart.tile)


def test_saturation_is_about_colours_alone(rng):
    image = rng.integers(0, 256, (5, 8, 8)).astype(np.uint8)
    found = coloured(image, gains=np.ones(5), saturation=0.3, rgb=(4, 1, 2))
    np.testing.assert_array_equal(found[[0, 3]], image[[0, 3]])
    np.testing.assert_array_equal(found[[4, 1, 2]], coloured(image[[4, 1, 2]], gains=np.ones(3), saturation=0.3))


def test_band_dropout_leaves_out_one_band_as_often_as_it_says(rng):
    image = rng.integers(1, 256, (4, 8, 8)).astype(np.uint8)
    empty = np.zeros((0, 0), np.uint8)
    sample = Sample(image, image.copy(), empty, empty)
    settings = AugmentConfig(band_dropout=0.5)
    draws = [augment(sample, settings, np.random.default_rng(n)) for n in range(200)]
    black = np.array([(s.tile == 0).all((1, 2)) for s in draws])
    assert (black == np.array([(s.context == 0).all((1, 2)) for s in draws])).all()
    assert black.sum(1).max() == 1
    assert 80 < black.sum() < 120
    assert (black.sum(0) > 10).all()
    one = sample._replace(tile=image[:1], context=image[:1])
    assert augment(one, AugmentConfig(band_dropout=1.0), rng).tile.any()
    assert without_band(sample, 2).tile[2].sum() == 0
    assert (sample.tile == image).all()
