"""FLAIR-HUB as downloaded: mosaics by geotransform, splits, and one clear line for what is broken."""

import os
import shutil

import numpy as np
import pytest
import rasterio
from rasterio.enums import ColorInterp

from caswit.config import AugmentConfig, DataConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.data.published_classes import FLAIR_HUB_CLASSES
from caswit.data.reader import open_dataset_scene
from caswit.data.sampler import TrainingSamples
from caswit.errors import DataError
from caswit.raster.resample import area_average
from caswit.raster.windows import Window
from conftest import picture
from trees import (
    PATCH_PX,
    flair_paths,
    make_flair_hub,
    write_dataset,
    write_flair_csv,
    write_flair_geopackage,
    write_tiff,
)

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


def test_the_index_is_read_again_only_where_files_changed(tree, cache, monkeypatch):
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
    mosaics = {path: path.stat().st_mtime_ns for path in cache.rglob("*.vrt")}
    assert load(tree).scenes == before.scenes
    assert read == [image]
    assert mosaics == {path: path.stat().st_mtime_ns for path in cache.rglob("*.vrt")}


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
    for damaged in ("{", "[]", '{"D012-2019": 5}'):
        for file in cache.rglob("digests.json"):
            file.write_text(damaged)
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
        write_tiff(tree / path, pixels, x=x, y=y)


def tile_of(dataset, scene, window):
    with open_dataset_scene(dataset, scene) as opened:
        return opened.read(window, 2)


def tiles(dataset, split):
    """(scene, area) of every patch of a split."""
    return [(scene, area) for scene in dataset.split(split) for area in scene.areas]


