"""FLAIR-HUB as downloaded: mosaics by geotransform, splits, and one clear line for what is broken."""

import os
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from caswit.config import AugmentConfig, DataConfig, TileConfig
from caswit.data.classes import FLAIR_HUB_CLASSES
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.sampler import TrainingSamples
from caswit.errors import DataError
from caswit.raster.resample import area_average
from caswit.raster.windows import Window
from conftest import picture
from trees import PATCH_PX, flair_paths, make_flair_hub, write_dataset, write_flair_csv, write_flair_geopackage

ROWS, COLS = 4, 5
HOLE = (1, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pixels():
    rgb = picture(ROWS * PATCH_PX, COLS * PATCH_PX)
    return np.concatenate([rgb, 255 - rgb[:1]])


@pytest.fixture
def ids():
    """(1, H, W): all 19 ids."""
    rows, cols = np.indices((ROWS * PATCH_PX, COLS * PATCH_PX))
    return ((rows // 5 + cols // 7) % 19).astype(np.uint8)[None]


@pytest.fixture
def tree(tmp_path, pixels, ids):
    """A region of 4 x 5 patches without one; the left three columns are train, the rest valid."""
    root = tmp_path / "flair"
    patches = make_flair_hub(root, pixels, ids, holes=[HOLE])
    column = {p: int(p.rsplit("_", 1)[1].split("-")[0]) - 3 for p in patches}
    for split, chosen in (("TRAIN", lambda c: c < 3), ("VALID", lambda c: c >= 3)):
        table = root / f"FLAIR-HUB_TOY-DATASET_{split}.csv"
        write_flair_csv(table, [p for p in patches if chosen(column[p])])
    return root


def load(root, *, skip_broken=False, **source):
    file = write_dataset(root.parent / "dataset.yaml", source={"kind": "flair_hub", "root": root.name, **source})
    return load_dataset(file, skip_broken=skip_broken)


def refused(root, **source) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whole(dataset, split):
    (scene,) = dataset.split(split)
    with open_dataset_scene(dataset, scene) as opened:
        window = Window(0, 0, opened.height, opened.width)
        region = opened.region(window)
        return scene, region, opened.labels(window, region.valid)


def with_hole(array, fill):
    filled = array.copy()
    row, col = HOLE[0] * PATCH_PX, HOLE[1] * PATCH_PX
    filled[..., row : row + PATCH_PX, col : col + PATCH_PX] = fill
    return filled


def test_a_region_is_the_image_its_patches_were_cut_from(tree, pixels, ids):
    dataset = load(tree)
    scene, region, labels = whole(dataset, "train")
    np.testing.assert_array_equal(region.image, with_hole(pixels[:3], 0))
    np.testing.assert_array_equal(region.valid, with_hole(np.ones(pixels.shape[1:], bool), False))
    expected = with_hole(FLAIR_HUB_CLASSES.indices(ids[0], "x"), 255)
    expected[:, 3 * PATCH_PX :] = 255  # labels of the other split are not there
    np.testing.assert_array_equal(labels, expected)
    assert scene.areas is not None
    assert len(scene.areas) == ROWS * 3 - 1
    assert {s.split for s in dataset.scenes} == {"train", "val"}
    with rasterio.open(scene.image) as mosaic:
        assert mosaic.crs.to_epsg() == 2154
        assert mosaic.transform == rasterio.Affine(0.2, 0, 700_000, 0, -0.2, 6_600_000)


def test_other_bands_can_be_chosen(tree, pixels):
    file = write_dataset(tree.parent / "d.yaml", source={"kind": "flair_hub", "root": "flair"}, bands=[4, 1, 2])
    _, region, _ = whole(load_dataset(file), "train")
    np.testing.assert_array_equal(region.image, with_hole(pixels[[3, 0, 1]], 0))


def test_no_near_infrared_is_not_no_data(tree, pixels, ids):
    """GDAL calls a fourth band alpha unless told otherwise: where water reflected none, image and label vanished."""
    dark = pixels.copy()
    dark[3, 3:40, 5:60] = 0
    make_flair_hub(tree, dark, ids, holes=[HOLE])
    with rasterio.open(tree / flair_paths("3-1")[0]) as patch:
        assert patch.colorinterp[3] == ColorInterp.alpha
    _, region, labels = whole(load(tree), "train")
    np.testing.assert_array_equal(region.image, with_hole(pixels[:3], 0))
    np.testing.assert_array_equal(region.valid, with_hole(np.ones(ids.shape[1:], bool), False))
    assert (labels[3:32, 5:60] != 255).mean() > 0.5


def test_tiles_are_the_patches_and_their_context_the_neighbours(tree, pixels):
    dataset = load(tree)
    samples = TrainingSamples(
        dataset,
        DataConfig(dataset="x"),
        TileConfig(tile_px=PATCH_PX, context_factor=2),
        AugmentConfig(),
        seed=0,
        context=True,
    )
    assert samples.tiles_per_epoch == ROWS * 3 - 1
    padded = np.pad(with_hole(pixels[:3], 0), ((0, 0), (16, 16), (16, 16)))
    seen = set()
    for number in range(samples.tiles_per_epoch):
        _, window = samples._grid_window(number)
        seen.add(window)
        sample = samples[number]
        wide = padded[:, window.row : window.row + 64, window.col : window.col + 64]
        np.testing.assert_array_equal(sample["tile"], wide[:, 16:48, 16:48])
        np.testing.assert_array_equal(sample["context"], area_average(wide, 2))
    assert seen == {
        Window(r * PATCH_PX, c * PATCH_PX, PATCH_PX, PATCH_PX) for r in range(ROWS) for c in range(3) if (r, c) != HOLE
    }


def test_smaller_tiles_cut_every_patch(tree):
    tile = TileConfig(tile_px=16 * 2, context_factor=2)
    for sampling in ("grid", "random"):
        samples = TrainingSamples(
            load(tree), DataConfig(dataset="x", sampling=sampling), tile, AugmentConfig(), seed=0, context=True
        )
        for number in range(50):
            assert (samples[number]["label"] != 255).any()  # never a hole or the other split alone


def test_neighbours_of_the_other_split_can_be_kept_out(tree, pixels):
    _, anyone, _ = whole(load(tree), "val")
    _, alone, _ = whole(load(tree, neighbours="same_split"), "val")
    np.testing.assert_array_equal(alone.image, pixels[:3, :, 3 * PATCH_PX :])
    assert anyone.image.shape[2] == COLS * PATCH_PX


def test_the_geopackage_gives_the_official_splits(tree, tmp_path):
    pytest.importorskip("pyogrio")
    for table in tree.glob("*.csv"):
        table.unlink()
    everyone = [f.stem.replace("_AERIAL_RGBI", "") for f in tree.glob("*_AERIAL_RGBI/*/*.tif")]
    splits = {p: ("train", "valid", "test")[i % 3] for i, p in enumerate(everyone)}
    splits["D099-2020_XX-S1-1_0-0"] = "train"  # a domain nobody downloaded
    write_flair_geopackage(tree / "GLOBAL_ALL_MTD" / "GLOBAL_ALL_MTD_SPLIT.gpkg", splits)
    dataset = load(tree)
    assert {s.split: len(s.areas or ()) for s in dataset.scenes} == {"train": 7, "val": 6, "test": 6}


def test_the_index_is_read_again_only_where_files_changed(tree, monkeypatch):
    from caswit.data.sources import index

    read = []
    original = index.read_header
    monkeypatch.setattr(index, "read_header", lambda path: (read.append(path), original(path))[1])
    before = load(tree)
    assert len(read) == 2 * (ROWS * COLS - 1)
    read.clear()
    assert load(tree).scenes == before.scenes
    assert read == []
    image = tree / flair_paths("3-1")[0]
    os.utime(image, ns=(1, 1))
    assert load(tree).scenes == before.scenes
    assert read == [image]


def test_a_changed_patch_is_seen(tree, pixels):
    load(tree)
    image = tree / flair_paths("3-4")[0]  # row 0, column 0
    with rasterio.open(image, "r+") as patch:
        patch.write(np.full((4, PATCH_PX, PATCH_PX), 7, np.uint8))
    _, region, _ = whole(load(tree), "train")
    assert (region.image[:, :PATCH_PX, :PATCH_PX] == 7).all()
    np.testing.assert_array_equal(region.image[:, :, PATCH_PX:], with_hole(pixels[:3], 0)[:, :, PATCH_PX:])


def test_an_index_that_is_broken_is_made_anew(tree, cache):
    scenes = load(tree).scenes
    for file in cache.rglob("*.npz"):
        file.write_bytes(b"nothing")
    for file in cache.rglob("digests.json"):
        file.write_text("{")
    assert load(tree).scenes == scenes


class TestBroken:
    """Each gives one clear line, and is left out and listed when asked."""

    IMAGE, LABEL = flair_paths("3-1")  # row 3, column 0

    def check(self, tree, *words):
        message = refused(tree)
        for word in words:
            assert word in message
        assert "--skip-broken" in message
        dataset = load(tree, skip_broken=True)
        assert len(dataset.broken) == 1
        (train,) = dataset.split("train")
        assert len(train.areas or ()) == ROWS * 3 - 2
        return dataset

    def test_missing_image(self, tree):
        (tree / self.IMAGE).unlink()
        self.check(tree, self.IMAGE, "no such image patch", "TRAIN.csv lists it")

    def test_missing_label(self, tree):
        (tree / self.LABEL).unlink()
        self.check(tree, self.LABEL, "no such label patch", "TRAIN.csv lists it")

    def test_csv_naming_an_absent_file(self, tree):
        with (tree / "FLAIR-HUB_TOY-DATASET_TRAIN.csv").open("a") as lines:
            lines.write("D012-2019_AF-S1-27_99-99,,../a/b/none_label.tif,../a/b/none.tif,\r\n")
        message = refused(tree)
        assert "a/b/none.tif: no such image patch" in message
        assert len(load(tree, skip_broken=True).broken) == 1

    def test_truncated_image(self, tree, pixels):
        path = tree / self.IMAGE
        path.write_bytes(path.read_bytes()[:-100])
        dataset = self.check(tree, self.IMAGE, "truncated")
        _, region, _ = whole(dataset, "train")
        assert not region.image[:, 3 * PATCH_PX :, :PATCH_PX].any()

    def test_an_empty_file(self, tree):
        (tree / self.LABEL).write_bytes(b"")
        self.check(tree, self.LABEL, "not a TIFF, or truncated")

    def test_wrong_size(self, tree, pixels):
        self.write(tree, self.IMAGE, pixels[:, :20, :PATCH_PX])
        self.check(tree, self.IMAGE, "is 20 x 32 with 4 bands of uint8, the other patches are 32 x 32 with 4 bands")

    def test_wrong_size_of_a_label(self, tree, ids):
        self.write(tree, self.LABEL, ids[:, :20, :PATCH_PX])
        self.check(tree, self.LABEL, "is 20 x 32, its image is 32 x 32")

    def test_no_georeference(self, tree, pixels):
        path = tree / self.IMAGE
        with (
            pytest.warns(rasterio.errors.NotGeoreferencedWarning),
            rasterio.open(path, "w", driver="GTiff", count=4, height=PATCH_PX, width=PATCH_PX, dtype="uint8") as dst,
        ):
            dst.write(pixels[:, :PATCH_PX, :PATCH_PX])
        self.check(tree, self.IMAGE, "has no georeference")

    def test_a_label_elsewhere(self, tree, ids):
        self.write(tree, self.LABEL, ids[:, :PATCH_PX, :PATCH_PX], x=700_000.2)
        self.check(tree, self.LABEL, "lies elsewhere than its image")

    def test_off_the_grid(self, tree, pixels, ids):
        self.write(tree, self.IMAGE, pixels[:, :PATCH_PX, :PATCH_PX], x=700_000.07)
        self.write(tree, self.LABEL, ids[:, :PATCH_PX, :PATCH_PX], x=700_000.07)
        self.check(tree, self.IMAGE, "does not lie on the grid of")

    def test_two_patches_in_one_place(self, tree, pixels):
        self.write(tree, self.IMAGE, pixels[:, :PATCH_PX, :PATCH_PX], y=6_600_000)
        shutil.copy(tree / flair_paths("3-4")[1], tree / self.LABEL)
        self.check(tree, "lies where", self.IMAGE)

    def test_an_unknown_id_names_its_patch(self, tree, ids):
        wrong = ids[:, 3 * PATCH_PX :, :PATCH_PX].copy()
        wrong[0, 5, 6] = 42
        self.write(tree, self.LABEL, wrong)
        dataset = load(tree)
        with pytest.raises(DataError, match=r"label id 42 not in the class table") as caught:
            whole(dataset, "train")
        assert self.LABEL in str(caught.value)

    def test_an_unknown_id_is_skipped_while_training(self, tree, ids, caplog):
        self.test_an_unknown_id_names_its_patch(tree, ids)
        tile = TileConfig(tile_px=PATCH_PX, context_factor=2)
        data = DataConfig(dataset="x")
        strict = TrainingSamples(load(tree), data, tile, AugmentConfig(), seed=0, context=True)
        with pytest.raises(DataError):
            [strict[n] for n in range(11)]
        samples = TrainingSamples(load(tree, skip_broken=True), data, tile, AugmentConfig(), seed=0, context=True)
        assert len([samples[n] for n in range(11)]) == 11
        assert self.LABEL in caplog.text

    def write(self, tree, path, pixels, *, x=700_000.0, y=6_600_000 - 3 * PATCH_PX * 0.2):
        from trees import write_tiff

        write_tiff(tree / path, pixels, x=x, y=y)


class TestRefusals:
    def test_a_folder_without_domains(self, tmp_path):
        (tmp_path / "empty").mkdir()
        assert "no folder is named like D004-2021_AERIAL_RGBI" in refused(tmp_path / "empty")

    def test_no_splits(self, tree):
        for table in tree.glob("*.csv"):
            table.unlink()
        assert "no splits: neither GLOBAL_ALL_MTD/GLOBAL_ALL_MTD_SPLIT.gpkg nor" in refused(tree)

    def test_a_table_without_columns(self, tree):
        (tree / "FLAIR-HUB_TOY-DATASET_TRAIN.csv").write_text("patch_id,AERIAL_RGBI\n")
        assert "has no column AERIAL_LABEL-COSIA" in refused(tree)

    def test_neighbours_that_do_not_exist(self, tree):
        assert "neighbours: must be one of any, same_split, got 'none'" in refused(tree, neighbours="none")

    def test_unknown_keys(self, tree):
        assert "unknown split_file; allowed: kind, neighbours, root, splits" in refused(tree, split_file="x")

    def test_a_kind_that_does_not_exist(self, tmp_path):
        file = write_dataset(tmp_path / "d.yaml", source={"kind": "flair"})
        with pytest.raises(DataError, match="kind must be one of flair_hub, urur, swissimage, folder, got 'flair'"):
            load_dataset(file)


def test_fifteen_classes_are_predicted():
    assert len(FLAIR_HUB_CLASSES.classes) == 19
    assert len(FLAIR_HUB_CLASSES) == 15
    assert [c.id for c in FLAIR_HUB_CLASSES.classes if c.ignore] == [15, 16, 17, 18]
