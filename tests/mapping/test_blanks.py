"""Maps of images whose missing areas are not declared, and of those whose near infrared is called alpha."""

import json
import logging

import numpy as np
import pytest
import rasterio

from caswit.config import PredictConfig
from caswit.errors import ConfigError
from caswit.mapping.run import predict
from conftest import georeference, picture

pytestmark = pytest.mark.e2e
EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}


def read(path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read(1)


@pytest.fixture
def white(make_raster):
    """An image with a white corner of 60 x 50 pixels, and the corner."""
    image = picture(90, 130)
    image[:, :60, :50] = 255
    return make_raster(image, **georeference()), np.s_[:60, :50]


def test_white_corners_are_said_with_their_share(white, model_folder, tmp_path, caplog):
    predict(white[0], tmp_path / "map.tif", model_folder, PredictConfig(**EXACT))
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.endswith(
        "image.tif: about 26 % of its pixels are in white areas (255 in all bands) that it does not declare as nodata; "
        "they are mapped like all others: add --nodata auto, or --nodata 255 for each such pixel"
    )
    assert (read(tmp_path / "map.tif") != 255).all()


def test_auto_is_decided_once_for_all_blocks(white, model_folder, tmp_path, caplog, monkeypatch):
    path, corner = white
    out = tmp_path / "map.tif"
    predict(path, out, model_folder, PredictConfig(nodata="auto", **EXACT))
    found = read(out)
    assert (found[corner] == 255).all()
    assert (found == 255).sum() == 60 * 50
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    with rasterio.open(out) as src:
        assert src.tags()["CASWIT_NODATA"] == "auto 255"
    small = PredictConfig(nodata="auto", block_px=48, **EXACT)
    with monkeypatch.context() as patched:
        patched.setattr("caswit.mapping.run.write_outputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(path, tmp_path / "small.tif", model_folder, small)
    manifest = json.loads((tmp_path / "small.tif.parts" / "manifest.json").read_text())
    assert manifest["nodata"] == "auto 255"
    with pytest.raises(ConfigError, match="nodata was auto 255, now None"):
        predict(path, tmp_path / "small.tif", model_folder, PredictConfig(block_px=48, **EXACT))
    predict(path, tmp_path / "small.tif", model_folder, small)
    np.testing.assert_array_equal(read(tmp_path / "small.tif"), found)


def test_auto_finds_nothing_in_a_whole_image(make_raster, image, model_folder, tmp_path):
    path = make_raster(image, **georeference())
    predict(path, tmp_path / "auto.tif", model_folder, PredictConfig(nodata="auto", **EXACT))
    predict(path, tmp_path / "plain.tif", model_folder, PredictConfig(**EXACT))
    np.testing.assert_array_equal(read(tmp_path / "auto.tif"), read(tmp_path / "plain.tif"))


def test_near_infrared_called_alpha_is_said_and_can_be_kept(make_raster, image, model_folder, tmp_path, caplog):
    """Pixels became nodata without a word (#17)."""
    nir = np.random.default_rng(0).integers(0, 10, (1, 90, 130), dtype=np.uint8)
    path = make_raster(np.concatenate([image, nir]), photometric="RGB", alpha="yes", **georeference())
    predict(path, tmp_path / "map.tif", model_folder, PredictConfig(**EXACT))
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert "90 % of the values of its alpha band lie between transparent and opaque" in said
    assert "(10 % of the pixels), the map is nodata: add --ignore-alpha" in said
    np.testing.assert_array_equal(read(tmp_path / "map.tif") == 255, nir[0] == 0)
    caplog.clear()
    predict(path, tmp_path / "all.tif", model_folder, PredictConfig(ignore_alpha=True, **EXACT))
    predict(make_raster(image, "rgb.tif", **georeference()), tmp_path / "rgb.tif.tif", model_folder,
            PredictConfig(**EXACT))  # fmt: skip
    assert not [r for r in caplog.records if r.levelno == logging.WARNING]
    np.testing.assert_array_equal(read(tmp_path / "all.tif"), read(tmp_path / "rgb.tif.tif"))


def test_nodata_is_a_number_or_auto():
    with pytest.raises(ConfigError, match="nodata must be a number or auto, got 'white'; try 255"):
        PredictConfig(nodata="white")


def holed(make_raster, image):
    mask = np.full((90, 130), 255, np.uint8)
    mask[20:50, 30:80] = 0
    return make_raster(image, mask=mask, **georeference())


@pytest.mark.parametrize("fill", ["holes", "mirror"])
def test_mirrored_holes_leave_no_trace_of_blocks(make_raster, image, model_folder, tmp_path, fill):
    path, maps = holed(make_raster, image), []
    for name, px in (("large", 4096), ("small", 48)):
        predict(path, tmp_path / f"{name}.tif", model_folder, PredictConfig(fill=fill, block_px=px, **EXACT))
        maps.append(read(tmp_path / f"{name}.tif"))
    np.testing.assert_array_equal(*maps)
    predict(path, tmp_path / "black.tif", model_folder, PredictConfig(fill="black", **EXACT))
    black = read(tmp_path / "black.tif")
    np.testing.assert_array_equal(black == 255, maps[0] == 255)
    assert (black != maps[0]).any()  # it does something


def test_an_image_without_holes_is_mirrored_at_its_edges_unless_asked_otherwise(
    make_raster, image, model_folder, tmp_path
):
    path, maps = make_raster(image, **georeference()), {}
    for fill in (None, "black", "holes", "mirror"):
        predict(path, tmp_path / f"{fill}.tif", model_folder, PredictConfig(fill=fill, **EXACT))
        maps[fill] = read(tmp_path / f"{fill}.tif")
    np.testing.assert_array_equal(maps["holes"], maps["black"])
    np.testing.assert_array_equal(maps[None], maps["mirror"])
    assert (maps["mirror"] != maps["black"]).any()


def test_holes_are_mirrored_unless_black_is_asked_for(make_raster, image, model_folder, tmp_path):
    path, maps = holed(make_raster, image), {}
    for fill in (None, "black", "holes", "mirror"):
        predict(path, tmp_path / f"{fill}.tif", model_folder, PredictConfig(fill=fill, **EXACT))
        maps[fill] = read(tmp_path / f"{fill}.tif")
    np.testing.assert_array_equal(maps[None], maps["mirror"])
    for one, other in (("holes", "black"), ("holes", "mirror")):
        assert (maps[one] != maps[other]).any()
    # Far from the hole, and from its context, nothing changes.
    np.testing.assert_array_equal(maps["holes"][:, 125:], maps["black"][:, 125:])


def test_parts_of_before_go_on_with_black(make_raster, image, model_folder, tmp_path, monkeypatch):
    """Their manifests know neither fill nor ignore_alpha."""
    path, out = holed(make_raster, image), tmp_path / "map.tif"
    settings, as_before = PredictConfig(block_px=48, **EXACT), PredictConfig(block_px=48, fill="black", **EXACT)
    with monkeypatch.context() as patched:
        patched.setattr("caswit.mapping.run.write_outputs", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            predict(path, out, model_folder, as_before)
    manifest = tmp_path / "map.tif.parts" / "manifest.json"
    content = json.loads(manifest.read_text())
    for name in ("fill", "ignore_alpha"):
        del content[name]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match="fill was black, now mirror"):
        predict(path, out, model_folder, PredictConfig(block_px=48, fill="mirror", **EXACT))
    predict(path, out, model_folder, settings)
    predict(path, tmp_path / "black.tif", model_folder, as_before)
    np.testing.assert_array_equal(read(out), read(tmp_path / "black.tif"))
