"""Virtual rasters (VRT): many GeoTIFFs as one raster, written as XML from what is known of them.

Nothing is opened here, so a mosaic of ten thousand files is written in a second.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple
from xml.sax.saxutils import escape, quoteattr

from caswit.raster.windows import Window, bounds

Affine = tuple[float, float, float, float, float, float]
"""x = a col + b row + c, y = d col + e row + f."""
_OFF_GRID_PX = 0.1
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
    moved = tuple(Part(path, w._replace(row=w.row - frame.row, col=w.col - frame.col)) for path, w in parts)
    transform = (a, b, c + frame.col * a + frame.row * b, d, e, f + frame.col * d + frame.row * e)
    return moved, transform, (frame.height, frame.width)


def mosaic_xml(
    parts: Sequence[Part],
    size: tuple[int, int],
    *,
    bands: int,
    transform: Affine,
    crs: str,
    nodata: int | None = None,
    filled: bool = False,
) -> str:
    """Return the XML of a mosaic of uint8 GeoTIFFs anywhere on the disk.

    Args:
        parts: Its files, by absolute paths; later ones lie on top.
        size: (height, width).
        bands: Number of bands of each file.
        transform: Affine transform of the mosaic.
        crs: As GDAL understands it, e.g. EPSG:2154, or empty.
        nodata: Value of gaps. None: gaps are black, and not valid by a mask.
        filled: The files have data everywhere, whatever GDAL takes their masks to be. Otherwise their own masks count.
    """
    a, b, c, d, e, f = transform
    header = f"<SRS>{escape(crs)}</SRS>" if crs else ""
    header += "<GeoTransform>" + ", ".join(f"{x:.17g}" for x in (c, a, b, f, d, e)) + "</GeoTransform>"
    # GDAL calls the fourth band of four alpha unless it is told otherwise; in orthophotos it is near infrared.
    colors = ("Red", "Green", "Blue", "Undefined") if nodata is None and 3 <= bands <= 4 else ("",) * bands
    described = [Band(source=i, color=color, nodata=nodata) for i, color in enumerate(colors[:bands], 1)]
    mask = ""
    if nodata is None and filled:
        mask = "".join(_filling(window) for window in _joined([part.window for part in parts]))
    elif nodata is None:
        mask = "".join(_source(part, "mask,1", _ANYWHERE) for part in parts)
    return vrt_xml(parts, size, described, header=header, mask=mask)


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
        parts: Its files; later ones lie on top.
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
        lines += [_source(part, str(band.source), template, blocks.replace("block", "Block")) for part in parts]
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
    '<SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/>'
    '<DstRect xOff="{col}" yOff="{row}" xSize="{w}" ySize="{h}"/></SimpleSource>'
)
_ANYWHERE = (
    '<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{path}</SourceFilename>'
    '<OpenOptions><OOI key="GEOREF_SOURCES">NONE</OOI></OpenOptions>' + _PIXELS
)
_BESIDE = '<SimpleSource><SourceFilename relativeToVRT="1">{path}</SourceFilename>' + _PIXELS


def _source(part: Part, band: str, template: str, blocks: str = "") -> str:
    row, col, height, width = part.window
    place = {"row": row, "col": col, "h": height, "w": width}
    return template.format(path=escape(part.path), band=band, blocks=blocks, **place)


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
