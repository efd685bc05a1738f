"""Virtual rasters (VRT): many GeoTIFFs as one raster, written as XML from what is known of them.

Nothing is opened here, so a mosaic of ten thousand files is written in a second. A large one is cut into sheets,
virtual rasters of a few dozen files each: GDAL opens only those that a window touches.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median_low
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from caswit.raster.windows import Window, bounds

Affine = tuple[float, float, float, float, float, float]
"""x = a col + b row + c, y = d col + e row + f."""
_OFF_GRID_PX = 0.1
SHEET_PARTS = 8
"""Parts along a side of a sheet. A mosaic of no more than a sheet holds is one file."""
_FILLED = (
    '<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1">'
    "<NoDataValue>255</NoDataValue></VRTRasterBand></VRTDataset>"
)
"""A raster of one pixel of 255: a mask of any size once it is stretched."""


class Part(NamedTuple):
    """A file of a virtual raster."""

    path: str
    """Absolute, or a name in the folder of the virtual raster where the writer is told so."""
    window: Window
    """The pixels of the virtual raster that it covers."""
    nodata: int | None = None
    """Its value of pixels without data; None where it has none, or a mask."""


class TableRow(NamedTuple):
    """What a value of a band means: a row of a raster attribute table."""

    value: int
    name: str
    rgba: tuple[int, int, int, int]
    """Red, green, blue, opacity, 0-255."""


@dataclass(frozen=True, kw_only=True)
class Band:
    """One uint8 band of a virtual raster."""

    source: int
    """Band of the parts, from 1."""
    name: str = ""
    """Its description."""
    palette: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    """Value -> red, green, blue; empty for measured values."""
    color: str = "Gray"
    """GDAL's colour interpretation of a band without a palette; empty leaves it open."""
    nodata: int | None = 255
    """Value of gaps; None where the raster has a mask."""
    tags: Mapping[str, str] = field(default_factory=dict)
    table: Sequence[TableRow] = ()
    """Its raster attribute table, for ``raster.cog``: a virtual raster does not hold it."""


def place(transform: Affine, origin: Affine, height: int, width: int) -> Window | None:
    """Return the pixels that a raster covers on the grid of ``origin``; None if it does not fit on that grid."""
    a, b, c, d, e, f = transform
    tolerance = _OFF_GRID_PX / max(height, width)
    if b or d or origin[1] or origin[3] or abs(a / origin[0] - 1) > tolerance or abs(e / origin[4] - 1) > tolerance:
        return None
    col, row = (c - origin[2]) / a, (f - origin[5]) / e
    if max(abs(col - round(col)), abs(row - round(row))) > _OFF_GRID_PX:
        return None
    return Window(round(row), round(col), height, width)


def shifted(parts: Sequence[Part], origin: Affine) -> tuple[tuple[Part, ...], Affine, tuple[int, int]]:
    """Return the parts with the mosaic's upper left corner at (0, 0), its transform, and its (height, width)."""
    a, b, c, d, e, f = origin
    frame = bounds([part.window for part in parts])
    moved = tuple(_moved(part, frame) for part in parts)
    transform = (a, b, c + frame.col * a + frame.row * b, d, e, f + frame.col * d + frame.row * e)
    return moved, transform, (frame.height, frame.width)


def _moved(part: Part, frame: Window) -> Part:
    """Return a part with its place counted from the upper left corner of a window."""
    return part._replace(window=part.window._replace(row=part.window.row - frame.row, col=part.window.col - frame.col))


