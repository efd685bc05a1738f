"""Label rasters that hold colours, or one class and the rest, and the file of a mosaic that a pixel comes from."""

import html
import math
import re
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from caswit.errors import DataError
from caswit.raster.reader import GDAL_ERRORS, Bool, Raster, quiet
from caswit.raster.warped import WarpedLabel
from caswit.raster.windows import Window

_MOST = 2.0**53
"""Whole numbers of a float beyond this are not told apart."""
_NOTHING = 65_536
"""A value that no raster with a palette holds: the largest of uint16, plus one."""
Palette = NDArray[np.uint32]


class ColorLabel:
    """Reads an open label raster as colours 0xRRGGBB.

    Args:
        label: On the image's grid, by itself or warped. Three or four bands of uint8, or one with a palette.

    Raises:
        DataError: It is neither.
    """

    def __init__(self, label: Raster | WarpedLabel) -> None:
        self.label = label
        self.palette: Palette | None = None
        if label.count == 1:
            self.palette = _palette(label.path)
        if self.palette is None and (label.count not in (3, 4) or label.dtype != "uint8"):
            raise DataError(
                f"{label.path}: colours are three or four bands of uint8, or one with a palette, got {label.count} "
                f"band{'s' * (label.count != 1)} of {label.dtype}; set label_values: ids if it holds class ids"
            )

    def read(self, window: Window) -> tuple[NDArray[np.uint32], Bool]:
        """Read the colours of a window that may reach outside (H, W), and where the raster has data (H, W)."""
        if self.palette is not None:
            values = self.label.read_band(window, fill=_NOTHING)
            valid = values != _NOTHING
            return self.palette[np.where(valid, values, 0)], valid
        pixels, valid = self.label.read_image(window)
        return _packed(pixels.astype(np.uint32)), valid


class BinaryLabel:
    """Reads an open label raster as where its values are not 0: 0 and 255, 0 and 1, bits, or a number for each object.

    Of a JPEG, values from 128 on are those that count: its zeros need not be 0.

    Args:
        label: On the image's grid, by itself or warped. One band of whole numbers, or three or four of uint8.

    Raises:
        DataError: It is neither.
    """

    def __init__(self, label: Raster | WarpedLabel) -> None:
        self.label = label
        self.least = 128 if label.driver == "JPEG" else 1
        if label.count != 1 and (label.count not in (3, 4) or label.dtype != "uint8"):
            raise DataError(
                f"{label.path}: a binary mask is one band of whole numbers, or three or four of uint8, got "
                f"{label.count} band{'s' * (label.count != 1)} of {label.dtype}; try gdal_translate -ot Byte -b 1"
            )

    def read(self, window: Window) -> tuple[Bool, Bool]:
        """Read where the mask is set in a window that may reach outside, and where the raster has data: (H, W) both."""
        if self.label.count > 1:
            pixels, known = self.label.read_image(window)
            mask: Bool = pixels.max(0) >= self.least
        else:
            values, known = read_whole(self.label, window)
            mask = np.asarray(values >= self.least if self.least > 1 else values != 0)
        return mask, known


def read_whole(label: Raster | WarpedLabel, window: Window) -> tuple[NDArray[Any], Bool]:
    """Read band 1 of a label in whole numbers, and where it has data, as ``Raster.read_ids``; not a number is no data.

    Raises:
        DataError: A value has a fraction, as those of probabilities and of labels that were warped with averages.
    """
    values, known = label.read_ids(window)
    if values.dtype.kind != "f":
        return values, known
    known &= ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        broken = known & ~((np.abs(values) < _MOST) & (np.rint(values) == values))
    if broken.any():
        row, col = np.argwhere(broken)[0].tolist()
        raise DataError(
            f"{label.path}: label value {values[row, col]:g} is no whole number (row {window.row + row}, column "
            f"{window.col + col} of its image); class ids are whole, so warp labels with -r near, or cut a probability "
            "at its threshold first (gdal_calc.py)"
        )
    return np.where(known, values, 0).astype(np.int64), known


def file_at(path: str, row: int, col: int) -> str:
    """Return the file that a pixel comes from: the raster itself, or a part of it if it is a VRT, or a part of that.

    Names the patch to repair in errors: a mosaic has thousands.
    """
    try:
        with quiet(), rasterio.open(path) as raster:
            said = raster.get_tag_item(f"Pixel_{col}_{row}", "LocationInfo", bidx=1)
            found = re.search(r"<File>(.*?)</File>", said or "")
            if not found or (part := html.unescape(found[1])) == path:
                return path
            place = raster.transform * (col + 0.5, row + 0.5)
            if not part.endswith(".vrt"):
                return part
            with rasterio.open(part) as sheet:
                inner_col, inner_row = (math.floor(at) for at in ~sheet.transform * place)
    except GDAL_ERRORS:
        return path
    return file_at(part, inner_row, inner_col)


def _palette(path: str) -> Palette | None:
    with quiet(), rasterio.open(path) as raster:
        if raster.colorinterp[0] != ColorInterp.palette:
            return None
        palette = np.zeros(_NOTHING, np.uint32)
        for value, color in raster.colormap(1).items():
            palette[value] = _packed(np.array(color[:3], np.uint32))
    return palette


def _packed(rgb: NDArray[np.uint32]) -> Any:
    return rgb[0] << 16 | rgb[1] << 8 | rgb[2]
