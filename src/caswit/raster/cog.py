"""Parts of a map as small GeoTIFFs, and a Cloud-Optimized GeoTIFF put together from them by GDAL.

A part is (bands, H, W) uint8; NODATA where it has no value. Parts that are missing are nodata.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

import rasterio
import rasterio.shutil
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.reader import GDAL_ERRORS, UInt8, check_complete, one_line, quiet
from caswit.raster.windows import Window

NODATA = 255
BLOCK_PX = 512
_SOURCE = (
    "<SimpleSource><SourceFilename relativeToVRT='1'>{name}</SourceFilename><SourceBand>{band}</SourceBand>"
    "<SourceProperties RasterXSize='{w}' RasterYSize='{h}' DataType='Byte' BlockXSize='512' BlockYSize='512'/>"
    "<SrcRect xOff='0' yOff='0' xSize='{w}' ySize='{h}'/>"
    "<DstRect xOff='{col}' yOff='{row}' xSize='{w}' ySize='{h}'/></SimpleSource>"
)


class PlacedPart(NamedTuple):
    """A part and the pixels of the map it holds."""

    window: Window
    file: Path


@dataclass(frozen=True, kw_only=True)
class Band:
    """What one band of an output is."""

    source: int
    """Band of the parts, from 1."""
    name: str
    """Its description."""
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """Value -> red, green, blue; empty for measured values."""
    tags: Mapping[str, str] = field(default_factory=dict)


def encode_part(pixels: UInt8) -> bytes:
    """A part as the bytes of a GeoTIFF, so that writing it cannot fail half way unnoticed."""
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width}
    layout = {"tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX, "interleave": "band"}
    with quiet(), MemoryFile() as memory:
        with memory.open(driver="GTiff", dtype="uint8", compress="deflate", zlevel=1, **layout, **shape) as dst:
            dst.write(pixels)
        return bytes(memory.getbuffer())


def read_part(file: Path, band: int = 1) -> UInt8:
    """(H, W): one band of a part."""
    try:
        with quiet(), rasterio.open(file) as src:
            pixels: UInt8 = src.read(band)
    except RasterioError as error:
        raise DataError(f"{file}: the part cannot be read ({one_line(error)}); try --restart") from error
    return pixels


def assemble(
    out: Path, folder: Path, grid: Grid, parts: Sequence[PlacedPart], bands: Sequence[Band], tags: Mapping[str, str]
) -> None:
    """Write a COG: overviews (most frequent class, mean of measured values), statistics, palette, names.

    Memory is bounded by GDAL's cache.

    Args:
        out: File to write; the caller gives it its final name when complete.
        folder: Where the parts lie; helping files are written there.
        grid: Of the map.
        parts: In the order of rows.
        bands: What to put into the file.
        tags: Of the dataset.

    Raises:
        DataError: It could not be written, or not completely.
    """
    classes = bool(bands[0].palette)
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
            mosaic = _write_mosaic(folder, grid, parts, bands, tags)
            rasterio.shutil.copy(mosaic, out, driver="COG", **options)
    except GDAL_ERRORS as error:
        raise DataError(
            f"{out.parent}: the map could not be written completely; is the disk full? ({one_line(error)})"
        ) from error
    check_complete(out, sparse=True)


def _write_mosaic(
    folder: Path, grid: Grid, parts: Sequence[PlacedPart], bands: Sequence[Band], tags: Mapping[str, str]
) -> Path:
    """A virtual raster over the parts, of one virtual raster per row of blocks.

    GDAL looks at every source of a virtual raster for every block it reads: a million parts side by side
    would take days, in rows of a thousand they take minutes.
    """
    rows: list[PlacedPart] = []
    for (top, height), in_row in groupby(parts, lambda part: (part.window.row, part.window.height)):
        window = Window(top, 0, height, grid.width)
        sources = [PlacedPart(p.window._replace(row=0), p.file) for p in in_row]
        count = max(band.source for band in bands)
        plain = [Band(source=number, name="") for number in range(1, count + 1)]
        rows.append(PlacedPart(window, folder / f"row-{top}.vrt"))
        rows[-1].file.write_text(_vrt(window.height, grid.width, "", sources, plain))
    whole = folder / "mosaic.vrt"
    whole.write_text(_vrt(grid.height, grid.width, _place(grid) + _metadata(tags), rows, bands))
    return whole


def _vrt(height: int, width: int, header: str, sources: Sequence[PlacedPart], bands: Sequence[Band]) -> str:
    text = [f"<VRTDataset rasterXSize='{width}' rasterYSize='{height}'>{header}"]
    for number, band in enumerate(bands, 1):
        text.append(f"<VRTRasterBand dataType='Byte' band='{number}' blockXSize='512' blockYSize='512'>")
        text.append(f"<Description>{escape(band.name)}</Description>{_metadata(band.tags)}")
        text.append(f"<NoDataValue>{NODATA}</NoDataValue>{_palette(band)}")
        for window, file in sources:
            text.append(
                _SOURCE.format(name=file.name, band=band.source, w=window.width, h=window.height,
                               row=window.row, col=window.col)
            )  # fmt: skip
        text.append("</VRTRasterBand>")
    return "".join([*text, "</VRTDataset>"])


def _place(grid: Grid) -> str:
    points, points_crs = grid.gcps
    if points:
        items = "".join(
            f"<GCP Id='{i}' Pixel='{p.col!r}' Line='{p.row!r}' X='{p.x!r}' Y='{p.y!r}' Z='{p.z or 0.0!r}'/>"
            for i, p in enumerate(points)
        )
        crs = quoteattr(points_crs.to_wkt() if points_crs else "")
        return f"<GCPList Projection={crs}>{items}</GCPList>"
    srs = f"<SRS>{escape(grid.crs.to_wkt())}</SRS>" if grid.crs else ""
    if grid.transform.is_identity:
        return srs
    return srs + f"<GeoTransform>{', '.join(repr(float(v)) for v in grid.transform.to_gdal())}</GeoTransform>"


def _metadata(tags: Mapping[str, str]) -> str:
    items = "".join(f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in tags.items())
    return f"<Metadata>{items}</Metadata>" if items else ""


def _palette(band: Band) -> str:
    if not band.palette:
        return "<ColorInterp>Gray</ColorInterp>"
    rgb = [band.palette.get(value, (0, 0, 0)) for value in range(256)]
    entries = "".join(f"<Entry c1='{r}' c2='{g}' c3='{b}' c4='255'/>" for r, g, b in rgb)
    return f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
