"""Reading at another pixel size."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.raster.resample import Axis, reading_ratio, resample_image
from caswit.raster.windows import Window, block_at, block_windows
from conftest import CLASSES, georeference

coarser = st.fractions(1, 5, max_denominator=6)
anything = st.one_of(coarser, st.fractions(Fraction(1, 4), 1, max_denominator=6))


@given(coarser, st.integers(0, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_coarser_pixels_are_means_over_their_area(ratio, start, count, seed):
    """Repeat every native pixel q times, then average p of them: ratio p / q."""
    axis, stop = Axis(400, float(ratio)), start + count
    values = np.random.default_rng(seed).integers(0, 256, 400).astype(float)
    fine = np.repeat(values, ratio.denominator)[start * ratio.numerator : stop * ratio.numerator]
    first, last = axis.source(start, stop)
    read = axis.taps(start, stop).cols(values[None, first:last])[0]
    np.testing.assert_allclose(read, fine.reshape(count, ratio.numerator).mean(1), atol=1e-4)


@given(st.integers(2, 4), st.integers(1, 30), st.integers(1, 8))
def test_finer_pixels_are_linear_between_centres(factor, start, count):
    values = np.random.default_rng(start).random(40)
    axis = Axis(40, 1 / factor)
    first, last = axis.source(factor + start, factor + start + count)
    read = axis.taps(factor + start, factor + start + count).cols(values[None, first:last])[0]
    whole = torch.nn.functional.interpolate(torch.tensor(values)[None, None], scale_factor=factor, mode="linear")[0, 0]
    np.testing.assert_allclose(read, whole[factor + start : factor + start + count].numpy(), atol=1e-6)


@given(anything, st.integers(1, 300), st.lists(st.integers(0, 1200), max_size=5))
def test_cutting_what_is_read_deals_out_every_native_pixel_once(ratio, native, cuts):
    axis = Axis(native, float(ratio))
    edges = sorted({0, axis.length, *(c for c in cuts if c < axis.length)})
    owned = [n for a, b in pairwise(edges) for n in range(*axis.owned(a, b))]
    assert owned == list(range(native))


@given(anything, st.integers(1, 300))
def test_a_native_pixel_belongs_to_the_read_pixel_its_centre_lies_in(ratio, native):
    axis = Axis(native, float(ratio))
    for read in range(min(axis.length, 40)):
        mine = [n for n in range(native) if read * ratio <= n + Fraction(1, 2) < (read + 1) * ratio]
        assert list(range(*axis.owned(read, read + 1))) == mine


@pytest.mark.parametrize(
    ("native", "wanted", "ratio"),
    [(0.1, 0.2, 2.0), (0.1323, 0.264, 2.0), (0.2, 0.2, 1.0), (0.2, 0.1, 0.5), (0.2, 0.3, 1.5), (0.3, 0.2, 2 / 3)],
)
def test_ratios_near_whole_numbers_are_whole(native, wanted, ratio):
    assert reading_ratio(native, wanted) == pytest.approx(ratio, abs=1e-12)


def test_only_valid_pixels_have_a_say():
    image = np.full((3, 4, 4), 100, np.uint8)
    valid = np.ones((4, 4), bool)
    image[:, 0, 0], valid[0, 0] = 0, False  # a quarter of the first read pixel
    image[:, 2:, 2:], valid[2:, 2:] = 7, False  # all of the last
    read, kept = resample_image(image, valid, Axis(4, 2.0), Axis(4, 2.0), (0, 2, 0, 2))
    assert kept.tolist() == [[True, True], [True, False]]
    assert read[0].tolist() == [[100, 100], [100, 0]]


@pytest.mark.parametrize("ratio", [0.7, 1.5, 2.4, 3.0])
@pytest.mark.parametrize("gaps", [False, True])
def test_every_byte_is_that_of_sums_in_single_precision_rows_first(ratio, gaps):
    """Maps and samples of one version are those of the next only if sums are rounded alike, in the same order."""
    rng = np.random.default_rng(0)
    rows, cols = Axis(400, ratio), Axis(300, ratio)
    (top, bottom), (left, right) = rows.source(5, 88), cols.source(7, 60)
    image = rng.integers(0, 256, (2, bottom - top, right - left), dtype=np.uint8)
    valid = rng.random(image.shape[1:]) > 0.2 * gaps
    down, across = rows.taps(5, 88), cols.taps(7, 60)

    def combined(values):
        rows_done = sum(values[p] * s[:, None] for p, s in zip(down.pixels, down.shares, strict=True))
        return sum(rows_done[:, p] * s for p, s in zip(across.pixels, across.shares, strict=True))

    cover = combined(valid.astype(np.float32))
    cover[cover > 1 - 1e-6] = 1
    read, kept = resample_image(image, valid, rows, cols, (5, 88, 7, 60))
    np.testing.assert_array_equal(kept, cover >= 0.5 - 1e-6)
    for band, found in zip(image, read, strict=True):
        mean = combined((band * valid).astype(np.float32)) / np.maximum(cover, 0.5 - 1e-6)
        np.testing.assert_array_equal(found, np.floor(mean + np.float32(0.5)) * kept)


@pytest.fixture(params=[2.0, 1.5, 0.7, 3.0])
def open_at(request, make_raster, image, label):
    """The scene of (90, 130) pixels of 0.2 m, read at other sizes."""
    paths = make_raster(image, **georeference()), make_raster(label, "label.tif", **georeference())
    with SceneReader(Scene(image=paths[0], label=paths[1]), CLASSES) as native:
        gsd_m = native.image.grid.source_gsd_m * request.param
    with SceneReader(Scene(image=paths[0], label=paths[1]), CLASSES, read_gsd_m=gsd_m) as opened:
        yield opened


def test_reading_in_parts_equals_reading_at_once(open_at):
    whole = Window(0, 0, open_at.height, open_at.width)
    image, valid = np.zeros((3, *whole[2:]), np.uint8), np.zeros(whole[2:], bool)
    labels = np.zeros(whole[2:], np.uint8)
    size = open_at.height, open_at.width
    for window in block_windows(*size, 16, 5, 40):
        block = block_at(window, *size, 16, 5, halo=False)
        region = open_at.region(block.reach)
        for tile in block.tiles:
            there, here = tile.owned.inside(whole), tile.owned.inside(region.window)
            image[:, *there] = region.image[:, *here]
            valid[there] = region.valid[here]
            sample = open_at.read(tile.window, 2)
            labels[there] = sample.label[tile.owned.inside(tile.window)]
    once = open_at.region(whole)
    np.testing.assert_array_equal(image, once.image)
    np.testing.assert_array_equal(valid, once.valid)
    np.testing.assert_array_equal(labels, open_at.labels(whole, once.valid))


@pytest.mark.parametrize("ratio", [2.0, 2.4, 1.5, 0.7])
def test_a_pixel_is_the_same_in_whatever_window_it_is_read(make_raster, ratio):
    """Gaps elsewhere in a window, ground outside the raster and the number of rows change no byte of it."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (3, 900, 90), dtype=np.uint8)
    pixels[:, 40:60, 20:50] = 0
    path = make_raster(pixels, **georeference(), nodata=0)
    with SceneReader(Scene(image=path), read_gsd_m=0.5 * ratio) as scene:
        assert scene.ratio == pytest.approx(ratio)
        whole = scene.region(Window(0, 0, scene.height, scene.width))
        assert not whole.valid.all()
        for _ in range(100):
            row, col = rng.integers(-100, scene.height), rng.integers(-30, scene.width)
            window = Window(int(row), int(col), *(int(side) for side in rng.integers(1, 100, 2)))
            part = window.clipped(scene.height, scene.width)
            found, black = scene.region(window), scene.region(window).image.copy()
            if part.height and part.width:
                where, there = part.inside(window), part.inside(whole.window)
                np.testing.assert_array_equal(found.image[:, *where], whole.image[:, *there])
                np.testing.assert_array_equal(found.valid[where], whole.valid[there])
                black[:, *where] = 0
            assert not black.any()
            assert found.valid.sum() == whole.valid[part.inside(whole.window)].sum()


def test_labels_are_those_under_the_centres(open_at, label):
    whole = Window(0, 0, open_at.height, open_at.width)
    region = open_at.region(whole)
    truth = CLASSES.indices(label[0], "x")
    rows, cols = (((np.arange(n) + 0.5) * open_at.ratio).astype(int) for n in (whole.height, whole.width))
    inside = region.valid & (rows < 90)[:, None] & (cols < 130)
    assert inside.mean() > 0.9
    expected = truth[np.ix_(np.minimum(rows, 89), np.minimum(cols, 129))]
    np.testing.assert_array_equal(open_at.labels(whole, region.valid)[inside], expected[inside])


def test_an_image_of_unknown_ground_size_is_read_as_it_is(make_raster, image, caplog):
    with SceneReader(Scene(image=make_raster(image)), read_gsd_m=0.5) as opened:
        assert (opened.ratio, opened.height, opened.width) == (1.0, 90, 130)
    assert "ground size of a pixel unknown" in caplog.text
