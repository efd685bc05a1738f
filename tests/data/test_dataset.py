"""dataset.yaml: what it says, and one clear line for what it should not say."""

import numpy as np
import pytest
import yaml

from caswit.data.classes import ClassTable, LandClass
from caswit.data.dataset import load_dataset
from caswit.data.reader import check_scenes, open_dataset_scene
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import CLASSES, georeference


def refused(action) -> str:
    with pytest.raises(DataError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    return message


def changed(file, **changes) -> None:
    content = yaml.safe_load(file.read_text())
    for key, value in changes.items():
        content[key] = value
    file.write_text(yaml.safe_dump(content))


def read_all(dataset, number: int = 0) -> np.ndarray:
    with open_dataset_scene(dataset, dataset.scenes[number]) as scene:
        region = scene.region(Window(0, 0, scene.height, scene.width))
        return scene.labels(region.window, region.valid)


def test_a_dataset_is_what_its_file_says(dataset_file, label):
    dataset = load_dataset(dataset_file)
    assert dataset.name == "stripes"
    assert dataset.classes == CLASSES
    assert [s.split for s in dataset.scenes] == ["train", "test", "unlabelled"]
    indices = read_all(dataset)
    for index, number in enumerate((1, 2, 7)):
        np.testing.assert_array_equal(indices == index, label[0] == number)
    np.testing.assert_array_equal(indices == 255, label[0] == 0)


def test_class_tables_survive_being_written():
    assert ClassTable.from_dicts(CLASSES.to_dicts(), "x") == CLASSES


def test_a_label_a_hundredth_of_a_pixel_off_is_in_place(dataset_file, make_raster, label):
    make_raster(label, "scene_label.tif", **georeference(x=700_000.005))
    assert (read_all(load_dataset(dataset_file)) != 255).any()


def test_ids_undo_indices():
    ids = np.array([1, 2, 7])
    np.testing.assert_array_equal(CLASSES.ids[CLASSES.indices(ids, "x")], ids)
    assert CLASSES.ids[255] == 255


def test_paths_take_variables_from_the_environment(dataset_file, monkeypatch):
    monkeypatch.setenv("MY_DATA", str(dataset_file.parent))
    assert load_dataset("$MY_DATA/dataset.yaml").name == "stripes"
    assert load_dataset("${MY_DATA}/dataset.yaml").name == "stripes"


@pytest.mark.data
@pytest.mark.parametrize("name", ["dubai", "banepa"])
def test_the_real_datasets_load(real_data, name):
    dataset = load_dataset(real_data / name / "dataset.yaml")
    for number, scene in enumerate(dataset.scenes):
        if scene.label is not None:
            assert (read_all(dataset, number) < len(dataset.classes)).any()


def test_two_classes_of_one_name(dataset_file):
    content = yaml.safe_load(dataset_file.read_text())
    changed(dataset_file, classes=[*content["classes"], {"id": 99, "name": content["classes"][-1]["name"]}])
    assert "two classes are called" in refused(lambda: load_dataset(dataset_file))


class TestRefusals:
    def test_an_unset_variable(self, monkeypatch):
        monkeypatch.delenv("NOT_SET", raising=False)
        assert "NOT_SET is not set" in refused(lambda: load_dataset("$NOT_SET/dataset.yaml"))

    def test_a_missing_file(self, tmp_path):
        assert "no such dataset file" in refused(lambda: load_dataset(tmp_path / "none.yaml"))
        (tmp_path / "houses.gpkg").write_bytes(b"SQLite format 3\0\xff")
        said = refused(lambda: load_dataset(tmp_path / "houses.gpkg"))
        assert "houses.gpkg: is an image or labels; give a dataset.yaml that names it" in said
        (tmp_path / "dataset.yaml").write_text("name: town\n")
        assert f"did you mean {tmp_path / 'dataset.yaml'}?" in refused(lambda: load_dataset(tmp_path))

    def test_a_source_that_is_nearly_one(self, tmp_path):
        file = tmp_path / "d.yaml"
        file.write_text("name: d\nsource: {kind: flairhub, root: .}\n")
        assert refused(lambda: load_dataset(file)).endswith("got 'flairhub'; did you mean flair_hub?")

    def test_something_that_is_not_yaml(self, tmp_path):
        (tmp_path / "d.yaml").write_text("{")
        assert "not YAML" in refused(lambda: load_dataset(tmp_path / "d.yaml"))

    def test_a_list_instead_of_a_mapping(self, tmp_path):
        (tmp_path / "d.yaml").write_text("- 1")
        assert "must be a mapping" in refused(lambda: load_dataset(tmp_path / "d.yaml"))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"colour": "x"}, "unknown colour"),
            ({"scenes": []}, "scenes must be a list"),
            ({"scenes": [{"image": "scene.tif"}]}, "missing split"),
            ({"scenes": [{"image": "none.tif", "split": "a"}]}, "none.tif; paths are relative"),
            ({"scenes": [{"image": "scene.tif", "label": "no.tif", "split": "a"}]}, "no.tif"),
            ({"classes": [{"id": 1, "color": "#000000"}]}, "missing name"),
            ({"classes": [{"id": 1, "name": "a", "color": "red"}]}, "#3c1098"),
            ({"classes": [{"id": "one", "name": "a", "color": "#000000"}]}, "whole number"),
            ({"classes": [{"id": 65_536, "name": "a", "color": "#000000"}]}, "0..65535, got 65536"),
            ({"classes": [{"id": 1, "name": "a", "color": "#000000"}] * 2}, "more than once"),
            ({"classes": [{"id": 1, "name": "a", "color": "#000000", "ignore": True}]}, "1 to 250 classes"),
            ({"bands": [0, 1, 2]}, "bands must be numbers from 1"),
            ({"bands": [1, 1]}, "bands must be numbers from 1"),
            (
                {"scenes": [{"image": "scene.tif", "split": "a", "mask": "x"}]},
                "unknown mask; allowed: also, areas, gsd_m, image",
            ),
            ({"scenes": ["scene.tif"]}, "scene 1: must be a mapping with image, split, got str"),
            ({"scenes": [{"image": "$NOT_SET/a.tif", "split": "a"}]}, "environment variable NOT_SET is not set"),
            (
                {"classes": [{"id": 1, "name": "a", "color": "#000000", "colour": 1}]},
                "unknown colour; allowed: background, color",
            ),
            ({"classes": {"id": 1}}, "classes must be a list"),
        ],
    )
    def test_content_that_cannot_be(self, dataset_file, changes, words, monkeypatch):
        monkeypatch.delenv("NOT_SET", raising=False)
        changed(dataset_file, **changes)
        message = refused(lambda: load_dataset(dataset_file))
        assert words in message
        assert str(dataset_file) in message or "NOT_SET" in message

    def test_an_empty_split(self, dataset_file):
        message = refused(lambda: load_dataset(dataset_file).split("val"))
        assert "no scene has split 'val'; splits are: test, train, unlabelled" in message

    def test_a_scene_without_a_label_in_a_labelled_split(self, dataset_file):
        message = refused(lambda: load_dataset(dataset_file).split("unlabelled"))
        assert "scene.tif in split 'unlabelled' has no label" in message

    def test_a_label_id_that_is_not_in_the_table(self, dataset_file, make_raster, label):
        label[0, 5, 5] = 9
        path = make_raster(label, "scene_label.tif", **georeference())
        message = refused(lambda: read_all(load_dataset(dataset_file)))
        assert f"{path}: label id 9 not in the class table (0, 1, 2, 7)" in message

    @pytest.mark.parametrize("value", [-1, 70_000])
    def test_a_label_id_beyond_every_table(self, dataset_file, make_raster, label, value):
        wide = label.astype(np.int32)
        wide[0, 5, 5] = value
        make_raster(wide, "scene_label.tif", **georeference())
        assert f"label id {value} not in" in refused(lambda: read_all(load_dataset(dataset_file)))

    def test_a_label_of_another_size(self, dataset_file, make_raster, label):
        path = make_raster(label[:, :80], "scene_label.tif")
        message = refused(lambda: read_all(load_dataset(dataset_file)))
        assert str(path) in message
        assert "80 x 130" in message
        assert "90 x 130" in message

    @pytest.mark.parametrize("place", [{"x": 800_000}, {"crs": "EPSG:2155"}])
    def test_a_label_that_lies_elsewhere(self, dataset_file, make_raster, label, place):
        make_raster(label, "scene_label.tif", **georeference(**place))
        dataset = load_dataset(dataset_file)
        assert "lies elsewhere than its image" in refused(lambda: check_scenes(dataset, dataset.split("train")))

    def test_a_folder_instead_of_an_image(self, dataset_file):
        changed(dataset_file, scenes=[{"image": ".", "split": "train"}])
        assert "not a raster" in refused(
            lambda: open_dataset_scene(load_dataset(dataset_file), *load_dataset(dataset_file).scenes)
        )

    def test_a_label_of_fractions(self, dataset_file, make_raster, label):
        path = make_raster(label.astype(np.float32) + np.float32(0.25), "scene_label.tif", **georeference())
        message = refused(lambda: open_dataset_scene(load_dataset(dataset_file), load_dataset(dataset_file).scenes[0]))
        assert f"{path}: label value 0.25 is no whole number (row 0, column 0" in message

    def test_a_label_of_other_colours(self, dataset_file, make_raster, image):
        make_raster(image, "scene_label.tif", **georeference())
        assert "label colors #" in refused(lambda: read_all(load_dataset(dataset_file)))

    def test_a_label_of_two_bands(self, dataset_file, make_raster, image):
        make_raster(image[:2], "scene_label.tif", **georeference())
        assert "one band of class ids" in refused(lambda: read_all(load_dataset(dataset_file)))

    def test_scenes_and_a_source(self, dataset_file):
        changed(dataset_file, source={"kind": "folder", "root": "."})
        assert "needs either scenes or source, got both" in refused(lambda: load_dataset(dataset_file))

    def test_an_image_of_two_bands(self, dataset_file, make_raster, image):
        make_raster(image[:2], "scene.tif", **georeference())
        assert "has 2 bands" in refused(lambda: read_all(load_dataset(dataset_file)))


