"""Polygons and sieved maps of whole runs, as a user asks for them."""

import json

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.features import rasterize, sieve

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import ConfigError
from caswit.mapping.run import predict
from conftest import georeference

pytestmark = pytest.mark.e2e
SETTINGS = PredictConfig(precision="fp32", batch=1, device="cpu", block_px=48)


def read(path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read(1)


@pytest.fixture
def mapped(make_raster, image, model_folder, tmp_path):
    """Function that maps an image with pixels of 0.5 m and returns the map and its polygons."""
    path = make_raster(image, **georeference())

    def run(name, suffix=".gpkg", settings=SETTINGS, **outputs):
        out, vector = tmp_path / f"{name}.tif", tmp_path / f"{name}{suffix}"
        predict(path, out, model_folder, settings, OutputConfig(vector=str(vector), **outputs))
        return read(out), pyogrio.read_dataframe(vector, layer="landcover") if suffix == ".gpkg" else vector

    return run


def pixels_of(table, shape=(90, 130)) -> np.ndarray:
    burn = list(zip(table.geometry, table["class"], strict=True))
    return rasterize(burn, out_shape=shape, fill=255, transform=georeference()["transform"], dtype="uint8")


def test_polygons_carry_the_mean_of_the_confidence_file(mapped, tmp_path):
    classes, table = mapped("map", confidence=str(tmp_path / "c.tif"))
    confidence = read(tmp_path / "c.tif")
    np.testing.assert_array_equal(pixels_of(table), classes)
    for shape, mean in zip(table.geometry, table["confidence"], strict=True):
        inside = rasterize([shape], out_shape=classes.shape, transform=georeference()["transform"]).astype(bool)
        assert mean == pytest.approx(confidence[inside].mean(), rel=1e-12)
    # Without the file too.
    _, alone = mapped("alone")
    assert sorted(alone["confidence"]) == sorted(table["confidence"])
    _, file = mapped("text", ".geojson")
    features = json.loads(file.read_text())["features"]
    assert sorted(f["properties"]["confidence"] for f in features) == pytest.approx(
        sorted(table["confidence"]), abs=1e-3
    )


def test_only_some_classes_are_written_by_name_or_id(mapped):
    classes, table = mapped("map")
    _, some = mapped("some", classes="Building, 7")
    assert set(table["class"]) == {1, 2, 7}
    assert set(some["class"]) == {1, 7}
    np.testing.assert_array_equal(pixels_of(some), np.where(classes == 2, 255, classes))
    with pytest.raises(
        ConfigError, match="no class of the model is called 'roads'; it has 1 building, 2 land, 7 water"
    ):
        mapped("none", classes="building,roads")


def test_a_sieved_map_is_gdals_whatever_the_blocks_and_its_polygons_are_those_of_the_map(mapped, tmp_path):
    """--min-area leaves gaps where small polygons were; --sieve does not (#17)."""
    classes, _ = mapped("map")
    area_m2 = 5.0  # 20 pixels
    found, table = mapped("sieved", sieve=area_m2)
    np.testing.assert_array_equal(found, sieve(classes, 20, mask=classes != 255))
    assert (found != classes).any()
    np.testing.assert_array_equal(pixels_of(table), found)
    large = PredictConfig(precision="fp32", batch=1, device="cpu")
    np.testing.assert_array_equal(mapped("one", settings=large, sieve=area_m2)[0], found)
    with rasterio.open(tmp_path / "sieved.tif") as src:
        assert src.tags()["CASWIT_SIEVE"] == "5"
    with rasterio.open(tmp_path / "map.tif") as src:
        assert "CASWIT_SIEVE" not in src.tags()


def test_a_sieve_needs_the_size_of_a_pixel(make_raster, image, model_folder, tmp_path):
    path = make_raster(image, "photo.png")
    with pytest.raises(ConfigError, match=r"--gsd-m METRES \(1 makes metres pixels\), or leave out --sieve"):
        predict(path, tmp_path / "map.tif", model_folder, SETTINGS, OutputConfig(sieve=4))


@pytest.mark.parametrize("first", [True, False])
def test_parts_without_confidence_go_on_with_polygons_and_those_with_it_without(
    make_raster, image, model_folder, tmp_path, monkeypatch, first
):
    """Polygons are chosen when a run goes on, as before they had a confidence."""
    path, out, vector = make_raster(image, **georeference()), tmp_path / "map.tif", tmp_path / "v.gpkg"
    asked = OutputConfig(vector=str(vector)), OutputConfig()
    if not first:
        asked = asked[::-1]
    begun = []

    def stop(*args):
        begun.append(len([*(tmp_path / "map.tif.parts").glob("*.tif")]))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("caswit.mapping.run.write_outputs", stop)
        with pytest.raises(KeyboardInterrupt):
            predict(path, out, model_folder, SETTINGS, asked[0])
    assert begun[0] > 1
    predict(path, out, model_folder, SETTINGS, asked[1], MapRunConfig())
    if not first:
        table = pyogrio.read_dataframe(vector, layer="landcover")
        assert "confidence" not in table
        np.testing.assert_array_equal(pixels_of(table), read(out))


def test_touching_polygons_of_a_class_are_cut_apart(mapped):
    _, table = mapped("map")
    _, apart = mapped("apart", separate="land")
    assert len(apart) > len(table)
    for class_id in (1, 7):
        assert (apart["class"] == class_id).sum() == (table["class"] == class_id).sum()
    assert apart["area_m2"].sum() == pytest.approx(table["area_m2"].sum())
    assert apart.union_all().symmetric_difference(table.union_all()).area == pytest.approx(0, abs=1e-6)
    one = PredictConfig(precision="fp32", batch=1, device="cpu")
    _, whole = mapped("one", settings=one, separate="land")
    assert sorted(whole["area_m2"]) == pytest.approx(sorted(apart["area_m2"]), abs=1e-6)
