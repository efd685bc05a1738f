"""Polygons of a GeoPackage as a map in a browser asks for them: those of one part, in pixels of the map, simplified.

The file may be anybody's. It is read with SQLite alone: without its journal, without code or virtual tables but its
R-tree, and no question takes longer than a few seconds.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.errors import CRSError
from shapely.errors import ShapelyError

from caswit.errors import DataError, one_line
from caswit.raster.gate import OPENING
from caswit.raster.georef import Grid
from caswit.raster.windows import Window

MAX_POLYGONS = 4000
"""Polygons of one answer; the largest are taken."""
MAX_CORNERS = 150_000
"""Corners of one answer, after simplification."""
_MAX_BYTES = 48 << 20
"""Geometry that is read for one answer, and the size of one value of the file."""
_MOST_S = 4.0
_STEPS = 20_000
"""Steps of SQLite's machine between two looks at the clock."""
# The R-tree prepares what it would write with; the connection can only read.
_PREPARED = {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, *_PREPARED}
_FUNCTIONS = {"count", "length"}
_ENVELOPE_BYTES = (0, 32, 48, 48, 64)


class Polygon(NamedTuple):
    """A polygon of the file."""

    shape: Any
    """In pixels: x is the column and y the row, whole numbers are corners of pixels."""
    class_id: int
    name: str
    about: dict[str, float | None]
    """Its other numbers by column, such as ``area_m2``."""


class _Table(NamedTuple):
    name: str
    key: str
    geometry: str
    tree: str
    """Its R-tree."""
    columns: tuple[str, ...]
    """Columns of numbers beside the class."""
    named: bool
    """Classes have names."""


