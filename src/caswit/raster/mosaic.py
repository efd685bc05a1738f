"""Many rasters on one grid, read as one: the context of a tile may lie in the next file.

Footprints are found once, from the headers; files are opened when a window first touches them.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.reader import DEFAULT_ENCODING, Bool, OpenFiles, PixelEncoding, Raster, UInt8, quiet
from caswit.raster.windows import Window

_OPEN_FILES = 64
_HEADERS_AT_ONCE = 8
# Coordinates in headers are rounded; offsets below this are ignored.
_TOLERANCE_PX = 0.1


class Source(NamedTuple):
    """One file of a mosaic."""

    path: str
    window: Window
    """The pixels of the mosaic it covers."""


# Not a GDAL VRT, which takes one nodata value for all files and cannot express rescaled pixels, palettes or holes in
# the upper of two files (docs/decisions/0010).
class Mosaic:
    """Rasters as one. Use as a context manager; one thread at a time may read it.

    Where files overlap, the later one lies on top wherever it has data. Gaps are not valid.

    Args:
        sources: The files, as ``build_mosaic`` placed them.
        grid: The grid of them all.
        encoding: The meaning of their values, where they do not state it.
    """

    def __init__(self, sources: Sequence[Source], grid: Grid, encoding: PixelEncoding = DEFAULT_ENCODING) -> None:
        self.sources, self.grid, self.encoding = sources, grid, encoding
        self.height, self.width = grid.height, grid.width
        self.path = f"{sources[0].path} and {len(sources) - 1} more"
        windows = np.array([s.window for s in sources])
        self._top, self._left = windows[:, 0], windows[:, 1]
        self._bottom, self._right = self._top + windows[:, 2], self._left + windows[:, 3]
        self._open = OpenFiles(_OPEN_FILES)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def check_image(self, bands: tuple[int, ...]) -> None:
        """Check the bands of the first file; ``build_mosaic`` checked them all."""
        self._raster(0).check_image(bands)

    def read_image(self, window: Window, bands: tuple[int, ...] = (1, 2, 3)) -> tuple[UInt8, Bool]:
        """Read bands and where they are valid: (n, H, W), black where not, and (H, W)."""
        image = np.zeros((len(bands), window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        # Later files overwrite earlier ones only where they have data, so the lower one shows through holes.
        for number in self._touched(window):
            covers = self.sources[number].window
            part = window.common(covers)
            there = Window(part.row - covers.row, part.col - covers.col, part.height, part.width)
            pixels, has_data = self._raster(number).read_image(there, bands)
            rows, cols = part.inside(window)
            np.copyto(image[:, rows, cols], pixels, where=has_data)
            valid[rows, cols] |= has_data
        return image, valid

    @property
    def first(self) -> Raster:
        """The first file, open."""
        return self._raster(0)

    def read_alpha(self, window: Window, bands: tuple[int, ...] = ()) -> NDArray[Any] | None:
        """Read alpha where the first file that a window touches has it, as ``Raster.read_alpha``."""
        for number in self._touched(window)[:1]:
            covers = self.sources[number].window
            part = window.common(covers)
            there = part._replace(row=part.row - covers.row, col=part.col - covers.col)
            return self._raster(number).read_alpha(there, bands)
        return None

    def is_empty(self, window: Window) -> bool:
        """Return whether a window surely has no data, as far as that is known without reading pixels."""
        for number in self._touched(window):
            covers = self.sources[number].window
            there = Window(window.row - covers.row, window.col - covers.col, window.height, window.width)
            if not self._raster(number).is_empty(there):
                return False
        return True

    def _touched(self, window: Window) -> list[int]:
        """Return the numbers of the files that a window touches, in their order."""
        rows = (self._top < window.row + window.height) & (self._bottom > window.row)
        cols = (self._left < window.col + window.width) & (self._right > window.col)
        return [int(number) for number in np.flatnonzero(rows & cols)]

    def _raster(self, number: int) -> Raster:
        if number not in self._open:
            self._open[number] = Raster(self.sources[number].path, self.encoding)
        return self._open[number]


def open_image(sources: Sequence[Source], grid: Grid, encoding: PixelEncoding = DEFAULT_ENCODING) -> Raster | Mosaic:
    """Open the files that ``build_mosaic`` placed as one image."""
    return Raster(sources[0].path, encoding) if len(sources) == 1 else Mosaic(sources, grid, encoding)


def build_mosaic(
    paths: Sequence[str], bands: tuple[int, ...] = (1, 2, 3), encoding: PixelEncoding = DEFAULT_ENCODING
) -> tuple[tuple[Source, ...], Grid]:
    """Read the headers of some files and return where each lies, and the grid of them all.

    Raises:
        DataError: One cannot be opened or has the wrong pixels, or they do not lie on one grid.
    """

    def header(path: str) -> Grid:
        with Raster(path, encoding) as raster:
            raster.check_image(bands)
            return raster.grid

    if len(paths) == 1:  # a single raster needs no georeference
        grid = header(paths[0])
        return (Source(paths[0], Window(0, 0, grid.height, grid.width)),), grid
    # Threads wait for disks and servers side by side. They share the filters of warnings, so those change here, once.
    with quiet(), ThreadPoolExecutor(_HEADERS_AT_ONCE) as pool:
        grids = list(pool.map(header, paths))
    windows = [_place(path, grid, paths[0], grids[0]) for path, grid in zip(paths, grids, strict=True)]
    top, left = min(w.row for w in windows), min(w.col for w in windows)
    height = max(w.row + w.height for w in windows) - top
    width = max(w.col + w.width for w in windows) - left
    sources = tuple(
        Source(path, w._replace(row=w.row - top, col=w.col - left)) for path, w in zip(paths, windows, strict=True)
    )
    return sources, grids[0]._replace(transform=grids[0].shifted(top, left), height=height, width=width)


def _place(path: str, grid: Grid, first_path: str, first: Grid) -> Window:
    """Return the pixels of the first file's grid that a file covers."""
    if grid.crs is None or grid.transform.is_identity:
        raise DataError(f"{path}: has no georeference, so its place in a mosaic is unknown; give it alone")
    if grid.crs != first.crs:
        raise DataError(
            f"{path}: its CRS is {_crs_name(grid)}, that of {first_path} is {_crs_name(first)}; "
            "warp all images to one grid (gdalwarp -t_srs -tr -tap)"
        )
    to_first = np.linalg.inv(first.matrix) @ grid.matrix
    # Three corners fix offset, pixel size and rotation: whatever is wrong shows as pixels off the grid at one of them.
    corners = (to_first @ [[0, grid.width, 0], [0, 0, grid.height], [1, 1, 1]])[:2].T
    col, row = (round(float(value)) for value in corners[0])
    expected = [(col, row), (col + grid.width, row), (col, row + grid.height)]
    off_px = float(np.abs(np.subtract(corners, expected)).max())
    if off_px > _TOLERANCE_PX:
        raise DataError(
            f"{path}: its pixels lie {off_px:.3g} px off the grid of {first_path} (pixel sizes "
            f"{_pixel(grid)} and {_pixel(first)}); warp all images to one grid (gdalwarp -tr -tap)"
        )
    return Window(row, col, grid.height, grid.width)


def _crs_name(grid: Grid) -> str:
    return grid.crs.to_string()[:60] if grid.crs else "unknown"


def _pixel(grid: Grid) -> str:
    return f"{abs(grid.transform.a):.6g} x {abs(grid.transform.e):.6g}"
