"""Polygons of a class map, block by block, without seams between blocks.

A fragment is the part of a polygon in one block, in pixels: x is the column, y the row. Fragments that touch the
border of their block wait until every block beside them was seen, and are then put together. Coordinates along
borders are whole numbers, so nothing is lost or doubled there.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes

from caswit.raster.cog import NODATA
from caswit.raster.reader import Bool, UInt8
from caswit.raster.windows import Window

Ints = NDArray[np.int64]


class ClassPolygon(NamedTuple):
    """An area of one class, in pixels."""

    class_id: int
    shape: Any
    confidence: float = np.nan
    """Mean over its pixels, in the unit of what ``fragments`` was given; NaN where it was given nothing."""


class Fragments(NamedTuple):
    """The polygons of one block, side by side."""

    shapes: Any
    ids: NDArray[np.uint8]
    pixels: Ints
    """Pixels of each of which the confidence is known."""
    total: Ints
    """Sum of their confidences, from which those of polygons follow exactly, however blocks cut them."""

    def only(self, class_ids: Collection[int]) -> "Fragments":
        """Return those of some classes."""
        return self.where(np.isin(self.ids, list(class_ids)))

    def where(self, chosen: Bool) -> "Fragments":
        """Return those for which ``chosen`` is True."""
        return Fragments(self.shapes[chosen], self.ids[chosen], self.pixels[chosen], self.total[chosen])


class _Edges(NamedTuple):
    """Stretches of one border line that fragments of a block touch from one side."""

    start: Ints
    end: Ints
    fragment: Ints


def fragments(classes: UInt8, window: Window, simplify_px: float, confidence: UInt8 | None = None) -> Fragments:
    """Return the polygons of one block and their classes.

    Args:
        classes: (H, W) class ids, NODATA where there is none.
        window: Where they lie.
        simplify_px: Moves edges between classes for both sides alike, and never those on the block's border.
        confidence: (H, W) of each pixel, to be averaged.
    """
    # A number for each area instead of its class makes no other polygons, but tells which pixels are in which.
    values = classes if confidence is None else _areas(classes)
    # Simplifying needs nodata areas too: edges beside a gap would count as the outside and not be simplified.
    # Connectivity 4, since areas that touch only at a corner would form an invalid polygon.
    found = list(shapes(values, mask=None if simplify_px else classes != NODATA, connectivity=4))
    if not found:
        return Fragments(np.array([], object), np.array([], np.uint8), *np.zeros((2, 0), np.int64))
    numbers = np.array([value for _, value in found]).astype(np.int64)
    ids, pixels, total = numbers.astype(np.uint8), np.zeros_like(numbers), np.zeros_like(numbers)
    if confidence is not None:
        class_of = np.zeros(values.max() + 1, np.uint8)
        class_of[values] = classes
        ids, pixels = class_of[numbers], np.bincount(values.ravel())[numbers]
        # Sums of whole numbers below 2**53, so exact.
        total = np.bincount(values.ravel(), confidence.ravel())[numbers].astype(np.int64)
    rings = [ring for shape, _ in found for ring in shape["coordinates"]]
    owner = np.repeat(np.arange(len(found)), [len(shape["coordinates"]) for shape, _ in found])
    points = np.concatenate([np.asarray(ring) for ring in rings])
    ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    if simplify_px:
        points, ring_of = _with_junctions(points.astype(np.int64), ring_of, classes)
    points = np.add(points, [window.col, window.row])
    polygons = shapely.polygons(shapely.linearrings(points, indices=ring_of), indices=owner)
    if simplify_px:
        polygons = shapely.coverage_simplify(polygons, simplify_px, simplify_boundary=False)
        return Fragments(polygons, ids, pixels, total).where(ids != NODATA)
    return Fragments(polygons, ids, pixels, total)


def _areas(classes: UInt8) -> NDArray[np.int32]:
    """Return (H, W) numbers from 0: pixels of one class that are connected by their sides have the same."""
    numbers, count = np.zeros(classes.shape, np.int32), 0
    for class_id in np.unique(classes):
        found, areas = cv2.connectedComponents((classes == class_id).astype(np.uint8), connectivity=4)
        inside = areas > 0
        numbers[inside] = areas[inside] + (count - 1)
        count += found - 1
    return numbers


def _with_junctions(points: Ints, ring_of: Ints, classes: UInt8) -> tuple[Ints, Ints]:
    """Add the corners at which three or more polygons meet: both sides of an edge must agree where it ends.

    GDAL's rings leave out points in the middle of a straight edge, although a third polygon may begin there.
    """
    step = np.diff(points, axis=0)
    # From the last point of a ring to the first of the next there is no edge.
    step[ring_of[1:] != ring_of[:-1]] = 0
    # Edges run along rows or columns, so the larger step is their length. The last point of a ring is kept.
    length = np.append(np.abs(step).max(axis=1), 1)
    length = np.maximum(length, 1)
    start = np.repeat(np.arange(len(points)), length)
    along = np.arange(len(start)) - np.repeat(np.cumsum(length) - length, length)
    direction = np.sign(np.append(step, [[0, 0]], axis=0))
    dense = points[start] + direction[start] * along[:, None]
    # Four pixels meet at a corner. Where three or four of the borders between them separate classes, polygons meet.
    padded = np.pad(classes.astype(np.int16), 1, constant_values=-1)
    upper, lower = padded[:-1], padded[1:]
    differs = [upper[:, :-1] != upper[:, 1:], lower[:, :-1] != lower[:, 1:], upper[:, :-1] != lower[:, :-1]]
    differs.append(upper[:, 1:] != lower[:, 1:])
    junction = np.sum(differs, axis=0) >= 3  # (H + 1, W + 1): edges that meet at each corner
    keep = (along == 0) | junction[dense[:, 1], dense[:, 0]]
    return dense[keep], ring_of[start[keep]]


class Merger:
    """Puts fragments of neighbouring blocks together. Blocks come row by row; those of a row have its height.

    In memory are the borders still open and one polygon at a time: fragments wait in a file.

    Args:
        waiting: An empty file open for reading and writing.
        height: Rows of the map.
        width: Columns of the map.
    """

    def __init__(self, waiting: BinaryIO, height: int, width: int) -> None:
        self.waiting, self.height, self.width = waiting, height, width
        self._end = self._count = 0
        self._parent: dict[int, int] = {}
        self._groups: dict[int, _Group] = {}  # by root
        self._below: list[tuple[Window, _Edges]] = []  # lower borders that were not met yet
        self._right: tuple[Window, _Edges] | None = None

    def add(self, window: Window, found: Fragments) -> Iterator[ClassPolygon]:
        """Take the fragments of the next block and yield all polygons that are now complete."""
        polygons = found.shapes
        bottom, right = window.row + window.height, window.col + window.width
        bounds = shapely.bounds(polygons).reshape(-1, 4)
        waits = (bounds[:, 0] == window.col) & (window.col > 0) | (bounds[:, 1] == window.row) & (window.row > 0)
        waits |= (bounds[:, 2] == right) & (right < self.width) | (bounds[:, 3] == bottom) & (bottom < self.height)
        whole = (column[~waits].tolist() for column in found[1:])
        for shape, class_id, pixels, total in zip(polygons[~waits], *whole, strict=True):
            yield ClassPolygon(class_id, shape, total / pixels if pixels else np.nan)
        names = self._store(found.where(waits))
        left_edges, top_edges, right_edges, bottom_edges = _border_edges(polygons[waits], names, window)
        touched = set(names.tolist())
        # Counted before fragments are united: until then, each is a group under its own name.
        if right < self.width:
            self._await(right_edges)
        if bottom < self.height:
            self._await(bottom_edges)
        touched |= self._meet_left(window, left_edges) | self._meet_above(window, top_edges)
        if right < self.width:
            self._right = window, right_edges
        if bottom < self.height:
            self._below.append((window, bottom_edges))
        yield from self._complete(touched)

    def finish(self) -> Iterator[ClassPolygon]:
        """Yield the polygons that still wait beside blocks that never came."""
        for group in self._groups.values():
            group.borders = 0
        yield from self._complete(set(self._groups))

    def _store(self, found: Fragments) -> Ints:
        names = np.arange(self._count, self._count + len(found.ids))
        self._count += len(found.ids)
        self.waiting.seek(self._end)
        others = (column.tolist() for column in found[1:])
        for name, content, class_id, pixels, total in zip(
            names.tolist(), shapely.to_wkb(found.shapes), *others, strict=True
        ):
            self.waiting.write(content)
            self._parent[name] = name
            self._groups[name] = _Group(class_id, [name], [(self._end, len(content))], pixels, total)
            self._end += len(content)
        return names

    def _await(self, edges: _Edges) -> None:
        for name in set(edges.fragment.tolist()):
            self._groups[name].borders += 1

    def _meet_left(self, window: Window, edges: _Edges) -> set[int]:
        before, self._right = self._right, None
        # Blocks without data are left out, so the block before may lie elsewhere.
        if before is None:
            return set()
        if (before[0].row, before[0].col + before[0].width) == (window.row, window.col):
            self._join(before[1], edges)
        return self._release(before[1])

    def _meet_above(self, window: Window, edges: _Edges) -> set[int]:
        """Join a block with those above it, and release those that nothing below can touch any more.

        Blocks come row by row, so one above that begins left of our right end has met all its neighbours.
        """
        touched: set[int] = set()
        waiting, self._below = self._below, []
        for above, old in waiting:
            bottom = above.row + above.height
            if (bottom, above.col) == (window.row, window.col):
                self._join(old, edges)
            if bottom < window.row or (bottom == window.row and above.col <= window.col):
                touched |= self._release(old)
            else:
                self._below.append((above, old))
        return touched

    def _join(self, one: _Edges, other: _Edges) -> None:
        """Unite fragments of one class whose stretches overlap by more than a point."""
        # Stretches of a side are sorted and disjoint, so those that overlap a given one are consecutive.
        first = np.searchsorted(other.end, one.start, "right")
        last = np.searchsorted(other.start, one.end, "left")
        for name, begin, end in zip(one.fragment.tolist(), first.tolist(), last.tolist(), strict=True):
            for neighbour in other.fragment[begin:end].tolist():
                self._unite(self._root(name), self._root(neighbour))

    def _release(self, edges: _Edges) -> set[int]:
        names = set(edges.fragment.tolist())
        for name in names:
            self._groups[self._root(name)].borders -= 1
        return names

    # Fragments that touch form a forest of parents (union-find), so that joining two large groups is one step.
    def _root(self, name: int) -> int:
        # Path halving: every step also skips a parent, so that chains stay short.
        while self._parent[name] != name:
            self._parent[name] = name = self._parent[self._parent[name]]
        return name

    def _unite(self, one: int, other: int) -> None:
        if one == other or self._groups[one].class_id != self._groups[other].class_id:
            return
        keep, drop = (one, other) if len(self._groups[one].names) >= len(self._groups[other].names) else (other, one)
        gone = self._groups.pop(drop)
        self._parent[drop] = keep
        self._groups[keep].names += gone.names
        self._groups[keep].places += gone.places
        self._groups[keep].borders += gone.borders
        self._groups[keep].pixels += gone.pixels
        self._groups[keep].total += gone.total

    def _complete(self, names: set[int]) -> Iterator[ClassPolygon]:
        for root in sorted({self._root(name) for name in names}):
            if self._groups[root].borders == 0:
                group = self._groups.pop(root)
                for name in group.names:
                    del self._parent[name]
                mean = group.total / group.pixels if group.pixels else np.nan
                yield ClassPolygon(group.class_id, self._together(group.places), mean)

    def _together(self, places: list[tuple[int, int]]) -> Any:
        contents = []
        for offset, length in sorted(places):
            self.waiting.seek(offset)
            contents.append(self.waiting.read(length))
        parts = shapely.from_wkb(contents)
        return parts[0] if len(parts) == 1 else without_needless_points(shapely.union_all(parts))


@dataclass
class _Group:
    """Fragments that belong together."""

    class_id: int
    names: list[int]
    places: list[tuple[int, int]]
    """Offset and length of each in the file."""
    pixels: int
    total: int
    """As in ``Fragments``."""
    borders: int = 0
    """Number of borders across which it may still go on."""


def _border_edges(polygons: Any, names: Ints, window: Window) -> list[_Edges]:
    """Return the stretches on the left, upper, right and lower border of a block, sorted by where they begin."""
    rings, polygon_of = shapely.get_rings(polygons, return_index=True)
    points, ring_of = shapely.get_coordinates(rings, return_index=True)
    begin, end = points[:-1], points[1:]
    same_ring = ring_of[1:] == ring_of[:-1]
    owner = names[polygon_of[ring_of[:-1]]] if len(points) else np.array([], np.int64)
    lines = [(0, window.col), (1, window.row), (0, window.col + window.width), (1, window.row + window.height)]
    found = []
    for axis, line in lines:
        on = same_ring & (begin[:, axis] == line) & (end[:, axis] == line)
        ends = np.sort(np.stack([begin[on, 1 - axis], end[on, 1 - axis]]), axis=0).astype(np.int64)
        order = np.argsort(ends[0])
        found.append(_Edges(ends[0][order], ends[1][order], owner[on][order]))
    return found


def without_needless_points(shape: Any) -> Any:
    """Return the same polygon without points in the middle of straight edges."""
    if shape.geom_type != "Polygon":
        return shapely.union_all([without_needless_points(part) for part in shapely.get_parts(shape)])
    return shapely.Polygon(_corners(shape.exterior), [_corners(ring) for ring in shape.interiors])


def _corners(ring: Any) -> NDArray[np.float64]:
    points: NDArray[np.float64] = shapely.get_coordinates(ring)[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    # The cross product of the steps before and after a point is 0 where they lie on one line.
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
