"""Which files caswit wrote, so that a new map may replace them.

A forgotten OUT makes the last image the map. So a file is replaced without being asked only if its content says that
caswit wrote it, in this version or in 0.1.0: then the same call can be repeated.
"""

from pathlib import Path

from caswit.errors import DataError
from caswit.files import read_json
from caswit.mapping.styles import MARK
from caswit.raster.cog import read_tags

_STYLE = (
    '<qgis styleCategories="Symbology" version="3.28"><pipe>'
    '<rasterrenderer type="paletted" band="1" opacity="1" alphaBand="-1" nodataColor="">'
)
"""How the styles of earlier versions begin. QGIS itself writes more attributes, and more lines."""


def may_replace(file: Path, out: Path) -> bool:
    """Return whether a file is missing, empty, or was written by caswit for the map ``out`` or another one."""
    if not file.exists() or file.stat().st_size == 0:
        return True
    if file.suffix.lower() in (".tif", ".tiff"):
        return _is_map(file)
    if file.suffix == ".qml":
        # A style that was changed and saved beside our map goes with the map, as it always has.
        begin = _begin(file)
        return MARK in begin or _STYLE in begin or _is_map(out)
    if file.name.endswith(".stac.json"):
        return _is_item(file) or _is_map(out)
    from caswit.raster.vector_files import written_here

    return written_here(file)


def _is_map(file: Path) -> bool:
    # Confidence and probabilities have the tags of their map.
    return any(name.startswith("CASWIT_") for name in read_tags(file))


def _is_item(file: Path) -> bool:
    try:
        return "caswit" in read_json(file)["properties"]["processing:software"]
    except (DataError, LookupError, TypeError):
        return False


def _begin(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(1000).decode(errors="replace")
