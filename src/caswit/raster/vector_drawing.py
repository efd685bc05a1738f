"""Shapes of a vector file, drawn into windows of an image.

What a window gets is what the same pixels get when the whole image is drawn at once. Everything about a shape is
computed apart from the window, corners lie on a grid of 1/256 of a pixel, in which the arithmetic of drawing has no
rounding that could differ, and what lies outside a window is left out only where that cannot matter.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.features import rasterize

from caswit.errors import DataError, one_line
from caswit.raster.georef import Grid
from caswit.raster.vector_index import Bounds, ShapeIndex, Shapes
from caswit.raster.windows import Window

_PARTS = 256
"""Parts of a pixel to which corners are placed."""
_LONGEST = 500.0, 0.005
"""Metres, and degrees, of a straight side between two points that are projected: sides become curves."""
_MOST_SEEN = 20_000
"""Shapes of a picture that is coarser than the image."""
Ranks = NDArray[np.int32]
Points = NDArray[np.float64]


class Drawn(NamedTuple):
    """Shapes drawn into a window."""

    ranks: Ranks
    """(H, W): 0 where there is none, else the shape on top, by its place in ``values`` plus 1."""
    values: list[str]
    """The attribute of each shape, in the order in which they were drawn."""


class Drawing:
    """The shapes of an index, placed on the grid of an image.

    Args:
        index: The shapes.
        grid: Of the image.
        order: The place of each value of the attribute in the order of drawing; shapes of values that are not in it
            are left out. Among equals the order of the file counts, and later shapes lie over earlier ones.
        width_m: By value, the metres by which lines and points are widened to every side; others are left out.
        all_touched: Draw every pixel of which a shape covers a part, not only those whose centres it covers.

    Raises:
        DataError: The shapes cannot be placed on the image.
    """

    def __init__(
        self,
        index: ShapeIndex,
        grid: Grid,
        order: Mapping[str, int],
        width_m: Mapping[str, float] | None = None,
        *,
        all_touched: bool = False,
    ) -> None:
        self.index, self.grid, self.order, self.all_touched = index, grid, order, all_touched
        self._to_image, self._to_file, self._longest = _transformers(index, grid)
        self._matrix = grid.matrix
        # QGIS shows an image without georeference below the x axis, its first row at the top: y is minus the row.
        if grid.crs is None and grid.transform.is_identity and index.bounds[3] <= 0:
            self._matrix = np.diag([1.0, -1.0, 1.0])
        self._inverse = np.linalg.inv(self._matrix)
        self.width_m = dict(width_m or {})
        self._pixel_m = _pixel_m(index, grid) if self.width_m else (1.0, 1.0)
        self._coarse = False
        self._reach_px = max(self.width_m.values(), default=0.0) / min(self._pixel_m) + 2

    def meets_image(self) -> bool:
        """Return whether the bounding box of all shapes meets the image."""
        west, south, east, north = self._asked(Window(0, 0, self.grid.height, self.grid.width))
        left, bottom, right, top = self.index.bounds
        return left <= east and west <= right and bottom <= north and south <= top

    def draw(self, window: Window) -> Drawn:
        """Draw the shapes of a window, which may reach outside the image."""
        found = self._found(window)
        # Sorting is stable, and the index answers in the order of the file.
        chosen = sorted(
            (i for i, v in enumerate(found.values) if v in self.order), key=lambda i: self.order[found.values[i]]
        )
        values = [found.values[i] for i in chosen]
        shapes = self._placed(found, chosen)
        rings = [(rank, _rings(shape, window)) for rank, shape in enumerate(shapes, 1)]
        drawn = [({"type": "Polygon", "coordinates": each}, rank) for rank, each in rings if each]
        ranks: Ranks = np.zeros((window.height, window.width), np.int32)
        if drawn:
            # Row and column are the coordinates; a shift by whole pixels is exact.
            shift = Affine.translation(window.col, window.row)
            ranks = rasterize(drawn, out_shape=ranks.shape, transform=shift, fill=0, dtype="int32")
        if self.all_touched:
            for rank, each in rings:
                for ring in each:
                    _touch(ranks, np.array(ring), rank, window)
        return Drawn(ranks, values)

    def coarser(self, window: Window, height: int, width: int) -> "Drawing":
        """Return a drawing of the same shapes whose pixels cut a window of ours into ``height`` x ``width``.

        What is smaller than half a pixel there is left out, and more shapes than a picture can show.
        """
        other = copy.copy(self)
        high, wide = window.height / height, window.width / width
        other._matrix = self._matrix @ [[wide, 0, window.col], [0, high, window.row], [0, 0, 1]]
        other._inverse = np.linalg.inv(other._matrix)
        other._pixel_m = self._pixel_m[0] * wide, self._pixel_m[1] * high
        other._reach_px = max(self.width_m.values(), default=0.0) / min(other._pixel_m) + 2
        other._coarse = True
        return other

    def _found(self, window: Window) -> Shapes:
        bounds = self._asked(window)
        # Of lines and points the width is not known to the index.
        if not self._coarse or self.width_m:
            return self.index.within(bounds, most=_MOST_SEEN if self._coarse else -1)
        (west, south, east, north), half = bounds, 0.5
        least = half * (east - west) / window.width, half * (north - south) / window.height
        return self.index.within(bounds, least, _MOST_SEEN)

    def _asked(self, window: Window) -> Bounds:
        """Return a rectangle in the file's CRS that holds a window and all whose shapes may reach into it."""
        margin = self._reach_px
        cols = window.col - margin, window.col + window.width + margin
        rows = window.row - margin, window.row + window.height + margin
        corners = self._matrix @ [[*cols, *cols], [rows[0], rows[0], rows[1], rows[1]], [1, 1, 1, 1]]
        (west, south), (east, north) = corners[:2].min(1).tolist(), corners[:2].max(1).tolist()
        if self._to_file is None:
            return west, south, east, north
        west, south, east, north = self._to_file.transform_bounds(west, south, east, north)
        everywhere = self.index.bounds
        if not np.isfinite([west, south, east, north]).all():
            return everywhere
        if west > east:  # across the line of dates
            west, east = everywhere[0], everywhere[2]
        # Sides that are curves in the file's CRS may bulge between the points that were looked at.
        wide, high = (east - west) / 100, (north - south) / 100
        return west - wide, south - high, east + wide, north + high

    def _placed(self, found: Shapes, chosen: Sequence[int]) -> Any:
        """Return polygons in pixels, x the column and y the row, with their corners on the grid of drawing."""
        shapes = found.shapes[chosen]
        if self._to_image is not None:
            shapes = shapely.segmentize(shapes, self._longest)
        shapes = shapely.transform(shapes, self._pixels)
        lines = np.flatnonzero(shapely.get_dimensions(shapes) < 2)
        if len(lines):
            # Lengths are the same in both directions on the plane of metres, though pixels may be oblong.
            widths = [self.width_m.get(found.values[chosen[int(i)]], 0.0) for i in lines]
            flat = shapely.transform(shapes[lines], lambda p: p * self._pixel_m)
            shapes[lines] = shapely.transform(shapely.buffer(flat, widths), lambda p: p / self._pixel_m)
        return shapely.transform(shapes, lambda p: np.round(p * _PARTS) / _PARTS)

    def _pixels(self, points: Points) -> Points:
        x, y = points[:, 0], points[:, 1]
        if self._to_image is not None:
            x, y = self._to_image.transform(x, y)
        placed = (self._inverse @ np.stack([x, y, np.ones_like(x)]))[:2].T
        if not np.isfinite(placed).all():
            raise DataError(
                f"{self.index.file}: has shapes where the image's CRS is not defined; check the CRS of both, or clip it"
            )
        return np.asarray(placed)