class PolygonFile:
    """The polygons of a map, in a GeoPackage as ``caswit predict --vector`` writes it.

    Args:
        path: The file.
        grid: Grid of the map.

    Raises:
        DataError: It holds no such polygons, or they are not in the CRS of the map.
    """

    def __init__(self, path: Path, grid: Grid) -> None:
        self.path, self.grid = path, grid
        self.revision = path.stat().st_mtime_ns
        with self._open() as db:
            self._table, extent, crs = _described(db, path.name)
        if not _same_crs(crs, grid.crs):
            raise DataError(f"{path.name}: its polygons are not in the CRS of the map")
        # Without a georeference the ground is the plane of the pixels, in which files have north up or down.
        down = grid.crs is None and extent is not None and extent[3] <= 0
        self._matrix = np.diag([1.0, -1.0 if down else 1.0, 1.0]) @ grid.matrix
        corners = _moved(np.linalg.inv(self._matrix), _corners(*extent)) if extent else np.zeros((1, 2))
        (left, top), (right, bottom) = corners.min(0).tolist(), corners.max(0).tolist()
        self.overlaps = extent is not None and bool(left < grid.width and top < grid.height and right > 0 < bottom)
        """True where some of it lies on the map."""

    def inside(self, window: Window, px: float) -> tuple[list[Polygon], int]:
        """Read the polygons that a part of the map shows.

        Args:
            window: The part; polygons are cut off at its edges.
            px: Pixels of the map for each pixel of the screen; what is smaller is left out, and corners with it.

        Returns:
            Polygons, the largest first, and how many more there are.

        Raises:
            DataError: The file cannot be read, or not in time.
        """
        table = self._table
        bounds, (wide, high) = self._bounds(window), px * np.abs(self._matrix[:2, :2]).sum(1)
        place = f"FROM {_quoted(table.tree)} WHERE maxx >= ? AND minx <= ? AND maxy >= ? AND miny <= ?"
        place += " AND (maxx - minx >= ? OR maxy - miny >= ?)"
        asked = (bounds[0], bounds[2], bounds[1], bounds[3], float(wide), float(high))
        with self._open() as db:
            (count,) = db.execute(f"SELECT count(*) {place}", asked).fetchone()
            largest = f"ORDER BY (maxx - minx) * (maxy - miny) DESC LIMIT {MAX_POLYGONS}"
            numbers = [number for (number,) in db.execute(f"SELECT id {place} {largest}", asked)]
            found = list(self._read(db, numbers))
        box = (window.col, window.row, window.col + window.width, window.row + window.height)
        shown, corners = [], 0
        for polygon in found:
            shape = _simplified(polygon.shape, box, 0.4 * px)
            if shape is None:
                continue
            corners += shapely.get_num_coordinates(shape)
            if corners > MAX_CORNERS:
                break
            shown.append(polygon._replace(shape=shape))
        return shown, count - len(shown) if len(found) < count or corners > MAX_CORNERS else 0

    def at(self, row: int, col: int) -> Polygon | None:
        """Return the polygon around the centre of a pixel.

        Raises:
            DataError: The file cannot be read, or not in time.
        """
        bounds, centre = self._bounds(Window(row, col, 1, 1)), shapely.Point(col + 0.5, row + 0.5)
        place = "maxx >= ? AND minx <= ? AND maxy >= ? AND miny <= ? LIMIT 100"
        asked = (bounds[0], bounds[2], bounds[1], bounds[3])
        with self._open() as db:
            numbers = [n for (n,) in db.execute(f"SELECT id FROM {_quoted(self._table.tree)} WHERE {place}", asked)]
            return next((p for p in self._read(db, numbers) if shapely.covers(p.shape, centre)), None)

    def _bounds(self, window: Window) -> tuple[float, float, float, float]:
        row, col, height, width = window
        ground = _moved(self._matrix, _corners(col, row, col + width, row + height))
        (left, bottom), (right, top) = ground.min(0).tolist(), ground.max(0).tolist()
        return left, bottom, right, top

    def _read(self, db: sqlite3.Connection, numbers: list[int]) -> Iterator[Polygon]:
        """Read rows by number, until they are too many bytes."""
        table, size = self._table, 0
        to_pixels = np.linalg.inv(self._matrix)
        columns = (table.geometry, "class", *(("name",) if table.named else ()), *table.columns)
        row = f"SELECT {', '.join(map(_quoted, columns))} FROM {_quoted(table.name)} WHERE {_quoted(table.key)} = ?"
        for number in numbers:
            blob, class_id, *others = db.execute(row, (number,)).fetchone() or (None, None)
            if not isinstance(blob, bytes) or not isinstance(class_id, int):
                continue
            size += len(blob)
            if size > _MAX_BYTES:
                return
            shape = shapely.from_wkb(_wkb(blob), on_invalid="ignore")
            if shape is None or shape.geom_type not in ("Polygon", "MultiPolygon"):
                continue
            shape = shapely.transform(shapely.force_2d(shape), lambda xy: _moved(to_pixels, xy))
            if np.isfinite(shapely.get_coordinates(shape)).all():
                name = str(others.pop(0) or "")[:200] if table.named else f"class {class_id}"
                values = (v if isinstance(v, int | float) else None for v in others)
                yield Polygon(shape, class_id, name, dict(zip(table.columns, values, strict=True)))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        ends = time.monotonic() + _MOST_S
        try:
            # Immutable: SQLite then neither looks for a journal, which may name files elsewhere, nor makes one.
            address = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
            # Coordinates may be any numbers.
            with closing(sqlite3.connect(address, uri=True, timeout=1)) as db, np.errstate(all="ignore"):
                db.execute("PRAGMA trusted_schema = OFF")
                db.execute("PRAGMA cell_size_check = ON")
                db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_BYTES)
                db.set_authorizer(_only_reads)
                db.set_progress_handler(lambda: int(time.monotonic() > ends), _STEPS)
                yield db
        except (sqlite3.Error, ShapelyError, ValueError, OverflowError, MemoryError) as error:
            raise DataError(f"{self.path.name}: its polygons cannot be read ({one_line(error)})") from error


def _only_reads(action: int, first: str | None, second: str | None, *_: object) -> int:
    known = action in _ALLOWED and (action != sqlite3.SQLITE_FUNCTION or second in _FUNCTIONS)
    pragma = action == sqlite3.SQLITE_PRAGMA and first == "table_info"
    return sqlite3.SQLITE_OK if known or pragma else sqlite3.SQLITE_DENY


