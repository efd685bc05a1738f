"""Label rasters on another grid than their image: read as if they were on the image's, nearest neighbour.

Equals rasterio's ``WarpedVRT`` without its tolerance (0.125 pixels), read whole, and does not depend on the window.
With the tolerance places are interpolated along each row that is read, so that pixels near an outline take other labels
in other windows; without it reading takes ten times as long as here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from rasterio.warp import transform as to_crs

from caswit.raster.georef import Grid
from caswit.raster.reader import Bool, Raster, UInt8
from caswit.raster.windows import Window

_EVERY_PX = 16
"""Places between which those of the image's pixels are interpolated. A map projection bends a line of 16 pixels of a
metre by some 1e-5 pixels."""
_MOST_PX = 1 << 24
"""Pixels of the label that are read at once; it may be far finer than the image."""
_FAR = 1 << 31
_TIE = 1e-6
"""A place this close to the edge between two pixels lies in the second one, whatever the rounding: labels on a grid of
half or twice the image's pixel have all their places there."""


class WarpedLabel:
    """Reads an open label raster on the grid of its image, as ``Raster`` reads one that lies there.

    Args:
        label: The label; closed with this.
        grid: Grid of the image. Both have a CRS.
    """

    def __init__(self, label: Raster, grid: Grid) -> None:
        self.label, self.grid = label, grid
        self.path, self.driver, self.dtype, self.count = label.path, label.driver, label.dtype, label.count
        self.height, self.width = grid.height, grid.width
        turned = any(np.abs(g.matrix[[0, 1], [1, 0]]).max() > 0 for g in (grid, label.grid))
        self.separable = grid.crs == label.grid.crs and not turned

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.label.close()

    def read_ids(self, window: Window) -> tuple[NDArray[Any], Bool]:
        """Read as ``Raster.read_ids``."""
        values, known = self._read(window, lambda part: _first(self.label.read_ids(part)))
        return values[0], known

    def read_band(self, window: Window, fill: int) -> NDArray[Any]:
        """Read as ``Raster.read_band``."""
        values, known = self.read_ids(window)
        return np.where(known, values, np.array(fill, np.min_scalar_type(fill)))

    def read_image(self, window: Window) -> tuple[UInt8, Bool]:
        """Read three bands as ``Raster.read_image``."""
        return self._read(window, self.label.read_image, bands=3)

    def at(self, row: int, col: int) -> tuple[int, int]:
        """Return the label's pixel (row, col) under a pixel of the image."""
        rows, cols = self._places(Window(row, col, 1, 1))
        return int(rows[0, 0]), int(cols[0, 0])

    def _read(
        self, window: Window, read: Callable[[Window], tuple[NDArray[Any], Bool]], bands: int = 1
    ) -> tuple[NDArray[Any], Bool]:
        """Read (bands, H, W), 0 where the label has no data, and where it has (H, W)."""
        found = np.zeros((bands, window.height, window.width), self.dtype)
        known = np.zeros((window.height, window.width), bool)
        part = window.clipped(self.height, self.width)
        if not (part.height and part.width):
            return found, known
        rows, cols = self._places(part)
        box = _box(rows, cols)
        inside: Bool | None = None
        if box.clipped(self.label.height, self.label.width) != box:
            inside = (rows >= 0) & (rows < self.label.height) & (cols >= 0) & (cols < self.label.width)
            if not inside.any():
                return found, known
            rows, cols = np.broadcast_arrays(rows, cols)
            box = _box(rows[inside], cols[inside])
        if box.height * box.width > _MOST_PX and part.height * part.width > 1:
            for half in _halves(part):
                where = half.inside(window)
                found[:, *where], known[where] = self._read(half, read, bands)
            return found, known
        values, valid = read(box)
        at = (rows - box.row) * box.width + (cols - box.col)
        if inside is not None:
            at = np.where(inside, at, 0)
        where = part.inside(window)
        known[where] = valid.ravel()[at] if inside is None else valid.ravel()[at] & inside
        found[:, *where] = values.reshape(bands, -1)[:, at] * known[where]
        return found, known

    def _places(self, window: Window) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row and column of the label's pixel under the centre of each of the image's; -1 where none is.

        Both are (H, W), or (H, 1) and (1, W) where a row of the image lies on one row of the label.
        """
        if self.separable:
            centres = np.arange(window.row, window.row + window.height) + 0.5
            rows, _ = places_on(self.grid, self.label.grid, centres, np.zeros_like(centres))
            centres = np.arange(window.col, window.col + window.width) + 0.5
            _, cols = places_on(self.grid, self.label.grid, np.zeros_like(centres), centres)
            return _floored(rows)[:, None], _floored(cols)[None]
        row_grid, row_between = _lattice(window.row, window.height)
        col_grid, col_between = _lattice(window.col, window.width)
        cols, rows = np.meshgrid(col_grid, row_grid)
        places = places_on(self.grid, self.label.grid, rows.ravel(), cols.ravel())
        down, across = (
            _floored(_between(_between(place.reshape(rows.shape), *row_between).T, *col_between).T) for place in places
        )
        return down, across


class Overlap(NamedTuple):
    """How an image and its label lie to each other, as shares of 0..1."""

    covered: float
    """Of the image, on which the label lies."""
    outside: float
    """Of the label, beside the image."""


def overlap(image: Grid, label: Grid) -> Overlap:
    """Return what image and label share, from the places of 100 x 100 pixels of each."""
    return Overlap(_share_inside(image, label), 1 - _share_inside(label, image))


def _share_inside(grid: Grid, other: Grid) -> float:
    rows = (np.arange(100) + 0.5) * grid.height / 100
    cols = (np.arange(100) + 0.5) * grid.width / 100
    across, down = np.meshgrid(cols, rows)
    row, col = places_on(grid, other, down.ravel(), across.ravel())
    return float(((row >= 0) & (row < other.height) & (col >= 0) & (col < other.width)).mean())


def places_on(
    grid: Grid, other: Grid, rows: NDArray[Any], cols: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows and columns of places (N,) of a grid on another grid; infinite where its CRS does not reach."""
    # Offsets of millions of metres would cost the digits that tell a tie from its neighbours.
    if grid.crs == other.crs:
        origin = grid.matrix[:2, 2] - other.matrix[:2, 2]
        x, y = grid.matrix[:2, :2] @ np.stack([cols, rows]) + origin[:, None]
    else:
        x, y = grid.matrix[:2, :2] @ np.stack([cols, rows]) + grid.matrix[:2, 2:]
        try:
            x, y = (np.asarray(v, np.float64) for v in to_crs(grid.crs, other.crs, x.tolist(), y.tolist()))
        except (RasterioError, CPLE_BaseError):
            x = y = np.full(len(rows), np.inf)
        x, y = x - other.matrix[0, 2], y - other.matrix[1, 2]
    with np.errstate(invalid="ignore"):
        found = np.linalg.inv(other.matrix[:2, :2]) @ np.stack([x, y])
    return found[1], found[0]


