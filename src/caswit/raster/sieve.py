"""Small areas of a class map grow over with their neighbours: GDAL's sieve over the whole map, whatever its blocks.

The map lies uncompressed in one file that is mapped into memory, so that the system keeps of it what it has room for.
GDAL goes over its rows three times and holds two rows and about 25 bytes for each area. Blocks therefore leave no
trace: the result is ``rasterio.features.sieve`` of the whole map.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rasterio.features import sieve

from caswit.errors import DataError, one_line
from caswit.raster.cog import PlacedPart, encode_part, read_part
from caswit.raster.reader import GDAL_ERRORS
from caswit.raster.windows import Window

_ROWS = "sieve"


@contextmanager
def sieved_parts(
    folder: Path, height: int, width: int, parts: Sequence[PlacedPart], least_px: int
) -> Iterator[list[PlacedPart]]:
    """Yield parts with the classes of a map without small areas. They are deleted when the context ends.

    An area smaller than ``least_px``, of pixels connected by their sides, becomes part of its largest neighbour; if
    that is too small itself, of the largest neighbour's largest neighbour, and so on. Nodata neither grows nor shrinks.

    Args:
        folder: Where to write, with room for a byte per pixel of the map.
        height: Rows of the map.
        width: Columns of the map.
        parts: Its parts, of which band 1 is read.
        least_px: Pixels of the smallest area that stays.

    Raises:
        DataError: The disk is full.
    """
    whole = folder / f".{_ROWS}.tmp"  # the journal takes away files of this kind that a kill left
    try:
        try:
            written = _sieve(whole, height, width, parts, least_px)
        except GDAL_ERRORS as error:
            raise DataError(
                f"{folder}: the map could not be sieved; are {height * width / 1e9:.3g} GB free there? "
                f"({one_line(error)})"
            ) from error
        yield written
    finally:
        for file in (whole, *(_name(folder, part.window) for part in parts)):
            file.unlink(missing_ok=True)


def _sieve(whole: Path, height: int, width: int, parts: Sequence[PlacedPart], least_px: int) -> list[PlacedPart]:
    with whole.open("wb") as dst:
        # A disk that fills up while a mapped file is written ends the process, so its room is taken first.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(dst.fileno(), 0, height * width)
        dst.truncate(height * width)
    # Shifted by one, nodata is 0: the same rows are then GDAL's mask, and where there is no part, there is none.
    rows = np.memmap(whole, np.uint8, "r+", shape=(height, width))
    everything = Window(0, 0, height, width)
    for window, file in parts:
        rows[window.inside(everything)] = read_part(file) + np.uint8(1)
    sieve(rows, least_px, out=rows, mask=rows, connectivity=4)
    written = []
    for window, _ in parts:
        written.append(PlacedPart(window, _name(whole.parent, window)))
        written[-1].file.write_bytes(encode_part(rows[window.inside(everything)][None] - np.uint8(1)))
    return written


def _name(folder: Path, window: Window) -> Path:
    return folder / f".{_ROWS}-{window.row}-{window.col}.tmp"