def test_names_colours_and_lengths_agree():
    table = ClassTable((LandClass(id=3, name="a", color="#010203"), LandClass(id=1, name="b", color="#ffffff")))
    assert table.names == ("a", "b")
    assert table.colors.tolist() == [[1, 2, 3], [255, 255, 255]]
    assert len(table) == 2


def test_masks_of_0_and_255_make_a_class_table():
    """255 is nodata in maps, so such masks were refused by every route."""
    table = ClassTable((LandClass(id=0, name="land", color="#000000"), LandClass(id=255, name="roof", color="#ffffff")))
    mask = np.array([[0, 255]], np.uint8)
    assert table.indices(mask, "a.tif").tolist() == [[0, 1]]
    assert [c.id for c in table.mapped] == [0, 1]
    assert table.ids[[0, 1, 255]].tolist() == [0, 1, 255]
    assert [c.id for c in ClassTable.from_dicts(table.to_dicts(), "").classes] == [0, 255]


def test_ids_above_254_get_values_that_no_label_has():
    ids = {1: True, 0: False, 300: False, 2: False, 65_535: False}
    table = ClassTable(tuple(LandClass(id=i, name=str(i), color="#000000", ignore=x) for i, x in ids.items()))
    assert [c.id for c in table.mapped] == [0, 3, 2, 4]
    full = ClassTable(tuple(LandClass(id=i, name="a", color="#000000", ignore=i < 20) for i in range(256)))
    assert [c.id for c in full.mapped][-1] == 0
