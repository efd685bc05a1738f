"""Georeferences: from the pixels of a raster to places on the ground, and back."""

import logging
from collections.abc import Sequence
from functools import cache
from math import floor, isfinite
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio._err import CPLE_BaseError  # what PROJ says reaches us unwrapped
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.warp import transform as warp
from rasterio.warp import transform_bounds

from caswit.errors import DataError, brief

log = logging.getLogger(__name__)
GSD_M = 1e-5, 1e6
"""Ground sizes of a pixel in metres that an image can have, from a microscope to a globe."""
_SQUARE = 1.01
"""Sides of a pixel that differ by less than this factor are called equal: degrees, and rounded headers."""


class Grid(NamedTuple):
    """Size, CRS and transform of a raster."""

    height: int
    width: int
    crs: Any
    """A rasterio CRS, or None."""
    transform: Any
    """An affine transform; the identity where there is none."""
    gcps: Any
    """(ground control points, CRS), usually ([], None)."""

    @property
    def matrix(self) -> NDArray[np.float64]:
        """(3, 3): from (column, row, 1) in pixels to (x, y, 1)."""
        return np.array(self.transform, np.float64).reshape(3, 3)

    def shifted(self, row: int, col: int) -> Any:
        """Return the transform of a grid that begins at this pixel of ours."""
        (a, b, _), (d, e, _) = self.matrix[:2].tolist()
        x, y, _ = (self.matrix @ [col, row, 1]).tolist()
        return Affine(a, b, x, d, e, y)

    def same_place(self, other: "Grid") -> bool:
        """Return whether another grid has the same CRS, and its corners less than a tenth of a pixel from ours."""
        # Three corners fix a transform. Two do not: a transposed square has the same diagonal.
        corners = np.array([[0, 0, 1], [self.width, 0, 1], [0, self.height, 1]]).T
        pixel = np.abs(self.matrix[:2, :2]).max()
        off = np.abs((self.matrix - other.matrix) @ corners).max()
        return self.crs == other.crs and bool(off < 0.1 * pixel)

    @property
    def degrees(self) -> tuple[float, float, float, float] | None:
        """West, south, east, north on WGS 84, or None where unknown."""
        if self.crs is None or not (self.crs.is_geographic or self.crs.is_projected):
            return None
        corners = self.matrix @ [[0, self.width, 0, self.width], [0, 0, self.height, self.height], [1, 1, 1, 1]]
        (left, bottom), (right, top) = corners[:2].min(axis=1).tolist(), corners[:2].max(axis=1).tolist()
        try:
            west, south, east, north = transform_bounds(self.crs, DEGREES, left, bottom, right, top)
        except (RasterioError, CPLE_BaseError):  # it lies where its CRS is not defined
            return None
        return (west, south, east, north) if isfinite(west + south + east + north) else None

    @property
    def source_gsd_m(self) -> float | None:
        """Ground size of a pixel in metres at the raster's centre, or None where unknown."""
        if self.crs is None:
            return None
        (a, b, _), (d, e, f), _ = self.matrix.tolist()
        # The square root of the pixel's area: right for rotated grids too, and between the sides of oblong pixels.
        side = float(np.sqrt(abs(a * e - b * d)))
        y = f + d * self.width / 2 + e * self.height / 2
        if self.crs.is_geographic:
            # A degree of longitude shrinks with the cosine of the latitude, one of latitude does not.
            return side * 111_320.0 * float(np.sqrt(abs(np.cos(np.radians(y)))))
        if not self.crs.is_projected:  # local coordinates, as photogrammetry writes them
            return None
        side *= self.crs.linear_units_factor[1]
        if self.crs.to_epsg() == 3857:  # Web Mercator stretches lengths by 1 / cos(latitude)
            side /= float(np.cosh(min(abs(y / 6_378_137.0), _FARTHEST)))
        return side


DEGREES = "OGC:CRS84"  # longitude before latitude
_FARTHEST = 100.0
"""Earth radii from the equator, on a Mercator map; 3.1 are latitude 85, and cosh(711) is no number."""


def bounds_in_words(bounds: Sequence[float]) -> str:
    """Write west, south, east and north in metres or degrees for a message: without exponents, to 0.1 m."""
    return " ".join(f"{value:.1f}" if abs(value) > 360 else f"{value:.6g}" for value in bounds)


