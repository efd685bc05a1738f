"""Touching polygons separated at their necks."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import shapes

from caswit.raster.separate import separated


def test_two_houses_that_touch_at_a_corner_become_two():
    one, other = shapely.box(100, 200, 130, 220), shapely.box(128, 212, 160, 240)
    pieces = separated(shapely.union(one, other))
    assert len(pieces) == 2
    for piece, house in zip(sorted(pieces, key=lambda p: p.centroid.x), (one, other), strict=True):
        assert piece.intersection(house).area / piece.union(house).area > 0.97


@pytest.mark.parametrize(
    "shape",
    [
        shapely.box(0, 0, 60, 20),
        shapely.union(shapely.box(0, 0, 60, 20), shapely.box(0, 0, 20, 60)),  # an L
        shapely.union(shapely.box(0, 0, 60, 20), shapely.box(20, 0, 40, 60)),  # a T
        shapely.Point(30, 30).buffer(20),
        shapely.box(0, 0, 3, 40),
        shapely.box(0, 0, 60, 60).difference(shapely.box(20, 20, 40, 40)),  # a courtyard
    ],
    ids=["house", "L", "T", "tank", "wall", "courtyard"],
)
def test_one_house_stays_one(shape):
    assert len(separated(shape)) == 1


def test_a_row_of_houses():
    row = shapely.union_all([shapely.box(40 * i, 10 * (i % 2), 40 * i + 36, 10 * (i % 2) + 30) for i in range(6)])
    walls = [shapely.box(40 * i + 30, 15, 40 * i + 45, 20) for i in range(5)]
    assert len(separated(shapely.union_all([row, *walls]))) == 6


@settings(max_examples=60)
@given(st.integers(0, 100_000), st.sampled_from([0.0, 1.5]))
def test_the_parts_are_the_polygon(seed, simplify):
    """Nothing is lost, doubled or invalid, whatever the outline."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((80, 90), np.uint8)
    for _ in range(8):
        (row, col), (height, width) = rng.integers(0, 70, 2), rng.integers(4, 30, 2)
        mask[row : row + height, col : col + width] = 1
    for found, _ in shapes(mask, mask=mask > 0, connectivity=4):
        shape = shapely.simplify(shapely.geometry.shape(found), simplify)
        pieces = separated(shape)
        assert all(piece.is_valid and piece.geom_type == "Polygon" for piece in pieces)
        assert sum(piece.area for piece in pieces) == pytest.approx(shape.area, rel=1e-9)
        assert shapely.union_all(pieces).symmetric_difference(shape).area == pytest.approx(0, abs=1e-6)
