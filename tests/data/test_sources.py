"""URUR, SWISSIMAGE and folders: what they find, and one clear line for what is broken."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from caswit.data.dataset import load_dataset
from caswit.data.published_classes import URUR_CLASSES
from caswit.data.reader import open_dataset_scene
from caswit.data.sources.urur import prepare_urur
from caswit.errors import DataError
from caswit.raster.resample import area_average
from caswit.raster.windows import Window
from conftest import CLASSES, picture
from trees import write_dataset, write_tiff


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))


def load(folder, kind, *, skip_broken=False, classes=None, **source):
    content = {"source": {"kind": kind, "root": str(folder), **source}}
    if classes:
        content["classes"] = classes.to_dicts()
    return load_dataset(write_dataset(folder.parent / "dataset.yaml", **content), skip_broken=skip_broken)


def read(dataset, scene):
    """(3, H, W), (H, W) or None."""
    with open_dataset_scene(dataset, scene) as opened:
        window = Window(0, 0, opened.height, opened.width)
        region = opened.region(window)
        return region.image, opened.labels(window, region.valid) if opened.label else None


def cut(path):
    path.write_bytes(path.read_bytes()[:900])


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


class TestUrur:
    IDS = (np.indices((60, 70)).sum(0) // 9 % 8).astype(np.uint8)

    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "URUR"
        for split, names in {"train": ("1", "2"), "val": ("3",), "test": ("4",)}.items():
            for name in names:
                save(root / split / "image" / f"{name}.png", np.moveaxis(picture(60, 70, int(name)), 0, -1))
                save(root / split / "label" / f"{name}.png", self.IDS)
        return root

    def test_it_is_read_after_being_prepared(self, root):
        with pytest.raises(DataError, match=r"4 of 4 pictures are PNG only.*caswit prepare urur"):
            load(root, "urur")
        prepare_urur(root)
        dataset = load(root, "urur")
        assert [(s.name, s.split) for s in dataset.scenes] == [
            ("1", "train"),
            ("2", "train"),
            ("3", "val"),
            ("4", "test"),
        ]
        assert len(dataset.classes) == 8
        image, labels = read(dataset, dataset.scenes[1])
        np.testing.assert_array_equal(image, picture(60, 70, 2))
        np.testing.assert_array_equal(labels, self.IDS)
        with rasterio.open(dataset.scenes[0].image) as tif:
            assert tif.profile["tiled"]

    def test_colours_and_palettes_become_ids(self, root):
        colors = URUR_CLASSES.colors
        save(root / "train" / "label" / "1.png", colors[self.IDS])
        numbered = Image.fromarray(self.IDS + 20)  # values that are no ids, with the official colours
        numbered.putpalette([0] * 60 + colors.ravel().tolist())
        numbered.save(root / "train" / "label" / "2.png")
        prepare_urur(root)
        dataset = load(root, "urur")
        for scene in dataset.split("train"):
            np.testing.assert_array_equal(read(dataset, scene)[1], self.IDS)

    def test_an_interrupted_preparation_continues(self, root, monkeypatch):
        from caswit.data.sources import urur as prepare

        written = []
        original = prepare.write_raster

        def failing(path, pixels):
            if len(written) == 3:
                raise KeyboardInterrupt
            written.append(path)
            original(path, pixels)

        monkeypatch.setattr(prepare, "write_raster", failing)
        with pytest.raises(KeyboardInterrupt):
            prepare_urur(root, workers=1)
        assert not list((root / "tiled").rglob("*.tmp"))
        written.clear()
        monkeypatch.setattr(prepare, "write_raster", lambda *a: (written.append(a), original(*a)))
        prepare_urur(root, workers=1)
        assert 4 <= len(written) <= 6  # one pair was done, one was half done
        written.clear()
        prepare_urur(root, workers=1)
        assert written == []
        assert len(load(root, "urur").scenes) == 4

    @pytest.mark.parametrize(
        ("breakage", "words"),
        [
            (lambda root: (root / "val/label/3.png").unlink(), "val/label/3.png: no such label"),
            (lambda root: save(root / "val/label/3.png", TestUrur.IDS[:50]), "the label is 50 x 70"),
            (lambda root: save(root / "val/label/3.png", TestUrur.IDS + 30), "no palette|colours are"),
            (
                lambda root: (root / "val/image/3.png").write_bytes((root / "val/image/3.png").read_bytes()[:900]),
                "3.png",
            ),
            (
                lambda root: save(root / "val/label/3.png", np.full((60, 70, 3), 77, np.uint8)),
                "label color #4d4d4d not in",
            ),
        ],
    )
    def test_broken_pictures(self, root, breakage, words, caplog):
        breakage(root)
        with pytest.raises(DataError, match=words) as caught:
            prepare_urur(root)
        assert "\n" not in str(caught.value)
        prepare_urur(root, skip_broken=True)
        assert "1 of 4 pictures are broken" in caplog.text
        dataset = load(root, "urur", skip_broken=True)
        assert [s.name for s in dataset.scenes] == ["1", "2", "4"]
        assert len(dataset.broken) == 1


class TestSwissimage:
    """Kilometres of 40 px: 25 m pixels."""

    def make(self, root, year, east, north, value):
        path = root / f"swissimage-dop10_{year}_{east}-{north}" / f"swissimage-dop10_{year}_{east}-{north}_0.1_2056.tif"
        pixels = np.full((3, 40, 40), value, np.uint8) + np.arange(40, dtype=np.uint8)
        write_tiff(path, pixels, x=east * 1000, y=(north + 1) * 1000, crs="EPSG:2056", gsd=25)
        return path

    @pytest.fixture
    def root(self, tmp_path):
        root = tmp_path / "swiss"
        self.make(root, 2019, 2594, 1138, 10)
        self.make(root, 2022, 2594, 1138, 60)
        self.make(root, 2021, 2595, 1139, 110)  # touches at a corner
        self.make(root, 2021, 2600, 1138, 160)  # far away
        preview = root / "swissimage-dop10_2022_2594-1138_2_2056.tif"
        write_tiff(preview, np.zeros((3, 2, 2), np.uint8), x=2_594_000, y=1_139_000, crs="EPSG:2056", gsd=500)
        return root

    def test_the_newest_year_of_each_kilometre_in_mosaics(self, root):
        dataset = load(root, "swissimage")
        near, far = dataset.split("unlabelled", labelled=False)
        image, labels = read(dataset, near)
        assert labels is None
        assert image.shape == (3, 80, 80)
        assert (image[:, 40:, :40] == 60 + np.arange(40)).all()
        assert (image[:, :40, 40:] == 110 + np.arange(40)).all()
        assert not image[:, :40, :40].any()
        assert near.areas == (Window(40, 0, 40, 40), Window(0, 40, 40, 40))
        assert read(dataset, far)[0].shape == (3, 40, 40)

    def test_pixels_without_data_are_not_valid_and_all_others_are(self, root):
        """In a window over two files with a nodata value, GDAL's mask was 0 below the first row."""
        hole = np.s_[:, 3:9, 30:]
        for east, north, value in ((2594, 1138, 60), (2595, 1138, 110)):
            path = root / "new" / f"swissimage-dop10_2023_{east}-{north}_0.1_2056.tif"
            pixels = np.full((3, 40, 40), value, np.uint8)
            pixels[hole], pixels[0, 20, 20] = 255, 255
            write_tiff(path, pixels, x=east * 1000, y=(north + 1) * 1000, crs="EPSG:2056", gsd=25, nodata=255)
        dataset = load(root, "swissimage")
        with open_dataset_scene(dataset, dataset.scenes[0]) as opened:
            region = opened.region(Window(40, 0, 40, 80))
        expected = np.ones((40, 80), bool)
        for left in (0, 40):
            expected[3:9, left + 30 : left + 40] = False
        np.testing.assert_array_equal(region.valid, expected)
        assert (region.image[1] == np.where(expected, np.where(np.arange(80) < 40, 60, 110), 0)).all()

    def test_it_is_read_averaged(self, root):
        dataset = load(root, "swissimage")
        coarse = dataset.read_at(50.0)
        fine_image, _ = read(dataset, dataset.scenes[1])
        image, _ = read(coarse, dataset.scenes[1])
        np.testing.assert_array_equal(image, area_average(fine_image, 2))
        with open_dataset_scene(coarse, coarse.scenes[0]) as opened:
            assert opened.areas == (Window(20, 0, 20, 20), Window(0, 20, 20, 20))

    def test_a_truncated_kilometre(self, root):
        path = self.make(root, 2023, 2600, 1138, 5)
        path.write_bytes(path.read_bytes()[:-50])
        with pytest.raises(DataError, match=r"truncated.*--skip-broken"):
            load(root, "swissimage")
        dataset = load(root, "swissimage", skip_broken=True)
        assert read(dataset, dataset.scenes[1])[0][0, 0, 0] == 160  # the year before

    def test_nothing_there(self, tmp_path):
        (tmp_path / "none").mkdir()
        with pytest.raises(DataError, match="no file is named like swissimage-dop10_2021"):
            load(tmp_path / "none", "swissimage")


