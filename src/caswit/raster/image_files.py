"""The files behind an image: its sidecars, the sources of a virtual raster (VRT), and theirs in turn.

Whatever changes in one of them can change a pixel. They are found by their names and in the XML of virtual rasters:
GDAL's own list would need every source of a country's mosaic to be opened.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

from caswit.raster.reader import is_remote
from caswit.raster.vrt_sources import Named, elements, named

_AFTER = (".msk", ".aux.xml")
"""Endings that GDAL puts after the name of a file: its mask, and what GDAL notes of it (nodata, colours, CRS)."""
_OVERVIEWS = (".ovr", ".msk.ovr")
"""Overviews: never read from an image, which is read in full, but a VRT may shrink its sources by them."""
_INSTEAD = ("wld", "prj", "aux", "tab", "hdr", "ige")
"""Endings in place of that of a file: its place on the ground, and the pixels of large .img files."""
_RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".webp", ".img")
"""Endings of files that are taken for no VRT without a look inside."""


def files_behind(names: Iterable[str]) -> list[Path]:
    """Return the local files that GDAL reads for some images, each once, resolved, the images first.

    Args:
        names: As GDAL opens them. Of an address nothing is known; of a path into an archive, the archive.
    """
    found = dict.fromkeys(_local(names))
    # A dictionary keeps the order and ends cycles: two virtual rasters may name each other.
    todo = [(file, False) for file in found]
    listed = cache(_names_in)
    while todo:
        file, is_source = todo.pop()
        sidecars = _sidecars(file, listed(file.parent), overviews=is_source)
        sources = [source for source in _local(_vrt_sources(file)) if source not in found]
        found |= dict.fromkeys([*sidecars, *sources])
        todo += [(source, True) for source in sources]
    return list(found)


def describe(file: Path) -> str:
    """Return a text that changes when a file does: its path, size and time of change, or what an .aux.xml holds.

    Empty for a missing file and for an .aux.xml of nothing but statistics, which looking at an image in QGIS writes.
    """
    try:
        if file.name.lower().endswith(".aux.xml"):
            content = _without_statistics(file.read_bytes())
            return f"{file} {content!r}" if content else ""
        status = file.stat()
    except OSError:
        return ""
    return f"{file} {status.st_size} {status.st_mtime_ns}"


def _local(names: Iterable[str]) -> Iterator[Path]:
    """Yield the files on this disk that some names of GDAL's lead to."""
    for name in names:
        # Before the path there may be the name of a driver or of an archive's, after it a layer or a file inside.
        path = re.sub(r'^(/vsi\w+/)+|^[A-Z0-9_]{2,}:(\d+:|(?=[/"]))', "", name).removeprefix('"').partition('"')[0]
        for candidate in (Path(path), *Path(path).parents) if is_remote(name) else (Path(path),):
            try:
                if candidate.is_file():
                    yield candidate.resolve()
                    break
            except (OSError, ValueError):  # a name that is too long, or XML in place of a name
                break


@cache
def _endings(suffix: str) -> frozenset[str]:
    """Return the endings in place of ``suffix``; world files have its first and last letter, or all, and a w."""
    kind = suffix.lower().lstrip(".")
    worlds = (f"{kind[0]}{kind[-1]}w", f"{kind}w") if kind else ()
    return frozenset({*_INSTEAD, *worlds})


def _names_in(folder: Path) -> dict[str, list[str]]:
    """Return the names in a folder by themselves in lower case, as GDAL compares them."""
    names: dict[str, list[str]] = {}
    with suppress(OSError):  # a folder may let its files be read and not be listed
        for file in folder.iterdir():
            names.setdefault(file.name.lower(), []).append(file.name)
    return names


def _sidecars(file: Path, listed: dict[str, list[str]], *, overviews: bool) -> Iterator[Path]:
    name, stem = file.name.lower(), file.stem.lower()
    wanted = [name + ending for ending in (*_AFTER, *(_OVERVIEWS if overviews else ()))]
    wanted += [f"{stem}.{ending}" for ending in sorted(_endings(file.suffix))]
    for one in wanted:
        yield from (file.parent / found for found in sorted(listed.get(one, ())) if found != file.name)


def _vrt_sources(file: Path) -> Iterator[str]:
    """Yield the names of the sources of a virtual raster, those of virtual rasters inside it included."""
    if file.suffix.lower() in _RASTERS:
        return
    # GDAL will say what is wrong when it opens the file.
    with suppress(OSError, ElementTree.ParseError), file.open("rb") as opened:
        if b"<VRTDataset" not in opened.read(1024):
            return
        opened.seek(0)
        for _, element in ElementTree.iterparse(opened):
            if source := named(element):
                yield from _paths(source, file.parent)
            # The XML of ten thousand sources is not held.
            if element.tag.lower().endswith("source"):
                element.clear()


def _paths(source: Named, folder: Path | None) -> Iterator[str]:
    """Yield the name of a source as GDAL opens it; of a virtual raster in place of a name, the names in that."""
    text, _ = source = source._replace(text=source.text.strip())
    if source.is_xml:
        for element in elements(ElementTree.fromstring(text)):
            if inner := named(element):
                yield from _paths(inner, None)
    elif text:
        yield str(folder / text) if folder and source.relative == "1" else text


def _without_statistics(content: bytes) -> bytes:
    """Return what a .aux.xml says apart from statistics, which change no pixel; empty if that is nothing."""
    try:
        root = ElementTree.fromstring(content)
    except ElementTree.ParseError:
        return content
    for parent in [*root.iter()][::-1]:
        for child in list(parent):
            statistic = child.tag == "Histograms" or child.get("key", "").startswith("STATISTICS_")
            if statistic or (child.tag in ("Metadata", "PAMRasterBand") and not len(child)):
                parent.remove(child)
    return ElementTree.tostring(root) if len(root) else b""
