"""Vector files written feature by feature: GeoPackage, GeoParquet, GeoJSON.

Polygons come in pixels and are placed on the ground here; their areas are square metres on the ground.
"""

import json
import re
import sqlite3
import warnings
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import pyogrio.raw
import shapely
from numpy.typing import NDArray
from pyproj import CRS, Geod, Transformer

from caswit.errors import ConfigError, DataError, one_line
from caswit.raster.georef import Grid
from caswit.raster.polygons import ClassPolygon

FORMATS = (".gpkg", ".parquet", ".geojson")
_COLUMNS = ["class", "name", "area_m2"]
_CONFIDENCE = "confidence"
"""A fourth column, where confidence was computed."""
_LAYER = "landcover"
_GEOJSON = '{"type": "FeatureCollection", "features": ['
_AT_ONCE = 5000
"""Polygons held before they are written."""


class Ground:
    """Turns pixels into coordinates, and polygons into areas on the ground.

    Where the user contradicts the file, coordinates are the file's, so that polygons lie on the image, and areas are
    the user's: those of the CRS, times the square of how much longer a pixel is than the file says.

    Args:
        grid: The grid of the map.
        source_gsd_m: Ground size of its pixels in metres as resolved by the plan; None: what the grid says.
    """

    def __init__(self, grid: Grid, source_gsd_m: float | None = None) -> None:
        self.grid, self.source_gsd_m = grid, source_gsd_m or grid.source_gsd_m
        self.crs = CRS.from_wkt(grid.crs.to_wkt()) if grid.crs else None
        self._degrees: Transformer | None = None
        if self.crs is not None and (self.crs.is_geographic or self.crs.to_epsg() == 3857):
            # Web Mercator calls its units metres, but they are not metres on the ground.
            self._degrees = Transformer.from_crs(self.crs, self.crs.geodetic_crs, always_xy=True)

    def place(self, shapes: Any) -> Any:
        """Return polygons in coordinates of the CRS instead of pixels; they wind counter-clockwise, holes clockwise."""
        matrix = self.grid.matrix
        if self.grid.transform.is_identity:
            # QGIS shows an image without georeference below the x axis, its first row at the top: y is minus the row.
            matrix = np.diag([1.0, -1.0, 1.0])
        placed = shapely.transform(shapes, lambda p: (matrix @ np.stack([p[:, 0], p[:, 1], np.ones(len(p))]))[:2].T)
        # Simplifying leaves holes that wind as their polygon does, which on the ellipsoid, where a ring's direction is
        # the sign of its area, would be added to it.
        return shapely.orient_polygons(placed)

    def areas_m2(self, placed: Any) -> NDArray[np.float64]:
        """Return areas of polygons from ``place`` in square metres; NaN where the ground size of a pixel is unknown."""
        file_m, source_m = self.grid.source_gsd_m, self.source_gsd_m or np.nan
        if file_m is None or self.crs is None:
            pixel = abs(np.linalg.det(self.grid.matrix[:2, :2]))
            return np.asarray(shapely.area(placed)) / pixel * source_m**2
        # 1 unless the user contradicts the file. A factor, for a pixel's size varies within a raster in degrees.
        told = (source_m / file_m) ** 2
        if self._degrees is None:
            metres: float = self.crs.axis_info[0].unit_conversion_factor
            areas: NDArray[np.float64] = shapely.area(placed) * metres**2 * told
            return areas
        ellipsoid: Geod = self.crs.get_geod() or Geod(ellps="WGS84")
        degrees = shapely.transform(placed, self._degrees.transform, interleaved=False)
        return np.array([abs(ellipsoid.geometry_area_perimeter(g)[0]) * told for g in degrees])


class Features(NamedTuple):
    """Some polygons, ready to be written."""

    shapes: Any
    ids: NDArray[np.uint8]
    names: NDArray[Any]
    areas_m2: NDArray[np.float64]
    confidence: NDArray[np.float64] | None = None
    """Mean over the pixels of each, in percent."""

    def columns(self) -> dict[str, Any]:
        """Return the attributes by the names of their columns."""
        known = dict(zip(_COLUMNS, (self.ids.astype(np.int32), self.names, self.areas_m2), strict=True))
        return known if self.confidence is None else known | {_CONFIDENCE: self.confidence}


