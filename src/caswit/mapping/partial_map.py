"""A map that is still being computed: the folder of parts that ``predict`` writes beside it (``mapping.journal``)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.errors import DataError
from caswit.mapping.journal import MANIFEST, SUFFIX, finished_parts, read_manifest
from caswit.mapping.plan import BlockLayout
from caswit.raster.cog import NODATA
from caswit.raster.gate import Gate
from caswit.raster.georef import Grid
from caswit.raster.overviews import Overviews
from caswit.raster.reader import Bool
from caswit.raster.windows import Window

MAX_BLOCKS = 500_000
"""Blocks, and tiles along a side, up to which a layout is laid out: more than a map of a million pixels a side has."""


class PartialMap(NamedTuple):
    """The finished blocks of a map."""

    out: Path
    """The map that is being made."""
    image: str
    """File name of the only image; of several, the first one's and how many more there are."""
    parts: Mapping[Path, Window]
    """Finished parts with data, and where they lie."""
    done: float
    """Share of the map that is finished."""
    finished: int
    """Number of finished blocks, those without data included."""


def read_partial_map(folder: Path, grid: Grid, gate: Gate | None = None) -> PartialMap | None:
    """Read a folder of parts; None if it does not fit an image on this grid.

    Args:
        folder: OUT.tif.parts.
        grid: The image's grid.
        gate: Checks each part before it is opened.
    """
    if gate is not None and not gate.is_file(folder / MANIFEST):
        return None
    # Anything may vanish while it is read: the map is then complete, and the folder is removed.
    try:
        manifest = read_manifest(folder) or {}
        layout = BlockLayout(**manifest["layout"]) if "layout" in manifest else _old_layout(manifest, grid)
        # Sizes first: a damaged layout may have more blocks than can be counted.
        if layout[:2] != grid[:2] or not _can_be_laid_out(layout):
            return None
        finished = finished_parts(folder)
        windows = [block.native for block in layout.blocks()]
    # A manifest holds any JSON, and what follows from its values fails in any way.
    except (
        DataError, OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError,
        RecursionError,
    ):  # fmt: skip
        return None
    if any(number >= len(windows) for number, _ in finished):
        return None
    parts = {file: windows[number] for number, file in finished if file.suffix == ".tif"}
    # A journal of another image of this size has other parts; the first and the last tell.
    if any(_size(file, gate) != parts[file][2:] for file in {*[*parts][:1], *[*parts][-1:]}):
        return None
    return PartialMap(
        out=folder.with_name(folder.name.removesuffix(SUFFIX)),
        image=Path(str(manifest.get("images", "")).rpartition(" (")[0]).name,
        parts=parts,
        done=sum(windows[n].height * windows[n].width for n, _ in finished) / (grid.height * grid.width),
        finished=len(finished),
    )


def _old_layout(manifest: Mapping[str, Any], grid: Grid) -> BlockLayout:
    """Find where blocks lie for a manifest of version 0.1.0, which stored the settings that led there, as text."""
    texts = (manifest.get(name, "None") for name in ("gsd_m", "read_gsd_m"))
    told_m, read_m = (None if text == "None" else float(text) for text in texts)
    sizes = (int(manifest[name]) for name in ("tile_px", "overlap_px", "block_px"))
    return BlockLayout.of(grid, told_m or grid.source_gsd_m, read_m, *sizes)


def _can_be_laid_out(layout: BlockLayout) -> bool:
    """Return whether a layout is one, with no more tiles along a side and no more blocks than can be listed."""
    sizes = layout.tile_px, layout.overlap_px, layout.block_px
    # A ratio that is no number compares as False.
    if not (all(isinstance(px, int) for px in sizes) and 1e-3 < layout.ratio < 1e3):
        return False
    if not (0 <= layout.overlap_px < layout.tile_px and layout.block_px >= 1):
        return False
    along = max(layout.height, layout.width) / layout.ratio / (layout.tile_px - layout.overlap_px)
    return along <= MAX_BLOCKS and layout.number_of_blocks() <= MAX_BLOCKS


def _size(part: Path, gate: Gate | None) -> tuple[int, int] | None:
    try:
        overviews = Overviews(part, gate)
    except DataError:
        return None
    overviews.close()
    return overviews.info.grid.height, overviews.info.grid.width


class PartsSource:
    """Reads from parts that are there; the rest has no data.

    Args:
        parts: File -> where it lies.
        gate: Checks each before it is opened.
    """

    def __init__(self, parts: Mapping[Path, Window], gate: Gate | None = None) -> None:
        self.parts = parts
        self.gate = gate

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window at any size, as ``Overviews.read`` does."""
        pixels, valid = np.zeros((len(bands), height, width), np.uint8), np.zeros((height, width), bool)
        for file, where in self.parts.items():
            if not all(window.common(where)[2:]):
                continue
            try:
                part = Overviews(file, self.gate)
            except DataError:  # assembled and removed meanwhile
                continue
            inside = Window(window.row - where.row, window.col - where.col, window.height, window.width)
            found, known = part.read(inside, height, width, bands, average=average)
            part.close()
            pixels = np.where(known, found, pixels).astype(np.uint8)
            valid |= known & (found[0] != NODATA)
        return pixels, valid
