"""How QGIS draws a map and the files beside it: styles, class names, background."""

import json
import re
import sqlite3
import warnings
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyogrio
import pytest
import rasterio
import rasterio.features
from pyproj import CRS

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.data.classes import ClassTable
from caswit.errors import ConfigError, DataError
from caswit.mapping.own_files import may_replace
from caswit.mapping.run import predict
from caswit.mapping.styles import map_style, polygon_style, style_file
from conftest import CLASSES, georeference

pytestmark = pytest.mark.e2e

EXACT = PredictConfig(precision="fp32", batch=1, device="cpu")
WITH_BACKGROUND = ClassTable(tuple(replace(c, name="Background") if c.name == "land" else c for c in CLASSES.classes))


@pytest.fixture
def path(make_raster, image) -> Path:
    return make_raster(image, **georeference())


@pytest.fixture
def with_background(model_folder, tmp_path) -> Path:
    """The model, whose land is called background."""
    folder = tmp_path / "model"
    folder.mkdir()
    content = json.loads((model_folder / "config.json").read_text())
    content["classes"] = WITH_BACKGROUND.to_dicts()
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "model.safetensors").symlink_to(model_folder / "model.safetensors")
    return folder


def renderers(qml: bytes | str) -> list[str]:
    """What a style draws: the types of its renderers."""
    root = ElementTree.fromstring(qml)
    return [each.get("type") for tag in ("rasterrenderer", "renderer-v2") for each in root.iter(tag)]


def names_of(folder: Path, kind: str) -> dict[str, list[str]]:
    return {file.name: renderers(file.read_bytes()) for file in folder.glob(kind)}


