"""Synthetic landscapes: exact, repeatable, and decided by context where they say so."""

import re
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view

from caswit.data.synthetic import BUILDING, CLASSES, CONTEXT_CLASSES, TREE, landscape

SIDE_PX, TILE_PX, CONTEXT_PX = 1024, 128, 256
SEEDS = range(4)
ID = {name: class_id for class_id, name, _ in CLASSES}
SETTLED, FARMED = [ID["lawn"], ID["building site"]], [ID["meadow"], ID["plowed field"]]
PLOTS = SETTLED + FARMED


@pytest.fixture(scope="module")
def worlds():
    """Landscapes and the same ones with settled and farmed districts exchanged."""
    size = SIDE_PX, SIDE_PX
    return [(landscape(seed, *size), landscape(seed, *size, exchanged=True)) for seed in SEEDS]


def grown(mask, reach_px):
    """The pixels at most `reach_px` rows and columns from a pixel of the mask."""
    for axis in (0, 1):
        around = [(reach_px, reach_px) if axis == a else (0, 0) for a in (0, 1)]
        mask = sliding_window_view(np.pad(mask, around), 2 * reach_px + 1, axis).any(-1)
    return mask


def tiles():
    """Slices of every grid tile and of the part of its context inside the image."""
    margin = (CONTEXT_PX - TILE_PX) // 2
    starts = range(0, SIDE_PX, TILE_PX)
    for row in starts:
        for col in starts:
            context = np.s_[
                max(0, row - margin) : row + TILE_PX + margin,
                max(0, col - margin) : col + TILE_PX + margin,
            ]
            inside = {row, col}.isdisjoint({starts[0], starts[-1]})
            yield np.s_[row : row + TILE_PX, col : col + TILE_PX], context, inside


def test_classes_are_numbered_named_and_coloured_apart():
    ids, names, colours = zip(*CLASSES, strict=True)
    assert ids == tuple(range(len(CLASSES)))
    assert len(set(names)) == len(set(colours)) == len(CLASSES)
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in colours)
    assert sorted(ID[name] for name in CONTEXT_CLASSES) == sorted(PLOTS)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 90), st.integers(1, 90), st.booleans())
def test_any_size_works(seed, height, width, exchanged):
    image, label = landscape(seed, height, width, exchanged=exchanged)
    assert image.shape == (3, height, width)
    assert label.shape == (height, width)
    assert image.dtype == label.dtype == np.uint8
    assert image.flags.c_contiguous
    assert label.flags.c_contiguous
    assert label.max() < len(CLASSES)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 700), (700, 1), (100, 37), (333, 1500)])
def test_odd_sizes_work(height, width):
    for seed in range(4):
        assert landscape(seed, height, width).label.shape == (height, width)


def test_same_seed_same_bytes():
    first, again, other = (landscape(seed, 200, 300) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.label, again.label)
    assert not np.array_equal(first.image, other.image)


def test_bytes_are_the_same_on_every_machine():
    """A new number here means that every published score on these landscapes is void."""
    image, label = landscape(7, 300, 420)
    assert (zlib.crc32(image), zlib.crc32(label)) == (972680108, 3584761828)


def test_exchanging_districts_exchanges_the_names_and_no_more(worlds):
    other = np.arange(len(CLASSES))
    other[SETTLED + FARMED] = FARMED + SETTLED
    for here, there in worlds:
        plots = np.isin(here.label, PLOTS) & np.isin(there.label, PLOTS)
        np.testing.assert_array_equal(there.label[plots], other[here.label[plots]])
        marked = np.isin(here.label, (BUILDING, TREE)) | np.isin(there.label, (BUILDING, TREE))
        np.testing.assert_array_equal(there.label[~plots & ~marked], here.label[~plots & ~marked])


def test_names_of_plots_leave_no_trace_in_their_pixels(worlds):
    """Lawn and meadow are the same bytes, but for houses, trees and what these cast a shadow on."""
    shadow_px = 12
    for here, there in worlds:
        marked = np.isin(here.label, (BUILDING, TREE)) | np.isin(there.label, (BUILDING, TREE))
        # Left of the image, say, may stand a house of which only the shadow is in it.
        marked = grown(marked, shadow_px)[shadow_px:-shadow_px, shadow_px:-shadow_px]
        differs = (here.image != there.image).any(0)[shadow_px:-shadow_px, shadow_px:-shadow_px]
        assert differs.any()
        assert not (differs & ~marked).any()


def test_houses_stand_on_settled_plots_and_trees_on_farmed_ones(worlds):
    for _, label in (world for pair in worlds for world in pair):
        for marker, wrong in ((BUILDING, FARMED), (TREE, SETTLED)):
            assert not np.isin(label[grown(label == marker, 12)], wrong).any()


def test_every_class_has_its_share(worlds):
    labels = np.stack([label for _, label in (world for pair in worlds for world in pair)])
    share = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert share.min() > 0.02
    assert share[PLOTS].sum() > 0.7


def test_districts_are_settled_as_often_as_not():
    labels = [landscape(seed, 300, 300).label for seed in range(60)]
    plots = np.concatenate([label[np.isin(label, PLOTS)] for label in labels])
    assert 0.38 < np.isin(plots, SETTLED).mean() < 0.62


def test_a_third_of_plot_pixels_lie_in_tiles_that_cannot_tell(worlds):
    """Such a tile has the same bytes in two worlds that are equally likely."""
    plots = alike = 0
    for here, there in worlds:
        differs = (here.image != there.image).any(0)
        for tile, _, _ in tiles():
            pixels = np.isin(here.label[tile], PLOTS).sum()
            plots += pixels
            alike += pixels * (not differs[tile].any())
    assert alike / plots > 0.33


def test_contexts_show_houses_or_trees(worlds):
    """Every context inside the image does; one that its border cuts may have lost them."""
    pixels, shown, inside = np.array(
        [
            (np.isin(label[tile], PLOTS).sum(), np.isin(label[context], (BUILDING, TREE)).sum(), at)
            for label in (world.label for pair in worlds for world in pair)
            for tile, context, at in tiles()
        ]
    ).T
    assert (shown[inside == 1] > 200).all()
    assert pixels[shown > 200].sum() / pixels.sum() > 0.9