def mosaic_files(
    name: str,
    parts: Sequence[Part],
    size: tuple[int, int],
    *,
    bands: int,
    transform: Affine,
    crs: str,
    nodata: int | None = None,
    filled: bool = False,
) -> dict[str, str]:
    """Return the XML of a mosaic of uint8 GeoTIFFs anywhere on the disk, by the names of its files in one folder.

    The last file is the mosaic, NAME.vrt; those before it are its sheets. A window reads the same, to the bit, however
    the mosaic is cut.

    Args:
        name: Name of the mosaic.
        parts: Its files, by absolute paths; later ones lie on top. Those with a nodata value lie beside one another.
        size: (height, width).
        bands: Number of bands of each file.
        transform: Affine transform of the mosaic.
        crs: As GDAL understands it, e.g. EPSG:2154, or empty.
        nodata: Value of gaps. None: gaps are black, and not valid by a mask.
        filled: The files have data everywhere, whatever GDAL takes their masks to be. Otherwise their own masks count.
    """
    header = f"<SRS>{escape(crs)}</SRS>" if crs else ""

    def xml(parts: Sequence[Part], size: tuple[int, int], row: int, col: int, *, of_sheets: bool = False) -> str:
        a, b, c, d, e, f = transform
        corner = c + col * a + row * b, a, b, f + col * d + row * e, d, e
        placed = header + "<GeoTransform>" + ", ".join(f"{x:.17g}" for x in corner) + "</GeoTransform>"
        # GDAL calls the fourth band of four alpha unless it is told otherwise; in orthophotos it is near infrared.
        colors = ("Red", "Green", "Blue", "Undefined") if nodata is None and 3 <= bands <= 4 else ("",) * bands
        described = [Band(source=i, color=color, nodata=nodata) for i, color in enumerate(colors[:bands], 1)]
        mask = ""
        if nodata is None and filled and not of_sheets:
            windows = [part.window.clipped(*size) for part in parts]
            mask = "".join(_filling(window) for window in _joined(windows))
        elif nodata is None:
            template = _BESIDE if of_sheets else _ANYWHERE
            mask = "".join(_mask(part, bands, template, size) for part in parts)
        return vrt_xml(parts, size, described, header=placed, mask=mask, beside=of_sheets)

    whole = f"{name}.vrt"
    if len(parts) <= SHEET_PARTS**2:
        return {whole: xml(parts, size, 0, 0)}
    files, sheets = {}, []
    # Named by its content, so that a process that reads the mosaic as it was before never opens a sheet of another.
    version = hashlib.sha256(repr((*parts, size, bands, transform, crs, nodata, filled)).encode()).hexdigest()[:12]
    for window, inside in _sheets(parts, size):
        file = f"{name}-{version}/{window.row}-{window.col}.vrt"
        files[file] = xml(inside, window[2:], window.row, window.col)
        sheets.append(Part(file, window))
    return files | {whole: xml(sheets, size, 0, 0, of_sheets=True)}


