"""Augmentation changes a tile, its context and their labels alike."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caswit.config import AugmentConfig
from caswit.data.augment import augment, tone_curve, turned
from caswit.data.samples import Sample
from caswit.raster.resample import area_average


@pytest.fixture
def sample() -> Sample:
    """A tile, a context around it, and labels that are functions of the pixels."""
    rng = np.random.default_rng(0)
    wide = rng.integers(1, 256, (3, 64, 64), dtype=np.uint8)
    tile, context = wide[:, 16:48, 16:48], area_average(wide, 2)
    return Sample(tile, context, tile[0] // 4, context[0] // 4)


def test_the_eight_turns_are_the_symmetries_of_the_square():
    square = np.arange(9, dtype=np.uint8).reshape(3, 3)
    pictures = [turned(square, t).tobytes() for t in range(8)]
    assert len(set(pictures)) == 8
    products = {turned(turned(square, a), b).tobytes() for a in range(8) for b in range(8)}
    assert products == set(pictures)


@pytest.mark.parametrize("seed", range(16))
def test_spatial_changes_keep_tile_context_and_labels_together(sample, seed):
    changed = augment(sample, AugmentConfig(spatial=True), np.random.default_rng(seed))
    np.testing.assert_array_equal(changed.label, changed.tile[0] // 4)
    np.testing.assert_array_equal(changed.context_label, changed.context[0] // 4)
    np.testing.assert_array_equal(changed.context[:, 8:24, 8:24], area_average(changed.tile, 2))


def test_all_eight_turns_occur(sample):
    changed = {
        augment(sample, AugmentConfig(spatial=True), np.random.default_rng(s)).tile.tobytes() for s in range(100)
    }
    assert len(changed) == 8


def test_radiometric_changes_are_one_curve_for_tile_and_context_and_spare_labels(sample):
    settings = AugmentConfig(brightness=0.2, contrast=0.3, gamma=0.3)
    changed = augment(sample, settings, np.random.default_rng(3))
    assert not np.array_equal(changed.tile, sample.tile)
    curve = {int(a): int(b) for a, b in zip(sample.tile.ravel(), changed.tile.ravel(), strict=True)}
    seen = np.isin(sample.context, list(curve))
    expected = np.vectorize(lambda value: curve.get(int(value), 0))(sample.context)
    np.testing.assert_array_equal(changed.context[seen], expected[seen])
    np.testing.assert_array_equal(changed.label, sample.label)


def test_nothing_asked_for_nothing_done(sample):
    for before, after in zip(sample, augment(sample, AugmentConfig(), np.random.default_rng(0)), strict=True):
        np.testing.assert_array_equal(before, after)


@given(st.floats(-0.5, 0.5), st.floats(0.3, 1.7), st.floats(0.3, 3))
def test_a_tone_curve_rises_and_leaves_black_black(brightness, contrast, gamma):
    curve = tone_curve(brightness=brightness, contrast=contrast, gamma=gamma)
    assert (np.diff(curve[1:].astype(int)) >= 0).all()
    assert curve[0] == 0


def test_the_neutral_tone_curve_changes_nothing():
    np.testing.assert_array_equal(tone_curve(brightness=0, contrast=1, gamma=1), np.arange(256))
