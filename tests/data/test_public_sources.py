"""Inria, DeepGlobe, ISIC and CRAG in the layouts of their downloads: found, read, refused, learned and mapped."""

import csv
from collections import Counter

import numpy as np
import pytest
import rasterio
from PIL import Image

import caswit
from caswit.config import IGNORE_INDEX
from caswit.data.dataset import load_dataset
from caswit.data.published_classes import DEEPGLOBE_CLASSES
from caswit.data.reader import open_dataset_scene
from caswit.data.sources.published_splits import DEEPGLOBE, INRIA
from caswit.errors import DataError
from caswit.evaluation.inspect import inspect
from caswit.raster.windows import Window
from conftest import picture
from trees import disc, make_crag, make_deepglobe, make_inria, make_isic, save_picture, write_dataset

IMAGE = picture(64, 70)
CITIES = "austin", "chicago", "kitsap", "tyrol-w", "vienna"
EVERY_INRIA = [f"{city}{number}" for city in CITIES for number in range(1, 37)]


def load(root, kind, *, skip_broken=False, **source):
    content = {"source": {"kind": kind, "root": str(root), **source}}
    return load_dataset(write_dataset(root.parent / "dataset.yaml", **content), skip_broken=skip_broken)


def splits(dataset):
    return {scene.name: scene.split for scene in dataset.scenes}


def labels(dataset, scene):
    with open_dataset_scene(dataset, scene) as opened:
        window = Window(0, 0, opened.height, opened.width)
        return opened.labels(window, opened.region(window).valid)


def small_inria(root):
    make_inria(root, IMAGE, ["austin1", "austin2", "austin10", "chicago1"], ["bellingham1"])
    return {"austin1": "test", "austin2": "train", "austin10": "train", "chicago1": "val", "bellingham1": "unlabelled"}


def small_deepglobe(root):
    make_deepglobe(root, IMAGE, ["119", "606", "2774", "100694"], unlabelled=["99"])
    found = {"119_sat": "train", "606_sat": "test", "2774_sat": "val", "100694_sat": "train"}
    return found | {"99_sat": "unlabelled"}


def small_isic(root):
    make_isic(root, {f"001000{n}": picture(60 + n, 90, n) for n in (0, 1, 8, 9)})
    return {"ISIC_0010000": "train", "ISIC_0010001": "train", "ISIC_0010008": "val", "ISIC_0010009": "test"}


def small_crag(root):
    make_crag(root, IMAGE, 2, 1)
    return {"train_1": "train", "train_2": "train", "test_1": "test"}


SMALL = {"inria": small_inria, "deepglobe": small_deepglobe, "isic": small_isic, "crag": small_crag}
every = pytest.mark.parametrize("kind", SMALL)


@every
def test_images_are_found_with_their_splits(tmp_path, kind):
    assert splits(load_after(tmp_path / "data", kind)) == SMALL[kind](tmp_path / "data")


def load_after(root, kind, **source):
    SMALL[kind](root)
    return load(root, kind, **source)


def test_scenes_come_in_the_order_of_their_numbers(tmp_path):
    dataset = load_after(tmp_path / "data", "inria")
    assert [s.name for s in dataset.scenes] == ["austin1", "austin2", "austin10", "chicago1", "bellingham1"]


@every
def test_the_inner_folder_may_be_the_root(tmp_path, kind):
    SMALL[kind](tmp_path / "data")
    inner = {"inria": "AerialImageDataset", "crag": "CRAG", "deepglobe": "land-train"}.get(kind, "")
    found = splits(load(tmp_path / "data" / inner, kind))
    assert found.items() <= SMALL[kind](tmp_path / "again").items()
    assert len(found) >= 3


@pytest.mark.parametrize(("kind", "name"), [("inria", "building"), ("isic", "lesion")])
def test_masks_of_0_and_255(tmp_path, kind, name):
    dataset = load_after(tmp_path / "data", kind)
    assert dataset.classes.names == ("background", name)
    assert [c.id for c in dataset.classes.mapped] == [0, 1]  # 255 is nodata in maps
    assert dataset.classes.predicted[0].is_background
    for scene in dataset.split("train"):
        found = labels(dataset, scene)
        np.testing.assert_array_equal(found, disc(*found.shape))


def test_every_number_of_crag_is_a_gland(tmp_path):
    dataset = load_after(tmp_path / "data", "crag")
    assert dataset.classes.names == ("background", "gland")
    for scene in dataset.scenes:
        found = labels(dataset, scene)
        np.testing.assert_array_equal(found, np.array(Image.open(scene.label)) > 0)
        assert found[26, 5] == 1  # gland 300