def _lattice(first: int, length: int) -> tuple[NDArray[np.float64], tuple[NDArray[np.intp], NDArray[np.float64]]]:
    """Return places that do not depend on the window; and by pixel, the one before its centre and the next's share."""
    centres = np.arange(first, first + length) + 0.5
    start = first // _EVERY_PX
    steps = centres / _EVERY_PX - start
    before = np.floor(steps).astype(np.intp)
    places = (np.arange(before[-1] + 2) + start) * float(_EVERY_PX)
    return places, (before, steps - before)


def _between(values: NDArray[np.float64], before: NDArray[np.intp], share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate (N, M) along its first axis."""
    with np.errstate(invalid="ignore"):  # where the CRS does not reach
        return values[before] + (values[before + 1] - values[before]) * share[:, None]


def _floored(places: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the numbers of the pixels in which places lie; -1 where a CRS does not reach."""
    with np.errstate(invalid="ignore"):
        floored = np.floor(places + _TIE)
        usable = np.abs(floored) < _FAR
    return (floored if usable.all() else np.where(usable, floored, -1)).astype(np.int64)


def _box(rows: NDArray[np.int64], cols: NDArray[np.int64]) -> Window:
    top, left = int(rows.min()), int(cols.min())
    return Window(top, left, int(rows.max()) - top + 1, int(cols.max()) - left + 1)


def _halves(window: Window) -> tuple[Window, Window]:
    row, col, height, width = window
    if height >= width:
        return Window(row, col, height // 2, width), Window(row + height // 2, col, height - height // 2, width)
    return Window(row, col, height, width // 2), Window(row, col + width // 2, height, width - width // 2)


def _first(read: tuple[NDArray[Any], Bool]) -> tuple[NDArray[Any], Bool]:
    """Return values with an axis of bands."""
    return read[0][None], read[1]
