"""Errors near the outlines of the truth, where they may be a matter of a pixel, and those inside its areas."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX


@dataclass(frozen=True)
class EdgeCounts:
    """Pixel counts of one tile or of many; they add up."""

    pixels: NDArray[np.int64]
    """(2, 2): rows are near an outline and elsewhere; columns are labelled and wrong."""

    @classmethod
    def zeros(cls) -> "EdgeCounts":
        """Return counts of 0: the start of a sum."""
        return cls(np.zeros((2, 2), np.int64))

    def __add__(self, other: "EdgeCounts") -> "EdgeCounts":
        """Return the counts of both."""
        return EdgeCounts(self.pixels + other.pixels)

    def values(self) -> dict[str, float]:
        """Return error rates near outlines and elsewhere, and the shares of pixels and of errors near them, 0..1."""
        (near, near_wrong), (_, far_wrong) = self.pixels.tolist()
        labelled, wrong = self.pixels.sum(0).tolist()
        return {
            "error_near": near_wrong / max(near, 1),
            "error_elsewhere": far_wrong / max(labelled - near, 1),
            "pixels_near": near / max(labelled, 1),
            "errors_near": near_wrong / max(wrong, 1),
        }


def count_edges(prediction: NDArray[Any], truth: NDArray[Any], band_px: int) -> EdgeCounts:
    """Count one tile. Unlabelled pixels count nowhere, and neither they nor the tile's edge are outlines.

    Args:
        prediction: (H, W) class indices.
        truth: (H, W) class indices, IGNORE_INDEX where unlabelled.
        band_px: How far from a pixel of another class is near (Chebyshev distance).
    """
    labelled = truth != IGNORE_INDEX
    near = near_outline(truth, band_px) & labelled
    wrong = (prediction != truth) & labelled
    counts = [[part.sum(), (part & wrong).sum()] for part in (near, labelled & ~near)]
    return EdgeCounts(np.array(counts, np.int64))


def near_outline(truth: NDArray[Any], band_px: int) -> NDArray[np.bool_]:
    """Return where the square of ``band_px`` around a pixel holds more than one labelled class: (H, W)."""
    square = np.ones((2 * band_px + 1, 2 * band_px + 1), np.uint8)
    classes = truth.astype(np.uint8)
    # Unlabelled pixels take the value that can win neither the maximum nor, being 255 already, the minimum;
    # OpenCV ignores what lies beyond the tile by itself.
    most = cv2.dilate(np.where(classes == IGNORE_INDEX, 0, classes).astype(np.uint8), square)
    return most > cv2.erode(classes, square)
