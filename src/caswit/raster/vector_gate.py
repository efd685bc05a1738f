"""The gate of the viewer for vector files: which of them GDAL may open, as ``raster.gate`` says of rasters.

Some of GDAL's vector formats are descriptions of other places: virtual layers, pipelines of commands, web services.
So the first bytes of a file must be those of one of three plain formats, in which nothing names another file; all that
GDAL opens along with it must be ordinary files in the folder; and a GeoPackage may hold tables only. GeoJSON is none of
the three: it may name a web page that describes its CRS.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from caswit.errors import DataError, one_line
from caswit.raster.gate import Gate

_MOST_BYTES = 1 << 30
_MOST_TEXT = 1 << 20
_PACKAGES = (b"GPKG", b"GP10", b"GP11")


def check_vector(gate: Gate, path: Path) -> str:
    """Return the GDAL driver of a vector file that may be opened.

    Raises:
        DataError: Opening it might reach something outside the folder, or it is none of the known formats.
    """
    if not gate.is_file(path):
        raise DataError(f"{path.name}: not a file in the folder that is shown")
    if path.stat().st_size > _MOST_BYTES:
        raise DataError(f"{path.name}: vector files of more than {_MOST_BYTES >> 30} GiB are not shown")
    with path.open("rb") as file:
        start = file.read(100)
    driver = _driver(start, path)
    if driver is None:
        raise DataError(f"{path.name}: neither GeoPackage, FlatGeobuf nor a shapefile")
    for beside in path.parent.iterdir():
        if beside.name.startswith((f"{path.stem}.", f"{path.name}-")) and not gate.is_file(beside):
            raise DataError(f"{path.name}: {beside.name} beside it is not a file in the folder that is shown")
    if driver == "GPKG":
        _check_package(path)
    return driver


def _driver(start: bytes, path: Path) -> str | None:
    ending = path.suffix.lower()
    if start.startswith(b"SQLite format 3\0") and start[68:72] in _PACKAGES and ending == ".gpkg":
        return "GPKG"
    if start.startswith(b"fgb\x03fgb") and ending == ".fgb":
        return "FlatGeobuf"
    if start.startswith(b"\0\0\x27\x0a") and ending == ".shp":
        return "ESRI Shapefile"
    return None


def _check_package(path: Path) -> None:
    """Refuse a GeoPackage that computes what it shows, or that a program is writing to."""
    for ending in ("-journal", "-wal"):
        if path.with_name(path.name + ending).exists():
            raise DataError(f"{path.name}: a program is writing to it; close it there")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            db.execute("PRAGMA trusted_schema = OFF")
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MOST_TEXT)
            kinds = db.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{path.name}: not a GeoPackage ({one_line(error)})") from error
    for kind, name, sql in kinds:
        said = " ".join(str(sql).upper().split())
        if kind == "view" or (said.startswith("CREATE VIRTUAL") and " USING RTREE" not in said):
            raise DataError(f"{path.name}: {one_line(name, 40)} is no table, but computed when it is read")
