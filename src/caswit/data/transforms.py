"""Changes to training samples, most of them random.

Geometry and colour of a tile and its contexts change alike; noise touches the tile only, context dropout the contexts.
"""

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.transforms.functional import gaussian_blur

from caswit.config import IGNORE_INDEX, AugmentConfig, ContextFactor
from caswit.data.reader import Sample, context_window
from caswit.raster.reader import UInt8
from caswit.raster.resample import nearest
from caswit.raster.windows import Window, slice_middle

FloatArray = NDArray[np.floating]

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Brightness of red, green and blue (ITU-R BT.601)."""


def augment(
    sample: Sample,
    settings: AugmentConfig,
    rng: np.random.Generator,
    *,
    factor: ContextFactor = 1,
    rgb: Sequence[int] | None = (0, 1, 2),
) -> Sample:
    """Return a changed copy. Turning a tile and its context alike turns the scene that they come from.

    Args:
        sample: As it was read.
        settings: Strength of each change.
        rng: Source of the random numbers.
        factor: Context factor of the sample, or those of its contexts.
        rgb: Places of red, green and blue among the bands, which saturation is about; None where one is missing.
    """
    # Always the same draws, so that one setting's strength does not change what the others do.
    turn, (bright, stretch, power) = int(rng.integers(8)), rng.uniform(-1, 1, 3)
    if settings.spatial:
        sample = Sample(*(turned(x, turn) for x in sample))
    if settings.brightness or settings.contrast or settings.gamma:
        sample = _brightened(sample, settings, rng, (bright, stretch, power))
    # Drawn after the others, so that recipes which do not use them keep their samples.
    bands = len(sample.tile)
    tints, (grey, softness, hidden) = rng.uniform(-1, 1, bands), rng.uniform(-1, 1, 3)
    tile, context = sample.tile, sample.context
    if settings.tint or settings.saturation:
        gains, saturation = (1 + settings.tint) ** tints, 1 + grey * settings.saturation
        tile = coloured(tile, gains=gains, saturation=saturation, rgb=rgb)
        context = _each(context, factor, lambda x, _: coloured(x, gains=gains, saturation=saturation, rgb=rgb))
    # A pixel of the context is ``factor`` pixels wide, so that the same camera blurs it by less.
    if settings.blur and softness > 0:
        tile = blurred(tile, softness * settings.blur)
        context = _each(context, factor, lambda x, f: blurred(x, softness * settings.blur / f))
    if settings.context_tint:
        own = (1 + settings.context_tint) ** rng.uniform(-1, 1, bands)
        context = _each(context, factor, lambda x, _: coloured(x, gains=own, saturation=1.0, rgb=rgb))
    if settings.context_dropout and (hidden + 1) / 2 < settings.context_dropout:
        context = _each(context, factor, mask_context)
    # The noise of a context pixel, a mean over many, would hardly be seen. Drawn last: its count depends on the tile.
    if settings.noise:
        tile = noisy(tile, rng.uniform() * settings.noise, rng)
    sample = sample._replace(tile=tile, context=context)
    # After all that changes colours, so that black stays black.
    return _with_gaps(sample, settings, rng, factor)


def _each(context: UInt8, factor: ContextFactor, change: Callable[[UInt8, int], UInt8]) -> UInt8:
    """Change a context, or each of several, given its factor; labels of contexts likewise."""
    if isinstance(factor, int):
        return change(context, factor)
    return np.stack([change(*pair) for pair in zip(context, factor, strict=True)])


def cut(sample: Sample, rng: np.random.Generator, *, factor: ContextFactor = 1) -> Sample:
    """Return a sample with a hole or an edge of the image in its tile, at the same place in its contexts.

    What is cut away is black, as pixels without data are read, and its labels are ignored. At least a sixth of the tile
    is left.
    """
    side, angle = sample.tile.shape[-1], rng.uniform(0, 2 * np.pi)
    at_edge = rng.uniform() < 0.5
    (across, along), (wide, long) = rng.uniform(-0.28, 0.28, 2) * side, rng.uniform(0.05, 0.4, 2) * side

    @cache  # images and their labels
    def is_cut(pixels: int, pixel: int) -> NDArray[np.bool_]:
        """Return which of pixels x pixels squares, each ``pixel`` wide, lie in the part that is cut away."""
        at = (np.arange(pixels) + 0.5 - pixels / 2) * pixel
        x = at * np.cos(angle) + at[:, None] * np.sin(angle) - across
        y = at[:, None] * np.cos(angle) - at * np.sin(angle) - along
        return x > 0 if at_edge else (x / wide) ** 2 + (y / long) ** 2 < 1

    def blackened(image: UInt8, factor: int) -> UInt8:
        return np.where(is_cut(image.shape[-1], factor), 0, image).astype(np.uint8)

    def ignored(label: UInt8, factor: int) -> UInt8:
        return np.where(is_cut(label.shape[-1], factor), IGNORE_INDEX, label).astype(np.uint8)

    # Unlabelled samples have empty labels.
    around = sample.context_label
    return Sample(
        tile=blackened(sample.tile, 1),
        context=_each(sample.context, factor, blackened),
        label=ignored(sample.label, 1) if sample.label.size else sample.label,
        context_label=_each(around, factor, ignored) if around.size else around,
    )


def coloured(image: UInt8, *, gains: FloatArray, saturation: float, rgb: Sequence[int] | None = (0, 1, 2)) -> UInt8:
    """Return (n, H, W) with each band times its gain, then colours moved away from grey (saturation above 1) or to it.

    Colours are the bands ``rgb``; all others keep their values.
    """
    x = image.astype(np.float32) * gains.astype(np.float32)[:, None, None]
    if rgb is not None:
        colours = x[list(rgb)]
        grey = np.tensordot(_LUMA, colours, axes=1)
        x[list(rgb)] = grey + saturation * (colours - grey)
    return _to_uint8(x)


def _brightened(
    sample: Sample, settings: AugmentConfig, rng: np.random.Generator, draws: tuple[float, float, float]
) -> Sample:
    """Return a sample with the tone curve of three draws, or with one of its own for each band."""
    if not settings.per_band:
        table = _tone(settings, *draws)
        return sample._replace(tile=table[sample.tile], context=table[sample.context])
    tables = [_tone(settings, *rng.uniform(-1, 1, 3)) for _ in sample.tile]
    return sample._replace(tile=_toned(sample.tile, tables), context=_toned(sample.context, tables))


def _with_gaps(sample: Sample, settings: AugmentConfig, rng: np.random.Generator, factor: ContextFactor) -> Sample:
    """Return a sample without one of its bands, or with a hole, as often as the settings say."""
    bands = len(sample.tile)
    if settings.band_dropout and bands > 1 and rng.uniform() < settings.band_dropout:
        sample = without_band(sample, int(rng.integers(bands)))
    if settings.holes and rng.uniform() < settings.holes:
        sample = cut(sample, rng, factor=factor)
    return sample


def _tone(settings: AugmentConfig, bright: float, stretch: float, power: float) -> UInt8:
    """Return the tone curve of three draws between -1 and 1."""
    return tone_curve(
        brightness=bright * settings.brightness,
        contrast=1 + stretch * settings.contrast,
        gamma=(1 + settings.gamma) ** power,
    )


def _toned(image: UInt8, tables: Sequence[UInt8]) -> UInt8:
    """Return (..., n, H, W) with the tone curve of each band."""
    if not image.size:
        return image
    return np.stack([table[image[..., band, :, :]] for band, table in enumerate(tables)], axis=-3)


def blurred(image: UInt8, sigma: float) -> UInt8:
    """Return (n, H, W) blurred by a Gaussian of a standard deviation in pixels. Black pixels stay black."""
    if sigma < 0.1 or not image.size:
        return image
    side = 2 * math.ceil(2 * sigma) + 1
    side = min(side, 2 * min(image.shape[-2:]) - 1)  # gaussian_blur mirrors an edge once and no further
    soft: UInt8 = gaussian_blur(torch.from_numpy(np.ascontiguousarray(image)), side, sigma).numpy()
    return np.where(image.any(0), soft, 0).astype(np.uint8)


def noisy(image: UInt8, share: float, rng: np.random.Generator) -> UInt8:
    """Return (n, H, W) with Gaussian noise of a standard deviation of ``share`` x 255. Black pixels stay black."""
    noise = rng.standard_normal(image.shape, np.float32) * (share * 255)
    return np.where(image.any(0), _to_uint8(image + noise), 0).astype(np.uint8)


def without_band(sample: Sample, band: int) -> Sample:
    """Return a sample in which one band, counted from 0, is 0 in tile and context."""
    tile, context = sample.tile.copy(), sample.context.copy()
    tile[band], context[..., band, :, :] = 0, 0
    return sample._replace(tile=tile, context=context)


def swap_context(sample: Sample, other: Sample, factor: ContextFactor) -> Sample:
    """Return a sample whose contexts, around the middle that the tile covers, are another's: images and labels."""

    def swapped(own: UInt8, theirs: UInt8) -> UInt8:
        if not own.size:  # unlabelled samples have empty labels
            return own
        if isinstance(factor, int):
            return _with_middle(theirs, own, factor)
        return np.stack([_with_middle(*each) for each in zip(theirs, own, factor, strict=True)])

    return sample._replace(
        context=swapped(sample.context, other.context),
        context_label=swapped(sample.context_label, other.context_label),
    )


