"""Random changes to training samples. The tile and its context always change alike."""

import numpy as np

from caswit.config import AugmentConfig
from caswit.data.samples import Sample
from caswit.raster.io import UInt8


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