def check_grid(grid: Grid, path: str) -> None:
    """Check once, when a raster is opened, that its transform can be computed with; say so if pixels are oblong.

    Raises:
        DataError: The transform has numbers that are not finite or not invertible, or pixels of an absurd size.
    """
    numbers = [float(number) for number in grid.matrix[:2].ravel()]
    if not np.isfinite(grid.matrix).all() or np.abs(numbers).max() > _LARGEST or not _invertible(grid):
        raise DataError(
            f"{path}: its geotransform {brief(numbers)} places pixels nowhere; "
            "correct it with gdal_edit.py -a_ullr, or remove it with gdal_edit.py -unsetgt"
        )
    gsd_m = grid.source_gsd_m
    if gsd_m is not None and not GSD_M[0] <= gsd_m <= GSD_M[1]:
        raise DataError(
            f"{path}: its pixels would be {gsd_m:.3g} m wide, {GSD_M[0]:g} to {GSD_M[1]:g} m can be; "
            "correct its geotransform with gdal_edit.py -a_ullr, or its CRS with -a_srs"
        )
    if gsd_m is not None:
        width, height = (float(side) for side in np.hypot(*grid.matrix[:2, :2]))
        # Degrees are oblong on the ground everywhere but at the equator; averaging is what is wanted of them.
        if max(width / height, height / width) > _SQUARE and not grid.crs.is_geographic:
            _say_oblong(path, f"{width:.4g} x {height:.4g}", gsd_m)


_LARGEST = 1e15
"""Coordinates beyond this have no fraction that would place a pixel."""


def check_place(own: Grid, path: str, onto: Grid, beside: str) -> bool:
    """Return whether a further raster must be warped to the grid of the image beside it.

    Raises:
        DataError: Where it lies is unknown, or is elsewhere.
    """
    same_size = (own.height, own.width) == (onto.height, onto.width)
    if own.crs is None or onto.crs is None:
        if not same_size:
            raise DataError(
                f"{path}: is {own.height} x {own.width}, the image {beside} is {onto.height} x {onto.width}, and one "
                "of them has no CRS, so where it lies on the other is unknown; warp it to the image's grid first"
            )
        return False
    if same_size and own.same_place(onto):
        return False
    a, b = own.degrees, onto.degrees
    if a and b and (a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]):
        raise DataError(f"{path}: lies elsewhere than the image {beside}; give a raster of the same ground")
    return True


def _invertible(grid: Grid) -> bool:
    (a, b, _), (d, e, _), _ = grid.matrix.tolist()
    longest = max(abs(a), abs(b), abs(d), abs(e))
    # Relative to the longest side: a pixel may be of any size, but not a line.
    return longest > 0 and abs(a / longest * e / longest - b / longest * d / longest) > 1e-9


@cache  # a file is opened by many readers, and one line is enough
def _say_oblong(path: str, sides: str, gsd_m: float) -> None:
    log.warning("%s: pixels are not square (%s in units of its CRS); read as squares of %.4g m", path, sides, gsd_m)


def pixel_at(grid: Grid, x: float, y: float, path: str) -> tuple[int, int]:
    """Return the pixel at a coordinate of the raster's CRS; it may lie outside the raster.

    Raises:
        DataError: The raster has no georeference; ``path`` is named.
    """
    _, to_ground = _georeference(grid, path)
    col, row = _apply(~to_ground, x, y)
    return floor(row), floor(col)


def pixel_at_lonlat(grid: Grid, lon: float, lat: float, path: str) -> tuple[int, int]:
    """Return the pixel at a longitude and latitude; it may lie outside the raster.

    Raises:
        DataError: The raster has no georeference, or its CRS does not reach there; ``path`` is named.
    """
    crs, _ = _georeference(grid, path)
    try:
        (x,), (y,) = warp(DEGREES, crs, [lon], [lat])
        return pixel_at(grid, x, y, path)
    except (RasterioError, CPLE_BaseError, OverflowError, ValueError) as error:
        raise DataError(f"{path}: longitude {lon}, latitude {lat} lies outside what its CRS can express") from error


def ground_of(grid: Grid, row: float, col: float) -> tuple[float, float] | None:
    """Return (x, y) of a place in the raster's CRS; None without a georeference. Whole numbers are pixel corners."""
    try:
        _, to_ground = _georeference(grid, "")
    except DataError:
        return None
    return _apply(to_ground, col, row)


def lonlat_of(grid: Grid, row: float, col: float) -> tuple[float, float] | None:
    """Return (longitude, latitude) of a place; None without a georeference."""
    place = ground_of(grid, row, col)
    if place is None:
        return None
    try:
        (lon,), (lat,) = warp(_georeference(grid, "")[0], DEGREES, [place[0]], [place[1]])
    except (RasterioError, CPLE_BaseError):  # local coordinates, as photogrammetry writes them
        return None
    return lon, lat


def _georeference(grid: Grid, path: str) -> tuple[Any, rasterio.Affine]:
    points, points_crs = grid.gcps
    if grid.crs is None and points:
        placed = from_gcps(points)
        if points_crs is None or not _invertible(grid._replace(transform=placed)):
            raise DataError(f"{path}: its ground control points place it nowhere; name the pixel with --row and --col")
        return points_crs, placed
    if grid.crs is None:
        raise DataError(f"{path}: has no georeference, so no coordinates; name the pixel with --row and --col")
    return grid.crs, grid.transform


def _apply(transform: rasterio.Affine, first: float, second: float) -> tuple[float, float]:
    return (
        transform.a * first + transform.b * second + transform.c,
        transform.d * first + transform.e * second + transform.f,
    )
