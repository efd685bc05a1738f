"""Where pixels lie on the ground, and which pixel lies at a coordinate.

Places are (row, col) of a pixel; coordinates are (x, y) in the raster's CRS, or (longitude, latitude) in degrees.
"""

from math import floor
from typing import Any

import rasterio
from rasterio._err import CPLE_BaseError  # what PROJ says reaches us unwrapped
from rasterio.errors import RasterioError
from rasterio.transform import from_gcps
from rasterio.warp import transform as warp

from caswit.errors import DataError
from caswit.raster.grid import Grid

_DEGREES = "OGC:CRS84"  # longitude before latitude


def pixel_at(grid: Grid, x: float, y: float, path: str) -> tuple[int, int]:
    """The pixel at a coordinate of the raster's CRS; it may lie outside the raster.

    Raises:
        DataError: The raster has no georeference; ``path`` is named.
    """
    _, to_ground = _georeference(grid, path)
    col, row = _apply(~to_ground, x, y)
    return floor(row), floor(col)


def pixel_at_lonlat(grid: Grid, lon: float, lat: float, path: str) -> tuple[int, int]:
    """The pixel at a longitude and latitude; it may lie outside the raster.

    Raises:
        DataError: The raster has no georeference, or its CRS does not reach there; ``path`` is named.
    """
    crs, _ = _georeference(grid, path)
    try:
        (x,), (y,) = warp(_DEGREES, crs, [lon], [lat])
        return pixel_at(grid, x, y, path)
    except (RasterioError, CPLE_BaseError, OverflowError, ValueError) as error:
        raise DataError(f"{path}: longitude {lon}, latitude {lat} lie outside what its CRS can express") from error


def ground_of(grid: Grid, row: float, col: float) -> tuple[float, float] | None:
    """(x, y) in the raster's CRS of a place, whole numbers being pixel corners; None without a georeference."""
    try:
        _, to_ground = _georeference(grid, "")
    except DataError:
        return None
    return _apply(to_ground, col, row)


def lonlat_of(grid: Grid, row: float, col: float) -> tuple[float, float] | None:
    """(longitude, latitude) of a place; None without a georeference."""
    place = ground_of(grid, row, col)
    if place is None:
        return None
    try:
        (lon,), (lat,) = warp(_georeference(grid, "")[0], _DEGREES, [place[0]], [place[1]])
    except (RasterioError, CPLE_BaseError):  # local coordinates, as photogrammetry writes them
        return None
    return lon, lat


def _georeference(grid: Grid, path: str) -> tuple[Any, rasterio.Affine]:
    points, points_crs = grid.gcps
    if grid.crs is None and points:
        return points_crs, from_gcps(points)
    if grid.crs is None:
        raise DataError(f"{path}: has no georeference, so no coordinates; name the pixel with --row and --col")
    return grid.crs, grid.transform


def _apply(transform: rasterio.Affine, first: float, second: float) -> tuple[float, float]:
    return (
        transform.a * first + transform.b * second + transform.c,
        transform.d * first + transform.e * second + transform.f,
    )