class TestAcrossRegions:
    """The patches of a domain and year are one mosaic, whichever region they belong to."""

    REGIONS = ("AF-S1-27", "UU-S1-1")

    def make(self, root, pixels, ids, *, splits=("TRAIN", "TRAIN"), second=None, **domains):
        """Columns 0-2 are one region, the others a second one; ``second`` gives another image and labels of that."""
        cells = [(row, col) for row in range(ROWS) for col in range(COLS)]
        listed = []
        for number, (roi, split) in enumerate(zip(self.REGIONS, splits, strict=True)):
            holes = [cell for cell in cells if (cell[1] < 3) == bool(number)]
            shown = second if second is not None and number else (pixels, ids)
            listed.append((split, make_flair_hub(root, *shown, holes=holes, roi=roi, **domains)))
        for split in set(splits):
            patches = [patch for other, some in listed if other == split for patch in some]
            write_flair_csv(root / f"FLAIR-HUB_TOY-DATASET_{split}.csv", patches)
        return listed

    def test_neighbours_in_another_region_are_seen(self, tmp_path, pixels, ids):
        """They were black: the paper places patches by coordinates."""
        self.make(tmp_path / "flair", pixels, ids)
        dataset = load(tmp_path / "flair")
        scene, region, labels = whole(dataset, "train")
        np.testing.assert_array_equal(region.image, pixels[:3])
        np.testing.assert_array_equal(labels, FLAIR_HUB_CLASSES.indices(ids[0], "x"))
        assert len(scene.areas) == ROWS * COLS
        padded = np.pad(pixels[:3], ((0, 0), (16, 16), (16, 16)))
        for area in scene.areas:  # contexts are those of the image that the patches were cut from
            wide = padded[:, area.row : area.row + 64, area.col : area.col + 64]
            np.testing.assert_array_equal(tile_of(dataset, scene, area).context, area_average(wide, 2))

    def test_other_years_and_domains_are_mosaics_of_their_own(self, tmp_path, pixels, ids):
        self.make(tmp_path / "flair", pixels, ids)
        other = make_flair_hub(tmp_path / "flair", 255 - pixels, ids, domain="D012-2022")
        write_flair_csv(tmp_path / "flair" / "X_TEST.csv", other)
        dataset = load(tmp_path / "flair")
        assert [s.name for s in dataset.scenes] == ["D012-2019", "D012-2022"]
        np.testing.assert_array_equal(whole(dataset, "test")[1].image, 255 - pixels[:3])

    def test_same_split_shows_no_other(self, tmp_path, pixels, ids):
        self.make(tmp_path / "flair", pixels, ids, splits=("TRAIN", "VALID"))
        for neighbours, shown in (("same_split", pixels[:3, :, : 3 * PATCH_PX]), ("any", pixels[:3])):
            dataset = load(tmp_path / "flair", neighbours=neighbours)
            np.testing.assert_array_equal(whole(dataset, "train")[1].image, shown)

    def test_many_patches_read_the_same(self, tmp_path, cache):
        """More than a sheet holds."""
        rows, cols = 10, 9
        pixels = picture(rows * PATCH_PX, cols * PATCH_PX)
        pixels = np.concatenate([pixels, 255 - pixels[:1]])
        ids = (np.indices(pixels.shape[1:]).sum(0) // 9 % 15).astype(np.uint8)[None]
        patches = make_flair_hub(tmp_path / "flair", pixels, ids)
        write_flair_csv(tmp_path / "flair" / "X_TRAIN.csv", patches)
        _, region, labels = whole(load(tmp_path / "flair"), "train")
        np.testing.assert_array_equal(region.image, pixels[:3])
        np.testing.assert_array_equal(labels, FLAIR_HUB_CLASSES.indices(ids[0], "x"))
        sheets = [*cache.glob("flair_hub/*/any-*/D012-2019-*/*.vrt")]
        assert len(sheets) == 4
        # Clusters clean up by file; a mosaic that lacks a sheet is written again.
        sheets[1].unlink()
        np.testing.assert_array_equal(whole(load(tmp_path / "flair"), "train")[1].image, pixels[:3])
        assert sheets[1].is_file()
        times = {sheet: sheet.stat().st_mtime_ns for sheet in sheets}
        load(tmp_path / "flair")
        assert times == {sheet: sheet.stat().st_mtime_ns for sheet in sheets}

    def test_a_patch_in_two_splits_is_in_both(self, tmp_path, pixels, ids):
        patches = make_flair_hub(tmp_path / "flair", pixels, ids)
        for split in ("VALID", "TEST"):
            write_flair_csv(tmp_path / "flair" / f"X_{split}.csv", patches)
        dataset = load(tmp_path / "flair")
        assert len(tiles(dataset, "val")) == len(tiles(dataset, "test")) == ROWS * COLS


class TestApart:
    """What does not fit into the mosaic of its domain is scored all the same: official scores need every patch."""

    PATCH = np.s_[:, 3 * PATCH_PX :, :PATCH_PX]  # row 3, column 0

    def shift(self, tree, pixels, ids, x):
        for path, array in zip(flair_paths("3-1"), (pixels, ids), strict=True):
            write_tiff(tree / path, array[self.PATCH], x=x, y=6_600_000 - 3 * PATCH_PX * 0.2)

    def test_a_patch_off_the_grid_has_black_context(self, tree, pixels, ids, caplog):
        self.shift(tree, pixels, ids, 700_000.05)  # a quarter of a pixel
        dataset = load(tree)
        assert not dataset.broken
        assert len(tiles(dataset, "train")) == ROWS * 3 - 1
        main, apart = dataset.split("train")
        assert (main.name, apart.name) == ("D012-2019", "D012-2019_2")
        (area,) = apart.areas
        sample = tile_of(dataset, apart, area)
        np.testing.assert_array_equal(sample.tile, pixels[self.PATCH][:3])
        np.testing.assert_array_equal(sample.label, FLAIR_HUB_CLASSES.indices(ids[self.PATCH][0], "x"))
        np.testing.assert_array_equal(sample.context[:, 8:24, 8:24], area_average(pixels[self.PATCH][:3], 2))
        sample.context[:, 8:24, 8:24] = 0
        assert not sample.context.any()
        (warning,) = caplog.messages
        assert "1 of 19 patches lie off the pixel grid of their domain" in warning

    def test_another_crs_too(self, tree, pixels, ids):
        for path, array in zip(flair_paths("3-1"), (pixels, ids), strict=True):
            write_tiff(tree / path, array[self.PATCH], x=1, y=1, crs="EPSG:2972")
        assert len(tiles(load(tree), "train")) == ROWS * 3 - 1

    def test_the_first_patch_may_be_the_one_that_is_off(self, tree, pixels, ids):
        """Its name comes first: the grid is that of the others."""
        place = "3-0"
        for path, array in zip(flair_paths(place), (pixels, ids), strict=True):
            write_tiff(tree / path, array[self.PATCH], x=690_000.05, y=6_600_000)
        with (tree / "FLAIR-HUB_TOY-DATASET_TRAIN.csv").open("a") as lines:
            image, label = flair_paths(place)
            lines.write(f"x,,{label},{image},\r\n")
        main, apart = load(tree).split("train")
        assert (len(main.areas), len(apart.areas)) == (ROWS * 3 - 1, 1)

    def test_a_region_on_a_grid_of_its_own_keeps_its_neighbours(self, tmp_path, pixels, ids, monkeypatch, caplog):
        root = tmp_path / "flair"
        patches = make_flair_hub(root, pixels, ids)
        off = make_flair_hub(root, pixels[:, :64], ids[:, :64], roi="ZZ-S1-1", x=800_000.05)
        write_flair_csv(root / "X_TRAIN.csv", patches + off)
        dataset = load(root)
        main, apart = dataset.split("train")
        assert (len(main.areas), len(apart.areas)) == (ROWS * COLS, 2 * COLS)
        with open_dataset_scene(dataset, apart) as opened:
            image = opened.region(Window(0, 0, opened.height, opened.width)).image
        np.testing.assert_array_equal(image, pixels[:3, :64])
        assert f"{2 * COLS} of {(ROWS + 2) * COLS} patches" in caplog.text

    def test_regions_that_overlap_show_each_its_own(self, tmp_path, pixels, ids):
        """A patch under another one was scored on its own pixels while each region was a mosaic; it still is."""
        root = tmp_path / "flair"
        patches = make_flair_hub(root, pixels, ids)
        over = make_flair_hub(root, 255 - pixels, 18 - ids, roi="ZZ-S1-1", x=700_000 + 10 * 0.2)
        write_flair_csv(root / "X_TRAIN.csv", patches + over)
        dataset = load(root)
        main, apart = dataset.split("train")
        for scene, image, label in ((main, pixels, ids), (apart, 255 - pixels, 18 - ids)):
            with open_dataset_scene(dataset, scene) as opened:
                region = opened.region(Window(0, 0, opened.height, opened.width))
                np.testing.assert_array_equal(region.image, image[:3])
                labels = opened.labels(region.window, region.valid)
            np.testing.assert_array_equal(labels, FLAIR_HUB_CLASSES.indices(label[0], "x"))


@pytest.mark.data
def test_real_patches_in_two_regions_are_the_picture_they_were_cut_from(tmp_path, real_data):
    """Beside GDAL's own mosaic of the same files."""
    from rasterio.merge import merge

    source, root = real_data / "herault_hub", tmp_path / "hub"
    patches = []
    for kind in ("AERIAL_RGBI", "AERIAL_LABEL-COSIA"):
        for file in sorted(source.glob(f"*_{kind}/*/*.tif")):
            place = file.stem.rsplit("_", 1)[1]
            roi = "UU-S1-1" if place.endswith(("0", "1")) else "UU-S1-2"
            folder = root / f"D034-2021_{kind}" / roi
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"D034-2021_{kind}_{roi}_{place}.tif").symlink_to(file)
            patches += [f"D034-2021_{roi}_{place}"] * (kind == "AERIAL_RGBI")
    write_flair_csv(root / "X_TRAIN.csv", patches)
    dataset = load(root)
    scene, region, labels = whole(dataset, "train")
    assert len(scene.areas) == 25
    image, _ = merge(sorted(source.glob("*_AERIAL_RGBI/*/*.tif")), indexes=[1, 2, 3])
    ids, _ = merge(sorted(source.glob("*_AERIAL_LABEL-COSIA/*/*.tif")))
    np.testing.assert_array_equal(region.image, image)
    np.testing.assert_array_equal(labels, FLAIR_HUB_CLASSES.indices(ids[0], "x"))


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
        with pytest.raises(
            DataError,
            match=r"kind must be one of flair_hub, urur, .*, got 'flair'",
        ):
            load_dataset(file)


def test_fifteen_classes_are_predicted():
    assert len(FLAIR_HUB_CLASSES.classes) == 19
    assert len(FLAIR_HUB_CLASSES) == 15
    assert [c.id for c in FLAIR_HUB_CLASSES.classes if c.ignore] == [15, 16, 17, 18]
