"""The gate of the viewer: which rasters of a folder GDAL may open, so that nothing outside the folder is reached.

GDAL opens whatever a file's content asks for: a .tif may be XML that names a web server, a virtual raster may name any
file of the machine, and so may the sidecars and the tags of an ordinary TIFF. So every raster is looked at before GDAL
sees it: its first bytes name one of a few file drivers, its sidecars are ordinary files, and a virtual raster is read
here to the end of its sources. What is not known to be harmless is refused.
"""

import html
import os
import re
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import rasterio
from cachetools import LRUCache

from caswit.errors import DataError
from caswit.raster.reader import GDAL_ERRORS, quiet
from caswit.raster.vrt_sources import FILES, Named, elements, named

RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
"""Endings of the files that are looked at."""
MAX_DEPTH = 8
"""Virtual rasters within virtual rasters."""
MAX_SOURCES = 20_000
"""Different files of a virtual raster, those of the virtual rasters in it included."""
MAX_XML_BYTES = 64 << 20
# ``quiet`` changes the filters of warnings, which all threads share.
OPENING = threading.RLock()

_JP2 = ("JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID")  # whichever this GDAL has
_DRIVERS: tuple[tuple[bytes, tuple[str, ...]], ...] = (
    (b"II*\0", ("GTiff",)),
    (b"MM\0*", ("GTiff",)),
    (b"II+\0", ("GTiff",)),
    (b"MM\0+", ("GTiff",)),
    (b"\x89PNG\r\n\x1a\n", ("PNG",)),
    (b"\xff\xd8\xff", ("JPEG",)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", _JP2),
    (b"\xff\x4f\xff\x51", _JP2),
)
"""First bytes -> the drivers that read such a file."""

# GDAL takes elements and attributes for one another and ignores case, so names are compared in lower case, and what
# names a file may not be an attribute. Elements that are missing here name other files (raw bands, elevation models,
# geolocation arrays, tables of processed datasets), run code, or are of no use to a picture.
_OTHER_ELEMENTS = """
    vrtdataset vrtrasterband srs geotransform gcplist gcp metadata mdi description unittype offset scale nodatavalue
    hidenodatavalue categorynames category colortable entry colorinterp histograms histitem histmin histmax bucketcount
    includeoutofrange approximate histcounts gdalrasterattributetable fielddefn name type usage row f maskband overview
    overviewlist simplesource complexsource kernelfilteredsource averagedsource nodatafrommasksource openoptions ooi
    sourceband sourceproperties srcrect dstrect nodata usemaskband scaleoffset scaleratio exponent srcmin srcmax dstmin
    dstmax clamp lut colortablecomponent kernel size coefs maskvaluethreshold remappedvalue sourcetransfertype
    pixelfunctiontype pixelfunctionarguments bufferradius skipnoncontributingsources blockxsize blockysize
    srcovrlevel options gdalwarpoptions warpmemorylimit resamplealg workingdatatype option transformer
    approxtransformer maxerror
    basetransformer genimgprojtransformer srcgeotransform srcinvgeotransform dstgeotransform dstinvgeotransform
    reprojecttransformer reprojectiontransformer sourcesrs targetsrs srcgcptransformer gcptransformer order reversed
    srctpstransformer tpstransformer bandlist bandmapping srcnodatareal srcnodataimag dstnodatareal dstnodataimag
    srcalphaband dstalphaband multiband cutline cutlineblenddist pansharpeningoptions algorithm algorithmoptions weights
    resampling numthreads bitdepth spatialextentadjustment panchroband spectralband
"""
_ELEMENTS = FILES | set(_OTHER_ELEMENTS.split())
_ATTRIBUTE_NAMES = """
    rasterxsize rasterysize subclass datatype band blockxsize blockysize relativetovrt shared domain format key name
    xoff yoff xsize ysize dataaxistosrsaxismapping coordinateepoch projection id info pixel line x y z c1 c2 c3 c4
    normalized resampling src dst index row0min binsize tabletype dstband mapping default k nodata
"""
_ATTRIBUTES = set(_ATTRIBUTE_NAMES.split())
_SUBCLASSES = {
    "vrtdataset": {"", "vrtwarpeddataset", "vrtpansharpeneddataset"},
    "vrtrasterband": {
        "",
        "vrtsourcedrasterband",
        "vrtderivedrasterband",
        "vrtwarpedrasterband",
        "vrtpansharpenrasterband",
    },
}
_OPEN_OPTIONS = {"georef_sources", "overview_level", "num_threads"}
_WARP_OPTIONS = {"", "area_of_interest", "coordinate_epoch", "src_coordinate_epoch", "dst_coordinate_epoch"}
"""Keys of options of a change of CRS; others name files, or pipelines that name some."""
_PACKET = re.compile(rb"""<\?xpacket(?: \w+=(?:"[^"<>]*"|'[^'<>]*'))*\s*\?>""")
"""What XMP is wrapped in."""
_DIRECTORY = re.compile(r"GTIFF_DIR:(?:off:)?\d+:", re.IGNORECASE)
# PROJ reads grids from files that a definition names.
_CRS = re.compile(r"(?:EPSG|OGC|ESRI|IGNF):[\w:]+|[A-Z_0-9]+\[.*|\+proj=[^/\\]*", re.DOTALL)


class Gate:
    """The files that may be opened: all in some folders, and single files with the sidecars beside them.

    Args:
        places: Folders and files, with their links resolved.
    """

    def __init__(self, *places: Path) -> None:
        self.folders = [place for place in places if place.is_dir()]
        self.files = [place for place in places if not place.is_dir()]
        # A mosaic's thousands of files are looked into once, and again when they change.
        self._looked_into: LRUCache[Any, None] = LRUCache(100_000)

    def __str__(self) -> str:
        """Name the places, for messages."""
        return ", ".join(str(place) for place in (*self.folders, *self.files))

    def is_inside(self, path: Path | str) -> bool:
        """Return whether a path lies in one of the folders, or is one of the files, once all links are followed."""
        # Path.resolve raises where links form a loop; realpath stops there, and nothing opens such a path.
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(folder) for folder in self.folders) or any(
            real == file or (real.parent == file.parent and _is_sidecar(real.name, file)) for file in self.files
        )

    def is_file(self, path: Path) -> bool:
        """Return whether a path is an ordinary file in the folder: no pipe, which would hang whoever opens it."""
        try:
            return self.is_inside(path) and stat.S_ISREG(path.stat().st_mode)
        except OSError:
            return False

    def driver(self, path: Path) -> str:
        """Return the GDAL driver to open a raster with.

        Raises:
            DataError: Opening it might reach something outside the folder, or it is none of the known formats.
        """
        return _Visit(self).raster(path, depth=0)

    def look_into(self, path: Path, driver: str) -> None:
        """Raise DataError if the tags inside a raster name a file for its overviews."""
        about = path.stat()
        seen = (path, about.st_mtime_ns, about.st_ctime_ns, about.st_size, about.st_ino)
        with OPENING:
            if seen in self._looked_into:
                return
            # GDAL opens that file only when it is asked for overviews, so a look at the tags is harmless.
            try:
                with quiet(), rasterio.open(path, driver=driver) as src:
                    names_file = bool(src.tags(ns="OVERVIEWS"))
            except (*GDAL_ERRORS, ValueError) as error:
                raise DataError(f"{path.name}: not a raster {driver} can open") from error
            if names_file:
                raise DataError(f"{path.name}: its tags name another file for its overviews")
            self._looked_into[seen] = None