def test_deepglobe_is_read_with_a_threshold_at_128(tmp_path):
    dataset = load_after(tmp_path / "data", "deepglobe")
    scene = dataset.split("train")[0]
    save_picture(scene.label, np.random.default_rng(1).integers(0, 256, (64, 70, 3), dtype=np.uint8))
    bits = (np.array(Image.open(scene.label)) >= 128) @ (4, 2, 1)
    # The challenge's order; red alone is no class.
    order = {0b011: 0, 0b110: 1, 0b101: 2, 0b010: 3, 0b001: 4, 0b111: 5, 0b000: IGNORE_INDEX}
    pixels = np.array(Image.open(scene.label))
    pixels[bits == 0b100] = 0
    save_picture(scene.label, pixels)
    expected = np.vectorize(order.get)(np.where(bits == 0b100, 0, bits))
    np.testing.assert_array_equal(labels(dataset, scene), expected)
    pixels[3, 4] = 200, 10, 10
    save_picture(scene.label, pixels)
    with pytest.raises(DataError, match=r"_mask.png: label color #c80a0a not in the class table"):
        labels(dataset, scene)


def test_the_classes_of_deepglobe(tmp_path):
    names = "urban", "agriculture", "rangeland", "forest", "water", "barren"
    assert load_after(tmp_path / "data", "deepglobe").classes.names == names
    assert [c.name for c in DEEPGLOBE_CLASSES.classes if c.ignore] == ["unknown"]


class TestPublishedLists:
    def test_inria_has_126_27_and_27(self):
        counts = Counter(INRIA.get(name, "train") for name in EVERY_INRIA)
        assert counts == {"train": 126, "val": 27, "test": 27}
        assert INRIA.keys() <= set(EVERY_INRIA)

    def test_deepglobe_has_207_and_142(self):
        assert Counter(DEEPGLOBE.values()) == {"val": 207, "test": 142}
        assert all(name.isdecimal() for name in DEEPGLOBE)


class TestSplits:
    def test_the_official_split_of_inria(self, tmp_path):
        (tmp_path / "data").mkdir()
        names = [f"{city}{n}" for city in CITIES for n in (1, 5, 6, 36)]
        make_inria(tmp_path / "data", IMAGE, names)
        found = splits(load(tmp_path / "data", "inria", splits="official"))
        assert found == {name: "val" if name[-1] in "15" else "train" for name in names}

    def test_the_official_split_of_isic(self, tmp_path):
        root = tmp_path / "data"
        for word, number in (("Training", "0000008"), ("Validation", "0012255"), ("Test", "0012169")):
            make_isic(root, {number: IMAGE}, word)
        found = splits(load(root, "isic", splits="official"))
        assert found == {"ISIC_0000008": "train", "ISIC_0012255": "val", "ISIC_0012169": "test"}
        assert splits(load(root, "isic")) == {"ISIC_0000008": "val"}  # the others are the challenge's, not the papers'

    def test_lists(self, tmp_path):
        """Lists of other repositories: with _sat in names that have none, with folders, with the mask beside."""
        (tmp_path / "a.txt").write_text("austin2_sat.tif\n\n")
        (tmp_path / "b.txt").write_text("train/images/austin1.tif\ttrain/gt/austin1.tif\n")
        lists = {"val": str(tmp_path / "a.txt"), "test": str(tmp_path / "b.txt")}
        found = splits(load_after(tmp_path / "data", "inria", splits=lists))
        assert found == {
            "austin1": "test",
            "austin2": "val",
            "austin10": "train",
            "chicago1": "train",
            "bellingham1": "unlabelled",
        }
        (tmp_path / "c.txt").write_text("chicago1\n")
        found = splits(load(tmp_path / "data", "inria", splits=lists | {"train": str(tmp_path / "c.txt")}))
        assert found["chicago1"] == "train"
        assert found["austin10"] == "unlisted"

    def test_a_validation_list_of_crag(self, tmp_path):
        (tmp_path / "val.txt").write_text("train_2.png\n")
        dataset = load_after(tmp_path / "data", "crag", splits={"val": "val.txt"})  # beside the dataset.yaml
        assert splits(dataset) == {"train_1": "train", "train_2": "val", "test_1": "test"}

    def test_wrong_lists(self, tmp_path):
        (tmp_path / "a.txt").write_text("austin1\nrome7\n")
        (tmp_path / "b.txt").write_text("austin1\n")
        with pytest.raises(DataError, match=r"[ab].txt: lists austin1, which is in .*[ab].txt too"):
            load_after(tmp_path / "data", "inria", splits={"val": "a.txt", "test": "b.txt"})
        with pytest.raises(DataError, match=r"a.txt: lists rome7, of which there is no image in .*--skip-broken"):
            load(tmp_path / "data", "inria", splits={"val": "a.txt"})
        assert len(load(tmp_path / "data", "inria", splits={"val": "a.txt"}, skip_broken=True).scenes) == 5
        with pytest.raises(DataError, match=r"none.txt: no list of images that can be read; write a name"):
            load(tmp_path / "data", "inria", splits={"val": "none.txt"})
        with pytest.raises(DataError, match=r"splits.*papers.*official.*got 'paper'") as caught:
            load(tmp_path / "data", "inria", splits="paper")
        assert "\n" not in str(caught.value)