class PolygonWriter:
    """Writes polygons with their class, its name, their area and, if asked for, confidence. Use as a context manager.

    Args:
        file: Where to write; the caller gives it its final name.
        suffix: One of ``FORMATS``.
        ground: The ground of the map.
        names: Class id -> name.
        min_area_m2: Smaller polygons are left out.
        confidence: Write the mean confidence of each.
    """

    def __init__(
        self,
        file: Path,
        suffix: str,
        ground: Ground,
        names: Mapping[int, str],
        min_area_m2: float,
        *,
        confidence: bool = False,
    ) -> None:
        self.ground, self.names, self.min_area_m2, self.confidence = ground, names, min_area_m2, confidence
        kinds: dict[str, type[_GeoPackage | _GeoParquet | _GeoJson]]
        kinds = {".gpkg": _GeoPackage, ".parquet": _GeoParquet, ".geojson": _GeoJson}
        self._format = kinds[suffix](file, self.ground, confidence=confidence)
        self._held: list[ClassPolygon] = []
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self._flush()
        self._format.close()

    def add(self, polygon: ClassPolygon) -> None:
        """Write a polygon, now or with the next ones."""
        self._held.append(polygon)
        if len(self._held) >= _AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        held, self._held = self._held, []
        shapes = self.ground.place(np.array([p.shape for p in held], object))
        areas = self.ground.areas_m2(shapes)
        ids = np.array([p.class_id for p in held], np.uint8)
        names = np.array([self.names[i] for i in ids.tolist()], object)
        large = ~(areas < self.min_area_m2)  # an unknown area is not too small
        self.count += int(large.sum())
        sure = np.array([p.confidence for p in held])[large] if self.confidence else None
        self._format.write(Features(shapes[large], ids[large], names[large], areas[large], sure))


class _GeoPackage:
    def __init__(self, file: Path, ground: Ground, *, confidence: bool) -> None:
        self.file, self.crs = file, ground.crs
        self.begun = False

    def write(self, features: Features) -> None:
        columns = features.columns()
        crs = self.crs.to_wkt() if self.crs else None
        options = {"driver": "GPKG", "layer": _LAYER, "geometry_type": "Polygon", "append": self.begun}
        shapes = shapely.to_wkb(features.shapes)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)  # a photograph has none
                # Its name ends in .tmp until it is complete; appending to it says so in other words.
                warnings.filterwarnings("ignore", "The filename extension", RuntimeWarning)
                warnings.filterwarnings("ignore", ".*non conformant file extension", RuntimeWarning)
                pyogrio.raw.write(self.file, shapes, [*columns.values()], [*columns], crs=crs, **options)
        except RuntimeError as error:  # pyogrio's kinds all are, and SQLite's words for a full disk arrive as one
            folder = self.file.parent
            raise DataError(
                f"{folder}: polygons could not be written; is the disk full? ({one_line(error)})"
            ) from error
        self.begun = True

    def close(self) -> None: ...


class _GeoJson:
    """RFC 7946: longitude and latitude on WGS 84, whatever the CRS of the map."""

    def __init__(self, file: Path, ground: Ground, *, confidence: bool) -> None:
        self._to_degrees = Transformer.from_crs(ground.crs, 4326, always_xy=True) if ground.crs else None
        self._file = file.open("w", encoding="utf-8")
        self._file.write(_GEOJSON)
        self._separator = "\n"

    def write(self, features: Features) -> None:
        shapes = features.shapes
        if self._to_degrees is not None:
            shapes = shapely.transform(shapes, self._to_degrees.transform, interleaved=False)
        shapes = shapely.orient_polygons(shapes)
        columns = features.columns()
        for shape, *values in zip(shapely.to_geojson(shapes), *(c.tolist() for c in columns.values()), strict=True):
            about = {name: _as_json(value) for name, value in zip(columns, values, strict=True)}
            self._file.write(self._separator)
            self._file.write(f'{{"type": "Feature", "properties": {json.dumps(about)}, "geometry": {shape}}}')
            self._separator = ",\n"

    def close(self) -> None:
        self._file.write("\n]}\n")
        self._file.close()