def _sheets(parts: Sequence[Part], size: tuple[int, int]) -> list[tuple[Window, list[Part]]]:
    """Return rectangles that share no pixel and the parts that touch each, in their order and on its pixels."""
    # The middle size, not the largest: one long file must not make a single sheet of thousands of small ones.
    height, width = (SHEET_PARTS * median_low([part.window[side] for part in parts]) for side in (2, 3))
    sheets: dict[Window, list[Part]] = {}
    for part in parts:
        row, col, bottom, right = *part.window[:2], *(sum(part.window[side::2]) for side in (0, 1))
        rows, cols = range(row // height, -(-bottom // height)), range(col // width, -(-right // width))
        for i, j in product(rows, cols):
            sheet = Window(i * height, j * width, height, width).clipped(*size)
            sheets.setdefault(sheet, []).append(_moved(part, sheet))
    return sorted(sheets.items())


def vrt_xml(
    parts: Sequence[Part],
    size: tuple[int, int],
    bands: Sequence[Band],
    *,
    header: str = "",
    mask: str = "",
    beside: bool = False,
    block_px: int | None = None,
) -> str:
    """Return the XML of a virtual raster.

    Args:
        parts: Its files; later ones lie on top. They may reach outside.
        size: (height, width).
        bands: What to make of the bands of the files.
        header: XML of the whole raster: its place and its metadata.
        mask: XML of the sources of its mask.
        beside: The files lie in the folder of the virtual raster, and their paths are names in it.
        block_px: Side of the blocks of the files and of the virtual raster; None leaves them to GDAL.
    """
    blocks = f' blockXSize="{block_px}" blockYSize="{block_px}"' if block_px else ""
    template = _BESIDE if beside else _ANYWHERE
    lines = [f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}">{header}']
    for number, band in enumerate(bands, 1):
        lines.append(f'<VRTRasterBand dataType="Byte" band="{number}"{blocks}>{_about(band)}')
        block = blocks.replace("block", "Block")
        lines += [_source(part, str(band.source), template, size, block) for part in parts]
        lines.append("</VRTRasterBand>")
    if mask:
        lines.append(f'<MaskBand><VRTRasterBand dataType="Byte">{mask}</VRTRasterBand></MaskBand>')
    return "\n".join([*lines, "</VRTDataset>", ""])


def metadata_xml(tags: Mapping[str, str]) -> str:
    """Return the XML of some tags."""
    items = "".join(f"<MDI key={quoteattr(key)}>{escape(value)}</MDI>" for key, value in tags.items())
    return f"<Metadata>{items}</Metadata>" if items else ""


def _about(band: Band) -> str:
    text = (f"<Description>{escape(band.name)}</Description>" if band.name else "") + metadata_xml(band.tags)
    text += "" if band.nodata is None else f"<NoDataValue>{band.nodata}</NoDataValue>"
    if not band.palette:
        return text + (f"<ColorInterp>{band.color}</ColorInterp>" if band.color else "")
    rgb = [band.palette.get(value, (0, 0, 0)) for value in range(256)]
    entries = "".join(f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in rgb)
    return f"{text}<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"


# The size of a source, and that it is no place of its own, are said here: that GDAL need not ask the file halves the
# time of opening a mosaic. Files that are not shared may be read by several threads at once.
_PIXELS = (
    '<SourceBand>{band}</SourceBand><SourceProperties RasterXSize="{w}" RasterYSize="{h}" DataType="Byte"{blocks}/>'
    '<SrcRect xOff="{left}" yOff="{top}" xSize="{width}" ySize="{height}"/>'
    '<DstRect xOff="{col}" yOff="{row}" xSize="{width}" ySize="{height}"/></SimpleSource>'
)
_ANYWHERE = (
    '<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{path}</SourceFilename>'
    '<OpenOptions><OOI key="GEOREF_SOURCES">NONE</OOI></OpenOptions>' + _PIXELS
)
_BESIDE = '<SimpleSource><SourceFilename relativeToVRT="1" shared="0">{path}</SourceFilename>' + _PIXELS


def _source(part: Part, band: str, template: str, size: tuple[int, int], blocks: str = "") -> str:
    whole, seen = part.window, part.window.clipped(*size)
    place = {"row": seen.row, "col": seen.col, "height": seen.height, "width": seen.width}
    place |= {"top": seen.row - whole.row, "left": seen.col - whole.col, "h": whole.height, "w": whole.width}
    return template.format(path=escape(part.path), band=band, blocks=blocks, **place)


def _mask(part: Part, bands: int, template: str, size: tuple[int, int]) -> str:
    """Return the sources of the mask of one file: valid is where any band has data."""
    if part.nodata is None:
        return _source(part, "mask,1", template, size)
    # The mask that GDAL 3.10 makes of a nodata value is 0 below its first row where a window reaches into another file.
    value = f"<NODATA>{part.nodata}</NODATA><ScaleOffset>255</ScaleOffset><ScaleRatio>0</ScaleRatio></ComplexSource>"
    sources = "".join(_source(part, str(band), template, size) for band in range(1, bands + 1))
    return sources.replace("<SimpleSource>", "<ComplexSource>").replace("</SimpleSource>", value)


def _joined(windows: Sequence[Window]) -> list[Window]:
    """Return the same pixels in fewer windows: those side by side in a row of patches become one."""
    joined: list[Window] = []
    for window in sorted(windows):
        last = joined[-1] if joined else None
        if last and last[::2] == window[::2] and last.col + last.width == window.col:
            joined[-1] = last._replace(width=last.width + window.width)
        else:
            joined.append(window)
    return joined


def _filling(w: Window) -> str:
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{escape(_FILLED)}</SourceFilename>'
        '<SourceBand>1</SourceBand><SourceProperties RasterXSize="1" RasterYSize="1" DataType="Byte"/>'
        '<SrcRect xOff="0" yOff="0" xSize="1" ySize="1"/>'
        f'<DstRect xOff="{w.col}" yOff="{w.row}" xSize="{w.width}" ySize="{w.height}"/></SimpleSource>'
    )
