"""A map that is still being computed: the folder of parts that ``predict`` writes beside it.

OUT.tif.parts/ holds manifest.json and, for every finished block, its number as NNNNNNN.tif or, without data,
NNNNNNN.none. Where a block lies follows from its number: blocks are counted row by row.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.overviews import Overviews
from caswit.raster.reader import Bool
from caswit.raster.resample import Axis, reading_ratio
from caswit.raster.windows import Window, block_windows

SUFFIX = ".parts"


class Journal(NamedTuple):
    """What a folder of parts says."""

    out: Path
    """The map that is being made."""
    images: str
    """Begins with the first image's path."""
    model: str
    """Name and digest."""
    parts: Mapping[Path, Window]
    """Finished parts with data, and where they lie."""
    done: float
    """Share of the map that is finished."""
    finished: int
    """Blocks, those without data included."""


def read_journal(folder: Path, grid: Grid) -> Journal | None:
    """Read a folder of parts; None if it does not fit an image on this grid.

    Args:
        folder: OUT.tif.parts.
        grid: Of the image.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        names = sorted(f.name for f in folder.iterdir() if f.suffix in (".tif", ".none") and f.stem.isdigit())
        windows = _windows(manifest, grid)
    except (OSError, ValueError, KeyError):  # it may vanish while we look: the map is then complete
        return None
    tifs = [folder / n for n in names if n.endswith(".tif")]
    if any(int(n.split(".")[0]) >= len(windows) for n in names):
        return None
    if any(_size(part) != windows[int(part.stem)][2:] for part in {*tifs[:1], *tifs[-1:]}):
        return None
    area_px = sum(w.height * w.width for w in (windows[int(n.split(".")[0])] for n in names))
    return Journal(
        out=folder.with_name(folder.name.removesuffix(SUFFIX)),
        images=str(manifest.get("images", "")),
        model=str(manifest.get("model", "")),
        parts={part: windows[int(part.stem)] for part in tifs},
        done=area_px / (grid.height * grid.width),
        finished=len(names),
    )


def _windows(manifest: Mapping[str, Any], grid: Grid) -> list[Window]:
    """Where the blocks lie."""
    rows, cols = _axes(manifest, grid)
    tile_px, overlap_px, block_px = (int(manifest[key]) for key in ("tile_px", "overlap_px", "block_px"))
    plan = block_windows(rows.length, cols.length, tile_px, overlap_px, max(1, round(block_px / rows.ratio)))
    return [_native(window, rows, cols) for window in plan]


def _axes(manifest: Mapping[str, Any], grid: Grid) -> tuple[Axis, Axis]:
    """How the image is read: the plan counts pixels that are read."""
    read_at_m, given_m = manifest.get("read_at_m", "None"), manifest.get("gsd_m", "None")
    native_m = grid.source_gsd_m if given_m == "None" else float(given_m)
    ratio = 1.0 if read_at_m == "None" or native_m is None else reading_ratio(native_m, float(read_at_m))
    return Axis(grid.height, ratio), Axis(grid.width, ratio)


def _native(window: Window, rows: Axis, cols: Axis) -> Window:
    top, bottom = rows.owned(window.row, window.row + window.height)
    left, right = cols.owned(window.col, window.col + window.width)
    return Window(top, left, bottom - top, right - left)


def _size(part: Path) -> tuple[int, int] | None:
    try:
        pyramid = Overviews(part)
    except DataError:
        return None
    pyramid.close()
    return pyramid.info.grid.height, pyramid.info.grid.width


class PartsSource:
    """Reads from parts that are there; the rest has no data.

    Args:
        parts: File -> where it lies.
    """

    def __init__(self, parts: Mapping[Path, Window]) -> None:
        self.parts = parts

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """As ``Overviews.read``."""
        pixels, valid = np.zeros((len(bands), height, width), np.uint8), np.zeros((height, width), bool)
        for file, where in self.parts.items():
            if not _meet(window, where):
                continue
            try:
                part = Overviews(file)
            except DataError:  # assembled and removed while we look
                continue
            inside = Window(window.row - where.row, window.col - where.col, window.height, window.width)
            found, known = part.read(inside, height, width, bands, average=average)
            part.close()
            pixels = np.where(known, found, pixels).astype(np.uint8)
            valid |= known & (found[0] != 255)
        return pixels, valid


def _meet(one: Window, other: Window) -> bool:
    rows = one.row < other.row + other.height and other.row < one.row + one.height
    return rows and one.col < other.col + other.width and other.col < one.col + one.width
