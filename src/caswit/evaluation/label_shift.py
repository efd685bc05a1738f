"""Estimate by how much the labels of a scene are shifted against its image: outlines of labels against edges of pixels.

Outlines and edges are fields of complex numbers whose angle is twice the direction of the gradient, so that an outline
answers edges that run along it and not those across, whichever side is the brighter one. Blocks of labels, spread over
the scene, are each correlated with the image around them. The peak of the sum is the shift; how sure it is follows from
the blocks: of sums over blocks drawn anew with replacement, the share whose peak lies near.

Shapes: S side of a block of the image, K = 2 * REACH_PX + 1 shifts along each axis.
"""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.data.reader import SceneReader
from caswit.raster.windows import Window, area_tiles, some_of

REACH_PX = 64
"""Largest shift that is found along each axis, in pixels."""
_BLOCK_PX = 256
_BLOCKS = 48
"""Blocks of a scene that are looked at."""
_LEAST = 6
"""Blocks with outlines that it takes to say anything."""
_OUTLINE_PX = 60
"""Pixels along outlines that a block needs."""
_TOLD_PX = 0.75
_SMOOTH_PX = 1.5
_DRAWS = 200
_NEAR_PX = 2.5
SURE = 0.95
"""Of ``Shift.sure``: from here on a shift is reported."""
LEAST_PX = 2.0
"""A shift shorter than this is that of a careful hand, and is not reported."""


class Shift(NamedTuple):
    """Where the labels of a scene lie, compared with the edges of its image."""

    down_px: float
    """Pixels by which labels lie too far down (negative: up)."""
    right_px: float
    """Pixels by which labels lie too far to the right (negative: left)."""
    sure: float
    """Share of 0..1 of the draws of blocks whose shift is the same within 2.5 pixels."""
    blocks: int
    """Blocks with outlines that were compared."""

    @property
    def length_px(self) -> float:
        """Length in pixels."""
        return float(np.hypot(self.down_px, self.right_px))

    def said(self, gsd_m: float | None) -> str:
        """Return in words where labels lie, in pixels and, if the ground size of a pixel is known, in metres."""
        down = f"{abs(self.down_px):.1f} px too far {'down' if self.down_px > 0 else 'up'}"
        right = f"{abs(self.right_px):.1f} px too far {'right' if self.right_px > 0 else 'left'}"
        far = [text for text, px in ((down, self.down_px), (right, self.right_px)) if abs(px) >= _TOLD_PX]
        metres = "" if gsd_m is None else f", {self.length_px * gsd_m:.2f} m"
        return f"{' and '.join(far)}{metres}" if far else f"in place within {max(0.1, self.length_px):.1f} px"

    @property
    def odd(self) -> bool:
        """Whether labels are shifted, as far as this can tell."""
        return self.sure >= SURE and self.length_px >= LEAST_PX


def correlations(opened: SceneReader) -> NDArray[np.float32]:
    """Compare labelled blocks of an open scene with the image around them, at native pixels: (N, K, K)."""
    surfaces = [np.zeros((0, 2 * REACH_PX + 1, 2 * REACH_PX + 1), np.float32)]
    height, width = opened.image.height, opened.image.width
    tiles = area_tiles(opened.scene.areas or (Window(0, 0, height, width),), _BLOCK_PX)
    for tile in some_of(tiles, _BLOCKS):
        block = tile.window.clipped(height, width)
        around = block.grown(REACH_PX)
        image, valid = opened.native_image(around)
        here = block.inside(around)
        labels = np.full(valid.shape, IGNORE_INDEX, np.uint8)
        labels[here] = opened.native_labels(block, valid[here])
        outlines = _outlines(labels)
        if np.count_nonzero(outlines) >= _OUTLINE_PX:
            surfaces.append(_correlation(_edges(image, valid), outlines)[None])
    return np.concatenate(surfaces)


def estimate_shift(surfaces: NDArray[np.float32]) -> Shift | None:
    """Return the shift of the labels of a scene, or of several, from ``correlations``; None from too few of them."""
    if len(surfaces) < _LEAST:
        return None
    return _peak(surfaces)


