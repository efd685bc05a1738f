"""Arrays as rasters: an image in memory under a name that GDAL opens, so that it is read as files are."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from rasterio.env import Env
from rasterio.io import MemoryFile

from caswit.errors import DataError, one_line
from caswit.raster.reader import GDAL_ERRORS, Bool, quiet

_NAME = "array.tif"


def shown_name(path: str) -> str:
    """Return what messages call a raster: its name, or "the array" where it is one in memory."""
    return "the array" if path.startswith("/vsimem/") and path.endswith(f"/{_NAME}") else path


@contextmanager
def in_memory(pixels: NDArray[Any], valid: Bool | None = None) -> Iterator[str]:
    """Yield the name of a raster with these pixels; it exists until the end of the block.

    Args:
        pixels: (bands, H, W), of any type that a GeoTIFF can have.
        valid: (H, W): which pixels have data; None: all.

    Raises:
        DataError: GDAL cannot store such pixels.
    """
    count, height, width = pixels.shape
    shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype.name}
    # A folder of its own for each, so that no two are mixed up and messages can tell it (``shown_name``).
    with quiet(), MemoryFile(dirname=secrets.token_hex(4), filename=_NAME) as memory:
        try:
            # Without a mask inside the file, GDAL would put one beside it; BIGTIFF for arrays beyond 4 GB.
            with (
                Env(GDAL_TIFF_INTERNAL_MASK=True),
                memory.open(driver="GTiff", tiled=True, BIGTIFF="IF_SAFER", photometric="MINISBLACK", **shape) as dst,
            ):
                dst.write(pixels)
                if valid is not None:
                    dst.write_mask(valid)
        except (*GDAL_ERRORS, TypeError) as error:
            raise DataError(f"an array of {pixels.dtype} cannot be read as an image ({one_line(error)})") from error
        yield memory.name
