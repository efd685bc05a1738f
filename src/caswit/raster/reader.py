"""Read rasters of any kind as bands of uint8. Only `caswit.raster` imports rasterio.

Images are (n, H, W) uint8 of n bands, valid masks and labels (H, W). What lies outside a raster, or is nodata in it, is
black in images, False in masks.
"""

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, Self
from xml.sax.saxutils import escape

import numpy as np
import rasterio
from cachetools import LRUCache
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags, Resampling
from rasterio.env import get_gdal_config, set_gdal_config
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window as RasterioWindow

from caswit.errors import DataError
from caswit.errors import one_line as shortened
from caswit.raster.blanks import REACH_PX, blank_areas
from caswit.raster.georef import Grid, check_grid, check_place
from caswit.raster.windows import Window, spread_windows

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
CACHE_MB = 256
"""GDAL's block cache, in every process. Its own default is a share of the machine's memory, which is no bound."""

USUAL = 1, 99
"""Percentiles between which the usual values of an image lie."""
_MOST_SOURCES = 100
"""Sources of virtual rasters that GDAL keeps open, in every process."""

_PYTHONS = (OSError, ValueError, LookupError, OverflowError, MemoryError, SystemError)
GDAL_ERRORS = (RasterioError, CPLE_BaseError, *_PYTHONS)
"""The exceptions that come out of rasterio when a file is at fault.

GDAL's own kind reaches us unwrapped from some calls. A message that is not UTF-8 is a ValueError, a pixel type that
rasterio does not know a LookupError, a size that does not fit an OverflowError, a failure without a word a SystemError.
"""

_TIFF = {"driver": "GTiff", "dtype": "uint8", "tiled": True, "compress": "deflate"}
_STRICT = {
    # GDAL's shortcut for whole images reads what a truncated PNG lacks as black, without an error.
    "GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO",
    # A country's run should survive a server's bad second.
    "GDAL_HTTP_MAX_RETRY": "4",
    "GDAL_HTTP_RETRY_DELAY": "1",
    # Addresses that are signed for GET refuse HEAD.
    "CPL_VSIL_CURL_USE_HEAD": "NO",
}


# Whatever opens a raster imports this module, in worker processes too. $GDAL_CACHEMAX, in GDAL's own units, wins.
if "GDAL_CACHEMAX" not in os.environ:
    # rasterio takes it in bytes, unlike GDAL's variable of that name: "256" would leave GDAL without a cache.
    set_gdal_config("GDAL_CACHEMAX", CACHE_MB << 20)


class PixelEncoding(NamedTuple):
    """The meaning of a raster's values, where the file does not state it."""

    rescale: tuple[float, float] | None = None
    """(low, high): the values that become 0 and 255, for pixels that are not uint8."""
    nodata: float | None = None
    """A pixel with this value in all bands that are read has no data."""
    blank: int | None = None
    """White (255) or black (0), where whole areas of it have no data (``raster.blanks``)."""
    ignore_alpha: bool = False
    """The band that the file calls alpha says nothing of where there is data."""
    ranges: tuple[tuple[float, float] | None, ...] = ()
    """Of each band that is read its own (low, high), for pixels that are not uint8; ``rescale`` comes first."""


DEFAULT_ENCODING = PixelEncoding()


class IncompleteFile(DataError):
    """A raster could not be written to its end, most often since its disk is full: GDAL rarely says why.

    Args:
        path: The file.
        why: What GDAL says.
    """

    def __init__(self, path: Path, why: str = "") -> None:
        self.reason = f" ({why})" if why else ""
        super().__init__(f"{path.parent}: the map could not be written completely; is the disk full?{self.reason}")


