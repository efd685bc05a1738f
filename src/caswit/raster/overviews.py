"""Read any part of a raster at any coarser size, through its overviews, as a map in a browser asks for it.

Reads run side by side on handles that are opened once and reused. Nothing here holds more than one part.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, Resampling
from rio_tiler.errors import RioTilerError
from rio_tiler.reader import read as read_part

from caswit.errors import DataError
from caswit.raster.gate import OPENING, Gate
from caswit.raster.georef import Grid, check_grid
from caswit.raster.reader import (
    GDAL_ERRORS,
    USUAL,
    Bool,
    OpenFiles,
    forget_sources,
    one_line,
    quiet,
    rasterio_window,
)
from caswit.raster.windows import Window, spread_windows

MAX_IDLE = 32
"""Handles that are kept open while nobody reads, those of all rasters together: a folder may hold thousands."""
_IDLE = OpenFiles(MAX_IDLE)
_POOL = threading.Lock()
_PROBE_PX = 64
_COLOURS = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_Resampling = Literal["average", "nearest"]
_NUMBERS = count()


class RasterInfo(NamedTuple):
    """The header of a raster."""

    grid: Grid
    bands: int
    """Number of bands."""
    dtype: str
    alpha: bool
    """The last band says which pixels have data. One that is called alpha may be near infrared: a colour, no mask."""
    palette: Mapping[int, tuple[int, int, int]]
    """Value -> red, green, blue; empty without a palette."""
    nodata: float | None
    tags: Mapping[str, str]
    """Tags of the raster and of its first band."""
    descriptions: tuple[str, ...]
    """What the file calls each band; empty where it has no name for it."""
    colours: tuple[str, ...]
    """red, green or blue where the file says that a band is that colour, else empty."""
    coarsest: int
    """Factor of the coarsest overview; 1 without overviews."""
    files: tuple[Path, ...]
    """Paths of all files behind it: those of a VRT too."""


class Overviews:
    """A raster that several threads read at any scale.

    Args:
        path: A file that GDAL opens.
        gate: Checks the file each time before it is opened; None opens whatever GDAL opens.

    Raises:
        DataError: GDAL cannot open it, or may not.
    """

    def __init__(self, path: Path, gate: Gate | None = None) -> None:
        self.path = path
        self.gate = gate
        self._idle: list[int] = []
        self._limits: dict[int, tuple[float, float]] = {}
        with self._handle() as src:
            self.info = _info(src, path)

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window at a coarser (or finer) size.

        Args:
            window: May reach outside the raster.
            height: Rows to return.
            width: Columns to return.
            bands: From 1.
            average: Mean of the pixels that a returned one covers; otherwise the nearest.

        Returns:
            (bands, height, width), 0 outside, and (height, width) where there are data.

        Raises:
            DataError: It cannot be read.
        """
        grid = self.info.grid
        pixels = np.zeros((len(bands), height, width), self.info.dtype)
        valid = np.zeros((height, width), bool)
        part = window.clipped(grid.height, grid.width)
        if not (part.height and part.width):
            return pixels, valid
        # Only the part inside the raster is read, then placed in the picture that was asked for.
        top, bottom = _scaled(part.row - window.row, part.height, height / window.height, height)
        left, right = _scaled(part.col - window.col, part.width, width / window.width, width)
        # Enlarged pixels stay squares, so that a viewer shows which pixels there are.
        averaged = average and part.height > bottom - top
        size = bottom - top, right - left
        with self._handle() as src:
            try:
                pixels[:, top:bottom, left:right], valid[top:bottom, left:right] = self._part(
                    src, part, size, tuple(bands), "average" if averaged else "nearest"
                )
            except (*GDAL_ERRORS, RioTilerError, ValueError, MemoryError) as error:
                if src.driver == "VRT":
                    forget_sources()
                raise DataError(f"{self.path.name}: cannot be read, it may be damaged") from error
        return pixels, valid

    def _part(
        self, src: Any, part: Window, size: tuple[int, int], bands: tuple[int, ...], resampling: _Resampling
    ) -> tuple[NDArray[Any], Bool]:
        where = rasterio_window(part)
        # What the file calls alpha and holds a colour would be taken for a mask.
        if src.colorinterp[-1] == ColorInterp.alpha and not self.info.alpha and src.nodata is None:
            shape = (len(bands), *size)
            return src.read(bands, window=where, out_shape=shape, resampling=Resampling[resampling]), np.ones(
                size, bool
            )
        found = read_part(src, window=where, height=size[0], width=size[1], indexes=bands, resampling_method=resampling)
        valid: Bool = found.mask > 0
        return found.data, valid & np.isfinite(found.data).all(0) if found.data.dtype.kind == "f" else valid

    def limits(self, band: int) -> tuple[float, float]:
        """Return the values of a band between which 98 of 100 lie, in a sample spread over the raster."""
        if band not in self._limits:
            windows = spread_windows(self.info.grid.height, self.info.grid.width)
            parts = [self.read(each, each.height, each.width, (band,)) for each in windows]
            values = np.concatenate([pixels[0][valid] for pixels, valid in parts])
            low, high = (float(x) for x in np.percentile(values, USUAL)) if values.size else (0.0, 1.0)
            self._limits[band] = (low, high) if low < high else (low, low + 1)
        return self._limits[band]

    def close(self) -> None:
        """Close the handles that are not in use."""
        while (src := self._take()) is not None:
            src.close()

    def _take(self) -> Any | None:
        """Take one of our idle handles; None if there is none."""
        with _POOL:
            # Those that were closed in favour of other rasters are still in our list.
            while self._idle:
                if (number := self._idle.pop()) in _IDLE:
                    return _IDLE.pop(number)
        return None

    @contextmanager
    def _handle(self) -> Iterator[Any]:
        """Lend an open dataset to one thread."""
        src = self._take()
        if src is None:
            src = _open(self.path, self.gate)
        # Deliberately without try: after an error the handle is dropped, since its state is unknown.
        yield src
        with _POOL:
            self._idle.append(number := next(_NUMBERS))
            _IDLE[number] = src


