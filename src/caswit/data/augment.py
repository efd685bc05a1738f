"""Changes to training samples, most of them random. The tile and its context always change alike."""

from collections.abc import Sequence

import numpy as np

from caswit.config import IGNORE_INDEX, AugmentConfig
from caswit.data.samples import Sample, context_window
from caswit.raster.io import UInt8
from caswit.raster.resample import nearest
from caswit.raster.windows import Window


def augment(sample: Sample, settings: AugmentConfig, rng: np.random.Generator) -> Sample:
    """Return a changed copy. Turning a tile and its context alike turns the scene they come from."""
    # Always the same draws, so that one setting's strength does not change what the others do.
    turn, (bright, stretch, power) = int(rng.integers(8)), rng.uniform(-1, 1, 3)
    if settings.spatial:
        sample = Sample(*(turned(x, turn) for x in sample))
    if settings.brightness or settings.contrast or settings.gamma:
        table = tone_curve(
            brightness=bright * settings.brightness,
            contrast=1 + stretch * settings.contrast,
            gamma=(1 + settings.gamma) ** power,
        )
        sample = sample._replace(tile=table[sample.tile], context=table[sample.context])
    return sample


def turned(array: UInt8, turn: int) -> UInt8:
    """One of the eight symmetries of the square, over the last two axes: 4 quarter turns, each mirrored or not."""
    if turn >= 4:
        array = array[..., ::-1]
    return np.ascontiguousarray(np.rot90(array, turn % 4, axes=(-2, -1)))


def tone_curve(*, brightness: float, contrast: float, gamma: float) -> UInt8:
    """(256,) new value of every pixel value.

    Args:
        brightness: Added, as a share of 255.
        contrast: Factor around mid-grey.
        gamma: Power on the 0-1 scale.
    """
    x = (np.arange(256) / 255) ** gamma
    y = (x - 0.5) * contrast + 0.5 + brightness
    table = np.clip(np.round(y * 255), 0, 255).astype(np.uint8)
    table[0] = 0  # black marks what lies outside the raster, also in prediction, and must stay black
    return table


def only_labels(sample: Sample, tile: Window, factor: int | None, labelled: Sequence[Window]) -> Sample:
    """Ignore the labels outside of some windows.

    Args:
        sample: As it was read.
        tile: Its window.
        factor: Of its context, None without one.
        labelled: Windows of the scene whose labels count.
    """
    label = np.where(_covered(tile, labelled), sample.label, IGNORE_INDEX).astype(np.uint8)
    context_label = sample.context_label
    if factor is not None and context_label.size:
        covered = _covered(context_window(tile, factor), labelled).astype(np.uint8)
        context_label = np.where(nearest(covered, factor), context_label, IGNORE_INDEX).astype(np.uint8)
    return sample._replace(label=label, context_label=context_label)


def _covered(window: Window, parts: Sequence[Window]) -> UInt8:
    """(H, W): 1 for the pixels of a window that lie in any of the parts."""
    covered = np.zeros((window.height, window.width), np.uint8)
    for part in parts:
        top, left = max(0, part.row - window.row), max(0, part.col - window.col)
        bottom, right = part.row + part.height - window.row, part.col + part.width - window.col
        covered[top : max(0, bottom), left : max(0, right)] = 1
    return covered
