"""Touching areas of a class, such as footprints, separated at their necks. An estimate: the map shows no wall between.

By the distance transform: a part is one that is still connected when the polygon is eroded so far that its neck is
gone, and at the neck a straight line is cut. The outline stays as it is.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.features import rasterize

from caswit.raster.reader import UInt8

_NECK = 0.7
"""A neck is narrower than this share of the parts on both of its sides. The arms of an L are 0.85 of its bend."""
_LEAST_PX = 2.0
"""Half the width of the narrowest part, in pixels."""
_LARGEST_PX = 100_000_000
"""Pixels of the bounding box of a polygon beyond which it stays whole: they are in memory."""
_BEYOND_PX = 3.0
"""How far a cut reaches beyond the pixels that it separates, to meet an outline that was simplified."""


class _Seed(NamedTuple):
    """A part that stays connected: its pixels above a distance from the outline."""

    where: UInt8
    row: int
    col: int


def separated(shape: Any) -> list[Any]:
    """Return the parts of a polygon in pixels: they do not overlap, and together they are the polygon."""
    left, top, right, bottom = (int(edge) for edge in (*np.floor(shape.bounds[:2]), *np.ceil(shape.bounds[2:])))
    # A border of zeros, from which distances count too.
    height, width = bottom - top + 2, right - left + 2
    if height * width > _LARGEST_PX or min(height, width) < 4 * _LEAST_PX:
        return [shape]
    inside = rasterize(
        [shape], out_shape=(height, width), transform=Affine.translation(left - 1, top - 1), dtype="uint8"
    )
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 5)
    seeds = [*_seeds(distance, inside, _LEAST_PX, 0, 0)]
    if len(seeds) < 2:
        return [shape]
    owner = _nearest_seed(seeds, inside)
    cuts = shapely.transform(shapely.MultiLineString([*_cuts(owner)]), lambda at: np.add(at, [left - 1, top - 1]))
    return _pieces(shape, cuts, owner, left - 1, top - 1)


def _seeds(distance: NDArray[np.float32], inside: UInt8, level: float, row: int, col: int) -> Iterator[_Seed]:
    """Yield the seeds within one connected area, from a level of distance upwards."""
    while True:
        count, labels, boxes, _ = cv2.connectedComponentsWithStats(
            ((distance > level) & (inside > 0)).astype(np.uint8), connectivity=4
        )
        # Parts so much wider than the neck that it, of half width ``level``, is one.
        wide = [i for i in range(1, count) if distance[labels == i].max() >= max(level / _NECK, level + 1)]
        if not wide:
            yield _Seed(inside, row, col)
            return
        if len(wide) > 1:
            break
        level += 1
    for i in wide:
        x, y, w, h = boxes[i, :4].tolist()
        here = np.s_[y : y + h, x : x + w]
        part = (labels[here] == i).astype(np.uint8)
        yield from _seeds(distance[here], part, level, row + y, col + x)


def _nearest_seed(seeds: list[_Seed], inside: UInt8) -> NDArray[np.int32]:
    """Return (H, W) the number of the seed nearest to each pixel inside, from 1; 0 outside."""
    numbers = np.zeros(inside.shape, np.int32)
    for number, (where, row, col) in enumerate(seeds, 1):
        numbers[row : row + where.shape[0], col : col + where.shape[1]][where > 0] = number
    seeded = numbers > 0
    _, label = cv2.distanceTransformWithLabels(
        (~seeded).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    of_label = np.zeros(label.max() + 1, np.int32)
    of_label[label[seeded]] = numbers[seeded]
    return np.where(inside > 0, of_label[label], 0).astype(np.int32)


def _cuts(owner: NDArray[np.int32]) -> Iterator[Any]:
    """Yield a straight line for each place at which two parts meet, somewhat longer than their border there."""
    right, down = np.s_[:, :-1], np.s_[:-1]
    borders: dict[tuple[int, int], list[NDArray[np.float64]]] = {}
    for first, second, offset in ((owner[right], owner[:, 1:], (1.0, 0.5)), (owner[down], owner[1:], (0.5, 1.0))):
        rows, cols = np.nonzero((first != second) & (first > 0) & (second > 0))
        pairs = np.sort(np.stack([first[rows, cols], second[rows, cols]]), axis=0).T
        for pair in np.unique(pairs, axis=0):
            on = (pairs == pair).all(1)
            found = np.stack([cols[on] + offset[0], rows[on] + offset[1]], axis=1)
            borders.setdefault((int(pair[0]), int(pair[1])), []).append(found)
    for groups in borders.values():
        points = np.concatenate(groups)
        # Two parts may meet at several places, around a courtyard: points of one place are near to each other.
        for place in shapely.get_parts(shapely.union_all(shapely.buffer(shapely.points(points), 1.0))):
            some = points[shapely.contains_xy(place, points)]
            middle = some.mean(0)
            direction = np.linalg.svd(some - middle)[2][0] if len(some) > 1 else np.array([1.0, 0.0])
            along = (some - middle) @ direction
            ends = (along.min() - _BEYOND_PX, along.max() + _BEYOND_PX)
            yield shapely.LineString([middle + end * direction for end in ends])


def _pieces(shape: Any, cuts: Any, owner: NDArray[np.int32], left: int, top: int) -> list[Any]:
    """Return the pieces of a polygon between cuts; those of one part are one piece."""
    faces = shapely.get_parts(shapely.polygonize([*shapely.get_parts(shapely.union_all([shape.boundary, cuts]))]))
    points = shapely.point_on_surface(faces)
    kept = shapely.contains(shape, points)
    faces, points = faces[kept], shapely.get_coordinates(points[kept])
    rows, cols = np.floor(points[:, 1]).astype(int) - top, np.floor(points[:, 0]).astype(int) - left
    part = owner[np.clip(rows, 0, owner.shape[0] - 1), np.clip(cols, 0, owner.shape[1] - 1)]
    joined = [shapely.union_all(faces[part == number]) for number in np.unique(part)]
    return [piece for shape_of_part in joined for piece in shapely.get_parts(shape_of_part)]
