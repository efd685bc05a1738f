"""Errors near outlines and elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caswit.config import IGNORE_INDEX
from caswit.evaluation.boundary_errors import EdgeCounts, count_edges, near_outline


def near_slowly(truth, band_px):
    """Pixel by pixel: more than one labelled class within the square."""
    near = np.zeros(truth.shape, bool)
    for row, col in np.ndindex(truth.shape):
        square = truth[max(0, row - band_px) : row + band_px + 1, max(0, col - band_px) : col + band_px + 1]
        near[row, col] = len(set(square.ravel().tolist()) - {IGNORE_INDEX}) > 1
    return near


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.integers(0, 100))
def test_near_is_what_a_slow_loop_says(height, width, band_px, seed):
    truth = np.random.default_rng(seed).choice([0, 0, 0, 1, 2, IGNORE_INDEX], (height, width)).astype(np.uint8)
    np.testing.assert_array_equal(near_outline(truth, band_px), near_slowly(truth, band_px))


def test_errors_are_counted_where_they_lie():
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 10:] = 1
    truth[0, :] = IGNORE_INDEX
    prediction = truth.copy()
    prediction[5, 9] = 1  # beside the outline
    prediction[5:7, 2] = 1  # far from it
    prediction[0, 3] = 1  # where nobody knows
    counts = count_edges(prediction, truth, band_px=2)
    np.testing.assert_array_equal(counts.pixels, [[19 * 4, 1], [19 * 16, 2]])
    values = (counts + counts).values()
    assert values["error_near"] == pytest.approx(1 / 76)
    assert values["error_elsewhere"] == pytest.approx(2 / 304)
    assert values["errors_near"] == pytest.approx(1 / 3)
    assert values["pixels_near"] == pytest.approx(0.2)


def test_nothing_counted_is_nothing_wrong():
    assert set(EdgeCounts.zeros().values().values()) == {0.0}
