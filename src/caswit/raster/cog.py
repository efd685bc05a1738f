"""Parts of a map as small GeoTIFFs, and a Cloud-Optimized GeoTIFF put together from them by GDAL.

A part is (bands, H, W) uint8; NODATA where it has no value. Parts that are missing are nodata.
"""

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import rasterio
import rasterio.shutil
from rasterio.io import MemoryFile

from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.reader import GDAL_ERRORS, IncompleteFile, UInt8, check_complete, one_line, quiet
from caswit.raster.vrt import Band, Part, TableRow, metadata_xml, vrt_xml
from caswit.raster.windows import Window

NODATA = 255
BLOCK_PX = 512


class PlacedPart(NamedTuple):
    """A file and the pixels of the map that it holds."""

    window: Window
    file: Path


def encode_part(pixels: UInt8, tags: Mapping[str, str] | None = None) -> bytes:
    """Return a part, with tags, as the bytes of a GeoTIFF.

    Python writes them: GDAL, writing to a full disk, can fail half way and report nothing.
    """
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width}
    # Bands are stored apart, since map, confidence and probabilities each read different ones.
    layout = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band"}
    with quiet(), MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype="uint8", compress="deflate", zlevel=1, **layout, **shape) as dst:
            dst.update_tags(**tags or {})
            dst.write(pixels)
        return bytes(memory.getbuffer())


def read_tags(file: Path) -> dict[str, str]:
    """Return the tags of a GeoTIFF; none of a file that is no GeoTIFF."""
    try:
        with quiet(), rasterio.open(file, driver="GTiff") as src:
            tags: dict[str, str] = src.tags()
    except GDAL_ERRORS:
        return {}
    return tags


def is_part(file: Path, shape: tuple[int, int, int]) -> bool:
    """Return whether a file is a part of this shape, (bands, H, W), and every pixel of it can be read."""
    try:
        with quiet(), rasterio.open(file, driver="GTiff") as src:
            pixels = src.read()
    except GDAL_ERRORS:
        return False
    return bool(pixels.dtype == "uint8" and pixels.shape == shape)


def read_part(file: Path, band: int = 1) -> UInt8:
    """Read one band of a part: (H, W)."""
    try:
        with quiet(), rasterio.open(file) as src:
            pixels: UInt8 = src.read(band)
    except GDAL_ERRORS as error:
        raise DataError(f"{file}: the part cannot be read ({one_line(error)}); try --restart") from error
    return pixels


def assemble(
    out: Path, folder: Path, grid: Grid, parts: Sequence[PlacedPart], bands: Sequence[Band], tags: Mapping[str, str]
) -> None:
    """Write a COG: overviews (most frequent class, mean of measured values), statistics, palette, names, table.

    Memory is bounded by GDAL's cache.

    Args:
        out: File to write; the caller gives it its final name when complete.
        folder: Folder of the parts; virtual rasters over them are written there.
        grid: The grid of the map.
        parts: Its parts in the order of rows.
        bands: The bands of the file.
        tags: Tags of the file.

    Raises:
        DataError: It could not be written, or not completely.
    """
    classes = bool(bands[0].palette)
    # Class ids have no mean, hence mode; the compressed size is unknown beforehand, hence bigtiff; and with sparse_ok,
    # sea and other holes take no space.
    options = {
        "compress": "deflate",
        "blocksize": BLOCK_PX,
        "overview_resampling": "mode" if classes else "average",
        "statistics": "yes",
        "sparse_ok": "true",
        "bigtiff": "if_safer",
        "num_threads": "all_cpus",
    }
    try:
        with quiet():
            mosaic = _write_mosaic(folder, grid, parts, [_with_room(band) for band in bands], tags)
            rasterio.shutil.copy(mosaic, out, driver="COG", **options)
    except GDAL_ERRORS as error:
        raise IncompleteFile(out, one_line(error)) from error
    check_complete(out, sparse=True)
    for number, band in enumerate(bands):
        if band.table:
            _write_table(out, number, band)


