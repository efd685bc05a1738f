"""Where errors lie: close to the outlines of the truth, where they may be a matter of a pixel, or inside its areas."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX


@dataclass(frozen=True)
class EdgeCounts:
    """Pixel counts of one tile or of many; they add up."""

    pixels: NDArray[np.int64]
    """(2, 2): rows are near an outline and elsewhere; columns are labelled and wrong."""

    @classmethod
    def zeros(cls) -> "EdgeCounts":
        """Nothing counted yet."""
        return cls(np.zeros((2, 2), np.int64))

    def __add__(self, other: "EdgeCounts") -> "EdgeCounts":
        """Both together."""
        return EdgeCounts(self.pixels + other.pixels)

    def values(self) -> dict[str, float]:
        """Error rates near outlines and elsewhere, and the shares of pixels and of errors near them, 0..1."""
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
    """(H, W): True where the square of ``band_px`` around a pixel holds more than one labelled class."""
    classes = torch.from_numpy(truth.astype(np.float32))[None]
    ignored = classes == IGNORE_INDEX
    size = 2 * band_px + 1

    def largest(values: torch.Tensor) -> torch.Tensor:
        along = F.max_pool2d(values, (1, size), 1, (0, band_px))  # pads with minus infinity
        return F.max_pool2d(along, (size, 1), 1, (band_px, 0))

    nothing = float("-inf")
    most, least = largest(classes.masked_fill(ignored, nothing)), -largest((-classes).masked_fill(ignored, nothing))
    near: NDArray[np.bool_] = (most > least)[0].numpy()
    return near
