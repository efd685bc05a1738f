"""The one way in which everything reads."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caswit.data.classes import ClassTable, LandClass
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.raster.resample import area_average, nearest
from caswit.raster.windows import Window, tile_grid
from conftest import CLASSES, georeference

shared_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WHOLE = Window(0, 0, 90, 130)


@pytest.fixture
def scene(make_raster, image, label):
    paths = make_raster(image, **georeference()), make_raster(label, "label.tif", **georeference())
    with SceneReader(Scene(image=paths[0], label=paths[1]), CLASSES) as opened:
        yield opened


def averaged_slowly(image: np.ndarray, factor: int) -> np.ndarray:
    """Mean of every square, half rounded up."""
    _, height, width = image.shape
    out = np.zeros((3, height // factor, width // factor), np.uint8)
    for row in range(height // factor):
        for col in range(width // factor):
            square = image[:, row * factor : (row + 1) * factor, col * factor : (col + 1) * factor]
            out[:, row, col] = np.floor(square.reshape(3, -1).astype(float).mean(axis=1) + 0.5)
    return out


@given(st.integers(1, 16), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_area_average_is_the_mean_rounded_half_up(factor, height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (3, height * factor, width * factor), dtype=np.uint8)
    np.testing.assert_array_equal(area_average(image, factor), averaged_slowly(image, factor))


def test_area_average_of_white_is_white_for_every_factor():
    """The sums just fit into 16 bits."""
    for factor in range(1, 17):
        assert (area_average(np.full((3, 2 * factor, factor), 255, np.uint8), factor) == 255).all()


@shared_files
@given(st.integers(-40, 110), st.integers(-40, 150), st.sampled_from([(32, 2), (24, 3), (32, 4), (32, 1)]))
def test_the_middle_of_the_context_is_the_area_average_of_the_tile(scene, row, col, geometry):
    side, factor = geometry
    sample = scene.read(Window(row, col, side, side), factor)
    inner = side // factor
    first = (side - inner) // 2
    middle = sample.context[:, first : first + inner, first : first + inner]
    np.testing.assert_array_equal(middle, averaged_slowly(sample.tile, factor))
    assert sample.context.shape == sample.tile.shape


@shared_files
@given(st.integers(-40, 110), st.integers(-40, 150), st.sampled_from([2, 4]))
def test_reading_equals_cutting_out_of_the_padded_whole(scene, image, label, row, col, factor):
    tile = Window(row, col, 32, 32)
    wide = context_window(tile, factor)
    padding = 300
    black = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    truth = np.pad(CLASSES.indices(label[0], "x"), padding, constant_values=255)

    def cut(array: np.ndarray, window: Window) -> np.ndarray:
        top, left = window.row + padding, window.col + padding
        return array[..., top : top + window.height, left : left + window.width]

    sample = scene.read(tile, factor)
    np.testing.assert_array_equal(sample.tile, cut(black, tile))
    np.testing.assert_array_equal(sample.context, averaged_slowly(cut(black, wide), factor))
    np.testing.assert_array_equal(sample.label, cut(truth, tile))
    picked = cut(truth, wide)[factor // 2 :: factor, factor // 2 :: factor]
    np.testing.assert_array_equal(sample.context_label, picked)


@shared_files
@given(st.sampled_from([16, 32, 64]), st.integers(0, 12))
def test_reading_tile_by_tile_equals_reading_at_once(scene, image, side, overlap):
    pasted = np.zeros_like(image)
    labels = np.zeros((90, 130), np.uint8)
    for tile in tile_grid(90, 130, side, overlap):
        sample = scene.read(tile.window, 2)
        here, there = tile.owned.inside(WHOLE), tile.owned.inside(tile.window)
        pasted[:, *here] = sample.tile[:, *there]
        labels[here] = sample.label[there]
    np.testing.assert_array_equal(pasted, image)
    np.testing.assert_array_equal(labels, scene.labels(WHOLE, np.ones((90, 130), bool)))


def test_a_region_around_a_tile_gives_what_read_gives(scene):
    """Prediction reads a region once for many tiles, training every tile alone."""
    region = scene.region(Window(-60, -70, 230, 270))
    for tile in (Window(0, 0, 32, 32), Window(-10, 90, 32, 32), Window(58, 98, 32, 32)):
        for factor in (1, 2, 4):
            sample = scene.read(tile, factor)
            np.testing.assert_array_equal(region.tile(tile), sample.tile)
            np.testing.assert_array_equal(region.context(tile, factor), sample.context)


def test_without_a_context_only_the_tile_is_read(scene):
    sample = scene.read(Window(3, 5, 32, 32), None)
    assert sample.context.shape == (3, 0, 0)
    assert sample.context_label.shape == (0, 0)
    np.testing.assert_array_equal(sample.tile, scene.read(Window(3, 5, 32, 32), 2).tile)


def test_far_outside_is_black_and_ignored(scene):
    sample = scene.read(Window(1000, 1000, 32, 32), 2)
    assert not sample.tile.any()
    assert not sample.context.any()
    assert (sample.label == 255).all()


def test_where_the_image_has_no_data_labels_are_ignored(make_raster, image, label):
    image[:, 20:40, 30:60] = 0
    paths = make_raster(image, nodata=0, **georeference()), make_raster(label, "label.tif", **georeference())
    with SceneReader(Scene(image=paths[0], label=paths[1]), CLASSES) as opened:
        found = opened.read(Window(16, 16, 64, 64), 2).label
    expected = CLASSES.indices(label[0], "x")
    expected[20:40, 30:60] = 255
    np.testing.assert_array_equal(found, expected[16:80, 16:80])


def test_nodata_of_the_label_raster_is_ignored(make_raster, image, label):
    label[0, 50:60] = 99
    paths = make_raster(image, **georeference()), make_raster(label, "label.tif", nodata=99, **georeference())
    counted = ClassTable((LandClass(id=0, name="counts", color="#000000"), *CLASSES.predicted))
    with SceneReader(Scene(image=paths[0], label=paths[1]), counted) as opened:
        found = opened.labels(WHOLE, np.ones((90, 130), bool))
    assert (found[50:60] == 255).all()
    assert (found[:50] != 255).any()


def test_nearest_picks_the_lower_right_middle():
    square = np.arange(36, dtype=np.uint8).reshape(6, 6)
    np.testing.assert_array_equal(nearest(square, 2), square[1::2, 1::2])
    np.testing.assert_array_equal(nearest(square, 3), square[1::3, 1::3])