class TestWrongLayouts:
    """One line: what was looked for, and what is there."""

    @pytest.mark.parametrize(
        ("kind", "looked_for"),
        [
            ("inria", "train/images and train/gt"),
            ("deepglobe", "NUMBER_sat.jpg and NUMBER_mask.png"),
            ("isic", "ISIC2018_Task1-2_Training_Input and ISIC2018_Task1_Training_GroundTruth"),
            ("crag", "train/Images"),
        ],
    )
    def test_another_dataset(self, tmp_path, kind, looked_for):
        other = "crag" if kind == "inria" else "inria"
        SMALL[other](tmp_path / "data")
        with pytest.raises(DataError) as caught:
            load(tmp_path / "data", kind)
        assert looked_for in str(caught.value)
        assert {"crag": "CRAG/train/", "inria": "AerialImageDataset/train/"}[other] in str(caught.value)
        assert "\n" not in str(caught.value)

    @every
    def test_an_empty_folder(self, tmp_path, kind):
        (tmp_path / "data").mkdir()
        with pytest.raises(DataError, match=r"does not look like .*it is empty"):
            load(tmp_path / "data", kind)

    def test_long_listings_are_cut(self, tmp_path):
        for n in range(20):
            save_picture(tmp_path / "data" / f"{n:02}.png", IMAGE[0])
        with pytest.raises(DataError, match=r"it holds 00.png, .*07.png and 12 more$"):
            load(tmp_path / "data", "isic")

    def test_crag_without_annotations(self, tmp_path):
        small_crag(tmp_path / "data")
        (tmp_path / "data/CRAG/valid/Annotation").rename(tmp_path / "data/CRAG/valid/Labels")
        with pytest.raises(DataError, match=r"valid: no folder Annotation beside Images; it holds Images/, Labels/"):
            load(tmp_path / "data", "crag")

    @every
    def test_a_missing_mask_and_a_missing_image(self, tmp_path, kind):
        dataset = load_after(tmp_path / "data", kind)
        first, second = dataset.split("train")
        first.label.unlink()
        with pytest.raises(DataError, match=rf"{first.image.name}: has no mask .*--skip-broken leaves it out"):
            load(tmp_path / "data", kind)
        second.image.unlink()
        left = load(tmp_path / "data", kind, skip_broken=True)
        assert len(left.scenes) == len(dataset.scenes) - 2
        assert len(left.broken) == 2


@every
def test_inspect(tmp_path, kind):
    """Shares of classes are those of the masks; a picture is drawn."""
    load_after(tmp_path / "data", kind)
    report = inspect(tmp_path / "dataset.yaml", tmp_path / "out", tiles=1)
    assert (tmp_path / "out" / "tile-01.png").is_file()
    with (tmp_path / "out" / "scenes.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert {row["gsd_m"] for row in rows} == ({"0.3"} if kind == "inria" else {""})
    assert "2 scenes" in report.read_text()
    if kind != "deepglobe":
        name = {"inria": "building", "isic": "lesion", "crag": "gland"}[kind]
        mask = np.array(Image.open(rows[0]["label"])) > 0
        assert float(rows[0][f"share of {name}"]) == pytest.approx(mask.mean(), abs=1e-6)


@pytest.mark.e2e
@pytest.mark.usefixtures("shallow")
@every
def test_a_network_learns_is_scored_and_maps_an_image(tmp_path, kind):
    dataset = load_after(tmp_path / "data", kind)
    recipe = {
        "data": {"dataset": str(tmp_path / "dataset.yaml"), "workers": 0, "val_split": "test", "sampling": "random"},
        "tile": {"tile_px": 32, "context_factor": 2},
        "model": {"size": "pico"},
        "train": {"max_steps": 2, "batch": 2, "accelerator": "cpu", "keep": "last"},
    }
    model = caswit.train(recipe, tmp_path / "run")
    evaluation = caswit.evaluate(model, tmp_path / "dataset.yaml")
    assert 0 <= evaluation.scores.miou <= 1
    image = dataset.split("test")[0].image
    caswit.predict(image, tmp_path / "map.tif", model)
    with rasterio.open(tmp_path / "map.tif") as found, rasterio.open(image) as src:
        assert found.shape == src.shape
        assert found.crs == src.crs
        assert set(np.unique(found.read(1))) <= {c.id for c in dataset.classes.mapped}
