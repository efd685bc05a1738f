"""Augmentation changes a tile, its context and their labels alike."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caswit.config import AugmentConfig
from caswit.data.reader import Sample
from caswit.data.transforms import augment, blurred, cut, tone_curve, turned
from caswit.raster.resample import area_average, nearest
from caswit.raster.windows import slice_middle


@pytest.fixture
def sample() -> Sample:
    """A tile, a context around it, and labels that are functions of the pixels."""
    rng = np.random.default_rng(0)
    wide = rng.integers(1, 256, (3, 64, 64), dtype=np.uint8)
    tile, context = wide[:, 16:48, 16:48], area_average(wide, 2)
    return Sample(tile, context, tile[0] // 4, context[0] // 4)


def test_the_eight_changes_are_the_symmetries_of_the_square():
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


def test_all_eight_symmetries_occur(sample):
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


STRONG = AugmentConfig(tint=0.3, saturation=0.5, blur=2, noise=0.1, context_dropout=0.5)


@pytest.mark.parametrize("seed", range(8))
def test_cameras_change_pixels_and_leave_labels_and_black_alone(sample, seed):
    sample.tile[:, :8], sample.context[:, :4] = 0, 0
    changed = augment(sample, STRONG, np.random.default_rng(seed), factor=2)
    assert not np.array_equal(changed.tile, sample.tile)
    assert not changed.tile[:, :8].any()
    assert not changed.context[:, :4].any()
    np.testing.assert_array_equal(changed.label, sample.label)
    np.testing.assert_array_equal(changed.context_label, sample.context_label)


def test_tint_and_saturation_are_one_linear_map_for_tile_and_context(sample):
    settings = AugmentConfig(tint=0.2, saturation=0.3)
    dark = sample._replace(tile=sample.tile // 2, context=sample.context // 2)  # nothing is cut off
    changed = augment(dark, settings, np.random.default_rng(1), factor=2)

    def pixels(image):
        return image.reshape(3, -1).T.astype(float)

    matrix, *_ = np.linalg.lstsq(pixels(dark.tile), pixels(changed.tile), rcond=None)
    inside = (pixels(changed.context) > 0) & (pixels(changed.context) < 255)
    assert np.abs(pixels(dark.context) @ matrix - pixels(changed.context))[inside].max() < 2


def test_new_strengths_leave_the_draws_of_the_old_ones_alone(sample):
    old = AugmentConfig(spatial=True, brightness=0.2, contrast=0.2, gamma=0.2)
    both = AugmentConfig(spatial=True, brightness=0.2, contrast=0.2, gamma=0.2, context_dropout=1.0)
    before, after = (augment(sample, s, np.random.default_rng(5), factor=2) for s in (old, both))
    np.testing.assert_array_equal(before.tile, after.tile)
    np.testing.assert_array_equal(before.context[:, 8:24, 8:24], after.context[:, 8:24, 8:24])
    assert after.context.sum() == after.context[:, 8:24, 8:24].sum() > 0


def test_a_context_of_its_own_colour_leaves_the_tile_alone(sample):
    strengths = (AugmentConfig(context_tint=x) for x in (0, 0.3))
    plain, tinted = (augment(sample, s, np.random.default_rng(3), factor=2) for s in strengths)
    np.testing.assert_array_equal(plain.tile, tinted.tile)
    seen = (sample.context > 0) & (tinted.context < 255)
    for band in range(3):  # one gain each, within 1 / 1.3 and 1.3
        gains = (tinted.context[band] / np.maximum(sample.context[band], 1))[seen[band] & (sample.context[band] > 60)]
        assert np.ptp(gains) < 0.03
        assert 1 / 1.32 < gains.mean() < 1.32
        assert abs(gains.mean() - 1) > 0.005


@pytest.mark.parametrize("sigma", [0.5, 1.7, 4.0])
def test_blur_is_a_gaussian(sigma):
    point = np.full((3, 65, 65), 55, np.uint8)
    point[:, 32, 32] = 255
    expected = cv2.GaussianBlur(point[0].astype(float), (0, 0), sigma)
    assert np.abs(blurred(point, sigma)[0] - expected).max() < 4  # its tails are cut at two deviations


def test_some_samples_are_blurred_and_others_are_not(sample):
    changed = [augment(sample, AugmentConfig(blur=3), np.random.default_rng(s), factor=2) for s in range(40)]
    sharp = [np.array_equal(c.tile, sample.tile) for c in changed]
    assert 8 < sum(sharp) < 32
    assert all(c.tile.std() < sample.tile.std() for c, s in zip(changed, sharp, strict=True) if not s)


def test_masked_context_is_as_frequent_as_asked(sample):
    settings = AugmentConfig(context_dropout=0.25)
    hidden = [not augment(sample, settings, np.random.default_rng(s), factor=2).context[:, 0].any() for s in range(400)]
    assert 0.18 < np.mean(hidden) < 0.32


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_a_cut_is_black_and_ignored_at_the_same_place_in_tile_and_context(seed, factor):
    rng = np.random.default_rng(seed)
    wide = rng.integers(1, 255, (3, 64 * factor, 64 * factor), dtype=np.uint8)
    inner = slice_middle(64 * factor, factor)
    labels = rng.integers(0, 3, (64 * factor, 64 * factor), dtype=np.uint8)
    sample = Sample(wide[:, inner, inner], area_average(wide, factor), labels[inner, inner], nearest(labels, factor))
    found = cut(sample, rng, factor=factor)
    away = (found.tile == 0).all(0)
    assert away.mean() < 5 / 6
    np.testing.assert_array_equal(found.tile, np.where(away, 0, sample.tile))
    np.testing.assert_array_equal(found.label, np.where(away, 255, sample.label))
    far = (found.context == 0).all(0)
    np.testing.assert_array_equal(found.context, np.where(far, 0, sample.context))
    np.testing.assert_array_equal(found.context_label, np.where(far, 255, sample.context_label))
    # A context pixel is cut where its centre is: about where most of its tile pixels are.
    middle = slice_middle(64, factor)
    share = away.reshape(64 // factor, factor, 64 // factor, factor).mean((1, 3))
    certain = (share == 0) | (share == 1)
    np.testing.assert_array_equal(far[middle, middle][certain], share[certain] == 1)


def test_holes_are_cut_into_their_share_of_samples_and_none_by_default():
    sample = Sample(*(np.full(shape, 9, np.uint8) for shape in ((3, 32, 32), (3, 32, 32), (32, 32), (32, 32))))
    rng = np.random.default_rng(0)
    changed = [(augment(sample, AugmentConfig(holes=0.25), rng, factor=2).tile == 0).any() for _ in range(400)]
    assert np.mean(changed) == pytest.approx(0.25, abs=0.06)
    assert not any((augment(sample, AugmentConfig(), rng, factor=2).tile == 0).any() for _ in range(50))
    empty = np.zeros((0, 0), np.uint8)
    unlabelled = augment(sample._replace(label=empty, context_label=empty), AugmentConfig(holes=1), rng, factor=2)
    assert unlabelled.label.shape == (0, 0)