def _transformers(index: ShapeIndex, grid: Grid) -> tuple[Transformer | None, Transformer | None, float]:
    """Return what brings points into the image's CRS and back, None if it is the same; and the longest straight side.

    Raises:
        DataError: One of the two has no CRS, or they have nothing in common.
    """
    if index.crs is None and grid.crs is None:
        return None, None, 0.0
    if index.crs is None:
        raise DataError(f"{index.file}: has no CRS, its image has one; give it one (ogr2ogr -a_srs EPSG:...)")
    if grid.crs is None:
        raise DataError(
            f"{index.file}: has a CRS, its image has none, so the shapes cannot be placed on it; "
            "give the image its CRS (gdal_edit.py -a_srs EPSG:...)"
        )
    try:
        theirs, ours = CRS.from_user_input(index.crs), CRS.from_wkt(grid.crs.to_wkt())
        if theirs.equals(ours, ignore_axis_order=True):
            return None, None, 0.0
        to_image = Transformer.from_crs(theirs, ours, always_xy=True)
        to_file = Transformer.from_crs(ours, theirs, always_xy=True)
    except ProjError as error:
        raise DataError(f"{index.file}: cannot be brought into the image's CRS ({one_line(error)})") from error
    metres, degrees = _LONGEST
    return to_image, to_file, degrees if theirs.is_geographic else metres


