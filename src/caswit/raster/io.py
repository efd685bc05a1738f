"""Reading and writing rasters. The only module that imports rasterio.

Images are (3, H, W) uint8, valid masks and labels (H, W). What lies outside a raster, or is nodata in it, is
black in images, False in masks.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window as RasterioWindow

from caswit.errors import DataError
from caswit.raster.windows import Window

UInt8 = NDArray[np.uint8]
Bool = NDArray[np.bool_]
CACHE_MB = 256
"""GDAL's block cache. Its own default is a share of the machine's memory, which is no bound."""

_TIFF = {"driver": "GTiff", "dtype": "uint8", "tiled": True, "compress": "deflate"}
_STRICT = {"GDAL_PNG_WHOLE_IMAGE_OPTIM": "NO"}  # the shortcut reads what a truncated PNG lacks as black


class Grid(NamedTuple):
    """Where the pixels of a raster lie."""

    height: int
    width: int
    crs: Any
    """A rasterio CRS, or None."""
    transform: Any
    """An affine transform; the identity where there is none."""
    gcps: Any
    """(ground control points, CRS), usually ([], None)."""

    def same_place(self, other: "Grid") -> bool:
        """Same CRS, and corners less than a tenth of a pixel apart."""
        mine, theirs = np.array(self.transform)[:6].reshape(2, 3), np.array(other.transform)[:6].reshape(2, 3)
        corners = np.array([[0, 0, 1], [self.width, self.height, 1]]).T  # x and y in pixels, as columns
        pixel = np.abs(mine[:, :2]).max()
        return self.crs == other.crs and bool(np.abs((mine - theirs) @ corners).max() < 0.1 * pixel)

    @property
    def gsd_m(self) -> float | None:
        """Ground size of a pixel in metres at the raster's centre, or None where unknown."""
        if self.crs is None:
            return None
        a, b, _, d, e, f = tuple(self.transform)[:6]
        side = float(np.sqrt(abs(a * e - b * d)))
        y = f + d * self.width / 2 + e * self.height / 2
        if self.crs.is_geographic:
            return side * 111_320.0 * float(np.sqrt(abs(np.cos(np.radians(y)))))
        if not self.crs.is_projected:  # local coordinates, as photogrammetry writes them
            return None
        side *= self.crs.linear_units_factor[1]
        if self.crs.to_epsg() == 3857:  # Web Mercator stretches lengths by 1 / cos(latitude)
            side /= float(np.cosh(y / 6_378_137.0))
        return side


