"""What the network sees where there is no data."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from caswit.raster.mirror import mirrored
from conftest import picture


def test_behind_a_straight_edge_lies_the_mirror_image():
    image = picture(40, 50)
    known = np.ones((40, 50), bool)
    known[:, 30:] = False
    expected = np.concatenate([image[..., :30], image[..., 9:29][..., ::-1]], axis=-1)
    np.testing.assert_array_equal(mirrored(image, known), expected)


@given(st.integers(0, 1000), st.floats(0, 1))
def test_known_pixels_stay_and_unknown_ones_are_taken_from_known_ones(seed, share):
    rng = np.random.default_rng(seed)
    image = rng.permutation(3 * 400).reshape(3, 20, 20)  # each value once
    known = rng.random((20, 20)) < share
    before = image.copy()
    found = mirrored(image, known)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(found[:, known], image[:, known])
    if known.any():
        taken = {tuple(pixel) for pixel in image[:, known].T}
        assert {tuple(pixel) for pixel in found[:, ~known].T} <= taken
