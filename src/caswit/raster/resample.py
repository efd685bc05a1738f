"""Resample rows and columns of a raster to another pixel size: arithmetic without files.

A raster of ``native`` pixels is read as ceil(native / ratio) pixels, each ``ratio`` native pixels wide, the first
one starting where the raster starts. Pixels at least as coarse as the raster's are area averages; finer ones
are linear between centres. Context is read at full resolution and averaged here, never taken from overviews, whose
resampling is unknown.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.errors import DataError

_WHOLE = 0.02
"""Ratios this close to a whole number, or to one over it, are taken as it: whole pixels average exactly."""
_MOST_RATIO = 500
_TIE = 1e-6
"""Rounding error of floating point: an edge this close to a pixel's counts as lying on it."""

_CHUNK = 32
"""Rows that are resampled at a time."""

_AT_ONCE = 1 << 18
"""Pixels of all bands that ``area_average`` sums at a time."""

# 255 x 16 x 16, and half of 16 x 16 to round, is the last of these sums that fits into 16 bits.
MOST_AVERAGED = 16
"""Largest factor of ``area_average``."""

Floats = NDArray[np.floating[Any]]


def reading_ratio(source_gsd_m: float, read_gsd_m: float) -> float:
    """Return how many native pixels make one that is read, snapped to a whole number or one over it where close.

    0.199 m in a header is 0.2 m in truth: without snapping, every pixel would mix neighbours that belong to another.

    Raises:
        DataError: They differ beyond measure.
    """
    ratio = read_gsd_m / source_gsd_m
    # Beyond this a few pixels would be read as a raster that no disk can hold, or a raster as a few pixels.
    if not 1 / _MOST_RATIO <= ratio <= _MOST_RATIO:
        raise DataError(
            f"pixels of {source_gsd_m:.4g} m cannot be read as pixels of {read_gsd_m:.4g} m: one may be up to "
            f"{_MOST_RATIO} times as wide as the other; say with --gsd-m METRES how wide the image's pixels are, or "
            "choose another model"
        )
    whole = float(round(max(ratio, 1 / ratio)))
    snapped = whole if ratio >= 1 else 1 / whole
    return snapped if abs(ratio / snapped - 1) <= _WHOLE else ratio


class Taps(NamedTuple):
    """A weighted sum along one axis.

    Shares depend on the pixel's place in the raster alone, so a pixel is the same in whatever window it is read.
    """

    pixels: NDArray[np.int64]
    """(T, N) indices into the source."""
    shares: NDArray[np.float32]
    """(T, N), summing to 1 over T."""

    def rows(self, values: Floats) -> Floats:
        """Combine rows of floats: (..., h, w) -> (..., N, w)."""
        return _sum(_weighted(values[..., p, :], share) for p, share in zip(self.pixels, self.shares, strict=True))

    def cols(self, values: Floats) -> Floats:
        """Combine columns of floats: (..., h, w) -> (..., h, N)."""
        # As rows, which are gathered whole: half the time of picking number by number.
        return self.rows(np.ascontiguousarray(values.swapaxes(-1, -2))).swapaxes(-1, -2)

    def chunks(self, count: int) -> Iterator[tuple[slice, "Taps"]]:
        """Yield ``count`` of the sums at a time: which of the N they are, and their taps."""
        for first in range(0, self.pixels.shape[1], count):
            part = slice(first, first + count)
            yield part, Taps(self.pixels[:, part], self.shares[:, part])


def _weighted(rows: Floats, share: NDArray[np.float32]) -> Floats:
    rows *= share[:, None]  # picked by number, so a copy
    return rows


def _sum(terms: Iterator[Floats]) -> Floats:
    total = next(terms)
    for term in terms:
        total += term
    return total