class Raster:
    """An open raster. Use as a context manager; one thread at a time may read it.

    Args:
        path: Anything GDAL opens: a file, an address (https://, s3://), a /vsi path.
        encoding: The meaning of its values, where the file does not state it.
        driver: The only GDAL driver that may open it; None leaves the choice to GDAL.
        onto: A grid to which it is warped while it is read (bilinear), and the path of the image on that grid.

    Raises:
        DataError: The file is missing or GDAL cannot open it, or it does not lie on the grid ``onto``.
    """

    def __init__(
        self,
        path: Path | str,
        encoding: PixelEncoding = DEFAULT_ENCODING,
        driver: str | None = None,
        onto: tuple[Grid, str] | None = None,
    ) -> None:
        self.path = str(path)
        self.encoding = encoding
        if not is_remote(self.path) and not Path(path).exists():
            raise DataError(f"{path}: no such file")
        try:
            with quiet(), rasterio.Env(**_STRICT):
                self._src = rasterio.open(path, driver=driver)
                src = self._src
                self.height, self.width, self.count = int(src.height), int(src.width), int(src.count)
                self.grid = Grid(src.height, src.width, src.crs, src.transform, src.gcps)
                self.dtype: str = src.dtypes[0] if src.count else "nothing"
                self.driver: str = src.driver
                self._palette = self._read_palette() if src.count else None
        except GDAL_ERRORS as error:
            raise DataError(f"{path}: not a raster GDAL can open ({one_line(error)})") from error
        check_grid(self.grid, self.path)
        self._beneath: Any = None
        if onto is not None and check_place(self.grid, self.path, *onto):
            self._warp(onto[0])
        if self.dtype.startswith("complex"):
            self.close()
            raise DataError(
                f"{path}: pixels are {self.dtype}, which are neither colours nor class ids; "
                "try gdal_translate -ot Byte with real values"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._src.close()
        if self._beneath is not None:
            self._beneath.close()

    def _warp(self, grid: Grid) -> None:
        """Read another grid from here on, on which pixels are interpolated."""
        nodata = self._src.nodata
        if nodata is None and np.dtype(self.dtype).kind == "f":
            nodata = math.nan
        where = {"crs": grid.crs, "transform": grid.transform, "height": grid.height, "width": grid.width}
        # Around the file there is no data, which only a band of alpha can say where the file has no value for it.
        beyond = (
            {"add_alpha": True} if nodata is None and self.alpha is None else {"src_nodata": nodata, "nodata": nodata}
        )
        try:
            with quiet(), rasterio.Env(**_STRICT):
                warped = WarpedVRT(self._src, **where, **beyond, resampling=Resampling.bilinear)
        except GDAL_ERRORS as error:
            raise DataError(f"{self.path}: cannot be warped to the image's grid ({one_line(error)})") from error
        self._beneath, self._src = self._src, warped
        self.height, self.width, self.grid = grid.height, grid.width, grid

    def check_image(self, bands: tuple[int, ...]) -> None:
        """Raise DataError unless these bands are there and are uint8, or ``rescale`` or ``ranges`` makes them so.

        A map that caswit made is refused: neither the colours of its classes nor its probabilities show the ground.
        """
        if "CASWIT_MODEL_SHA256" in self._src.tags():
            raise DataError(
                f"{self.path}: is a map that caswit made, not an image; leave it out, or keep maps and images in two "
                "folders"
            )
        self.check_bands(bands)
        self._check_nodata()
        if self.dtype != "uint8" and self.encoding.rescale is None and not all(self.encoding.ranges or [None]):
            low, high = self._usual_range(bands)
            raise DataError(
                f"{self.path}: pixels are {self.dtype}, uint8 is needed; caswit predict takes --rescale auto, or "
                f"--rescale LOW HIGH (98 of 100 pixels lie in {low:.6g} {high:.6g}), otherwise rescale first: "
                "gdal_translate -ot Byte -scale LOW HIGH 0 255 IN OUT"
            )

    def check_bands(self, bands: tuple[int, ...]) -> None:
        """Raise DataError unless these bands are there."""
        count = self.count if self._palette is None else 3
        if count < max(bands):
            usual = "give an RGB image, or name three existing bands"
            raise DataError(
                f"{self.path}: has {count} band{'s' * (count > 1)}, bands {list(bands)} are needed; "
                f"{usual if len(bands) == 3 else 'give an image that has them, or name existing bands'}"
            )

    def _check_nodata(self) -> None:
        """Raise DataError if no pixel can have the value that the user calls nodata: it would do nothing, silently."""
        nodata, dtype = self.encoding.nodata, np.dtype(self.dtype)
        if nodata is None or not np.issubdtype(dtype, np.integer):
            return
        low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if not (low <= nodata <= high and float(nodata).is_integer()):
            raise DataError(
                f"{self.path}: pixels are {self.dtype}, whole numbers {low} to {high}, so none has "
                f"--nodata {nodata:g}; leave it out, or try --nodata auto"
            )

    def read_image(self, window: Window, bands: tuple[int, ...] = (1, 2, 3)) -> tuple[UInt8, Bool]:
        """Read some bands and where they are valid.

        Args:
            window: May reach outside the raster.
            bands: 1-based; of a palette image, of its colours.

        Returns:
            (n, H, W) uint8, black where not valid, and (H, W) bool.
        """
        part = window.clipped(self.height, self.width)
        # Most windows lie inside the raster and need no second array to be copied into.
        if part == window and part.height and part.width:
            return self._colours(part, bands)
        image = np.zeros((len(bands), window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        if part.height and part.width:
            rows, cols = part.inside(window)
            image[:, rows, cols], valid[rows, cols] = self._colours(part, bands)
        return image, valid

    def is_empty(self, window: Window) -> bool:
        """Return whether a window is outside or in a hole of a sparse GeoTIFF: surely empty, without reading pixels.

        Half of a country's mosaic may be sea; a look at the offsets of its blocks costs far less than reading it.
        """
        part = window.clipped(self.height, self.width)
        if not (part.height and part.width):
            return True
        flags = [] if self._without_alpha else self._src.mask_flag_enums[0]
        # Without nodata or alpha, a block that was never written is black pixels, not a hole.
        if self._src.driver != "GTiff" or not (MaskFlags.nodata in flags or MaskFlags.alpha in flags):
            return False
        height, width = self._src.block_shapes[0]
        rows = range(part.row // height, (part.row + part.height - 1) // height + 1)
        cols = range(part.col // width, (part.col + part.width - 1) // width + 1)
        tags = ((f"BLOCK_OFFSET_{col}_{row}", band) for row in rows for col in cols for band in self._src.indexes)
        return all(self._src.get_tag_item(tag, "TIFF", bidx=band) is None for tag, band in tags)

    def read_alpha(self, window: Window, bands: tuple[int, ...] = ()) -> NDArray[Any] | None:
        """Read the alpha band of a window inside the raster: (H, W); None where none says which pixels have data.

        One that is read as a band of the image says nothing.
        """
        if self.encoding.ignore_alpha or MaskFlags.alpha not in self._src.mask_flag_enums[0] or self.alpha in bands:
            return None
        return self._read(window, self._src.colorinterp.index(ColorInterp.alpha) + 1)

    @property
    def _without_alpha(self) -> bool:
        return self.encoding.ignore_alpha and MaskFlags.alpha in self._src.mask_flag_enums[0]

    def read_ids(self, window: Window) -> tuple[NDArray[Any], Bool]:
        """Read band 1 as it is, 0 outside the raster, and where it has a value: (H, W) both."""
        part = window.clipped(self.height, self.width)
        if part == window and part.height and part.width:
            return self._ids(part)
        values = np.zeros((window.height, window.width), self.dtype)
        known = np.zeros((window.height, window.width), bool)
        if part.height and part.width:
            rows, cols = part.inside(window)
            values[rows, cols], known[rows, cols] = self._ids(part)
        return values, known

    def sample(self, window: Window, bands: tuple[int, ...]) -> NDArray[Any]:
        """Read the values of all bands of the pixels with data in a window inside the raster, as they are: (N,)."""
        pixels, valid = self.values(window, bands)
        values = pixels[:, valid].ravel()
        return values[np.isfinite(values)]

    def values(self, window: Window, bands: tuple[int, ...]) -> tuple[NDArray[Any], Bool]:
        """Read bands of a window inside the raster as they are, (n, H, W), and where pixels have data, (H, W)."""
        if self._palette is not None:
            return self._declared(window, bands)
        pixels, valid = self._read(window, list(bands)), self._valid(window, bands)
        if self.encoding.nodata is not None:
            valid = valid & (pixels != self.encoding.nodata).any(0)
        return pixels, valid

    def _ids(self, part: Window) -> tuple[NDArray[Any], Bool]:
        """Read band 1 and where it has a value, of a window inside the raster."""
        values = self._read(part, 1)
        nodata = self._src.nodata
        whole = values.dtype.kind in "iu" and nodata is not None and float(nodata).is_integer()
        # Equals GDAL's mask, without reading and decoding every label a second time.
        if whole and self.count == 1 and self._src.mask_flag_enums[0] == [MaskFlags.nodata]:
            return values, values != int(nodata)
        return values, self._valid(part)

    def read_band(self, window: Window, fill: int) -> NDArray[Any]:
        """Read band 1 as it is, ``fill`` outside the raster and where it is nodata: (H, W)."""
        values, known = self.read_ids(window)
        return np.where(known, values, np.array(fill, np.min_scalar_type(fill)))

    def _colours(self, part: Window, bands: tuple[int, ...]) -> tuple[UInt8, Bool]:
        """Read (n, H, W), black where not valid, and where it is valid, of a window inside the raster."""
        if self.encoding.blank is None:
            return self._declared(part, bands)
        wide = part.grown(REACH_PX).clipped(self.height, self.width)
        image, valid = self._declared(wide, bands)
        valid &= ~blank_areas(image, self.encoding.blank)
        here = part.inside(wide)
        return image[:, *here] * valid[here], valid[here]

    def _declared(self, part: Window, bands: tuple[int, ...]) -> tuple[UInt8, Bool]:
        """Read as ``_colours``; valid is what the file or the user says is."""
        valid = self._valid(part, bands)
        if self._palette is not None:
            index = self._read(part, 1)
            # The nodata of a palette image is an index: two indices may have the same colour.
            if self.encoding.nodata is not None:
                valid = valid & (index != self.encoding.nodata)
            image = self._palette[:3][[b - 1 for b in bands]][:, index]
            valid = valid & (self._palette[3][index] > 0)
        else:
            pixels = self._read(part, list(bands))
            if pixels.dtype.kind == "f":
                valid &= np.isfinite(pixels).all(axis=0)
            # In all bands: a single black channel is a colour, not a gap.
            if self.encoding.nodata is not None:
                valid = valid & (pixels != self.encoding.nodata).any(0)
            image = self._as_bytes(pixels)
        # Invalid pixels may hold any value; the network knows only black, from the edges of its training data.
        if not valid.all():
            image *= valid
        return image, valid

    def _as_bytes(self, pixels: NDArray[Any]) -> UInt8:
        """Return pixels as they are if they are uint8, stretched by the range of all bands or of each otherwise."""
        if self.encoding.rescale is not None:
            return rescaled(pixels, *self.encoding.rescale)
        if pixels.dtype == np.uint8:
            return pixels
        # ``check_image`` has seen to it that every band has its range.
        pairs = zip(pixels, self.encoding.ranges, strict=True)
        return np.stack([rescaled(band, *limits) for band, limits in pairs if limits is not None])

    @property
    def descriptions(self) -> tuple[str, ...]:
        """What the file calls each band, empty where it has no name for it."""
        return tuple(name or "" for name in self._src.descriptions)

    @property
    def alpha(self) -> int | None:
        """Number of the band that the file calls alpha; None without one."""
        found = [n for n, kind in enumerate(self._src.colorinterp, 1) if kind == ColorInterp.alpha]
        return found[0] if found else None

    def _read_palette(self) -> UInt8 | None:
        """Read the palette of a palette image: (4, 256) red, green, blue, alpha by value."""
        if self._src.colorinterp[0] != ColorInterp.palette or self.dtype != "uint8":
            return None
        return np.array([self._src.colormap(1).get(value, (0, 0, 0, 0)) for value in range(256)], np.uint8).T

    def _usual_range(self, bands: tuple[int, ...]) -> tuple[float, float]:
        """Return the values between which 98 of 100 lie in a sample of the pixels, as ``raster.stretch`` finds them."""
        try:
            found = np.concatenate([self.sample(each, bands) for each in spread_windows(self.height, self.width)])
        except DataError:
            return float("nan"), float("nan")
        low, high = np.percentile(found, USUAL) if found.size else (np.nan, np.nan)
        return float(low), float(high)

    def _read(self, part: Window, bands: int | list[int]) -> NDArray[Any]:
        with self._reading(part):
            pixels: NDArray[Any] = self._src.read(bands, window=rasterio_window(part))
        return pixels

    def _valid(self, part: Window, bands: tuple[int, ...] = ()) -> Bool:
        """Read where the raster has data by its own mask: nodata, alpha or internal."""
        flags = self._src.mask_flag_enums[0]
        # Files of red, green, blue and near infrared often call the fourth alpha: what is read as a band is no mask.
        is_colour = MaskFlags.alpha in flags and self.alpha in bands
        if MaskFlags.all_valid in flags or self._without_alpha or is_colour:
            return np.ones((part.height, part.width), bool)
        # dataset_mask: any band valid, so that a single black channel is not taken for nodata.
        with self._reading(part):
            mask: Bool = self._src.dataset_mask(window=rasterio_window(part)) > 0
        return mask

    @contextmanager
    def _reading(self, part: Window) -> Iterator[None]:
        try:
            with rasterio.Env(**_STRICT):
                yield
        except GDAL_ERRORS as error:
            if self._src.driver == "VRT":
                forget_sources()
            raise DataError(
                f"{self.path}: cannot read rows {part.row}-{part.row + part.height}, columns "
                f"{part.col}-{part.col + part.width}; the file may be truncated ({one_line(error)})"
            ) from error


def forget_sources() -> None:
    """Make GDAL close the sources of virtual rasters that nobody is reading, and forget those it could not open.

    GDAL says once that a source cannot be opened. As long as it remembers that, windows that touch the source are black
    there and in all sources after it, without an error.
    """
    # It remembers so many; reading as many others leaves no room for those.
    count = int(get_gdal_config("GDAL_MAX_DATASET_POOL_SIZE") or _MOST_SOURCES)
    pixel = '<VRTDataset rasterXSize="1" rasterYSize="1"><VRTRasterBand dataType="Byte" band="1"/></VRTDataset>'
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="0" shared="0">{escape(f"{pixel}<!-- {number} -->")}'
        '</SourceFilename><SourceBand>1</SourceBand><SrcRect xOff="0" yOff="0" xSize="1" ySize="1"/>'
        '<SourceProperties RasterXSize="1" RasterYSize="1" DataType="Byte"/>'
        f'<DstRect xOff="{number}" yOff="0" xSize="1" ySize="1"/></SimpleSource>'
        for number in range(count)
    )
    band = f'<VRTRasterBand dataType="Byte" band="1">{sources}</VRTRasterBand>'
    xml = f'<VRTDataset rasterXSize="{count}" rasterYSize="1">{band}</VRTDataset>'
    with quiet(), suppress(*GDAL_ERRORS), rasterio.open(xml) as others:
        others.read(1)


class OpenFiles(LRUCache[int, Any]):
    """Open files by number; the one used longest ago is closed when there are too many."""

    def popitem(self) -> tuple[int, Any]:
        """Close a file and give it back."""
        number, file = super().popitem()
        file.close()
        return number, file

    def close(self) -> None:
        """Close all files."""
        while self:
            self.popitem()


def is_remote(path: str) -> bool:
    """Return whether GDAL reads a path through a file system of its own: an address or a /vsi path."""
    return "://" in path or path.startswith("/vsi")


def write_raster(path: Path, pixels: UInt8, *, crs: str | None = None, gsd_m: float = 1.0) -> None:
    """Write (bands, H, W) uint8 as a tiled GeoTIFF with its upper left corner at a round coordinate.

    Args:
        path: File to write.
        pixels: The bands.
        crs: Anything rasterio takes for one, or None for a raster without georeference.
        gsd_m: Side of a pixel, in units of the CRS.
    """
    count, height, width = pixels.shape
    where = {}
    if crs is not None:
        where = {"crs": crs, "transform": rasterio.Affine(gsd_m, 0, 700_000, 0, -gsd_m, 6_600_000)}
    shape = {"height": height, "width": width, "count": count}
    try:
        with quiet(), rasterio.open(path, "w", **_TIFF, **shape, blockxsize=256, blockysize=256, **where) as dst:
            dst.write(pixels)
    except GDAL_ERRORS as error:
        raise DataError(f"{path}: could not be written ({one_line(error)})") from error
    check_complete(path)


def check_complete(path: Path, *, sparse: bool = False) -> None:
    """Raise DataError unless every block is in a closed GeoTIFF: GDAL keeps a full disk to itself.

    Args:
        path: The file.
        sparse: Blocks may be missing on purpose.
    """
    try:
        with quiet(), rasterio.open(path) as src:
            complete = path.stat().st_size >= max(_block_ends(src, 0 if sparse else math.inf))
    except GDAL_ERRORS:
        complete = False
    if not complete:
        raise IncompleteFile(path)


def _block_ends(src: Any, hole: float) -> Iterator[float]:
    """Yield the byte at which each block of a GeoTIFF ends; ``hole`` for a block that was never written."""
    for (row, col), _ in src.block_windows(1):
        first, count = (src.get_tag_item(f"BLOCK_{x}_{col}_{row}", "TIFF", bidx=1) for x in ("OFFSET", "SIZE"))
        yield hole if first is None or count is None else int(first) + int(count)


def rasterio_window(window: Window) -> RasterioWindow:
    """Return our window as rasterio's."""
    return RasterioWindow(window.col, window.row, window.width, window.height)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence rasterio's warning about a missing georeference: pictures without one are welcome here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def one_line(error: BaseException) -> str:
    """Return GDAL's own message in one line; rasterio's often only says that there is one."""
    return shortened(error.__cause__ or error)


def rescaled(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Return values of any type as uint8: low and below 0, high and above 255, rounded between; NaN is 0."""
    scaled = (pixels.astype(np.float32) - low) * np.float32(255 / (high - low))
    return np.nan_to_num(np.clip(scaled + 0.5, 0, 255), nan=0).astype(np.uint8)