def _open(path: Path, gate: Gate | None) -> Any:
    try:
        with OPENING, quiet():
            return rasterio.open(path, driver=None if gate is None else gate.driver(path))
    except (*GDAL_ERRORS, ValueError, OSError) as error:  # ValueError: a name or tags that are not UTF-8
        raise DataError(f"{path.name}: not a raster GDAL can open") from error


def _info(src: Any, path: Path) -> RasterInfo:
    """Read the header of an open raster."""
    try:
        if not src.count:
            raise DataError(f"{path.name}: has no bands")
        palette = src.colormap(1) if src.colorinterp[0] == ColorInterp.palette else {}
        info = RasterInfo(
            grid=Grid(src.height, src.width, src.crs, src.transform, src.gcps),
            bands=src.count,
            dtype=src.dtypes[0],
            alpha=src.colorinterp[-1] == ColorInterp.alpha and not _varies(src),
            palette={value: (r, g, b) for value, (r, g, b, _) in palette.items()},
            nodata=src.nodata,
            tags={**src.tags(), **src.tags(1)},
            descriptions=tuple(name or "" for name in src.descriptions),
            colours=tuple(c.name if c in _COLOURS else "" for c in src.colorinterp),
            coarsest=max(src.overviews(1), default=1),
            files=tuple(Path(file) for file in src.files),
        )
    except GDAL_ERRORS as error:
        raise DataError(f"{path.name}: its header cannot be read ({one_line(error)})") from error
    check_grid(info.grid, path.name)
    return info


def _varies(src: Any) -> bool:
    """Return whether the last band is nowhere near a mask: few of its pixels are at the ends, as near infrared's."""
    dtype = np.dtype(src.dtypes[-1])
    if src.count < 4 or dtype.kind not in "ui":
        return False
    # Small parts along the diagonal: this is asked of every file of a folder. Edges of a mask may be soft.
    places = ((src.height * k // 4, src.width * k // 4) for k in (1, 2, 3))
    parts = (Window(row, col, _PROBE_PX, _PROBE_PX).clipped(src.height, src.width) for row, col in places)
    try:
        values = np.concatenate([src.read(src.count, window=rasterio_window(part)).ravel() for part in parts])
    except GDAL_ERRORS:
        return False  # who shows it will say so
    return bool(((values > 0) & (values < np.iinfo(dtype).max)).mean() > 0.5)


def _scaled(first: int, length: int, scale: float, most: int) -> tuple[int, int]:
    """Return the half-open range of returned pixels that a range of pixels fills; at least one."""
    start = min(round(first * scale), most - 1)
    return start, max(start + 1, min(most, round((first + length) * scale)))
