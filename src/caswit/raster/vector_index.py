"""The shapes of a vector file, indexed by place, so that those in a window are found without reading the others.

The index is an SQLite file in the cache with an R-tree. It is made once for a file, layer and attribute, batch by
batch, and again when the file changes; coordinates are the file's own. Nothing stays open or in memory between two
questions, so threads and processes share it.
"""

import hashlib
import sqlite3
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyogrio
import pyogrio.raw
import shapely
from shapely.errors import ShapelyError

from caswit.config.data import attribute_text
from caswit.errors import DataError, brief, one_line
from caswit.files import atomic_path, cache_folder
from caswit.progress import Progress

VECTOR_ERRORS = (RuntimeError, OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError, ShapelyError)
"""The exceptions that come out of pyogrio and shapely when a file is at fault; pyogrio's own are RuntimeErrors."""
_VERSION = 1
_AT_ONCE = 20_000
"""Features held in memory while an index is made."""
_QUIET_BELOW = 100_000
"""Files of fewer features are indexed without showing progress."""
_NAMED = 5
"""Features named in an error."""
_TABLES = """
    CREATE TABLE about(fingerprint TEXT, crs TEXT, west REAL, south REAL, east REAL, north REAL);
    CREATE TABLE kind(value TEXT, polygons INTEGER, others INTEGER);
    CREATE TABLE shape(id INTEGER PRIMARY KEY, value TEXT, wkb BLOB);
    CREATE VIRTUAL TABLE place USING rtree(id, west, east, south, north);
"""
_BESIDE = (".dbf", ".shx", ".prj", ".cpg", ".dat", ".map", ".id", ".csvt", ".gfs", ".xsd")
"""Endings of files that belong to a vector file of the same name."""
Bounds = tuple[float, float, float, float]
"""West, south, east, north."""


class Shapes(NamedTuple):
    """Some shapes of a file, in the order of the file."""

    numbers: list[int]
    """Their places in that order."""
    values: list[str]
    """Of the attribute, as text."""
    shapes: Any
    """(N,) polygons, lines and points, none of them of several parts, in the file's CRS."""


class Kind(NamedTuple):
    """How many shapes have a value of the attribute."""

    polygons: int
    others: int
    """Lines and points."""


class ShapeIndex:
    """The shapes of one layer of a vector file, found by place.

    Args:
        file: Any vector file that pyogrio reads.
        layer: Name of the layer; None: the only one.
        attribute: The column whose values are kept; None keeps none, and every value is "".

    Raises:
        DataError: It is no vector file, lacks layer or attribute, is empty, or has shapes that are broken.
    """

    def __init__(self, file: Path, layer: str | None = None, attribute: str | None = None) -> None:
        self.file = file
        name = hashlib.sha256(repr((str(file.resolve()), layer, attribute)).encode()).hexdigest()[:16]
        self._index = cache_folder() / "vector" / f"{name}.sqlite"
        self.fingerprint = fingerprint = _fingerprint(file)
        """Changes when the file does."""
        if _known(self._index) != fingerprint:
            self._index.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(self._index) as partial, warnings.catch_warnings():
                _make(partial, fingerprint, file, layer, attribute)
        with self._open() as db:
            _, crs, *bounds = db.execute("SELECT * FROM about").fetchone()
            self.crs: str | None = crs or None
            self.bounds: Bounds = (bounds[0], bounds[1], bounds[2], bounds[3])
            self.kinds = {value: Kind(*counts) for value, *counts in db.execute("SELECT * FROM kind ORDER BY rowid")}
            """By value of the attribute, in the order in which they first occur."""

    def within(self, bounds: Bounds, least: tuple[float, float] = (0.0, 0.0), most: int = -1) -> Shapes:
        """Return the shapes whose bounding boxes meet a rectangle.

        Args:
            bounds: The rectangle.
            least: Width and height; shapes that are smaller both ways are left out.
            most: Number of shapes that are returned; -1: all.
        """
        west, south, east, north = bounds
        asked = (
            "SELECT s.id, s.value, s.wkb FROM place p JOIN shape s ON s.id = p.id "
            "WHERE p.east >= ? AND p.west <= ? AND p.north >= ? AND p.south <= ? "
            "AND (p.east - p.west >= ? OR p.north - p.south >= ?) ORDER BY s.id LIMIT ?"
        )
        try:
            with self._open() as db:
                same = db.execute("SELECT fingerprint FROM about").fetchone() == (self.fingerprint,)
                found = db.execute(asked, (west, east, south, north, *least, most)).fetchall() if same else []
        except sqlite3.Error as error:
            raise DataError(f"{self._index}: the index of {self.file} cannot be read ({one_line(error)})") from error
        if not same:
            raise DataError(f"{self.file}: was changed while it was read; start again")
        return Shapes([n for n, _, _ in found], [v for _, v, _ in found], shapely.from_wkb([w for _, _, w in found]))

    def _open(self) -> closing[sqlite3.Connection]:
        # Immutable: there is no lock that a forked process could lose for another. A new index is another file.
        return closing(sqlite3.connect(f"{self._index.absolute().as_uri()}?mode=ro&immutable=1", uri=True))