def mask_context(context: UInt8, factor: int) -> UInt8:
    """Return (n, H, W) with masked context: only the middle, which the tile covers, is left; the rest is black."""
    return _with_middle(np.zeros_like(context), context, factor)


def _with_middle(around: UInt8, image: UInt8, factor: int) -> UInt8:
    """Return (..., H, W) a copy of ``around`` with the middle, which the tile covers, of ``image``."""
    middle = np.s_[..., slice_middle(image.shape[-2], factor), slice_middle(image.shape[-1], factor)]
    changed = around.copy()
    changed[middle] = image[middle]
    return changed


def _to_uint8(values: FloatArray) -> UInt8:
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def turned(array: UInt8, turn: int) -> UInt8:
    """Return one of the eight symmetries of the square, over the last two axes: 4 quarter turns, mirrored or not."""
    if turn >= 4:
        array = array[..., ::-1]
    return np.ascontiguousarray(np.rot90(array, turn % 4, axes=(-2, -1)))


def tone_curve(*, brightness: float, contrast: float, gamma: float) -> UInt8:
    """Return (256,) the new value of every pixel value.

    Args:
        brightness: Added, as a share of 255.
        contrast: Factor around mid-grey.
        gamma: Power on the scale of 0 to 1.
    """
    x = (np.arange(256) / 255) ** gamma
    y = (x - 0.5) * contrast + 0.5 + brightness
    table = np.clip(np.round(y * 255), 0, 255).astype(np.uint8)
    # Black marks what lies outside the raster, in training as in prediction, and must stay black.
    table[0] = 0
    return table


