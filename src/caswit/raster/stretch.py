"""The usual range of an image's values, from a sample of all of it: what ``--rescale auto`` makes 0 and 255."""

from collections.abc import Sequence

import numpy as np

from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.mosaic import Source
from caswit.raster.reader import USUAL, PixelEncoding, Raster
from caswit.raster.windows import spread_windows


def usual_range(
    sources: Sequence[Source], grid: Grid, bands: tuple[int, ...], encoding: PixelEncoding
) -> tuple[float, float] | None:
    """Return the values between which 98 of 100 lie, the same for the bands; None for images of 8 bits.

    The sample is spread evenly over the grid, so it is that of the whole mosaic, and the same in every run.

    Args:
        sources: The files, as ``build_mosaic`` placed them.
        grid: The grid of them all.
        bands: Bands that are read.
        encoding: Says which pixels have no data, besides what the files say; its ``rescale`` is any.

    Raises:
        DataError: A file cannot be read, or the sample has no pixel with data.
    """
    found = []
    for source in sources:
        windows = [each.common(source.window) for each in spread_windows(grid.height, grid.width)]
        windows = [each for each in windows if each.height > 0 and each.width > 0]
        if not windows:
            continue
        with Raster(source.path, encoding) as raster:
            if raster.dtype == "uint8":
                continue
            for each in windows:
                here = each._replace(row=each.row - source.window.row, col=each.col - source.window.col)
                found.append(raster.sample(here, bands))
    if not found:
        return None
    values = np.concatenate(found)
    if not values.size:
        raise DataError(f"{sources[0].path}: --rescale auto found no pixel with data in its sample; give LOW and HIGH")
    low, high = (float(f"{value:.6g}") for value in np.percentile(values, USUAL))
    return (low, high) if low < high else (low, low + 1.0)