def _peak(surfaces: NDArray[np.float32]) -> Shift:
    """Return the shift of the sum of correlations (N, K, K), and how far draws of the N agree."""
    count = len(surfaces)
    draws = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), _DRAWS)
    sums = draws.astype(np.float32) @ surfaces.reshape(count, -1)
    down, right = _place(surfaces.sum(0))
    places = np.stack(np.unravel_index(sums.argmax(1), surfaces.shape[1:]), -1) - REACH_PX
    sure = float((np.hypot(places[:, 0] - down, places[:, 1] - right) <= _NEAR_PX).mean())
    return Shift(down, right, sure, count)


def _place(surface: NDArray[np.float32]) -> tuple[float, float]:
    """Return the place of the peak of (K, K) between pixels, from a parabola along each axis; 0 is the middle."""
    row, col = (int(i) for i in np.unravel_index(int(surface.argmax()), surface.shape))
    found = []
    for at, line in ((row, surface[:, col]), (col, surface[row])):
        offset = 0.0
        if 0 < at < len(line) - 1:
            before, here, after = (float(v) for v in line[at - 1 : at + 2])
            bend = before - 2 * here + after
            offset = 0.0 if bend == 0 else (before - after) / (2 * bend)
        found.append(at + offset - REACH_PX)
    return found[0], found[1]


def _correlation(edges: NDArray[np.complex64], outlines: NDArray[np.complex64]) -> NDArray[np.float32]:
    """Return (K, K): how well outlines fit the edges if the labels lie so many pixels too far down and right."""
    # Outlines keep REACH_PX from the rim, so no shift wraps them around.
    found = np.fft.ifft2(np.fft.fft2(outlines) * np.conj(np.fft.fft2(edges))).real
    around = np.arange(-REACH_PX, REACH_PX + 1)
    # A block with long outlines must not speak for all.
    return (found[np.ix_(around, around)] / np.sqrt(np.abs(outlines).sum())).astype(np.float32)


def _edges(image: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.complex64]:
    """Return (S, S) edges of (3, S, S): double angle, strength compared with that around; 0 where there are no data."""
    grey = cv2.GaussianBlur(image.mean(0, dtype=np.float32), (0, 0), _SMOOTH_PX)
    doubled, strength = _doubled(grey)
    # What is around evens out contrast: a bright roof among dark trees would drown everything else.
    usual = cv2.GaussianBlur(strength, (0, 0), 16) + 1
    near_gap = cv2.dilate((~valid).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    found: NDArray[np.complex64] = np.where(near_gap, 0, doubled / usual)
    return found


def _outlines(labels: NDArray[np.uint8]) -> NDArray[np.complex64]:
    """Return (S, S) outlines between classes: double angle, strength 1; 0 elsewhere and beside what is not labelled."""
    known = labels != IGNORE_INDEX
    # As wide as blurring and gradient reach: the rim of what is labelled is no outline.
    inner = cv2.erode(known.astype(np.uint8), np.ones((13, 13), np.uint8), borderValue=0) > 0
    doubled = np.zeros(labels.shape, np.complex64)
    for index in np.unique(labels[known]):
        each, strength = _doubled(cv2.GaussianBlur((labels == index).astype(np.float32), (0, 0), 1))
        doubled += np.where(strength > 0.1, each, 0)
    strength = np.abs(doubled)
    return np.where(inner & (strength > 0.1), doubled / np.maximum(strength, 1e-6), 0).astype(np.complex64)


def _doubled(values: NDArray[np.float32]) -> tuple[NDArray[np.complex64], NDArray[np.float32]]:
    """Return the gradient of (S, S) with its angle doubled, and its strength."""
    gradient = cv2.Sobel(values, cv2.CV_32F, 1, 0) + 1j * cv2.Sobel(values, cv2.CV_32F, 0, 1)
    strength = np.abs(gradient)
    return (gradient**2 / np.maximum(strength, 1e-6)).astype(np.complex64), strength