def _as_json(value: Any) -> Any:
    """Return a number with three digits after the point, and None for NaN, which JSON does not know."""
    if not isinstance(value, float):
        return value
    return None if np.isnan(value) else round(value, 3)


class _GeoParquet:
    """GeoParquet 1.1, one row group per write."""

    def __init__(self, file: Path, ground: Ground, *, confidence: bool) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": ["Polygon"]}
        column["crs"] = ground.crs.to_json_dict() if ground.crs else None
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        fields = [("class", pa.int32()), ("name", pa.string()), ("area_m2", pa.float64())]
        fields += [(_CONFIDENCE, pa.float64())] * confidence
        self._schema = pa.schema([*fields, ("geometry", pa.binary())], metadata={"geo": json.dumps(geo)})
        self._table = pa.table
        self._writer = parquet.ParquetWriter(file, self._schema, compression="zstd")

    def write(self, features: Features) -> None:
        columns = features.columns() | {"geometry": shapely.to_wkb(features.shapes)}
        self._writer.write_table(self._table(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


_STYLES = "layer_styles"
_STYLE_NAME = "caswit"


def embed_style(file: Path, qml: str) -> None:
    """Write a style into a GeoPackage of polygons, where QGIS looks for it: in a table made as QGIS makes it."""
    try:
        with closing(sqlite3.connect(file)) as package, package:
            package.execute(
                f"CREATE TABLE {_STYLES} (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), "
                "f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), "
                "styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30), "
                "update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')))"
            )
            package.execute(
                f"INSERT INTO {_STYLES} (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
                "styleQML, styleSLD, useAsDefault, description, owner, ui) "
                "VALUES ('', '', ?, 'geom', ?, ?, '', 1, 'Classes of the map', '', NULL)",
                (_LAYER, _STYLE_NAME, qml),
            )
            package.execute(
                "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
                (_STYLES, _STYLES),
            )
    except sqlite3.OperationalError as error:
        raise DataError(
            f"{file.parent}: polygons could not be written; is the disk full? ({one_line(error)})"
        ) from error


def written_here(file: Path) -> bool:
    """Return whether a file holds nothing but polygons as ``PolygonWriter`` writes them."""
    kind = file.suffix.lower()
    try:
        if kind == ".gpkg":
            with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as found:
                layers = found.execute("SELECT table_name FROM gpkg_contents").fetchall()
                columns = [row[1] for row in found.execute(f"PRAGMA table_info({_LAYER})")]
                styles: list[tuple[str]] = []
                if layers == [(_LAYER,), (_STYLES,)]:
                    styles = found.execute(f"SELECT styleName FROM {_STYLES}").fetchall()
            # A layer, a column or a style that somebody added would be lost. Earlier versions wrote no style, and no
            # confidence.
            ours = [(_LAYER,), (_STYLES,)] if styles == [(_STYLE_NAME,)] else [(_LAYER,)]
            named = columns in (["fid", "geom", *_COLUMNS], ["fid", "geom", *_COLUMNS, _CONFIDENCE])
            return layers == ours and named
        if kind == ".parquet":
            from pyarrow import parquet

            names: list[str] = parquet.read_schema(file).names
            return names in ([*_COLUMNS, "geometry"], [*_COLUMNS, _CONFIDENCE, "geometry"])
        with file.open("rb") as opened:
            begin = opened.read(200).decode(errors="replace")
    except (sqlite3.Error, OSError, ValueError):  # pyarrow's own errors are ValueErrors
        return False
    feature = r'\n(\]\}|\{"type": "Feature", "properties": \{"class": \d+, "name": )'
    return re.match(re.escape(_GEOJSON) + feature, begin) is not None


def check_vector(file: Path) -> None:
    """Raise ConfigError unless the name of a file is that of a format in which polygons are written."""
    if file.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{file}: polygons are written as {', '.join(FORMATS)}; give a name with one of these endings"
        )
