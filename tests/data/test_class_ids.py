"""Several values of label rasters that mean one class: read as one, written as the first."""

import json

import numpy as np
import pytest
import rasterio
import yaml
from hypothesis import given
from hypothesis import strategies as st

from caswit.cli.main import main
from caswit.config import IGNORE_INDEX, ModelConfig
from caswit.data.classes import ClassTable, LandClass, named_rows
from caswit.data.dataset import load_dataset
from caswit.errors import DataError
from caswit.evaluation.protocols import scored_classes
from caswit.weights.model_folder import ModelInfo, build, save_model
from conftest import TILE, georeference, picture

ROWS = [
    {"ids": [9, 300], "name": "cloud", "ignore": True},
    {"ids": [1, 2, 5], "name": "building"},
    {"id": 0, "name": "land"},
    {"ids": [400, 7], "name": "water"},
]
TABLE = ClassTable.from_dicts(ROWS, "d.yaml")


@given(st.lists(st.sampled_from([9, 300, 1, 2, 5, 0, 400, 7]), min_size=1, max_size=30))
def test_every_id_of_a_class_is_its_index(ids):
    by_hand = {9: IGNORE_INDEX, 300: IGNORE_INDEX, 1: 0, 2: 0, 5: 0, 0: 1, 400: 2, 7: 2}
    labels = np.array([ids], np.uint16)
    assert TABLE.indices(labels, "a.tif")[0].tolist() == [by_hand[i] for i in ids]
    small = labels[labels < 256].astype(np.uint8)
    assert TABLE.indices(small, "a.tif").tolist() == [by_hand[i] for i in small.tolist()]


def test_maps_hold_the_first_id_that_fits():
    assert [c.id for c in TABLE.mapped] == [1, 0, 7]
    assert TABLE.ids[:4].tolist() == [1, 0, 7, IGNORE_INDEX]
    assert TABLE.named("building, 2, 5, 1") == (1,)
    assert TABLE.named("400") == (7,)
    none_fits = ClassTable.from_dicts([{"ids": [300, 301], "name": "a"}, {"ids": [0, 1], "name": "b"}], "d")
    assert [c.id for c in none_fits.mapped] == [2, 0]  # 1 has a meaning in labels


def test_the_table_survives_its_file():
    rows = json.loads(json.dumps(TABLE.to_dicts()))
    assert ClassTable.from_dicts(rows, "config.json") == TABLE
    assert rows[1] | {"color": ""} == {"id": 1, "name": "building", "color": "", "ids": [1, 2, 5]}
    assert "ids" not in rows[2]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"name": "a"}], "class 1: has no id; write id: 1, or ids"),
        ([{"name": "a", "ids": []}], "ids must be a list of whole numbers"),
        ([{"name": "a", "ids": 1}], "ids must be a list of whole numbers"),
        ([{"name": "a", "ids": [1, "2"]}], "id must be a whole number 0..65535, got '2'"),
        ([{"name": "a", "id": 2, "ids": [1, 2]}], "id must be the first of ids, got id 2 and ids"),
        ([{"name": "a", "ids": [1, 1]}], "got more than once: 1"),
        ([{"name": "a", "ids": [1, 2]}, {"name": "b", "id": 2}], "got more than once: 2"),
    ],
)
def test_refusals(rows, words):
    with pytest.raises(DataError) as caught:
        ClassTable.from_dicts(rows, "d.yaml")
    assert words in str(caught.value)


def test_classes_by_name(dataset_file):
    content = yaml.safe_load(dataset_file.read_text())
    content["classes"] = {"unlabelled": {"id": 0, "ignore": True}, "built": [1, 7], "land": 2}
    dataset_file.write_text(yaml.safe_dump(content, sort_keys=False))
    table = load_dataset(dataset_file).classes
    assert [(c.name, c.ids, c.ignore) for c in table.classes] == [
        ("unlabelled", (0,), True),
        ("built", (1, 7), False),
        ("land", (2,), False),
    ]
    with pytest.raises(DataError, match="class land has its name already"):
        named_rows({"land": {"id": 1, "name": "grass"}}, "d.yaml")


def test_binary_needs_the_class_of_0():
    table = ClassTable.from_dicts([{"ids": [9, 0], "name": "rest"}, {"id": 2, "name": "roof"}], "d")
    assert table.binary_indices(np.array([[True, False]]), "a.tif").tolist() == [[1, 0]]


@pytest.mark.e2e
def test_a_model_writes_the_first_id_everywhere(tmp_path, make_raster, dataset_file, capsys):
    """Map, palette, tags, STAC item, style, polygons and summary; its scores join the ids of the labels."""
    rows = [{"ids": [3, 1, 7], "name": "built"}, {"id": 2, "name": "land"}, {"id": 0, "name": "none", "ignore": True}]
    table = ClassTable.from_dicts(rows, "d")
    info = ModelInfo(model=ModelConfig(size="nano", decoder_channels=16), tile=TILE, classes=table, trained_gsd_m=0.5)
    save_model(build(info).eval(), info, tmp_path / "model")
    make_raster(picture(64, 64), "a.tif", **georeference())
    main(["predict", str(tmp_path / "a.tif"), str(tmp_path / "map.tif"), "--model", str(tmp_path / "model")])
    with rasterio.open(tmp_path / "map.tif") as found:
        assert set(np.unique(found.read(1))) <= {3, 2}
        assert {k: v for k, v in found.tags().items() | found.tags(1).items() if k.startswith("CLASS_")} == {
            "CLASS_3": "built",
            "CLASS_2": "land",
        }
        assert found.colormap(1)[3][:3] == table.predicted[0].rgb
    item = json.loads((tmp_path / "map.stac.json").read_text())
    assert [c["value"] for c in item["assets"]["map"]["classification:classes"]] == [3, 2]
    assert 'value="3" label="built"' in (tmp_path / "map.qml").read_text()
    capsys.readouterr()
    main(["info", str(tmp_path / "model")])
    assert "built (in labels also 1 and 7)" in capsys.readouterr().out
    content = yaml.safe_load(dataset_file.read_text()) | {"classes": rows}
    dataset_file.write_text(yaml.safe_dump(content))
    scored = scored_classes(table, load_dataset(dataset_file), None)
    assert [c.ids for c in scored.classes.classes] == [(3, 1, 7), (2,)]


def test_the_viewer_joins_them(tmp_path):
    from caswit.raster.gate import Gate
    from caswit.raster.overviews import Overviews
    from caswit.raster.reader import write_raster
    from caswit.raster.windows import Window
    from caswit.serve.layers import truth_layer

    write_raster(tmp_path / "a.tif", np.array([[[0, 1, 2, 5, 7, 9]]], np.uint8))
    layer = truth_layer("a", Overviews(tmp_path / "a.tif", Gate(tmp_path)), TABLE)
    assert layer.values(Window(0, 0, 1, 6), 1, 6).tolist() == [[0, 1, 1, 1, 7, 9]]
    table = ClassTable((LandClass(id=0, name="a", color="#000000"), LandClass(id=5, name="b", color="#ffffff")))
    layer = truth_layer("a", Overviews(tmp_path / "a.tif", Gate(tmp_path)), table, "binary")
    assert layer.values(Window(0, 0, 1, 6), 1, 6).tolist() == [[0, 5, 5, 5, 5, 5]]