def _pixel_m(index: ShapeIndex, grid: Grid) -> tuple[float, float]:
    """Return width and height of a pixel in metres on the ground, at the image's centre."""
    side = grid.source_gsd_m
    if side is None:
        raise DataError(
            f"{index.file}: buffer_m is in metres, but the ground size of the image's pixels is unknown; "
            "give the image a CRS, or draw polygons"
        )
    wide, high = np.hypot(*grid.matrix[:2, :2]).tolist()
    if grid.crs.is_geographic:  # degrees of longitude are shorter
        y = (grid.matrix @ [grid.width / 2, grid.height / 2, 1])[1]
        wide *= float(np.cos(np.radians(y)))
    scale = side / float(np.sqrt(wide * high))
    return wide * scale, high * scale


def _rings(shape: Any, window: Window) -> list[list[list[float]]]:
    """Return the rings of a polygon without the corners that cannot matter in a window.

    Of neighbouring corners that lie beyond the same side of the window, only the first and the last matter: what is
    between them stays beyond that side, and is met by as many lines along rows as the straight side between them.
    """
    if shapely.is_empty(shape):
        return []
    top, bottom = window.row - 1, window.row + window.height + 1
    left, right = window.col - 1, window.col + window.width + 1
    found: list[list[list[float]]] = []
    for ring in shapely.get_rings(shape):
        points = shapely.get_coordinates(ring)[:-1]
        x, y = points.T
        beyond = np.select([y < top, y > bottom, x < left, x > right], [1, 2, 3, 4], 0)
        if beyond[0] and (beyond == beyond[0]).all():
            # Holes that are not in the window; without the outer ring there is nothing to draw.
            if not found:
                return []
            continue
        kept = (beyond == 0) | (beyond != np.roll(beyond, 1)) | (beyond != np.roll(beyond, -1))
        points = points[kept]
        points = np.concatenate([points, points[:1].repeat(max(1, 4 - len(points)), 0)])
        found.append(points.tolist())
    return found


def _touch(ranks: Ranks, ring: Points, rank: int, window: Window) -> None:
    """Mark the pixels through which a ring runs, where nothing lies above it; a ring along their edges leaves them.

    ``rasterize(all_touched=True)`` cuts lines at the edges of a window with rounding, so that some pixels there depend
    on the window. Here each crossing of a line with the edge of a column is computed from the whole line.
    """
    (x0, y0), (x1, y1) = ring[:-1].T, ring[1:].T
    swap = x0 > x1
    x0, x1, y0, y1 = np.where(swap, x1, x0), np.where(swap, x0, x1), np.where(swap, y1, y0), np.where(swap, y0, y1)
    first = np.maximum(np.floor(x0), window.col).astype(np.int64)
    last = np.minimum(np.ceil(x1), window.col + window.width).astype(np.int64)
    sides, cols = _runs(first, last)
    x0, x1, y0, y1 = x0[sides], x1[sides], y0[sides], y1[sides]
    slope = np.divide(y1 - y0, x1 - x0, out=np.zeros_like(x0), where=x1 > x0)
    # Where the side enters and leaves each column; its ends are exact.
    enters = np.where(cols > x0, y0 + (cols - x0) * slope, y0)
    leaves = np.where(cols + 1 < x1, y0 + (cols + 1 - x0) * slope, y1)
    low, high = np.minimum(enters, leaves), np.maximum(enters, leaves)
    first = np.maximum(np.floor(low), window.row).astype(np.int64)
    last = np.minimum(np.ceil(high), window.row + window.height).astype(np.int64)
    # A level side inside a row of pixels runs through that row.
    crossings, rows = _runs(first, last)
    np.maximum.at(ranks, (rows - window.row, cols[crossings] - window.col), rank)


def _runs(first: NDArray[np.int64], last: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the numbers of half-open runs, once for each whole number in them, and these numbers."""
    lengths = np.maximum(last - first, 0)
    owners = np.repeat(np.arange(len(first)), lengths)
    starts = np.cumsum(lengths) - lengths
    return owners, np.arange(len(owners)) - starts[owners] + first[owners]