class TestFolder:
    IDS = np.array([0, 1, 2, 7], np.uint8)[np.indices((40, 50)).sum(0) // 11 % 4]

    def put(self, root, images, labels, *, suffix="", extension=".png", colors=False):
        save(root / images / "a.png", np.moveaxis(picture(40, 50), 0, -1))
        table = {c.id: c.rgb for c in CLASSES.classes}
        values = np.array([table.get(i, (0, 0, 0)) for i in range(8)], np.uint8)[self.IDS] if colors else self.IDS
        save(root / labels / f"a{suffix}{extension}", values)

    def check(self, dataset, split):
        (scene,) = dataset.split(split)
        image, labels = read(dataset, scene)
        np.testing.assert_array_equal(image, picture(40, 50))
        np.testing.assert_array_equal(labels, CLASSES.indices(self.IDS, "x"))

    @pytest.mark.parametrize(
        ("images", "labels", "split"),
        [
            ("images", "labels", "train"),
            ("img", "masks", "train"),
            ("val/image", "val/gt", "val"),
            ("images/val", "labels/val", "val"),
        ],
    )
    @pytest.mark.parametrize("colors", [False, True])
    def test_layouts(self, tmp_path, images, labels, split, colors):
        self.put(tmp_path / "mine", images, labels, colors=colors)
        self.check(load(tmp_path / "mine", "folder", classes=CLASSES), split)

    def test_named_folders_and_suffixes(self, tmp_path):
        self.put(tmp_path / "one", "photos", "truth")
        self.check(load(tmp_path / "one", "folder", classes=CLASSES, images="photos", labels="truth", split="x"), "x")
        self.put(tmp_path / "two", "", "", suffix="_label", extension=".tif")
        self.check(load(tmp_path / "two", "folder", classes=CLASSES, label_suffix="_label"), "train")
        self.put(tmp_path / "three", "test", "test", suffix="_label")
        self.check(load(tmp_path / "three", "folder", classes=CLASSES, label_suffix="_label"), "test")

    def test_a_jpeg_with_a_paletted_mask(self, tmp_path):
        root = tmp_path / "mine"
        self.put(root, "images", "labels")
        (root / "images" / "a.png").unlink()
        save(root / "images" / "a.jpg", np.moveaxis(picture(40, 50), 0, -1), quality=95)
        mask = Image.fromarray((np.indices((40, 50)).sum(0) // 11 % 4).astype(np.uint8))
        mask.putpalette([v for c in CLASSES.classes for v in c.rgb])
        mask.save(root / "labels" / "a.png")
        dataset = load(root, "folder", classes=CLASSES, label_values="colors")
        np.testing.assert_array_equal(read(dataset, dataset.scenes[0])[1], CLASSES.indices(self.IDS, "x"))

    def test_an_image_without_a_mask_is_unlabelled(self, tmp_path):
        self.put(tmp_path / "mine", "images", "labels")
        save(tmp_path / "mine" / "images" / "b.jpg", np.zeros((9, 9, 3), np.uint8))
        dataset = load(tmp_path / "mine", "folder", classes=CLASSES)
        assert [(s.name, s.split) for s in dataset.scenes] == [("a", "train"), ("b", "unlabelled")]

    def test_a_mask_without_an_image(self, tmp_path):
        self.put(tmp_path / "mine", "images", "labels")
        save(tmp_path / "mine" / "labels" / "c.png", self.IDS)
        with pytest.raises(DataError, match=r"labels/c.png: no such image .*c\.\*, this is its mask; --skip-broken"):
            load(tmp_path / "mine", "folder", classes=CLASSES)
        assert len(load(tmp_path / "mine", "folder", classes=CLASSES, skip_broken=True).scenes) == 1

    def test_a_colour_that_no_class_has(self, tmp_path):
        self.put(tmp_path / "mine", "images", "labels", colors=True)
        pixels = np.array(Image.open(tmp_path / "mine" / "labels" / "a.png"))
        pixels[3, 4] = 1, 2, 3
        save(tmp_path / "mine" / "labels" / "a.png", pixels)
        dataset = load(tmp_path / "mine", "folder", classes=CLASSES)
        with pytest.raises(DataError, match="label color #010203 not in the class table"):
            read(dataset, dataset.scenes[0])

    def test_classes_are_needed(self, tmp_path):
        self.put(tmp_path / "mine", "images", "labels")
        with pytest.raises(DataError, match="classes must be a list"):
            load(tmp_path / "mine", "folder")

    def test_an_empty_folder(self, tmp_path):
        (tmp_path / "mine").mkdir()
        with pytest.raises(DataError, match="no images; put"):
            load(tmp_path / "mine", "folder", classes=CLASSES)

    @pytest.mark.data
    def test_the_real_datasets_are_folders_too(self, real_data, tmp_path):
        described = load_dataset(real_data / "dubai" / "dataset.yaml")
        content = {"source": {"kind": "folder", "root": str(real_data / "dubai"), "label_suffix": "_label"}}
        file = write_dataset(tmp_path / "d.yaml", classes=described.classes.to_dicts(), **content)
        found = {s.image.name: s.label.name for s in load_dataset(file).scenes}
        assert found == {s.image.name: s.label.name for s in described.scenes}
