"""Reading one axis of a raster at another pixel size: arithmetic without files.

A raster of ``native`` pixels is read as ceil(native / ratio) pixels, each ``ratio`` native pixels wide, the first
one starting where the raster starts. Pixels at least as coarse as the raster's are area averages; finer ones
are linear between centres.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

_WHOLE = 0.02
"""Ratios this close to a whole number, or to one over it, are taken as it: whole pixels average exactly."""
_TIE = 1e-6
"""Below this, two sums in another order are the same: keeps what is read independent of the window."""

Floats = NDArray[np.floating[Any]]


def reading_ratio(native_gsd_m: float, gsd_m: float) -> float:
    """How many native pixels make one that is read, snapped to a whole number or one over it where close."""
    ratio = gsd_m / native_gsd_m
    whole = float(round(max(ratio, 1 / ratio)))
    snapped = whole if ratio >= 1 else 1 / whole
    return snapped if abs(ratio / snapped - 1) <= _WHOLE else ratio


class Axis(NamedTuple):
    """Rows or columns of a raster, and how they are read."""

    native: int
    """Pixels of the raster."""
    ratio: float
    """Native pixels in one that is read."""

    @property
    def length(self) -> int:
        """Pixels that are read."""
        return max(1, math.ceil(self.native / self.ratio - _TIE))

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """The native pixels that reading [start, stop) needs; may reach outside the raster."""
        margin = 0 if self.ratio >= 1 else 1  # a neighbour to interpolate with
        first = math.floor(start * self.ratio + _TIE) - margin
        return first, math.ceil(stop * self.ratio - _TIE) + margin

    def average(self, values: Floats, start: int, stop: int) -> Floats:
        """Resample the last axis of ``values``, which covers ``source(start, stop)``, to [start, stop)."""
        first, _ = self.source(start, stop)
        if self.ratio >= 1:
            edges = np.arange(start, stop + 1) * self.ratio - first
            return np.diff(_integral(values, edges), axis=-1) / self.ratio
        centres = (np.arange(start, stop) + 0.5) * self.ratio - 0.5 - first
        below = np.clip(np.floor(centres).astype(int), 0, values.shape[-1] - 2)
        share = centres - below
        mixed: Floats = values[..., below] * (1 - share) + values[..., below + 1] * share
        return mixed

    def nearest(self, start: int, stop: int) -> NDArray[np.int64]:
        """Indices into ``source(start, stop)`` of the native pixels under the centres of [start, stop)."""
        first, _ = self.source(start, stop)
        return np.floor((np.arange(start, stop) + 0.5) * self.ratio + _TIE).astype(np.int64) - first

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """The native pixels whose centres lie in [start, stop), inside the raster.

        Neighbouring ranges own neighbouring pixels, and all ranges together own the raster.
        """
        return self._first_owned(start), self._first_owned(stop)

    def _first_owned(self, edge: int) -> int:
        if edge >= self.length:
            return self.native
        return min(max(math.ceil(edge * self.ratio - 0.5 - _TIE), 0), self.native)

    def positions(self, start: int, stop: int) -> Floats:
        """Where the centres of the native pixels [start, stop) lie, in read pixels: 0 is the first one's centre."""
        return (np.arange(start, stop) + 0.5) / self.ratio - 0.5


def resample_image(
    image: NDArray[np.uint8], valid: NDArray[np.bool_], rows: Axis, cols: Axis, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample native pixels to a window of what is read; only valid pixels have a say.

    Args:
        image: (3, h, w) native pixels that cover the sources of both axes.
        valid: (h, w).
        rows: The rows.
        cols: The columns.
        window: First row, end row, first column, end column of what is read.

    Returns:
        (3, H, W) uint8, rounded half up, black where not valid, and (H, W) bool: at least half of the pixel is
        covered by valid ones.
    """
    top, bottom, left, right = window

    def both(values: Floats) -> Floats:
        across = cols.average(values, left, right)
        return np.swapaxes(rows.average(np.swapaxes(across, -1, -2), top, bottom), -1, -2)

    cover = both(valid.astype(np.float64))
    kept = cover >= 0.5 - _TIE
    read = np.zeros((len(image), *kept.shape), np.uint8)
    for band, out in zip(image, read, strict=True):  # one at a time: floats take eight times the room
        mean = both(np.where(valid, band, 0.0)) / np.maximum(cover, 0.5 - _TIE)
        out[:] = np.floor(mean + 0.5 + _TIE) * kept
    return read, kept


def _integral(values: Floats, edges: Floats) -> Floats:
    """The integral of a row of pixels from its start up to each edge."""
    total = np.zeros((*values.shape[:-1], values.shape[-1] + 1))
    np.cumsum(values, axis=-1, out=total[..., 1:])
    whole = np.clip(np.floor(edges + _TIE).astype(int), 0, values.shape[-1])
    part = np.append(values, np.zeros((*values.shape[:-1], 1)), axis=-1)[..., whole]
    summed: Floats = total[..., whole] + part * (edges - whole)
    return summed
