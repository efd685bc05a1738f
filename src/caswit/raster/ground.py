"""Areas of classes and distances on the ground.

In degrees and in Web Mercator the pixels of a row are of one size and those of the next of another, so a map's areas
are sums over rows.
"""

import re
from collections.abc import Iterable
from math import asin, cos, radians, sin, sqrt
from pathlib import Path
from typing import NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.warp import transform as warp

from caswit.errors import DataError
from caswit.raster.georef import DEGREES, Grid
from caswit.raster.reader import GDAL_ERRORS, one_line, quiet, rasterio_window
from caswit.raster.windows import Window

Degrees = tuple[float, float, float, float]
"""West, south, east, north."""

_A_M, _E = 6_378_137.0, 0.081819190842622
"""Half the major axis of WGS 84, and its eccentricity."""
_EARTH_KM = 6371.0
_STRIP_PX = 512, 16_384
"""Rows and columns of a map that are in memory at a time."""
_MERCATOR = re.compile(r'(PROJECTION|METHOD)\["(Popular Visualisation Pseudo[ -])?Mercator', re.IGNORECASE)


class ClassArea(NamedTuple):
    """What a class covers on a map."""

    pixels: int
    area_m2: float | None
    """None where the ground size of a pixel is unknown."""


def class_areas(file: Path, source_gsd_m: float | None = None) -> dict[int, ClassArea]:
    """Count the pixels of each class id of a map, and add up what they cover on the ground.

    Args:
        file: Map; its nodata value is not counted.
        source_gsd_m: Ground size of its pixels in metres where the user knows better than the file; as for polygons,
            areas are then those of the file times the square of how much longer a pixel is.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with quiet(), rasterio.open(file) as src:
            grid = Grid(src.height, src.width, src.crs, src.transform, src.gcps)
            areas = row_areas_m2(grid, source_gsd_m)
            pixels, m2 = np.zeros(256, np.int64), np.zeros(256)
            for top in range(0, grid.height, _STRIP_PX[0]):
                height = min(_STRIP_PX[0], grid.height - top)
                counts = np.zeros((height, 256), np.int64)
                for left in range(0, grid.width, _STRIP_PX[1]):
                    window = Window(top, left, height, min(_STRIP_PX[1], grid.width - left))
                    ids = src.read(1, window=rasterio_window(window)).astype(np.int32)
                    ids += 256 * np.arange(height, dtype=np.int32)[:, None]
                    counts += np.bincount(ids.ravel(), minlength=256 * height).reshape(height, 256)
                pixels += counts.sum(0)
                if areas is not None:
                    m2 += areas[top : top + height] @ counts
            nodata = src.nodata
    except GDAL_ERRORS as error:
        raise DataError(f"{file}: cannot be read ({one_line(error)})") from error
    found = (i for i in np.flatnonzero(pixels).tolist() if i != nodata)
    return {i: ClassArea(int(pixels[i]), None if areas is None else float(m2[i])) for i in found}


def row_areas_m2(grid: Grid, source_gsd_m: float | None = None) -> NDArray[np.float64] | None:
    """Return the area of a pixel of each row in square metres, (height,); None where it is unknown.

    Pixels of degrees and of Mercator maps are measured on the ellipsoid; those of other projections in its plane, as
    such maps are made to be.
    """
    file_m = grid.source_gsd_m
    if file_m is None:
        return None if source_gsd_m is None else np.full(grid.height, source_gsd_m**2)
    told = ((source_gsd_m or file_m) / file_m) ** 2
    (a, b, _), (d, e, _), _ = grid.matrix.tolist()
    if grid.crs.is_projected and not _MERCATOR.search(grid.crs.to_wkt()):
        return np.full(grid.height, abs(a * e - b * d) * grid.crs.linear_units_factor[1] ** 2 * told)
    # Edges of rows at the middle column; exact where rows lie along parallels, as nearly all do.
    edges = np.arange(grid.height + 1)
    middle = grid.matrix @ [np.full(len(edges), grid.width / 2), edges, np.ones(len(edges))]
    # The area of a rotated pixel, laid along the axes of the map, which scales its neighbourhood equally.
    width, height = (float(side) for side in np.hypot(*grid.matrix[:2, :2]))
    width *= abs(a * e - b * d) / (width * height)
    x, y = middle[0], middle[1] if b == d == 0 else middle[1][0] - height * edges
    lon, lat = (np.array(values) for values in warp(grid.crs, DEGREES, [*x, *(x + width)], [*y, *y]))
    east = np.radians((lon[len(edges) :] - lon[: len(edges)]) % 360)  # as a map may cross the 180th meridian
    north = _authalic(lat[: len(edges)])
    areas: NDArray[np.float64] = _A_M**2 * (1 - _E**2) / 2 * east[1:] * np.abs(np.diff(north)) * told
    return areas


def _authalic(lat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the function of the latitude whose differences are areas between parallels (Snyder 1987, 3-12)."""
    s = np.sin(np.radians(np.clip(lat, -90, 90)))
    q: NDArray[np.float64] = s / (1 - (_E * s) ** 2) + np.arctanh(_E * s) / _E
    return q


_APART_KM = 100.0


def distance_km(bounds: Degrees, area: Degrees) -> float:
    """Return the distance from the middle of an image's bounds to the nearest point of an area; 0 inside of it."""
    west, south, east, north = bounds
    lon, lat = (west + (east - west) % 360 / 2), (south + north) / 2
    width = (area[2] - area[0]) % 360  # an area may lie across the 180th meridian
    past = (lon - area[0]) % 360
    if past > width:
        past = min((0, width), key=lambda edge: abs((lon - area[0] - edge + 180) % 360 - 180))
    return _great_circle_km(lon, lat, area[0] + past, min(max(lat, area[1]), area[3]))


def _great_circle_km(lon: float, lat: float, other_lon: float, other_lat: float) -> float:
    up, along = radians(other_lat - lat) / 2, radians(other_lon - lon) / 2
    chord = sin(up) ** 2 + cos(radians(lat)) * cos(radians(other_lat)) * sin(along) ** 2
    return 2 * _EARTH_KM * asin(min(1.0, sqrt(chord)))


def regions(areas: Iterable[Degrees]) -> list[Degrees]:
    """Return bounds of areas, one for all that lie within 100 km of each other."""
    found: list[Degrees] = []
    for each in areas:
        near = [region for region in found if min(distance_km(each, region), distance_km(region, each)) < _APART_KM]
        west, south, east, north = zip(each, *near, strict=True)
        found = [region for region in found if region not in near]
        found.append((min(west), min(south), max(east), max(north)))
    return found
