"""Arrays in, classes out: ``caswit.load_model(...).predict(array)``."""

import numpy as np
import pytest
import rasterio

import caswit
from caswit.config import OutputConfig, PredictConfig
from caswit.errors import CaswitError, ConfigError, DataError
from caswit.mapping.run import predict
from conftest import georeference, picture

pytestmark = pytest.mark.e2e


def read(file):
    with rasterio.open(file) as src:
        return src.read(1)


@pytest.fixture(scope="module")
def model(model_folder):
    return caswit.load_model(model_folder)


@pytest.fixture
def mapped(tmp_path, model_folder, make_raster):
    """Function that maps an array as a file: classes and confidence."""

    def run(pixels, mask=None, **settings):
        image = make_raster(pixels, mask=mask, **georeference())
        out, outputs = tmp_path / "map.tif", OutputConfig(confidence=str(tmp_path / "confidence.tif"))
        predict(image, out, model_folder, PredictConfig(**settings), outputs)
        return read(out), read(tmp_path / "confidence.tif")

    return run


@pytest.mark.parametrize(
    "settings",
    [{}, {"tta": 2}, {"blend": True}, {"gsd_m": 0.3, "match_gsd": True}, {"bands": (3, 1, 2)}, {"min_confidence": 35},
     {"block_px": 40, "overlap_px": 4}],
    ids=str,
)  # fmt: skip
def test_an_array_has_the_map_of_a_file_with_its_pixels(model, mapped, settings):
    """Several blocks and tiles; ``predict`` is the independent way."""
    pixels = picture(90, 130)
    classes, confidence = model.predict(pixels, confidence=True, **settings)
    expected = mapped(pixels, **settings)
    assert classes.dtype == confidence.dtype == np.uint8
    assert np.array_equal(classes, expected[0])
    assert np.array_equal(confidence, expected[1])
    assert len(np.unique(classes)) > 1
    assert set(np.unique(classes)) <= {*model.classes, 255}
    assert np.array_equal(model(np.moveaxis(pixels, 0, 2), **settings), classes)  # (H, W, bands), and the call


def test_pixels_without_data_are_255(model, mapped):
    pixels = picture(60, 70)
    valid = np.ones((60, 70), bool)
    valid[10:30, 20:50] = False
    classes = model.predict(pixels, valid=valid)
    assert np.array_equal(classes == 255, ~valid)
    assert np.array_equal(classes, mapped(pixels, mask=valid)[0])
    white = np.where(valid, pixels, 255)
    assert (model.predict(white, nodata=255)[~valid] == 255).all()


def test_other_types_are_rescaled_as_in_a_file(model, mapped):
    pixels = picture(60, 70).astype(np.uint16) * 40
    assert np.array_equal(model.predict(pixels, rescale=(0, 10_200)), mapped(pixels, rescale=(0.0, 10_200.0))[0])
    shares = picture(60, 70) / np.float32(255)
    assert np.array_equal(model.predict(shares, rescale=(0, 1)), mapped(shares, rescale=(0.0, 1.0))[0])


def test_the_network_is_arranged_once_for_images_of_all_sizes(model, monkeypatch):
    calls = []
    import caswit.mapping.arrays as arrays

    real = arrays.load_predictor
    monkeypatch.setattr(arrays, "load_predictor", lambda *a: calls.append(a) or real(*a))
    for size in (40, 50):
        assert model.predict(picture(size, size + 1), batch=3, gsd_m=size / 100).shape == (size, size + 1)
    assert len(calls) == 1
    model.predict(picture(40, 40), tta=2)
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("image", "settings", "message"),
    [
        (np.zeros((40, 40), np.uint8), {}, r"\(bands, H, W\) or \(H, W, bands\), got the shape \(40, 40\)"),
        (np.zeros((3, 0, 5), np.uint8), {}, "shape"),
        (np.zeros((40, 20, 40), np.uint8), {}, "shorter of its first and last axis"),
        (np.zeros((3, 40, 40), np.uint16), {}, r"holds uint16, uint8 is needed; give rescale=\(low, high\)"),
        (np.zeros((3, 40, 40), complex), {"rescale": (0, 1)}, "complex128"),
        (np.zeros((2, 40, 40), np.uint8), {}, r"has 2 bands, bands \[1, 2, 3\] are needed"),
        (np.zeros((3, 40, 40), np.uint8), {"valid": np.ones((4, 4))}, r"shape \(40, 40\) of the image, got \(4, 4\)"),
    ],
)
def test_arrays_that_are_no_images_are_refused(model, image, settings, message):
    with pytest.raises(DataError, match=message):
        model.predict(image, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gsdm": 1}, "no setting gsdm; did you mean gsd_m"),
        ({"confidense": 1}, "no setting confidense"),
        ({"tta": 3}, "one of 1, 2, 4, 8, got 3"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"overlap_px": 4096}, "overlap_px must be below"),
        ({"device": "tpu"}, "tpu"),
    ],
)
def test_settings_that_are_not_allowed_are_refused(model, settings, message):
    with pytest.raises(ConfigError, match=message):
        model.predict(picture(40, 41), **settings)


def test_it_is_what_it_was_too(model, model_folder):
    """Versions before returned a plain ``LoadedModel``: network, settings, name and digests."""
    network, info, name, digest, *_ = model
    assert (network, info) == (model.network, model.info)
    assert name == model.name
    assert len(digest) == 64
    assert model.classes == {1: "building", 2: "land", 7: "water"}
    with pytest.raises(CaswitError, match="no such model folder"):
        caswit.load_model(model_folder / "nowhere")


def test_what_stands_in_for_missing_pixels_may_differ_from_call_to_call(model, image):
    """The arranged network is kept between calls, but not what it is shown."""
    valid = np.ones(image.shape[1:], bool)
    valid[20:50, 30:80] = False
    found = [model.predict(image, valid=valid, fill=fill) for fill in ("black", "holes", "black")]
    np.testing.assert_array_equal(found[0], found[2])
    assert (found[0] != found[1]).any()