def test_a_geopackage_carries_its_style(path, with_background, tmp_path):
    file = tmp_path / "polygons.gpkg"
    predict(path, tmp_path / "map.tif", with_background, EXACT, OutputConfig(vector=str(file), background=True))
    with closing(sqlite3.connect(file)) as package:
        package.row_factory = sqlite3.Row
        (style,) = package.execute("SELECT * FROM layer_styles").fetchall()
        registered = dict(package.execute("SELECT table_name, data_type FROM gpkg_contents").fetchall())
        geometry = package.execute("SELECT column_name FROM gpkg_geometry_columns").fetchone()[0]
    # The columns that QGIS makes, and looks for.
    assert style.keys() == [
        *("id", "f_table_catalog", "f_table_schema", "f_table_name", "f_geometry_column", "styleName", "styleQML"),
        *("styleSLD", "useAsDefault", "description", "owner", "ui", "update_time"),
    ]
    assert registered == {"landcover": "features", "layer_styles": "attributes"}
    assert (style["f_table_name"], style["f_geometry_column"], style["useAsDefault"]) == ("landcover", geometry, 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", style["update_time"])
    qml = ElementTree.fromstring(style["styleQML"])
    renderer = qml.find("renderer-v2")
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    names = {each.get("value"): each.get("label") for each in qml.iter("category")}
    assert names == {"1": "building", "2": "Background", "7": "water"}
    symbols = {each.get("name"): each for each in qml.iter("symbol")}
    for each, known in zip(qml.iter("category"), WITH_BACKGROUND.mapped, strict=True):
        looks = {o.get("name"): o.get("value") for o in symbols[each.get("symbol")].iter("Option")}
        assert looks | {p.get("k"): p.get("v") for p in symbols[each.get("symbol")].iter("prop")} == looks
        *rgb, alpha = map(int, looks["color"].split(","))
        assert tuple(rgb) == known.rgb
        assert (alpha == 0) == known.is_background
        assert looks["outline_style"] == "solid"  # polygons of background that were asked for can be seen
    table = pyogrio.read_dataframe(file, layer="landcover")
    assert set(table["name"]) == set(names.values())


@pytest.mark.parametrize("kind", [".gpkg", ".geojson"])
def test_polygons_are_those_of_the_map_without_background(path, with_background, tmp_path, kind):
    """Independent: the polygons are burnt into a raster again."""
    drawn = {}
    for background in (False, True):
        file = tmp_path / f"polygons{kind}"
        outputs = OutputConfig(vector=str(file), background=background)
        predict(path, tmp_path / "map.tif", with_background, EXACT, outputs)
        table = pyogrio.read_dataframe(file)
        with rasterio.open(tmp_path / "map.tif") as src:
            pixels = src.read(1)
            if kind == ".geojson":
                table = table.to_crs(src.crs)
            shapes = zip(table.geometry, table["class"], strict=True)
            drawn[background] = rasterio.features.rasterize(shapes, src.shape, fill=255, transform=src.transform)
    assert 0.05 < (pixels == 2).mean() < 0.95
    np.testing.assert_array_equal(drawn[True], pixels)
    np.testing.assert_array_equal(drawn[False], np.where(pixels == 2, 255, pixels))


def test_the_class_table_says_what_is_background():
    rows = [
        {"id": 0, "name": "Background"},
        {"id": 1, "name": "other", "background": False},
        {"id": 2, "name": "ground", "background": True},
        {"id": 3, "name": "background noise"},
    ]
    table = ClassTable.from_dicts(rows, "x")
    assert [c.is_background for c in table.mapped] == [True, False, True, False]
    assert ClassTable.from_dicts(table.to_dicts(), "x") == table
    assert [e.get("alpha") for e in ElementTree.fromstring(map_style(table)).iter("paletteEntry")] == [
        *("0", "255", "0", "255")
    ]
    with pytest.raises(DataError, match="background: must be true or false or null, got 'no'"):
        ClassTable.from_dicts([{"id": 0, "name": "a", "background": "no"}], "x")


@pytest.mark.parametrize("vector", ["map.gpkg", "map.geojson", "c.gpkg", "c.parquet", "v.gpkg", "v.geojson", None])
def test_no_layer_takes_the_style_of_another(path, model_folder, tmp_path, vector):
    """QGIS applies NAME.qml to whatever layer is called NAME: it must hold what draws each of them."""
    folder = tmp_path / "out"
    folder.mkdir()
    outputs = OutputConfig(confidence=str(folder / "c.tif"), vector=vector and str(folder / vector))
    for _ in range(2):  # the same call may be repeated
        predict(path, folder / "map.tif", model_folder, EXACT, outputs)
    styles = names_of(folder, "*.qml")
    assert styles["map.qml"][0] == "paletted"
    assert styles["c.qml"][0] == "singlebandpseudocolor"
    for file in folder.iterdir():
        beside = styles.get(file.with_suffix(".qml").name, [])
        if file.suffix in (".gpkg", ".geojson", ".parquet"):
            assert beside[-1:] == ["categorizedSymbol"] or (file.suffix == ".gpkg" and not beside)
    drawn = Counter(kind for kinds in styles.values() for kind in kinds)
    assert (drawn["paletted"], drawn["singlebandpseudocolor"]) == (1, 1)


def test_two_rasters_of_one_name_share_the_style_of_the_map(path, model_folder, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    predict(path, folder / "map.tif", model_folder, EXACT, OutputConfig(confidence=str(folder / "map.tiff")))
    assert names_of(folder, "*.qml") == {"map.qml": ["paletted"]}


def test_the_item_has_the_crs_as_wkt2(path, model_folder, tmp_path):
    predict(path, tmp_path / "map.tif", model_folder, EXACT)
    wkt = json.loads((tmp_path / "map.stac.json").read_text())["properties"]["proj:wkt2"]
    assert wkt.startswith("PROJCRS[")  # WKT1 begins with PROJCS
    assert CRS.from_wkt(wkt) == CRS.from_epsg(2154)


def test_its_own_styles_are_replaced_and_no_others(path, model_folder, tmp_path):
    outputs = OutputConfig(vector=str(tmp_path / "v.gpkg"), confidence=str(tmp_path / "c.tif"))
    out = tmp_path / "map.tif"
    predict(path, out, model_folder, EXACT, outputs)
    missing = tmp_path / "none.tif"
    assert all(may_replace(tmp_path / name, missing) for name in ("map.qml", "c.qml", "v.gpkg"))
    (tmp_path / "c.qml").write_text("<qgis><pipe/></qgis>")
    assert not may_replace(tmp_path / "c.qml", missing)
    with closing(sqlite3.connect(tmp_path / "v.gpkg")) as package, package:
        package.execute("INSERT INTO layer_styles (f_table_name, styleName) VALUES ('landcover', 'my own')")
    with pytest.raises(ConfigError, match=r"v\.gpkg: exists, and caswit did not write it"):
        predict(path, out, model_folder, EXACT, outputs)


def test_a_geopackage_with_a_style_is_an_area_of_interest(path, model_folder, tmp_path):
    """Its second layer, the table of styles, was warned of."""
    outputs = OutputConfig(vector=str(tmp_path / "v.gpkg"))
    predict(path, tmp_path / "map.tif", model_folder, EXACT, outputs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = MapRunConfig(aoi=str(tmp_path / "v.gpkg"))
        predict(path, tmp_path / "again.tif", model_folder, EXACT, run=run)


def test_polygons_are_needed_for_background():
    with pytest.raises(ConfigError, match="background is about polygons; add --vector FILE"):
        OutputConfig(background=True)


def test_names_are_escaped():
    table = ClassTable.from_dicts([{"id": 1, "name": 'a & <b> "c"'}], "x")
    qml = ElementTree.fromstring(style_file([map_style(table), polygon_style(table)]))
    assert {e.get("label") for tag in ("paletteEntry", "category") for e in qml.iter(tag)} == {'a & <b> "c"'}