def _known(index: Path) -> str | None:
    """Return the fingerprint that an index was made for."""
    if not index.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{index.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
            (found,) = db.execute("SELECT fingerprint FROM about").fetchone()
            return str(found)
    except (sqlite3.Error, TypeError):  # damaged, or of another version
        return None


def _fingerprint(file: Path) -> str:
    """Return what changes when a vector file does: also the table beside a shapefile, and the journal of a database."""
    if not file.exists():
        raise DataError(f"{file}: no such file")
    # Named one by one: the folder may hold a hundred thousand images.
    beside = [file.with_suffix(ending) for each in _BESIDE for ending in (each, each.upper())]
    beside += [file.with_name(file.name + ending) for ending in ("-wal", "-journal")]
    inside = sorted(file.iterdir()) if file.is_dir() else []
    states = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in (file, *beside, *inside) if p.is_file()]
    return hashlib.sha256(repr((_VERSION, states)).encode()).hexdigest()


def _make(index: Path, fingerprint: str, file: Path, layer: str | None, attribute: str | None) -> None:
    warnings.simplefilter("ignore")  # of GDAL, about the file; what matters is checked here
    layer = _layer(file, layer)
    try:
        about = pyogrio.read_info(file, layer=layer)
    except VECTOR_ERRORS as error:
        raise DataError(f"{file}: layer {brief(layer)} cannot be read ({one_line(error)})") from error
    columns = [str(name) for name in about["fields"]]
    if attribute is not None and attribute not in columns:
        raise DataError(f"{file}: has no attribute {brief(attribute)}; it has {brief(', '.join(columns) or 'none')}")
    count = max(0, int(about["features"]))
    try:
        with (
            closing(sqlite3.connect(index, isolation_level=None)) as db,
            Progress(f"index {file.name}", count, "shapes", quiet=count < _QUIET_BELOW) as progress,
        ):
            db.executescript(f"PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; {_TABLES} BEGIN;")
            filled = _Filled(db)
            for fids, geometry, values in _batches(file, layer, attribute):
                filled.add(file, fids, geometry, values)
                progress.advance(len(fids))
            filled.check(file)
            bounds = db.execute("SELECT min(west), min(south), max(east), max(north) FROM place").fetchone()
            db.executemany("INSERT INTO kind VALUES (?, ?, ?)", [(value, *n) for value, n in filled.kinds.items()])
            db.execute("INSERT INTO about VALUES (?, ?, ?, ?, ?, ?)", (fingerprint, about["crs"] or "", *bounds))
            db.execute("COMMIT")
    except (sqlite3.Error, *VECTOR_ERRORS) as error:
        raise DataError(f"{file}: its shapes cannot be indexed in {index.parent} ({one_line(error)})") from error


def _layer(file: Path, layer: str | None) -> str:
    try:
        layers = [(str(name), kind) for name, kind in pyogrio.list_layers(file)]
    except VECTOR_ERRORS as error:
        raise DataError(f"{file}: not a vector file that GDAL reads ({one_line(error)})") from error
    # Tables without geometry, such as QGIS's styles, are no choice.
    drawn = [name for name, kind in layers if kind is not None]
    if layer is not None and layer not in drawn:
        raise DataError(f"{file}: has no layer of shapes {brief(layer)}; it has {brief(', '.join(drawn) or 'none')}")
    if layer is None and len(drawn) > 1:
        raise DataError(
            f"{file}: has {len(drawn)} layers, {brief(', '.join(drawn))}; say which, e.g. layer: {drawn[0]}"
        )
    if not drawn:
        raise DataError(f"{file}: has no layer with shapes, only tables; choose another file")
    return layer or drawn[0]


