"""What a dataset.yaml says of a label that is a vector file."""

import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from caswit.config import LabelValues
from caswit.config.data import attribute_text
from caswit.data.classes import MAX_ID, ValueClasses
from caswit.data.scene import ANY, Elsewhere, VectorLabel
from caswit.errors import DataError, brief
from caswit.files import checked, expand_path, only_keys

_KEYS = {"layer", "attribute", "class", "values", "buffer_m", "all_touched", "annotated", "elsewhere"}
_ENDINGS = (".gpkg", ".shp", ".geojson", ".geojsonl", ".fgb", ".kml", ".gml", ".gdb", ".parquet")
"""Files that are vector files although only their name is given; others need ``file:``."""
_MOST_M = 10_000.0
Scalar = str | int | float | bool


def is_vector(entry: Any, folder: Path) -> bool:
    """Return whether the label of a scene is a vector file: a mapping, or the name of a file that is one."""
    if not isinstance(entry, str):
        return isinstance(entry, Mapping)
    if not entry.lower().endswith(_ENDINGS):
        return False
    return not _is_raster(folder / expand_path(entry))


def read_label_entry(entry: Any, where: str, folder: Path) -> VectorLabel:
    """Read the label of a scene.

    Args:
        entry: The name of a vector file, or a mapping with ``file`` and what its shapes mean.
        where: Its place, for messages.
        folder: Paths are relative to it.

    Raises:
        DataError: It says something that is not allowed.
    """
    entry = {"file": entry} if isinstance(entry, str) else entry
    only_keys(entry, {"file"}, _KEYS, where)
    said = {key: value for key, value in entry.items() if value is not None}
    attribute, land_class = _word(said, "attribute", where), _word(said, "class", where)
    if attribute is not None and land_class is not None:
        raise DataError(f"{where}: class is for files whose shapes are all of one class; leave out class or attribute")
    if "values" in said and attribute is None:
        raise DataError(f"{where}: values need attribute: COLUMN, the column that holds them")
    if "annotated" in said and "elsewhere" in said:
        raise DataError(f"{where}: outside of annotated areas nothing is labelled; leave out annotated or elsewhere")
    annotated = said.get("annotated")
    if isinstance(annotated, Mapping):
        only_keys(annotated, {"file"}, {"layer"}, f"{where}: annotated")
    else:
        annotated = {} if annotated is None else {"file": annotated}
    return VectorLabel(
        file=_file(said, where, folder),
        layer=_word(said, "layer", where),
        attribute=attribute,
        values=tuple(_classes(said.get("values", {}), f"{where}: values").items()),
        land_class=land_class,
        buffer_m=tuple(_widths(said.get("buffer_m", {}), f"{where}: buffer_m").items()),
        all_touched=checked(bool, said.get("all_touched", False), f"{where}: all_touched"),
        annotated=_file(annotated, f"{where}: annotated", folder) if annotated else None,
        annotated_layer=_word(annotated, "layer", f"{where}: annotated"),
        elsewhere=checked(Elsewhere | None, said.get("elsewhere"), f"{where}: elsewhere"),
    )


def read_label_values(entry: Any, where: str) -> LabelValues | ValueClasses:
    """Read what the values of a scene's label raster mean.

    Args:
        entry: A word, or a mapping of values to classes; its key ``*`` is every other value.
        where: Its place, for messages.

    Raises:
        DataError: It says something that is not allowed.
    """
    if not isinstance(entry, Mapping):
        word: LabelValues = checked(LabelValues, entry, where)
        return word
    if not entry:
        raise DataError(f'{where}: must name classes by value, such as {{0: building, "*": background}}, got {{}}')
    named = _classes(entry, where)
    if odd := [key for key in named if key != ANY and not (key.isdecimal() and int(key) <= MAX_ID)]:
        raise DataError(
            f"{where}: values of label rasters are 0 to {MAX_ID}, and * for all others, got {brief(odd[0])}"
        )
    return tuple((None if key == ANY else int(key), name) for key, name in named.items())


def _is_raster(file: Path) -> bool:
    """Return whether a GeoPackage holds pixels and no shapes."""
    if not file.is_file() or file.suffix.lower() != ".gpkg":
        return False
    kinds: list[tuple[str]] = []
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
        kinds = db.execute("SELECT DISTINCT data_type FROM gpkg_contents LIMIT 9").fetchall()
    return bool(kinds) and ("features",) not in kinds


def _word(said: Mapping[str, Any], key: str, where: str) -> str | None:
    return attribute_text(checked(Scalar, said[key], f"{where}: {key}")) if said.get(key) is not None else None


def _file(said: Mapping[str, Any], where: str, folder: Path) -> Path:
    return folder / expand_path(str(checked(str | int | float, said["file"], f"{where}: file")))


def _classes(given: Any, where: str) -> dict[str, str | None]:
    found = checked(dict[str, Scalar | None], _text_keys(given), where)
    return {key: None if name is None else attribute_text(name) for key, name in found.items()}


def _widths(given: Any, where: str) -> dict[str, float]:
    """Return metres by class or value; one number is for all of them."""
    widths = checked(dict[str, float], {ANY: given} if isinstance(given, int | float) else _text_keys(given), where)
    for name, width in widths.items():
        if not 0 < width <= _MOST_M:
            of = "" if name == ANY else f" for {name}"
            raise DataError(f"{where}: metres must be above 0 and at most {_MOST_M:g}, got {width:g}{of}")
    return dict(widths)


def _text_keys(given: Any) -> Any:
    return {attribute_text(key): value for key, value in given.items()} if isinstance(given, Mapping) else given
