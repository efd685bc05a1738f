"""Contexts out of levels are, byte for byte, those that are read pixel by pixel."""

import os
import time

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from caswit.data import levels
from caswit.data.reader import Region, SceneReader
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.raster.resample import area_average, moving_average
from caswit.raster.windows import Window, bounds
from conftest import CLASSES, georeference, picture

SIZE = 90, 130
shared_files = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
places = st.integers(-200, 330)
factors = st.sampled_from([2, 3, 4, 8, (2, 4), (2, 8)])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of the cache."""
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    levels._said.cache_clear()
    return tmp_path / "cache" / "levels"


def opened(paths, *, kept: bool = True, ratio: float = 1.0, **options) -> SceneReader:
    """A reader that makes levels at once, or never."""
    reader = SceneReader(Scene(image=paths[0], label=paths[1]), CLASSES, read_gsd_m=0.5 * ratio, **options)
    assert reader.levels is not None
    reader.levels._around_px = 1 << 40
    if not kept:
        reader.levels = None
    return reader


def assert_same(one, other):
    for name, mine, theirs in zip(one._fields, one, other, strict=True):
        assert mine.dtype == theirs.dtype, name
        np.testing.assert_array_equal(mine, theirs, err_msg=name)


@pytest.mark.property
@given(st.integers(1, 16), st.integers(0, 20), st.integers(0, 20), st.integers(0, 2**32 - 1))
@example(16, 0, 0, -1)
def test_a_moving_average_has_the_area_average_of_every_place(factor, down, right, seed):
    shape = 2, factor + down, factor + right
    image = np.full(shape, 255, np.uint8)
    if seed >= 0:
        image = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    found = moving_average(image, factor)
    assert found.shape == (2, down + 1, right + 1)
    for row, col in ((0, 0), (down, right), (down // 2, right // 3)):
        square = np.ascontiguousarray(image[:, row : row + factor, col : col + factor])
        np.testing.assert_array_equal(found[:, row, col], area_average(square, factor)[:, 0, 0])


KINDS = {
    "bytes": (np.uint8, 1.0, {}, {}),
    "nodata": (np.uint8, 1.0, {"nodata": 0}, {}),
    "16 bits, coarser": (np.uint16, 2.0, {}, {"ranges": ((40, 200), (0, 255), (9, 220))}),
    "one band, finer": (np.uint8, 0.7, {"nodata": 0}, {"bands": (3,)}),
    "bands in another order, between whole ratios": (np.uint8, 1.5, {"nodata": 0}, {"bands": (3, 1)}),
}


@pytest.fixture(params=["memory", "disk"])
def where(request, monkeypatch):
    """Where levels are kept."""
    monkeypatch.setattr(levels, "SMALL_BYTES", 1 << 30 if request.param == "memory" else 0)
    # Strips of a few rows, as large scenes have.
    monkeypatch.setattr(levels, "_STRIP_PX", 3000)
    return request.param


@pytest.fixture(params=KINDS)
def readers(request, where, make_raster, image, label):
    """Of one scene, with levels and without."""
    dtype, ratio, stored, read = KINDS[request.param]
    image[:, 20:41, 30:67] = 0
    label[0, 50:60, 90:] = 0
    paths = make_raster(image.astype(dtype), **georeference(), **stored), make_raster(label, "l.tif", **georeference())
    time.sleep(0.02)  # clocks of file systems tick
    with opened(paths, ratio=ratio, **read) as kept, opened(paths, ratio=ratio, kept=False, **read) as plain:
        yield kept, plain


@pytest.mark.property
@shared_files
@given(places, places, factors)
def test_a_sample_out_of_levels_is_the_one_read_pixel_by_pixel(readers, row, col, factor):
    kept, plain = readers
    kept.levels._around_px = 1 << 40
    # Sides that every factor divides as it must: multiples of twice the factor.
    tile = Window(row, col, 48, 48)
    found = kept.read(tile, factor)
    assert kept.levels.get((factor,) if isinstance(factor, int) else factor, tile)
    assert_same(found, plain.read(tile, factor))


def test_both_ways_are_tested(readers, where, cache):
    kept, _ = readers
    kept.read(Window(0, 0, 32, 32), 2)
    assert len([*cache.glob("*.bin")]) == (where == "disk")
    assert len(levels._held) >= (where == "memory")


@pytest.fixture
def paths(make_raster, image, label, monkeypatch):
    """Image and label of a scene, whose levels go to disk."""
    monkeypatch.setattr(levels, "SMALL_BYTES", 0)
    files = make_raster(image, **georeference()), make_raster(label, "label.tif", **georeference())
    time.sleep(0.02)
    return files


TILE = Window(30, 50, 32, 32)


def test_without_labels_there_are_none_in_levels(paths):
    scene = Scene(image=paths[0])
    with SceneReader(scene) as one, SceneReader(scene) as other:
        one.levels._around_px, other.levels = 1 << 40, None
        for factor in (4, (2, 4)):
            assert_same(one.read(TILE, factor), other.read(TILE, factor))
        assert one.levels._made


def test_a_level_is_made_when_contexts_have_cost_as_much(paths):
    """A tile of 32 px reads 96 * 96 - 32 * 32 pixels around it; the scene has 90 * 130."""
    with opened(paths) as reader:
        reader.levels._around_px = 0
        inside, around = Window(32, 40, 32, 32), 64 * 64 - 32 * 32
        for _ in range(-(-90 * 130 // around) - 1):
            assert reader.levels.get((2,), inside) == []
        assert len(reader.levels.get((2,), inside)) == 1


def test_other_ground_sizes_of_a_scene_have_no_levels(paths):
    """Those that are drawn for one sample alone."""
    with opened(paths) as reader:
        assert reader.scaled(1.2).levels is None
        scaled, tile = reader.scaled(1.2).read(TILE, 4), reader.scaled(1.0).read(TILE, 4)
        assert not np.array_equal(scaled.context, tile.context)


def test_a_level_is_made_once(paths, cache, monkeypatch):
    with opened(paths) as reader:
        first = reader.read(TILE, 4)
    (file,) = cache.glob("*.bin")
    assert not [*cache.glob("*.tmp")]
    monkeypatch.setattr(levels.Levels, "_strips", lambda *_: pytest.fail("made again"))
    with opened(paths) as reader:
        assert_same(reader.read(TILE, 4), first)
    assert [*cache.glob("*.bin")] == [file]


@pytest.mark.parametrize("what", ["image", "label"])
def test_another_image_or_label_of_the_same_name_has_another_level(paths, make_raster, cache, what):
    with opened(paths) as reader:
        before = reader.read(TILE, 4)
    if what == "image":
        make_raster(picture(*SIZE, seed=1), **georeference())
    else:
        make_raster(np.full((1, *SIZE), 7, np.uint8), "label.tif", **georeference())
    time.sleep(0.02)
    with opened(paths) as kept, opened(paths, kept=False) as plain:
        after = kept.read(TILE, 4)
        assert_same(after, plain.read(TILE, 4))
    changed = "context" if what == "image" else "context_label"
    assert not np.array_equal(getattr(before, changed), getattr(after, changed))
    assert len([*cache.glob("*.bin")]) == 2


def test_an_image_that_changes_while_it_is_open_leaves_no_level(paths, cache):
    """The open file may be the one that was there before."""
    with opened(paths) as kept, opened(paths, kept=False) as plain:
        time.sleep(0.02)
        os.utime(paths[0])
        assert_same(kept.read(TILE, 4), plain.read(TILE, 4))
    assert not [*cache.glob("*.bin")]


@pytest.mark.parametrize("trouble", ["not a folder", "more than the cache may hold", "a full disk"])
def test_where_no_level_can_be_kept_one_line_says_so(paths, cache, monkeypatch, caplog, trouble):
    if trouble == "not a folder":
        cache.parent.write_text("")
    elif trouble == "more than the cache may hold":
        monkeypatch.setattr(levels, "CACHE_BYTES", 1000)
    else:

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(levels, "_write", full)
    with opened(paths) as kept, opened(paths, kept=False) as plain:
        for factor in (4, 4, 2):
            kept.levels._around_px = 1 << 40
            assert_same(kept.read(TILE, factor), plain.read(TILE, factor))
    (said,) = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "averaged contexts cannot be kept there" in said
    if trouble != "not a folder":
        assert not [file for file in cache.iterdir() if file.suffix != ".lock"]


def test_while_another_process_makes_a_level_its_squares_are_averaged_here(paths, cache):
    with opened(paths) as kept, opened(paths, kept=False) as plain:
        file = kept.levels._file(4)
        file.parent.mkdir(parents=True)
        with FileLock(file.with_suffix(".lock")):
            assert_same(kept.read(TILE, 4), plain.read(TILE, 4))
            assert not [*cache.glob("*.bin")]
        kept.levels._around_px = 1 << 40
        assert_same(kept.read(TILE, 4), plain.read(TILE, 4))
        assert [*cache.glob("*.bin")]


def test_levels_that_nobody_used_make_room(paths, cache):
    cache.mkdir(parents=True)
    old, new = cache / "old.bin", cache / "new.bin"
    old.touch(), new.touch()
    os.utime(old, (0, 0))
    with opened(paths) as kept:
        kept.read(TILE, 4)
    assert new.exists()
    assert not old.exists()


def test_a_class_nobody_knows_is_said_of_the_tile_that_has_it(make_raster, image, label, where):
    label[0, 80:, 100:] = 99
    paths = make_raster(image, **georeference()), make_raster(label, "label.tif", **georeference())
    with opened(paths) as kept, opened(paths, kept=False) as plain:
        here = Window(0, 0, 16, 16)
        assert_same(kept.read(here, 2), plain.read(here, 2))
        with pytest.raises(DataError, match="99"):
            kept.read(Window(70, 90, 32, 32), 2)


@pytest.mark.property
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(0, 90)), min_size=1, max_size=6), st.sampled_from([1, 2, 3, 4])
)
def test_contexts_averaged_together_are_those_averaged_one_by_one(pixels, factor):
    tiles = [Window(row, col, 24, 24) for row, col in pixels]
    margin = 24 * (factor - 1) // 2
    around = bounds([tile.grown(margin) for tile in tiles])
    rng = np.random.default_rng(len(tiles))
    image = rng.integers(0, 256, (3, around.height, around.width), dtype=np.uint8)
    region = Region(around, image, np.ones(image.shape[1:], bool), around)
    together = region.contexts(tiles, factor)
    for tile in tiles:
        np.testing.assert_array_equal(together[tile], region.context(tile, factor))
