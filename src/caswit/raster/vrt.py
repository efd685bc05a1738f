"""Virtual mosaics (VRT): many GeoTIFFs as one raster, written as XML from what their headers say.

Nothing is opened here, so a mosaic of ten thousand files is written in a second.
"""

from collections.abc import Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

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
    """A file of a mosaic."""

    path: str
    """Absolute."""
    window: Window
    """The pixels of the mosaic that it covers."""


def place(transform: Affine, origin: Affine, height: int, width: int) -> Window | None:
    """The pixels that a raster covers on the grid of ``origin``; None if it does not fit on that grid."""
    a, b, c, d, e, f = transform
    tolerance = _OFF_GRID_PX / max(height, width)
    if b or d or origin[1] or origin[3] or abs(a / origin[0] - 1) > tolerance or abs(e / origin[4] - 1) > tolerance:
        return None
    col, row = (c - origin[2]) / a, (f - origin[5]) / e
    if max(abs(col - round(col)), abs(row - round(row))) > _OFF_GRID_PX:
        return None
    return Window(round(row), round(col), height, width)


def shifted(parts: Sequence[Part], origin: Affine) -> tuple[tuple[Part, ...], Affine, tuple[int, int]]:
    """The parts with the mosaic's upper left corner at (0, 0), its transform, and its (height, width)."""
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
    """A VRT of uint8 GeoTIFFs.

    Args:
        parts: Its files; later ones lie on top.
        size: (height, width).
        bands: How many each file has.
        transform: Of the mosaic.
        crs: As GDAL understands it, e.g. EPSG:2154, or empty.
        nodata: Value of gaps. None: gaps are black, and not valid by a mask.
        filled: The files have data everywhere, whatever GDAL takes their masks to be. Else they say where themselves.
    """
    height, width = size
    a, b, c, d, e, f = transform
    lines = [f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}">']
    if crs:
        lines.append(f"<SRS>{escape(crs)}</SRS>")
    lines.append("<GeoTransform>" + ", ".join(f"{x:.17g}" for x in (c, a, b, f, d, e)) + "</GeoTransform>")
    for band in range(1, bands + 1):
        lines.append(f'<VRTRasterBand dataType="Byte" band="{band}">')
        if nodata is not None:
            lines.append(f"<NoDataValue>{nodata}</NoDataValue>")
        elif 3 <= bands <= 4:
            lines.append(f"<ColorInterp>{('Red', 'Green', 'Blue', 'Undefined')[band - 1]}</ColorInterp>")
        lines += [_source(part, str(band)) for part in parts]
        lines.append("</VRTRasterBand>")
    if nodata is None:
        lines += ['<MaskBand><VRTRasterBand dataType="Byte">']
        lines += (
            [_filling(window) for window in _joined([part.window for part in parts])]
            if filled
            else [_source(part, "mask,1") for part in parts]
        )
        lines += ["</VRTRasterBand></MaskBand>"]
    return "\n".join([*lines, "</VRTDataset>", ""])


def _joined(windows: Sequence[Window]) -> list[Window]:
    """The same pixels in fewer windows: those side by side in a row of patches become one."""
    joined: list[Window] = []
    for window in sorted(windows):
        last = joined[-1] if joined else None
        if last and last[::2] == window[::2] and last.col + last.width == window.col:
            joined[-1] = last._replace(width=last.width + window.width)
        else:
            joined.append(window)
    return joined


def _filling(window: Window) -> str:
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{escape(_FILLED)}</SourceFilename>'
        '<SourceBand>1</SourceBand><SourceProperties RasterXSize="1" RasterYSize="1" DataType="Byte"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="1" ySize="1"/>{_destination(window)}</SimpleSource>'
    )


def _destination(w: Window) -> str:
    return f'<DstRect xOff="{w.col}" yOff="{w.row}" xSize="{w.width}" ySize="{w.height}"/>'


def _source(part: Part, band: str) -> str:
    w = part.window
    # Where a file lies is said here: that GDAL need not ask it again halves the time of opening it.
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{escape(part.path)}</SourceFilename>'
        '<OpenOptions><OOI key="GEOREF_SOURCES">NONE</OOI></OpenOptions>'
        f"<SourceBand>{band}</SourceBand>"
        f'<SourceProperties RasterXSize="{w.width}" RasterYSize="{w.height}" DataType="Byte"/>'
        f'<SrcRect xOff="0" yOff="0" xSize="{w.width}" ySize="{w.height}"/>{_destination(w)}</SimpleSource>'
    )
