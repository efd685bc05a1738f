"""Areas without data that a file does not declare: white or black ones, found by what a sample of the raster shows.

``find_blanks`` looks at windows spread over a raster, the same ones at every call, and says once for all of it whether
white or black stands for nothing. ``blank_areas`` then says which pixels of a window that are, from its surroundings
alone, so that a block knows it without the others.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from caswit.raster.windows import Window

VALUES = 255, 0
_WIDTH_PX = 17
"""Areas are at least this wide and high: saturated roofs and cars are smaller."""
_RIM_PX, _NEAR = 16, 24
"""Lossy compression leaves pixels of nearly the same value around an area: how far out, and how near in value."""
REACH_PX = _RIM_PX + 2 * (_WIDTH_PX // 2)
"""Pixels around a window that say which of its own are blank."""
_LARGE_PX = 65
"""An area inside the raster is taken for missing data if it is this wide and high, one at the raster's edge always."""
_SAMPLE_PX, _SAMPLES = 256, 16
"""Side of the windows that are looked at, and how many along a side: rasters of up to 4096 x 4096 are seen whole."""
_LEAST_SHARE = 1e-3
"""Share of the pixels from which on a value counts."""


class _Image(Protocol):
    """A raster or a mosaic: both read windows through what is here."""

    height: int
    width: int

    def is_empty(self, window: Window) -> bool: ...
    def read_alpha(self, window: Window, bands: tuple[int, ...] = ()) -> NDArray[Any] | None: ...
    def read_image(self, window: Window, bands: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]: ...


class Blanks(NamedTuple):
    """What a sample of a raster shows."""

    shares: dict[int, float]
    """White (255) and black (0), where found: share of the valid pixels that it takes, the larger one first."""
    half_transparent: float = 0.0
    """Share of the pixels whose alpha is neither 0 nor the highest value."""
    transparent: float = 0.0
    """Share of the pixels whose alpha is 0."""


def blank_areas(image: NDArray[np.uint8], value: int) -> NDArray[np.bool_]:
    """Return where (n, H, W) is blank: (H, W). Pixels nearer than REACH_PX to a cut edge may be wrong."""
    exact = (image == value).all(0).astype(np.uint8)
    # Beyond the window counts as blank, so that areas at the edge of a raster need to be wide along it only.
    inner = cv2.erode(exact, _square(_WIDTH_PX)) if exact.any() else exact
    if not inner.any():
        return np.zeros(exact.shape, bool)
    around = cv2.dilate(inner, _square(_WIDTH_PX + 2 * _RIM_PX)).astype(bool)
    near = image >= value - _NEAR if value else image <= _NEAR
    return near.all(0) & around


def find_blanks(image: _Image, bands: tuple[int, ...]) -> Blanks:
    """Look at a raster for white and black areas that are valid by its file.

    Raises:
        DataError: It cannot be read.
    """
    counts, looked_at = dict.fromkeys(VALUES, 0), 0
    missing = set()
    for window in _sample(image.height, image.width):
        if image.is_empty(window):
            continue
        pixels, valid = image.read_image(window, bands)
        looked_at += int(valid.sum())
        for value in VALUES:
            # Invalid pixels are black: they are no area that the file does not declare.
            blank = blank_areas(np.where(valid, pixels, 128).astype(np.uint8), value)
            counts[value] += int(blank.sum())
            if value not in missing and blank.any() and _is_missing(pixels, valid, value, window, image):
                missing.add(value)
    shares = {value: counts[value] / looked_at for value in missing if counts[value] >= _LEAST_SHARE * looked_at}
    ordered = dict(sorted(shares.items(), key=lambda item: -item[1]))
    return Blanks(ordered, *_alpha_shares(image, bands))


def _is_missing(pixels: NDArray[np.uint8], valid: NDArray[np.bool_], value: int, window: Window, image: _Image) -> bool:
    """Return whether an area of a window is large, or lies at the edge of the raster."""
    exact = ((pixels == value).all(0) & valid).astype(np.uint8)
    large = cv2.erode(exact, _square(min(_LARGE_PX, *exact.shape)), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    if large.any():
        return True
    inner = cv2.erode(exact, _square(_WIDTH_PX)).astype(bool)
    bottom, right = window.row + window.height == image.height, window.col + window.width == image.width
    at_edge = (window.row == 0, inner[0]), (window.col == 0, inner[:, 0]), (bottom, inner[-1]), (right, inner[:, -1])
    return any(there and bool(line.any()) for there, line in at_edge)


def _alpha_shares(image: _Image, bands: tuple[int, ...]) -> tuple[float, float]:
    between, zero, looked_at = 0, 0, 0
    for window in _sample(image.height, image.width):
        alpha = image.read_alpha(window, bands)
        if alpha is None:
            return 0.0, 0.0
        highest = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        zero += int((alpha == 0).sum())
        between += int(((alpha > 0) & (alpha < highest)).sum())
        looked_at += alpha.size
    return between / looked_at, zero / looked_at


def _sample(height: int, width: int) -> Iterator[Window]:
    """Yield windows spread evenly over a raster, from edge to edge."""
    for row in _starts(height):
        for col in _starts(width):
            yield Window(row, col, min(_SAMPLE_PX, height), min(_SAMPLE_PX, width))


def _starts(length: int) -> list[int]:
    last = max(0, length - _SAMPLE_PX)
    count = min(_SAMPLES, -(-length // _SAMPLE_PX))
    return [round(start) for start in np.linspace(0, last, count)]


def _square(side: int) -> NDArray[np.uint8]:
    return np.ones((side, side), np.uint8)
