"""Masks of one class and the rest, and names that differ by suffixes, in folders and in lists of scenes."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from caswit.config import IGNORE_INDEX
from caswit.data.classes import ClassTable, LandClass
from caswit.data.dataset import load_dataset
from caswit.data.reader import check_scenes, open_dataset_scene
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import picture
from trees import disc, save_picture, write_dataset

SIZE = 40, 50
MASK = disc(*SIZE)
IMAGE = np.moveaxis(picture(*SIZE), 0, -1)


def table(*ids, names=("background", "building", "road")):
    colors = "#000000", "#ffffff", "#ff0000"
    return ClassTable(tuple(LandClass(id=i, name=n, color=c) for i, n, c in zip(ids, names, colors, strict=False)))


def load(folder, classes, **source):
    content = {"source": {"kind": "folder", "root": str(folder), **source}, "classes": classes.to_dicts()}
    return load_dataset(write_dataset(folder.parent / "dataset.yaml", **content))


def labels(dataset, scene):
    with open_dataset_scene(dataset, scene) as opened:
        # A window that reaches outside by one pixel.
        window = Window(-1, -1, opened.height + 1, opened.width + 1)
        found = opened.labels(window, opened.region(window).valid)
    assert (found[0] == IGNORE_INDEX).all()
    assert (found[:, 0] == IGNORE_INDEX).all()
    return found[1:, 1:]


def put(folder, mask, name="a.png", **options):
    save_picture(folder / "images" / "a.png", IMAGE)
    save_picture(folder / "labels" / name, mask, **options)
    return folder


MASKS = {
    "0 and 255": np.where(MASK, 255, 0).astype(np.uint8),
    "0 and 1": MASK.astype(np.uint8),
    "one bit": MASK,
    "a number for each object": np.where(MASK, 7, 0).astype(np.uint8),
    "16 bits": np.where(MASK, 1000, 0).astype(np.uint16),
    "black and white as a picture": np.repeat(np.where(MASK, 255, 0).astype(np.uint8)[..., None], 3, -1),
    "black and red with alpha": np.stack([*(np.where(MASK, v, 0) for v in (255, 0, 0)), np.full(SIZE, 255)], -1).astype(
        np.uint8
    ),
}


@pytest.mark.parametrize("ids", [(0, 1), (0, 255), (0, 3)])
@pytest.mark.parametrize("extension", [".png", ".tif"])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_binary_takes_every_value_but_0(tmp_path, mask, extension, ids):
    dataset = load(put(tmp_path / "my", mask, f"a{extension}"), table(*ids), label_values="binary")
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), MASK)


def test_the_class_of_0_need_not_come_first(tmp_path):
    classes = table(1, 0, names=("building", "background"))
    dataset = load(put(tmp_path / "my", MASKS["0 and 255"]), classes, label_values="binary")
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), ~MASK)


def test_a_jpeg_mask_is_cut_at_128(tmp_path):
    """Compression leaves small values beside edges."""
    folder = put(tmp_path / "my", MASKS["0 and 255"], "a.jpg", quality=60)
    stored = np.array(Image.open(folder / "labels" / "a.jpg"))
    assert ((stored > 0) != MASK).any()
    dataset = load(folder, table(0, 1), label_values="binary")
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), stored >= 128)


@pytest.mark.parametrize(
    ("mask", "ids"), [("0 and 255", (0, 255)), ("0 and 1", (0, 1)), ("one bit", (0, 1)), ("16 bits", (0, 1000))]
)
def test_masks_whose_values_are_ids_need_no_setting(tmp_path, mask, ids):
    dataset = load(put(tmp_path / "my", MASKS[mask]), table(*ids))
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), MASK)


def test_values_without_data_stay_ignored(tmp_path):
    folder = put(tmp_path / "my", MASKS["0 and 255"])
    pixels = MASKS["0 and 255"].copy()
    pixels[:5] = 9
    options = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 1, "dtype": "uint8", "nodata": 9}
    (folder / "labels" / "a.png").unlink()
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(folder / "labels" / "a.tif", "w", **options) as out,
    ):
        out.write(pixels, 1)
    dataset = load(folder, table(0, 1), label_values="binary")
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), np.where(pixels == 9, IGNORE_INDEX, MASK))


class TestOtherValues:
    """One line that names the value, the file and the fix."""

    @pytest.mark.parametrize(
        ("mask", "value"), [("16 bits", "id 1000"), ("black and white as a picture", "color #ffffff")]
    )
    def test_of_a_mask_with_two_classes(self, tmp_path, mask, value):
        classes = ClassTable(
            (LandClass(id=0, name="rest", color="#000000"), LandClass(id=1, name="roof", color="#ff0000"))
        )
        dataset = load(put(tmp_path / "my", MASKS[mask]), classes)
        with pytest.raises(DataError) as caught:
            labels(dataset, dataset.scenes[0])
        message = str(caught.value)
        assert f"labels/a.png: label {value} not in the class table" in message
        assert message.endswith("or set label_values: binary, if every value but 0 is the other class")
        assert "\n" not in message
        fixed = load(tmp_path / "my", classes, label_values="binary")
        np.testing.assert_array_equal(labels(fixed, fixed.scenes[0]), MASK)

    def test_of_a_table_of_three(self, tmp_path):
        dataset = load(put(tmp_path / "my", MASKS["0 and 255"]), table(0, 1, 2))
        with pytest.raises(
            DataError, match=r"a.png: label id 255 not in .*\(0, 1, 2\); add a class with that id"
        ) as caught:
            labels(dataset, dataset.scenes[0])
        assert "binary" not in str(caught.value)

    def test_binary_with_a_table_of_three_is_refused_before_a_training(self, tmp_path):
        dataset = load(put(tmp_path / "my", MASKS["0 and 255"]), table(0, 1, 2), label_values="binary")
        with pytest.raises(DataError, match=r"a.png: .*two classes, one with id 0; its ids are 0, 1, 2$"):
            check_scenes(dataset, dataset.scenes)

    def test_fractions(self, tmp_path):
        """Probabilities."""
        save_picture(tmp_path / "my" / "images" / "a.png", IMAGE)
        save_picture(tmp_path / "my" / "labels" / "a.tif", MASK.astype(np.float32) * 0.7)
        for values in ("binary", "auto"):
            dataset = load(tmp_path / "my", table(0, 1), label_values=values)
            with pytest.raises(DataError, match=r"a.tif: label value 0.7 is no whole number \(row"):
                check_scenes(dataset, dataset.scenes)

    def test_two_bands(self, tmp_path):
        options = {"driver": "GTiff", "height": SIZE[0], "width": SIZE[1], "count": 2, "dtype": "uint8"}
        save_picture(tmp_path / "my" / "images" / "a.png", IMAGE)
        (tmp_path / "my" / "labels").mkdir()
        with (
            pytest.warns(rasterio.errors.NotGeoreferencedWarning),
            rasterio.open(tmp_path / "my" / "labels" / "a.tif", "w", **options) as out,
        ):
            out.write(np.stack([MASK, MASK]).astype(np.uint8))
        dataset = load(tmp_path / "my", table(0, 1), label_values="binary")
        with pytest.raises(DataError, match=r"a.tif: a binary mask is one band .* got 2 bands of uint8; try"):
            check_scenes(dataset, dataset.scenes)

    def test_what_label_values_may_be(self, tmp_path):
        with pytest.raises(DataError, match="auto, ids, colors, near_colors, binary, mask255, got 'bits'"):
            load(put(tmp_path / "my", MASK), table(0, 1), label_values="bits")


class TestMasksOf0And255:
    """Found where 255 can be nothing but the other class."""

    def scenes(self, folder, *masks, ids=(0, 1), **source):
        for number, mask in enumerate(masks):
            save_picture(folder / "images" / f"{number}.png", IMAGE)
            save_picture(folder / "labels" / f"{number}.tif", mask)
        return load(folder, table(*ids), **source)

    @pytest.mark.parametrize("ids", [(0, 1), (0, 3)])
    @pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
    def test_they_are_found(self, tmp_path, kind, ids, caplog):
        caplog.set_level("INFO")
        empty = np.zeros(SIZE, kind)
        dataset = self.scenes(tmp_path / "my", empty, np.where(MASK, 255, 0).astype(kind), ids=ids)
        assert [s.label_values for s in dataset.scenes] == ["mask255"] * 2
        np.testing.assert_array_equal(labels(dataset, dataset.scenes[1]), MASK)
        assert not labels(dataset, dataset.scenes[0]).any()
        (line,) = [r.getMessage() for r in caplog.records if "0 and 255" in r.getMessage()]
        assert line.startswith(f"labels hold 0 and 255, never {ids[1]}: 255 is read as building")

    def test_not_where_any_label_has_the_classes_own_id(self, tmp_path):
        """Then 255 may well be unknown: it stays an error, as it was."""
        unknown = np.where(MASK, 255, 0).astype(np.uint8)
        dataset = self.scenes(tmp_path / "my", unknown, MASK.astype(np.uint8))
        assert {s.label_values for s in dataset.scenes} == {"auto"}
        with pytest.raises(DataError, match="label id 255 not in the class table"):
            labels(dataset, dataset.scenes[0])

    def test_a_label_beyond_those_that_were_looked_at_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("caswit.data.masks._ENOUGH_PX", 1)
        dataset = self.scenes(tmp_path / "my", np.where(MASK, 255, 0).astype(np.uint8), MASK.astype(np.uint8))
        assert {s.label_values for s in dataset.scenes} == {"mask255"}
        with pytest.raises(DataError, match=r"1.tif: label id 1 not in the class table \(0, 255\)"):
            labels(dataset, dataset.scenes[1])

    @pytest.mark.parametrize("ids", [(0, 255), (0, 1, 2), (1, 2)])
    def test_not_for_other_tables(self, tmp_path, ids):
        dataset = self.scenes(tmp_path / "my", np.where(MASK, 255, 0).astype(np.uint8), ids=ids)
        assert {s.label_values for s in dataset.scenes} == {"auto"}

    def test_not_where_a_class_is_ignored(self, tmp_path):
        classes = ClassTable((table(0).classes[0], LandClass(id=1, name="unknown", color="#ffffff", ignore=True)))
        put(tmp_path / "my", MASKS["0 and 255"])
        assert {s.label_values for s in load(tmp_path / "my", classes).scenes} == {"auto"}

    def test_not_where_it_is_said_what_they_hold(self, tmp_path):
        dataset = self.scenes(tmp_path / "my", np.where(MASK, 255, 0).astype(np.uint8), label_values="ids")
        assert {s.label_values for s in dataset.scenes} == {"ids"}


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_that_hold_whole_numbers(tmp_path, kind):
    """Not a number is no label."""
    save_picture(tmp_path / "my" / "images" / "a.png", IMAGE)
    mask = MASK.astype(kind) * 2
    mask[3, 4] = np.nan
    save_picture(tmp_path / "my" / "labels" / "a.tif", mask)
    expected = MASK.astype(np.uint8)
    expected[3, 4] = IGNORE_INDEX
    for ids, values in (((0, 2), "auto"), ((0, 1), "binary")):
        dataset = load(tmp_path / "my", table(*ids), label_values=values)
        check_scenes(dataset, dataset.scenes)
        np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), expected)


def test_a_list_of_scenes_says_it_too(tmp_path):
    put(tmp_path, MASKS["0 and 255"])
    row = {"image": "images/a.png", "label": "labels/a.png", "split": "train"}
    content = {"classes": table(0, 1).to_dicts()}
    dataset = load_dataset(write_dataset(tmp_path / "d.yaml", scenes=[row | {"label_values": "binary"}], **content))
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), MASK)
    with pytest.raises(DataError, match=r"scene 1: label_values.*binary.*got 'bits'"):
        load_dataset(write_dataset(tmp_path / "d.yaml", scenes=[row | {"label_values": "bits"}], **content))


class TestValuesThatMeanClasses:
    """``label_values: {0: building, "*": background}``: the labels of one scene have a class table of their own."""

    VALUES = np.array([[0, 7, 3], [300, 9, 7]])

    def scenes(self, folder, values, ids=(0, 1), *, ignored=False):
        rows = table(*ids, names=("background", "building")).to_dicts()
        rows += [{"id": 77, "name": "unknown", "color": "#000000", "ignore": True}] * ignored
        save_picture(folder / "a.png", np.moveaxis(picture(2, 3), 0, -1))
        Image.fromarray(self.VALUES.astype(np.uint16)).save(folder / "a_label.png")
        row = {"image": "a.png", "label": "a_label.png", "split": "train", "label_values": values}
        return load_dataset(write_dataset(folder / "d.yaml", scenes=[row], classes=rows))

    @pytest.mark.parametrize("ids", [(0, 1), (1, 0), (5, 255)])
    def test_the_rest_and_what_is_unknown(self, tmp_path, ids):
        dataset = self.scenes(
            tmp_path, {7: "building", 300: str(ids[1]), 3: None, 9: "unknown", "*": "Background"}, ids, ignored=True
        )
        expected = [[0, 1, 255], [1, 255, 1]]
        check_scenes(dataset, dataset.scenes)
        np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), expected)

    def test_without_the_rest_other_values_are_refused(self, tmp_path):
        dataset = self.scenes(tmp_path, {7: "building", 0: "background", 3: "background", 9: None})
        says = r"label value 300 not in label_values \(0, 3, 7, 9\); name its class there"
        with pytest.raises(DataError, match=says):
            labels(dataset, dataset.scenes[0])

    def test_two_scenes_may_differ(self, tmp_path):
        put(tmp_path, MASKS["0 and 255"])
        row = {"image": "images/a.png", "label": "labels/a.png", "split": "train"}
        rows = [row | {"label_values": {0: a, 255: b}} for a, b in ((0, 1), (1, 0))]
        dataset = load_dataset(write_dataset(tmp_path / "d.yaml", scenes=rows, classes=table(0, 1).to_dicts()))
        found = [labels(dataset, scene) for scene in dataset.scenes]
        np.testing.assert_array_equal(found, [MASK, ~MASK])

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({}, "must name classes by value"),
            ({-1: "building"}, "values of label rasters are 0 to 65535, and . for all others, got '-1'"),
            ({70000: "building"}, "got '70000'"),
            ({"roof": "building"}, "got 'roof'"),
            ({7: ["building"]}, "label_values"),
        ],
    )
    def test_what_is_refused(self, tmp_path, values, words):
        with pytest.raises(DataError, match=words):
            self.scenes(tmp_path, values)

    def test_a_class_that_does_not_exist(self, tmp_path):
        dataset = self.scenes(tmp_path, {7: "house", "*": "background"})
        with pytest.raises(
            DataError, match=r"a_label.png: label_values: 'house' is no class; classes are 0 background, 1 building"
        ):
            labels(dataset, dataset.scenes[0])


def test_near_colors(tmp_path):
    """Masks of colours that were stored as JPEG; a colour that is near to none is refused."""
    classes = table(0, 1, 2)
    ids = np.repeat(np.arange(3), 16)[None].repeat(48, 0)
    save_picture(tmp_path / "my" / "images" / "a.png", np.moveaxis(picture(48, 48), 0, -1))
    save_picture(tmp_path / "my" / "labels" / "a.jpg", classes.colors[ids], quality=90, subsampling=0)
    exact = load(tmp_path / "my", classes)
    with pytest.raises(DataError, match="label color #fe0000 not in"):
        labels(exact, exact.scenes[0])
    dataset = load(tmp_path / "my", classes, label_values="near_colors")
    np.testing.assert_array_equal(labels(dataset, dataset.scenes[0]), ids)
    (tmp_path / "my" / "labels" / "a.jpg").unlink()
    save_picture(tmp_path / "my" / "labels" / "a.png", np.full((48, 48, 3), (127, 255, 128), np.uint8))
    dataset = load(tmp_path / "my", classes, label_values="near_colors")
    with pytest.raises(DataError, match="label color #7fff80 not in the class table"):
        labels(dataset, dataset.scenes[0])


class TestSuffixes:
    IDS = MASKS["0 and 1"]

    @pytest.mark.parametrize(
        ("image", "mask", "suffixes", "split"),
        [
            ("a_sat.jpg", "a_mask.png", {"image_suffix": "_sat", "label_suffix": "_mask"}, "train"),
            ("val/a_sat.jpg", "val/a_mask.png", {"image_suffix": "_sat", "label_suffix": "_mask"}, "val"),
            ("images/a_sat.jpg", "images/a_mask.png", {"image_suffix": "_sat", "label_suffix": "_mask"}, "train"),
            ("images/a_sat.jpg", "labels/a_mask.png", {"image_suffix": "_sat", "label_suffix": "_mask"}, "train"),
            ("images/a_sat.jpg", "labels/a.png", {"image_suffix": "_sat"}, "train"),
            ("val/images/a.jpg", "val/images/a_mask.png", {"label_suffix": "_mask"}, "val"),
            ("a_rgb.png", "a.png", {"image_suffix": "_rgb"}, "train"),
            ("a.jpg", "a_mask.png", {"label_suffix": "_mask"}, "train"),
            (
                "test/images/a_sat.png",
                "test/masks/a_mask.png",
                {"image_suffix": "_sat", "label_suffix": "_mask"},
                "test",
            ),
        ],
    )
    def test_names_of_images_and_masks(self, tmp_path, image, mask, suffixes, split):
        save_picture(tmp_path / "my" / image, IMAGE)
        save_picture(tmp_path / "my" / mask, self.IDS)
        (scene,) = load(tmp_path / "my", table(0, 1), **suffixes).scenes
        assert (scene.image, scene.label) == (tmp_path / "my" / image, tmp_path / "my" / mask)
        assert scene.split == split

    def test_other_files_are_no_images(self, tmp_path):
        for name, pixels in {"a_sat": IMAGE, "a_mask": self.IDS, "a_prediction": IMAGE, "b_sat": IMAGE}.items():
            save_picture(tmp_path / "my" / f"{name}.png", pixels)
        dataset = load(tmp_path / "my", table(0, 1), image_suffix="_sat", label_suffix="_mask")
        assert [(s.image.stem, s.split) for s in dataset.scenes] == [("a_sat", "train"), ("b_sat", "unlabelled")]

    def test_a_mask_without_its_image(self, tmp_path):
        save_picture(tmp_path / "my" / "a_sat.png", IMAGE)
        save_picture(tmp_path / "my" / "b_mask.png", self.IDS)
        with pytest.raises(DataError, match=r"b_mask.png: no such image .*b_sat\.\*, this is its mask"):
            load(tmp_path / "my", table(0, 1), image_suffix="_sat", label_suffix="_mask")

    def test_a_suffix_that_no_image_has(self, tmp_path):
        put(tmp_path / "my", self.IDS)
        with pytest.raises(DataError, match="no image has a name that ends in image_suffix: _rgb"):
            load(tmp_path / "my", table(0, 1), image_suffix="_rgb")
