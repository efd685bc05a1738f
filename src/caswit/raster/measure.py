"""Lengths and areas on the ground, of lines that somebody draws over an image."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from pyproj import Geod

from caswit.raster.georef import Grid, lonlat_of

_EARTH = Geod(ellps="WGS84")


class Measured(NamedTuple):
    """The size of a line, and of the surface that it encloses when its ends are joined."""

    unit: str
    """Of the lengths: ``m``, or ``px`` where the ground size of a pixel is unknown. Areas are in its square."""
    length: float
    perimeter: float
    """With the ends joined."""
    area: float


def measure(grid: Grid, places: Sequence[tuple[float, float]], gsd_m: float | None = None) -> Measured:
    """Measure a line through places.

    Args:
        grid: Grid of the image.
        places: (row, column) of each place; whole numbers are corners of pixels.
        gsd_m: Ground size of a pixel, for grids that do not know theirs.

    Returns:
        Metres along geodesics on WGS 84. Where coordinates have no degrees, metres by the ground size of a pixel;
        pixels where that is unknown too.
    """
    degrees = [lonlat_of(grid, *place) for place in places]
    if None not in degrees:
        lon, lat = np.transpose([place for place in degrees if place is not None])
        area, perimeter = _EARTH.polygon_area_perimeter(lon, lat)
        return Measured("m", float(_EARTH.line_length(lon, lat)), float(perimeter), abs(float(area)))
    gsd_m = grid.source_gsd_m or gsd_m
    row, col = (gsd_m or 1.0) * np.transpose(places).astype(float)
    steps = np.hypot(np.diff(row, append=row[0]), np.diff(col, append=col[0]))
    area = abs(float(np.dot(row, np.roll(col, 1)) - np.dot(col, np.roll(row, 1)))) / 2
    return Measured("px" if gsd_m is None else "m", float(steps[:-1].sum()), float(steps.sum()), area)