def _described(db: sqlite3.Connection, file: str) -> tuple[_Table, Any, tuple[str, int, str] | None]:
    """Return the first table of classified polygons, its extent, and its CRS as (organisation, code, WKT)."""
    listed = (
        "SELECT c.table_name, g.column_name, c.srs_id, c.min_x, c.min_y, c.max_x, c.max_y FROM gpkg_contents c "
        "JOIN gpkg_geometry_columns g ON g.table_name = c.table_name WHERE c.data_type = 'features' LIMIT 20"
    )
    for name, geometry, srs_id, *extent in db.execute(listed).fetchall():
        index = f"rtree_{name}_{geometry}"
        kinds = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE name IN (?, ?) LIMIT 2", (name, index)))
        # A view or a virtual table of another kind may compute anything.
        table, tree = (" ".join(str(kinds.get(each) or "").split()).upper() for each in (name, index))
        if not table.startswith("CREATE TABLE ") or not (tree.startswith("CREATE VIRTUAL") and " USING RTREE" in tree):
            continue
        columns = {row[1]: (str(row[2]).upper(), row[5]) for row in db.execute(f"PRAGMA table_info({_quoted(name)})")}
        key = next((column for column, (_, is_key) in columns.items() if is_key), None)
        if key is None or "class" not in columns or geometry not in columns:
            continue
        numbers = [c for c, (kind, _) in columns.items() if kind in ("REAL", "DOUBLE", "FLOAT")][:8]
        found = _Table(name, key, geometry, index, tuple(numbers), "name" in columns)
        sound = all(isinstance(x, int | float) and np.isfinite(x) for x in extent)
        place = "SELECT organization, organization_coordsys_id, definition FROM gpkg_spatial_ref_sys WHERE srs_id = ?"
        return found, extent if sound else None, db.execute(place, (srs_id,)).fetchone()
    raise DataError(f"{file}: holds no polygons with a class and an R-tree, as caswit predict --vector writes them")


def _same_crs(described: tuple[str, int, str] | None, crs: Any) -> bool:
    organisation, code, wkt = described or ("NONE", -1, "undefined")
    unknown = str(organisation).upper() == "NONE" or str(wkt).strip().lower() in ("", "undefined")
    if crs is None or unknown or "Undefined" in str(wkt)[:60]:
        return crs is None and (unknown or "Undefined" in str(wkt)[:60])
    if str(organisation).upper() == "EPSG" and crs.to_epsg() == code:
        return True
    try:
        with OPENING:
            return bool(rasterio.CRS.from_wkt(str(wkt)[:20_000]) == crs)
    except CRSError:
        return False


def _wkb(blob: bytes) -> bytes:
    """Return the geometry without the header of GeoPackage."""
    code = blob[3] >> 1 & 7 if len(blob) > 8 and blob[:2] == b"GP" else 9
    return blob[8 + _ENVELOPE_BYTES[code] :] if code < len(_ENVELOPE_BYTES) else b""


def _simplified(shape: Any, box: tuple[float, ...], tolerance: float) -> Any | None:
    """Return what lies in a box, with fewer corners; None if nothing does."""
    left, top, right, bottom = shapely.bounds(shape)
    within = box[0] <= left and box[1] <= top and right <= box[2] and bottom <= box[3]
    with np.errstate(all="ignore"):
        with suppress(ShapelyError):  # a ring that crosses itself is shown whole
            shape = shape if within else shapely.clip_by_rect(shape, *box)
        # Without a look at neighbours: what may open between two is less than a pixel of the screen.
        shape = shapely.simplify(shape, tolerance, preserve_topology=False)
    return None if shapely.is_empty(shape) or shape.geom_type not in ("Polygon", "MultiPolygon") else shape


def _corners(left: float, bottom: float, right: float, top: float) -> NDArray[np.float64]:
    return np.array([[left, bottom], [right, bottom], [left, top], [right, top]], np.float64)


def _moved(matrix: NDArray[Any], xy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(xy @ matrix[:2, :2].T + matrix[:2, 2])


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def rings(shape: Any) -> list[list[list[list[float]]]]:
    """Return a shape as polygons of rings of [row, column], which is the order of a map in a browser."""
    parts = shapely.get_parts(shape)
    ends = [(p.exterior, *p.interiors) for p in parts]
    return [[np.round(shapely.get_coordinates(r)[:, ::-1], 2).tolist() for r in polygon] for polygon in ends]
