"""Areas of interest: polygons from any vector file, in pixels of a raster."""

from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyogrio.raw
import shapely
from pyproj import CRS, Transformer
from pyproj.exceptions import ProjError
from rasterio import Affine
from rasterio.features import rasterize
from shapely.errors import ShapelyError

from caswit.errors import DataError, one_line
from caswit.raster.georef import Grid, bounds_in_words
from caswit.raster.reader import Bool
from caswit.raster.windows import Window

_ERRORS = (RuntimeError, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError, ShapelyError)
"""The exceptions that come out of pyogrio and shapely when a file is at fault; pyogrio's own are RuntimeErrors."""
_SEGMENTS = 200
"""Parts into which the longest side of an area is cut before it is projected: straight lines become curves."""


class AreaOfInterest:
    """The polygons inside which a map is wanted. Can be sent to other processes.

    Args:
        shape: Polygons in pixels: x is the column, y the row.
    """

    def __init__(self, shape: Any) -> None:
        self.shape = shape
        shapely.prepare(self.shape)

    def touches(self, window: Window) -> bool:
        """Return whether any part of a window is inside."""
        box = shapely.box(window.col, window.row, window.col + window.width, window.row + window.height)
        return bool(self.shape.intersects(box) and not self.shape.touches(box))

    def mask(self, window: Window) -> Bool:
        """Return which pixels of a window have their centres inside: (H, W)."""
        inside: Bool = rasterize(
            [self.shape],
            out_shape=(window.height, window.width),
            transform=Affine.translation(window.col, window.row),
            fill=0,
            default_value=1,
            dtype="uint8",
        ).astype(bool)
        return inside

    def __getstate__(self) -> bytes:
        return shapely.to_wkb(self.shape)

    def __setstate__(self, state: bytes) -> None:
        self.__init__(shapely.from_wkb(state))  # type: ignore[misc]


def read_aoi(file: Path, grid: Grid) -> AreaOfInterest:
    """Read all polygons of a vector file and place them on a raster.

    Raises:
        DataError: The file cannot be read, has no polygons or no CRS, or lies elsewhere.
    """
    if not file.exists():
        raise DataError(f"{file}: no such file")
    if grid.crs is None:
        raise DataError(f"{file}: the image has no CRS, so an area cannot be placed on it")
    try:
        # A GeoPackage from QGIS, or from us, has its styles in a second layer, which pyogrio would warn of.
        layers = [name for name, kind in pyogrio.list_layers(file) if kind]
        meta, _, geometry, _ = pyogrio.raw.read(file, layer=layers[0] if layers else None, columns=[])
        found = shapely.from_wkb(geometry)
        if not np.isfinite(shapely.get_coordinates(found)).all():
            raise DataError(f"{file}: has corners whose coordinates are not finite; draw those polygons again")
        shape = shapely.union_all(shapely.make_valid(found))
    except _ERRORS as error:
        raise DataError(f"{file}: not a vector file that GDAL reads ({one_line(error)})") from error
    if shape is None or shapely.area(shape) == 0:
        raise DataError(f"{file}: has no polygons; lines and points have no area, so buffer them first")
    if not meta["crs"]:
        raise DataError(f"{file}: has no CRS; give it one (ogr2ogr -a_srs)")
    try:
        area = AreaOfInterest(_to_pixels(shape, meta["crs"], grid, file))
    except _ERRORS as error:
        raise DataError(f"{file}: cannot be placed on the image ({one_line(error)})") from error
    if not area.touches(Window(0, 0, grid.height, grid.width)):
        where = bounds_in_words(shape.bounds)
        raise DataError(f"{file}: lies outside the image ({where} in its CRS); check the CRS of both")
    return area


def _to_pixels(shape: Any, crs: str, grid: Grid, file: Path) -> Any:
    west, south, east, north = shape.bounds
    fine = shapely.segmentize(shape, max(east - west, north - south) / _SEGMENTS)
    inverse = np.linalg.inv(grid.matrix)
    try:
        to_image = Transformer.from_crs(CRS.from_user_input(crs), CRS.from_wkt(grid.crs.to_wkt()), always_xy=True)
    except ProjError as error:
        raise DataError(f"{file}: cannot be brought into the image's CRS ({error})") from error

    def place(points: Any) -> Any:
        x, y = to_image.transform(points[:, 0], points[:, 1])
        return (inverse @ np.stack([x, y, np.ones_like(x)]))[:2].T

    pixels = shapely.transform(fine, place)
    if not np.isfinite(shapely.get_coordinates(pixels)).all():
        raise DataError(f"{file}: reaches where the image's CRS is not defined; clip it first")
    return shapely.make_valid(pixels)