def _batches(file: Path, layer: str, attribute: str | None) -> Iterator[tuple[Any, Any, list[str]]]:
    """Yield ids of features, their geometries (WKB, None where there is none), and values of the attribute as text."""
    columns = [] if attribute is None else [attribute]
    try:
        source = pyogrio.raw.open_arrow(
            file, layer=layer, columns=columns, batch_size=_AT_ONCE, return_fids=True, use_pyarrow=True
        )
        with source as (meta, reader):
            for batch in reader:
                fids, geometry = batch.column(0).to_pylist(), batch.column(meta["geometry_name"] or "wkb_geometry")
                values = (
                    []
                    if attribute is None
                    else [attribute_text(value) for value in batch.column(attribute).to_pylist()]
                )
                yield fids, geometry.to_pylist(), values or [""] * len(fids)
    except VECTOR_ERRORS as error:
        raise DataError(f"{file}: layer {brief(layer)} cannot be read ({one_line(error)})") from error


class _Filled:
    """An index that is being filled, and what is wrong with the file."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self.number = 0
        self.kinds: dict[str, list[int]] = {}
        self.broken = 0
        self.said: list[str] = []

    def add(self, file: Path, fids: Sequence[int], geometry: Sequence[bytes | None], values: Sequence[str]) -> None:
        """Add the parts of some features in their order."""
        try:
            with np.errstate(invalid="ignore"):
                shapes = shapely.force_2d(shapely.from_wkb(geometry, on_invalid="ignore"))
        except NotImplementedError as error:
            raise DataError(f"{file}: has curves; make them lines (ogr2ogr -nlt CONVERT_TO_LINEAR)") from error
        there = np.array([bool(wkb) for wkb in geometry])
        bad = there & ~shapely.is_valid(shapes) & (shapely.is_missing(shapes) | (shapely.get_dimensions(shapes) == 2))
        bad |= ~np.isfinite(shapely.bounds(shapes)).all(1) & there & ~shapely.is_empty(shapes)
        self.broken += int(bad.sum())
        for i in np.flatnonzero(bad)[: _NAMED - len(self.said)]:
            reason = "not closed" if shapes[i] is None else shapely.is_valid_reason(shapes[i])
            self.said.append(f"feature {fids[i]}: {one_line(reason, 60)}")
        # A layer dissolved by class is one feature of many parts, of which a window needs few.
        parts, owners = shapely.get_parts(np.where(bad, None, shapes), return_index=True)
        while (shapely.get_type_id(parts) > _POLYGON).any():
            parts, inner = shapely.get_parts(parts, return_index=True)
            owners = owners[inner]
        kept = ~shapely.is_empty(parts)
        parts, owners = parts[kept], owners[kept]
        rows = range(self.number + 1, self.number + 1 + len(parts))
        self.number += len(parts)
        west, south, east, north = shapely.bounds(parts).T.tolist() if len(parts) else ([], [], [], [])
        said = [values[i] for i in owners]
        self.db.executemany("INSERT INTO shape VALUES (?, ?, ?)", zip(rows, said, shapely.to_wkb(parts), strict=True))
        boxes = zip(rows, west, east, south, north, strict=True)
        self.db.executemany("INSERT INTO place VALUES (?, ?, ?, ?, ?)", boxes)
        for value, kind in zip(said, shapely.get_type_id(parts) != _POLYGON, strict=True):
            self.kinds.setdefault(value, [0, 0])[int(kind)] += 1

    def check(self, file: Path) -> None:
        """Raise DataError if shapes are broken, or there are none."""
        if self.broken:
            more = f" and {self.broken - len(self.said)} more" if self.broken > len(self.said) else ""
            raise DataError(
                f"{file}: has {self.broken} shape{'s' * (self.broken > 1)} that cannot be drawn: "
                f"{'; '.join(self.said)}{more}; repair them with QGIS (Fix geometries) or ogr2ogr -makevalid"
            )
        if not self.number:
            raise DataError(f"{file}: has no shapes; draw some, or leave the label out")


_POLYGON = 3
"""Type of a polygon in GEOS; points, lines and rings are below, collections of any kind above."""
