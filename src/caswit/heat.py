"""Attention as colour on a photograph, the queried pixel marked.

An image is (H, W, 3) uint8; heat is (h, w), not negative, on a grid of tokens that covers the image.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw

from caswit.viz import INK, PAPER, Image, resize

RAMP = np.array([[12, 8, 38], [84, 18, 109], [187, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""Dark to bright, even in lightness, and in order for colour-blind eyes too; equally spaced."""
PEAK_PERCENTILE = 99.5
"""What is drawn brightest; a single extreme token must not darken the rest."""
LEAST_PEAK = 3.0
"""A peak below this many times an even spread is not stretched to full brightness: even must look even."""


def colour_ramp(values: NDArray[Any]) -> Image:
    """Values 0..1 of any shape to (..., 3) colours of ``RAMP``."""
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, stops, RAMP[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def normalised(heat: NDArray[Any]) -> NDArray[Any]:
    """Heat as 0..1; 1 is its peak, or ``LEAST_PEAK`` times its mean where it has no such peak."""
    peak = max(float(np.percentile(heat, PEAK_PERCENTILE)), LEAST_PEAK * float(heat.mean()))
    return np.clip(heat / max(peak, 1e-12), 0, 1)


def times_even(heat: NDArray[Any]) -> float:
    """How many times an even spread the drawn peak is."""
    return float(np.percentile(heat, PEAK_PERCENTILE) / max(float(heat.mean()), 1e-12))


def over_image(image: Image, heat: NDArray[Any]) -> Image:
    """Heat over the darkened grey image; tokens stay squares, since nothing is known between them."""
    height, width = image.shape[:2]
    share = normalised(heat)
    colours = _grown(colour_ramp(share), height, width).astype(np.float64)
    opacity = _grown(np.rint(255 * (0.1 + 0.75 * np.sqrt(share))).astype(np.uint8), height, width)[..., None] / 255
    grey = 0.75 * image.mean(axis=2, keepdims=True)
    return np.rint((1 - opacity) * grey + opacity * colours).astype(np.uint8)


def as_overlay(heat: NDArray[Any]) -> Image:
    """(h, w, 4): the same colours with opacity, to be laid over a map by someone else."""
    share = normalised(heat)
    opacity = np.rint(255 * (0.08 + 0.77 * np.sqrt(share))).astype(np.uint8)
    overlay: Image = np.concatenate([colour_ramp(share), opacity[..., None]], axis=-1)
    return overlay


def mark(image: Image, row: float, col: float, radius_px: float) -> Image:
    """A white dot with a dark rim at a place of the image."""
    picture = Pillow.fromarray(image)
    rim = radius_px + max(1.0, radius_px / 3)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((col - rim, row - rim, col + rim, row + rim), fill=INK)
    draw.ellipse((col - radius_px, row - radius_px, col + radius_px, row + radius_px), fill=PAPER)
    return np.asarray(picture)


def scale_to(image: Image, height: int, width: int) -> Image:
    """An image at another size: areas averaged on the way down, smooth on the way up."""
    if height <= image.shape[0]:
        return resize(image, height, width)
    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def _grown(cells: Image, height: int, width: int) -> Image:
    return np.asarray(Pillow.fromarray(cells).resize((width, height), Pillow.Resampling.NEAREST))