# GDAL writes raster attribute tables into a TIFF from 3.12 on; before, into an .aux.xml that gets lost. So it is given
# a tag as long as the table, and the table then takes the tag's place: nothing in the file moves.
_ROOM = "TABLE"


def _with_room(band: Band) -> Band:
    """Return a band with a tag as long as its table."""
    room = {_ROOM: "." * len(_table_item(0, band.table))} if band.table else {}
    return replace(band, tags={**band.tags, **room})


def _write_table(file: Path, number: int, band: Band) -> None:
    """Put the table of a band (from 0) in the place of its tag."""
    begin, end = f'<Item name="{_ROOM}" sample="{number}">'.encode(), b"</Item>"
    with file.open("r+b") as opened:
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(begin)  # in the header, which comes before the pixels
            stop = content.find(end, start) + len(end)
        assert start >= 0, "GDAL writes tags as it always has"
        opened.seek(start)
        opened.write(_table_item(number, band.table).ljust(stop - start))


def _table_item(number: int, table: Sequence[TableRow]) -> bytes:
    """Return the XML of a raster attribute table, as GDAL 3.12 reads it in a TIFF: integers 0, texts 2; usages."""
    columns = (("Value", 0, 5), ("Class", 2, 2), ("Red", 0, 6), ("Green", 0, 7), ("Blue", 0, 8), ("Alpha", 0, 9))
    heads = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{usage}</Usage></FieldDefn>'
        for i, (name, kind, usage) in enumerate(columns)
    )
    rows = "".join(
        f'<Row index="{i}">' + "".join(f"<F>{escape(str(v))}</F>" for v in (row.value, row.name, *row.rgba)) + "</Row>"
        for i, row in enumerate(table)
    )
    text = (
        f'<Item name="DEFAULT_RASTER_ATTRIBUTE_TABLE" sample="{number}" role="rat">'
        f'<GDALRasterAttributeTable tableType="thematic">{heads}{rows}</GDALRasterAttributeTable></Item>'
    )
    return text.encode()


def _write_mosaic(
    folder: Path, grid: Grid, parts: Sequence[PlacedPart], bands: Sequence[Band], tags: Mapping[str, str]
) -> Path:
    """Write a virtual raster over virtual rasters of one row of blocks each, and return its path.

    GDAL looks at every source of a virtual raster for every block it reads: a million parts side by side
    would take days, in rows of a thousand they take minutes.
    """
    # Rows only pass bands on; names, palettes and tags are set on the whole.
    plain = [Band(source=number) for number in range(1, max(band.source for band in bands) + 1)]
    rows: list[Part] = []
    for (top, height), in_row in groupby(parts, lambda part: (part.window.row, part.window.height)):
        sources = [Part(file.name, window._replace(row=0)) for window, file in in_row]
        rows.append(Part(f"row-{top}.vrt", Window(top, 0, height, grid.width)))
        xml = vrt_xml(sources, (height, grid.width), plain, beside=True, block_px=BLOCK_PX)
        (folder / rows[-1].path).write_text(xml)
    whole = folder / "mosaic.vrt"
    header = _georeference_xml(grid) + metadata_xml(tags)
    size = grid.height, grid.width
    whole.write_text(vrt_xml(rows, size, bands, header=header, beside=True, block_px=BLOCK_PX))
    return whole


def _georeference_xml(grid: Grid) -> str:
    points, points_crs = grid.gcps
    if points:
        items = "".join(
            f"<GCP Id='{i}' Pixel='{p.col!r}' Line='{p.row!r}' X='{p.x!r}' Y='{p.y!r}' Z='{p.z or 0.0!r}'/>"
            for i, p in enumerate(points)
        )
        crs = quoteattr(points_crs.to_wkt() if points_crs else "")
        return f"<GCPList Projection={crs}>{items}</GCPList>"
    srs = f"<SRS>{escape(grid.crs.to_wkt())}</SRS>" if grid.crs else ""
    # rasterio returns the identity if there is none; writing it would place the map at (0, 0) of the CRS.
    if grid.transform.is_identity:
        return srs
    return srs + f"<GeoTransform>{', '.join(repr(float(v)) for v in grid.transform.to_gdal())}</GeoTransform>"