def only_labels(sample: Sample, tile: Window, factor: ContextFactor | None, labelled: Sequence[Window]) -> Sample:
    """Return a sample in which the labels outside of some windows are ignored.

    Args:
        sample: As it was read.
        tile: Window of the sample's tile.
        factor: Context factor of the sample, or those of its contexts; None without a context.
        labelled: Windows of the scene whose labels are used.
    """
    if not sample.label.size:  # pretraining reads none
        return sample
    label = np.where(_covered(tile, labelled), sample.label, IGNORE_INDEX).astype(np.uint8)
    context_label = sample.context_label
    if factor is not None and context_label.size:

        def only(label: UInt8, factor: int) -> UInt8:
            # Computed at full resolution and then picked like the labels themselves, so that both agree at every pixel.
            covered = nearest(_covered(context_window(tile, factor), labelled), factor)
            return np.where(covered, label, IGNORE_INDEX).astype(np.uint8)

        context_label = _each(context_label, factor, only)
    return sample._replace(label=label, context_label=context_label)


def _covered(window: Window, parts: Sequence[Window]) -> UInt8:
    """Return (H, W), 1 for the pixels of a window that lie in any of the parts."""
    covered = np.zeros((window.height, window.width), np.uint8)
    for part in parts:
        top, left = max(0, part.row - window.row), max(0, part.col - window.col)
        bottom, right = part.row + part.height - window.row, part.col + part.width - window.col
        covered[top : max(0, bottom), left : max(0, right)] = 1
    return covered