class _Visit:
    """One look at a raster and all that it is made of."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.count = 0
        self.beside: dict[Path, dict[str, list[str]]] = {}
        """Names in each folder, by the part before their first dot, in lower case."""

    def raster(self, path: Path, depth: int) -> str:
        """Check a raster and return its driver."""
        self.count += 1
        if self.count > MAX_SOURCES:
            raise DataError(f"{path.name}: part of a virtual raster of more than {MAX_SOURCES} files")
        if depth > MAX_DEPTH:
            raise DataError(f"{path.name}: more than {MAX_DEPTH} virtual rasters within one another")
        # GDAL looks for XML in file names too.
        if "<" in str(path) or str(path).lower().startswith(("/vsi", "\\vsi")):
            raise DataError(f"{path.name}: its name means something else to GDAL")
        if not self.gate.is_file(path):
            raise DataError(f"{path.name}: not a file in the folder that is shown")
        self._check_sidecars(path)
        driver = driver_of(_start(path))
        if driver is None:
            raise DataError(f"{path.name}: neither GeoTIFF, PNG, JPEG, JPEG 2000 nor a virtual raster")
        if driver == "VRT":
            self._virtual(_small_file(path), path.parent, path.name, depth)
        else:
            self.gate.look_into(path, driver)
        return driver

    def _check_sidecars(self, path: Path) -> None:
        rasters = []
        for name in self._beside(path):
            sidecar = path.with_name(name)
            if not self.gate.is_file(sidecar):
                raise DataError(f"{path.name}: {name} beside it is not a file in the folder that is shown")
            ending, start = name.lower(), _start(sidecar)
            # Whatever these hold, GDAL opens it as a raster.
            if ending.endswith((".ovr", ".msk")):
                driver = driver_of(start)
                if driver is None or driver == "VRT":
                    raise DataError(f"{path.name}: {name} beside it is no GeoTIFF")
                rasters.append((sidecar, driver))
            elif ending.endswith(".aux.xml"):
                _check_names_no_overviews(_small_file(sidecar), name)
            elif ending.endswith(".aux") and start.startswith(b"EHFA"):
                raise DataError(f"{path.name}: {name} beside it may name other files; remove it")
        # They have sidecars in turn, which all are among the names above: opened when these are known to be harmless.
        for sidecar, driver in rasters:
            self.gate.look_into(sidecar, driver)

    def _beside(self, path: Path) -> list[str]:
        """Return the names that GDAL may open along with a raster: those that begin with its name or its stem."""
        folder = path.parent
        if folder not in self.beside:
            names: dict[str, list[str]] = {}
            for file in folder.iterdir():
                names.setdefault(file.name.split(".")[0].lower(), []).append(file.name)
            self.beside[folder] = names
        own = path.stem.split(".")[0].lower()
        candidates = self.beside[folder].get(own, [])
        coefficients = self.beside[folder].get(f"{own}_rpc", [])
        return [name for name in (*candidates, *coefficients) if name != path.name and _is_sidecar(name, path)]

    def _virtual(self, xml: bytes, folder: Path | None, name: str, depth: int) -> None:
        """Check a virtual raster; ``folder`` is where its relative names begin, None where they have no meaning."""
        _check_names_no_overviews(xml, name)
        sources: set[str] = set()
        for element in elements(_parsed(xml, name)):
            _check_element(element, element.tag.lower(), name)
            if source := named(element):
                if len(element):
                    raise DataError(f"{name}: names a file in an unknown way")
                sources.add(_source_path(source, folder, name))
        for path in sorted(sources):
            self._source(path, name, depth)

    def _source(self, source: str, name: str, depth: int) -> None:
        if source.startswith("<VRTDataset"):
            self.count += 1
            if self.count > MAX_SOURCES or depth >= MAX_DEPTH:
                raise DataError(f"{name}: too many virtual rasters within one another")
            self._virtual(source.encode(), None, name, depth + 1)
            return
        path = Path(source)
        # As the system reads ".." behind a link, and as a program does that only looks at the text.
        if not (self.gate.is_inside(path) and self.gate.is_inside(os.path.normpath(path))):
            raise DataError(f"{name}: is made of files outside the folder that is shown")
        # A mosaic with a missing file can still be seen where the others lie.
        if os.path.lexists(path):
            self.raster(path, depth + 1)


def _is_sidecar(name: str, raster: Path) -> bool:
    """Return whether GDAL may open a file of this name along with a raster in its folder."""
    stem, name = raster.stem.lower(), name.lower()
    return name == f"{stem}_rpc.txt" or (name.startswith(stem + ".") and not name.endswith(RASTERS))


def driver_of(start: bytes) -> str | None:
    """Return the driver for a file that begins with these bytes; None if it is not one that is allowed."""
    if start.lstrip(b" \t\r\n").startswith(b"<VRTDataset"):
        return "VRT"
    for magic, drivers in _DRIVERS:
        if start.startswith(magic):
            return next((driver for driver in drivers if driver in _installed()), None)
    return None


@contextmanager
def confined() -> Iterator[None]:
    """Bound the files that GDAL keeps open, and keep it from the network and from code in files."""
    # The gate comes first; these hold where a GDAL of another version finds a way around it.
    with rasterio.Env(
        GDAL_MAX_DATASET_POOL_SIZE=100,
        CPL_VSIL_CURL_ALLOWED_FILENAME="none",
        GDAL_VRT_ENABLE_PYTHON="NO",
        GDAL_VRT_ENABLE_RAWRASTERBAND="NO",
    ):
        yield


@cache
def _installed() -> frozenset[str]:
    with rasterio.Env() as env:
        return frozenset(env.drivers())


def _start(path: Path, length: int = 1024) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(length)
    except OSError as error:
        raise DataError(f"{path.name}: cannot be read ({error.strerror})") from error


def _small_file(path: Path) -> bytes:
    content = _start(path, MAX_XML_BYTES + 1)
    if len(content) > MAX_XML_BYTES:
        raise DataError(f"{path.name}: more than {MAX_XML_BYTES >> 20} MiB of XML")
    return content


def _check_names_no_overviews(xml: bytes, name: str) -> None:
    # Searched as text, so that it does not matter how GDAL and we parse XML.
    if "overview_file" in html.unescape(xml.decode("latin-1")).lower():
        raise DataError(f"{name}: names another file for overviews")


def _parsed(xml: bytes, name: str) -> ElementTree.Element:
    # GDAL's parser is lenient. What both could read differently is refused: declarations, entities, CDATA.
    rest = _PACKET.sub(b"", xml)
    if b"<?" in rest or any(not rest.startswith(b"<!--", m.start()) for m in re.finditer(b"<!", rest)):
        raise DataError(f"{name}: holds XML that virtual rasters have no use for")
    try:
        return ElementTree.fromstring(xml.decode("utf-8").strip())
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise DataError(f"{name}: not a virtual raster ({error})") from error


def _check_element(element: ElementTree.Element, tag: str, name: str) -> None:
    if tag not in _ELEMENTS:
        raise DataError(f"{name}: <{tag[:40]}> is not shown in virtual rasters")
    attributes = {key.lower(): value for key, value in element.attrib.items()}
    if tag == "pixelfunctionarguments":  # numbers under any name
        return
    if len(attributes) < len(element.attrib) or not attributes.keys() <= _ATTRIBUTES:
        unknown = sorted(attributes.keys() - _ATTRIBUTES) or sorted(element.attrib)
        raise DataError(f"{name}: <{tag}> has the attribute {unknown[0][:40]!r}, which is not shown")
    allowed = _SUBCLASSES.get(tag)
    if attributes.get("subclass", "").lower() not in (allowed or {""}):
        raise DataError(f"{name}: virtual rasters of the kind {attributes['subclass'][:40]!r} are not shown")
    if tag == "metadata" and attributes.get("domain", "").lower() in ("overviews", "geolocation"):
        raise DataError(f"{name}: its tags may name other files")
    if tag == "ooi" and attributes.get("key", "").lower() not in _OPEN_OPTIONS:
        raise DataError(f"{name}: opens files with the option {attributes.get('key', '')[:40]!r}, which is not allowed")
    if tag == "option" and attributes.get("key", "").lower() not in _WARP_OPTIONS:
        raise DataError(f"{name}: warps with the option {attributes['key'][:40]!r}, which is not allowed")
    text = (element.text or "").strip()
    if tag in ("srs", "sourcesrs", "targetsrs") and text and not _CRS.fullmatch(text):
        raise DataError(f"{name}: has a CRS that is neither a code nor WKT")


def _source_path(source: Named, folder: Path | None, name: str) -> str:
    """Return the absolute path of a source, or XML of a virtual raster within this one."""
    text, relative = source
    if relative not in ("0", "1"):
        raise DataError(f"{name}: names a file in an unknown way")
    if source.is_xml:
        return text
    match = _DIRECTORY.match(text)
    path = text[match.end() :] if match else text
    drive = re.match(r"[A-Za-z]:[\\/]", path) if os.name == "nt" else None
    odd = not path or path != path.strip() or not path.isprintable() or set('<>"|?*') & set(path)
    # Colons name subdatasets, derived datasets, web servers; /vsi names archives, servers and memory.
    if odd or ":" in path[2 if drive else 0 :] or path.lower().startswith(("/vsi", "\\vsi")):
        raise DataError(f"{name}: is made of {text[:60]!r}, which is no file in the folder that is shown")
    if Path(path).is_absolute():
        return path
    # The folder that the server was started in is no place that the author of a file can mean.
    if folder is None or relative == "0" or match:
        raise DataError(f'{name}: is made of {text[:60]!r}, which is not relative to it; write relativeToVRT="1"')
    return str(folder / path)