class Axis(NamedTuple):
    """The rows or columns of a raster, and the pixel size at which they are read."""

    native: int
    """Number of pixels in the raster."""
    ratio: float
    """Native pixels in one that is read."""

    @property
    def length(self) -> int:
        """Number of pixels that are read."""
        return max(1, math.ceil(self.native / self.ratio - _TIE))

    def source(self, start: int, stop: int) -> tuple[int, int]:
        """Return the native pixels that reading [start, stop) needs; they may reach outside the raster."""
        margin = 0 if self.ratio >= 1 else 1  # a neighbour to interpolate with
        first = math.floor(start * self.ratio + _TIE) - margin
        return first, math.ceil(stop * self.ratio - _TIE) + margin

    def taps(self, start: int, stop: int) -> "Taps":
        """Return which native pixels make the pixels [start, stop) that are read, and their shares."""
        first, last = self.source(start, stop)
        read = np.arange(start, stop)
        if self.ratio >= 1:
            # A coarse pixel covers at most ceil(ratio + 1) native ones, the outer two in part.
            below = np.floor(read * self.ratio + _TIE).astype(np.int64)
            native = below + np.arange(math.ceil(self.ratio + 1 - _TIE))[:, None]
            lower, upper = np.maximum(native, read * self.ratio), np.minimum(native + 1, (read + 1) * self.ratio)
            shares = np.maximum(upper - lower, 0) / self.ratio
        else:
            centres = (read + 0.5) * self.ratio - 0.5
            below = np.floor(centres).astype(np.int64)
            native = below + np.arange(2)[:, None]
            shares = np.stack([1 - (centres - below), centres - below])
        # A tap that is clipped has share 0: a coarse pixel on native edges covers one fewer than there are taps.
        return Taps(np.clip(native, first, last - 1) - first, shares.astype(np.float32))

    def nearest(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return indices into ``source(start, stop)`` of the native pixels under the centres of [start, stop)."""
        first, _ = self.source(start, stop)
        return np.floor((np.arange(start, stop) + 0.5) * self.ratio + _TIE).astype(np.int64) - first

    def owned(self, start: int, stop: int) -> tuple[int, int]:
        """Return the native pixels whose centres lie in [start, stop), inside the raster.

        Neighbouring ranges own neighbouring pixels, and all ranges together own the raster.
        """
        return self._first_owned(start), self._first_owned(stop)

    def _first_owned(self, edge: int) -> int:
        if edge >= self.length:
            return self.native
        return min(max(math.ceil(edge * self.ratio - 0.5 - _TIE), 0), self.native)

    def positions(self, start: int, stop: int) -> Floats:
        """Return the centres of native pixels [start, stop) in pixels that are read: 0 is the first one's centre."""
        return (np.arange(start, stop) + 0.5) / self.ratio - 0.5


def resample_image(
    image: NDArray[np.uint8], valid: NDArray[np.bool_], rows: Axis, cols: Axis, window: tuple[int, int, int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Resample native pixels to a window of pixels that are read; nodata has no weight.

    Args:
        image: (n, h, w) native pixels that cover the sources of both axes.
        valid: (h, w).
        rows: Rows of the raster.
        cols: Columns of the raster.
        window: First row, end row, first column, end column of the pixels to return.

    Returns:
        (n, H, W) uint8, rounded half up, black where not valid, and (H, W) bool: at least half of the pixel is
        covered by valid ones.
    """
    top, bottom, left, right = window
    down, across = rows.taps(top, bottom), cols.taps(left, right)
    whole = bool(valid.all())
    resampled = np.empty((len(image), bottom - top, right - left), np.uint8)
    kept = np.ones((bottom - top, right - left), bool)
    # Some rows at a time, so that the sums in floating point stay in the processor's cache: several times as fast.
    for part, taps in down.chunks(_CHUNK):
        first, end = int(taps.pixels.min()), int(taps.pixels.max()) + 1
        taps = taps._replace(pixels=taps.pixels - first)
        known = valid[first:end]
        gaps = not (whole or known.all())
        if gaps:
            # A sum over valid pixels, divided by their weight: nodata is black and would darken the edges of an image.
            cover = across.cols(taps.rows(known.astype(np.float32)))
            # Shares of a whole pixel add up to 1 but for rounding: it must not depend on gaps elsewhere in the window.
            cover[cover > 1 - _TIE] = 1
            kept[part] = cover >= 0.5 - _TIE
            weight = np.maximum(cover, 0.5 - _TIE)
        for band, source in zip(resampled, image[:, first:end], strict=True):
            mean = across.cols(taps.rows((source * known if gaps else source).astype(np.float32)))
            if gaps:
                mean /= weight
            mean += np.float32(0.5)
            # Never negative, so that cutting digits off is rounding down; in the order that memory has.
            band[part] = mean.astype(np.uint8, order="K")
    resampled *= kept
    return resampled, kept


def area_average(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the mean of every factor x factor square, rounded half up: (n, H, W) -> (n, H / factor, W / factor).

    Exact in 16 bits for factors up to MOST_AVERAGED.
    """
    if factor == 1:
        return image
    assert factor <= MOST_AVERAGED, factor
    count, height, width = image.shape
    averaged = np.empty((count, height // factor, width // factor), np.uint8)
    # Some rows at a time: sums take several times the memory of the image, and stay in the processor's cache.
    some = max(1, _AT_ONCE // max(1, count * width * factor))
    for first in range(0, height // factor, some):
        averaged[:, first : first + some] = _averaged(image[:, first * factor : (first + some) * factor], factor)
    return averaged


def _averaged(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    values, step = image, factor
    if factor % 2 == 0 and image.strides[2] == 1:
        # Two neighbours are the halves of one number: memory is read in its order, which is three times as fast.
        pairs = image.view(np.uint16)
        values, step = (pairs & np.uint16(0xFF)) + (pairs >> np.uint16(8)), factor // 2
    rows = values[:, ::factor].astype(np.uint16)
    for i in range(1, factor):
        rows += values[:, i::factor]
    # Adding half of the divisor makes whole-number division round half up.
    total = rows[..., ::step] + np.uint16(factor**2 // 2)
    for j in range(1, step):
        total += rows[..., j::step]
    return (total // factor**2).astype(np.uint8)


def moving_average(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the mean of the factor x factor square that begins at each pixel: (n, H, W) -> (n, H - f + 1, W - f + 1).

    Its bytes are those of ``area_average``, which squares side by side have.
    """
    assert 1 <= factor <= MOST_AVERAGED, factor
    rows = _moving_sum(image.astype(np.uint16).swapaxes(1, 2), factor).swapaxes(1, 2)
    total = _moving_sum(rows, factor)
    total += np.uint16(factor**2 // 2)
    total //= np.uint16(factor**2)
    return total.astype(np.uint8)


def _moving_sum(values: NDArray[np.uint16], count: int) -> NDArray[np.uint16]:
    """Return the sums of ``count`` neighbours along the last axis, the first one beginning where the axis does."""
    if count == 1:
        return values.copy()
    # Two sums of half as many lie side by side, so that few additions are left.
    half = _moving_sum(values, count // 2)
    pairs = half[..., : half.shape[-1] - count // 2] + half[..., count // 2 :]
    return pairs[..., : values.shape[-1] - count + 1] + values[..., count - 1 :] if count % 2 else pairs


def nearest(labels: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Take the middle of every factor x factor square (its lower right middle if even): (H, W) -> smaller.

    Class indices cannot be averaged.
    """
    # An even square has no middle pixel; this is the one of torch's nearest-exact (docs/decisions/0004).
    return np.ascontiguousarray(labels[factor // 2 :: factor, factor // 2 :: factor])