class Raster:
    """An open raster. Use as a context manager; reading needs no locks within one process.

    Args:
        path: Anything GDAL opens.

    Raises:
        DataError: The file is missing or GDAL cannot open it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        if "://" not in self.path and not self.path.startswith("/vsi") and not Path(path).exists():
            raise DataError(f"{path}: no such file")
        try:
            with _quiet(), rasterio.Env(**_STRICT):
                self._src = rasterio.open(path)
        except RasterioError as error:
            raise DataError(f"{path}: not a raster GDAL can open ({_one_line(error)})") from error
        self.height: int = self._src.height
        self.width: int = self._src.width
        self.count: int = self._src.count
        self.dtype: str = self._src.dtypes[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._src.close()

    @property
    def grid(self) -> Grid:
        """The raster's size, CRS and transform."""
        src = self._src
        return Grid(src.height, src.width, src.crs, src.transform, src.gcps)

    def check_image(self, bands: tuple[int, int, int]) -> None:
        """Raise DataError unless these bands are there and are uint8 colours."""
        if self._src.colorinterp[0] == ColorInterp.palette:
            raise DataError(f"{self.path}: is a palette image; expand it with gdal_translate -expand rgb IN OUT")
        if self.count < max(bands):
            raise DataError(
                f"{self.path}: has {self.count} band{'s' * (self.count > 1)}, bands {list(bands)} are needed; "
                "give an RGB image, or name three existing bands"
            )
        if self.dtype != "uint8":
            raise DataError(
                f"{self.path}: pixels are {self.dtype}, uint8 is needed; "
                "rescale first, e.g. gdal_translate -ot Byte -scale LOW HIGH 0 255 IN OUT"
            )

    def read_image(self, window: Window, bands: tuple[int, int, int] = (1, 2, 3)) -> tuple[UInt8, Bool]:
        """Read three bands and where they are valid.

        Args:
            window: May reach outside the raster.
            bands: 1-based.

        Returns:
            (3, H, W) uint8, black where not valid, and (H, W) bool.
        """
        image = np.zeros((3, window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        part = window.clipped(self.height, self.width)
        if part.height and part.width:
            rows, cols = part.inside(window)
            image[:, rows, cols] = self._read(part, list(bands))
            valid[rows, cols] = self._valid(part)
            image *= valid
        return image, valid

    def read_band(self, window: Window, fill: int) -> NDArray[Any]:
        """Read band 1 as it is, ``fill`` outside the raster and where it is nodata: (H, W)."""
        dtype = np.promote_types(self.dtype, np.min_scalar_type(fill))
        values = np.full((window.height, window.width), fill, dtype)
        part = window.clipped(self.height, self.width)
        if part.height and part.width:
            rows, cols = part.inside(window)
            np.copyto(values[rows, cols], self._read(part, 1), where=self._valid(part))
        return values

    def _read(self, part: Window, bands: int | list[int]) -> NDArray[Any]:
        with self._reading(part):
            pixels: NDArray[Any] = self._src.read(bands, window=_rasterio_window(part))
        return pixels

    def _valid(self, part: Window) -> Bool:
        """Where the raster's own mask (nodata, alpha, internal mask) says there are data."""
        if MaskFlags.all_valid in self._src.mask_flag_enums[0]:
            return np.ones((part.height, part.width), bool)
        # dataset_mask: any band valid, so that a single black channel is not taken for nodata.
        with self._reading(part):
            mask: Bool = self._src.dataset_mask(window=_rasterio_window(part)) > 0
        return mask

    @contextmanager
    def _reading(self, part: Window) -> Iterator[None]:
        try:
            with rasterio.Env(**_STRICT):
                yield
        except RasterioError as error:
            raise DataError(
                f"{self.path}: cannot read rows {part.row}-{part.row + part.height}, columns "
                f"{part.col}-{part.col + part.width}; the file may be truncated ({_one_line(error)})"
            ) from error


class ClassMapWriter:
    """Writes a class map window by window: uint8, tiled, compressed, with palette and names.

    Args:
        path: File to write; ``class_map`` gives it its final name when complete.
        grid: The grid of the map.
        nodata: Value of pixels without a class.
        palette: Class id -> (red, green, blue), 0-255.
        tags: Metadata of the dataset.
    """

    def __init__(
        self,
        path: Path,
        grid: Grid,
        *,
        nodata: int,
        palette: Mapping[int, tuple[int, int, int]],
        tags: Mapping[str, str],
    ) -> None:
        profile = _TIFF | {
            "height": grid.height,
            "width": grid.width,
            "count": 1,
            "crs": grid.crs,
            "nodata": nodata,
            "blockxsize": 512,
            "blockysize": 512,
            "predictor": 1,
            "bigtiff": "if_safer",
            "num_threads": "all_cpus",
        }
        if not grid.transform.is_identity:
            profile["transform"] = grid.transform
        self.path = path
        with _quiet():
            try:
                self._dst = rasterio.open(path, "w", **profile)
            except RasterioError as error:
                raise DataError(f"{path.parent}: cannot write there ({_one_line(error)})") from error
            points, crs = grid.gcps
            if points:
                self._dst.gcps = (points, crs)
            self._dst.write_colormap(1, {**{i: (*rgb, 255) for i, rgb in palette.items()}})
            self._dst.update_tags(**tags)
            self._dst.set_band_description(1, "land cover class")

    def tag_classes(self, names: Mapping[int, str]) -> None:
        """Store the name of every class id as a tag of the band: CLASS_1=building."""
        self._dst.update_tags(1, **{f"CLASS_{i}": name for i, name in names.items()})

    def write(self, window: Window, classes: UInt8) -> None:
        """Write (H, W) class ids into a window inside the raster."""
        self._dst.write(classes, 1, window=_rasterio_window(window))

    def close(self) -> None:
        """Finish the file."""
        with _quiet():
            self._dst.close()

    def check_complete(self) -> None:
        """Raise DataError unless every block is in the closed file: GDAL keeps a full disk to itself."""
        try:
            with _quiet(), rasterio.open(self.path) as src:
                complete = self.path.stat().st_size >= max(_block_ends(src))
        except RasterioError:
            complete = False
        if not complete:
            raise DataError(f"{self.path.parent}: the map could not be written completely; is the disk full?")


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Within this context GDAL caches at most ``CACHE_MB`` of raster blocks."""
    with rasterio.Env(GDAL_CACHEMAX=CACHE_MB):
        yield


def write_raster(path: Path, pixels: UInt8, *, crs: str | None = None, gsd_m: float = 1.0) -> None:
    """Write (bands, H, W) uint8 as a tiled GeoTIFF with its upper left corner at a round coordinate.

    Args:
        path: File to write.
        pixels: What to write.
        crs: Anything rasterio takes for one, or None for a raster without georeference.
        gsd_m: Side of a pixel, in units of the CRS.
    """
    count, height, width = pixels.shape
    where = {}
    if crs is not None:
        where = {"crs": crs, "transform": rasterio.Affine(gsd_m, 0, 700_000, 0, -gsd_m, 6_600_000)}
    shape = {"height": height, "width": width, "count": count}
    with _quiet(), rasterio.open(path, "w", **_TIFF, **shape, blockxsize=256, blockysize=256, **where) as dst:
        dst.write(pixels)


def _block_ends(src: Any) -> Iterator[float]:
    """Where in the file each block of a GeoTIFF ends; infinity for a block that was never written."""
    for (row, col), _ in src.block_windows(1):
        first, count = (src.get_tag_item(f"BLOCK_{x}_{col}_{row}", "TIFF", bidx=1) for x in ("OFFSET", "SIZE"))
        yield math.inf if first is None or count is None else int(first) + int(count)


def _rasterio_window(window: Window) -> RasterioWindow:
    return RasterioWindow(window.col, window.row, window.width, window.height)


@contextmanager
def _quiet() -> Iterator[None]:
    """Images without a georeference are welcome here: no warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def _one_line(error: BaseException) -> str:
    """What GDAL said; rasterio often only says that GDAL said something."""
    return " ".join(str(error.__cause__ or error).split())
