"""Value range, mean and standard deviation of each band, measured on a sample of some scenes; nodata never counts.

The sample is spread evenly over the areas of the scenes, the same in every run: all pixels of a small data set.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import RGB, ModelConfig
from caswit.data.dataset import Dataset
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.raster.reader import USUAL, Raster, rescaled
from caswit.raster.stack import Bands, Ranges, Stack, stacked
from caswit.raster.windows import Window, area_tiles

_SIDE_PX, _TILES, _SCENES = 128, 512, 64
"""Side of a piece of the sample, and the most pieces and scenes in it: 8.4 million pixels of each band."""


class BandStatistics(NamedTuple):
    """What a sample of some scenes shows of each band."""

    names: tuple[str, ...]
    ranges: Ranges
    """The values between which 98 of 100 lie, which become 0 and 255; None for a band of uint8."""
    mean: tuple[float, ...]
    """Of what the network reads: values of uint8, or those that ``ranges`` makes of others."""
    std: tuple[float, ...]
    pixels: tuple[int, ...]
    """How many pixels of the sample have data."""

    def lines(self) -> list[str]:
        """Return a line for each band, for people."""
        rows = zip(self.names, self.ranges, self.mean, self.std, self.pixels, strict=True)
        return [
            f"band {name}: {'uint8' if limits is None else f'{limits[0]:g} to {limits[1]:g} as 0 to 255'}; "
            f"mean {mean:.2f}, std {std:.2f} of {pixels:,} pixels"
            for name, limits, mean, std, pixels in rows
        ]


def measure(dataset: Dataset, scenes: Sequence[Scene]) -> BandStatistics:
    """Measure the bands of a dataset on some of its scenes.

    Raises:
        DataError: A scene cannot be read, or a band has no pixel with data in the sample.
    """
    chosen = scenes[:: -(-len(scenes) // _SCENES)]
    found: list[list[NDArray[Any]]] = [[] for _ in dataset.bands]
    for scene in chosen:
        try:
            for known, more in zip(found, _sample(dataset, scene, max(1, _TILES // len(chosen))), strict=True):
                known += more
        except DataError:
            if not dataset.skip_broken:
                raise
    ranges, mean, std, pixels = [], [], [], []
    for name, parts in zip(dataset.band_names, found, strict=True):
        values: NDArray[Any] = np.concatenate(parts) if parts else np.zeros(0)
        if not values.size:
            raise DataError(f"{dataset.path}: band {name} has no pixel with data in a sample of the training scenes")
        limits = None if all(part.dtype == np.uint8 for part in parts) else _range(values)
        read = values if limits is None else rescaled(values, *limits)
        ranges.append(limits)
        mean.append(float(f"{read.mean(dtype=np.float64):.6g}"))
        # A band that is the same everywhere must not be divided by 0.
        std.append(float(f"{max(1.0, read.std(dtype=np.float64)):.6g}"))
        pixels.append(values.size)
    return BandStatistics(dataset.band_names, tuple(ranges), tuple(mean), tuple(std), tuple(pixels))


def reads_usual_bands(dataset: Dataset, scenes: Sequence[Scene]) -> bool:
    """Return whether red, green and blue of uint8 are read, by a look at the first scene: nothing is to be measured."""
    if dataset.band_names != RGB or any(isinstance(band, str) for band in dataset.bands):
        return False
    with Raster(scenes[0].image) as raster:
        return raster.dtype == "uint8"


def with_statistics(model: ModelConfig, measured: BandStatistics, learned: ModelConfig | None = None) -> ModelConfig:
    """Return the settings of a network with the numbers of every band.

    Args:
        model: Settings of the recipe.
        measured: Of the bands that are read.
        learned: Settings of the model that the training starts from; bands that it has keep their numbers.

    Of mean and standard deviation three numbers are of red, green and blue, as weights that a training starts from
    expect them, unless these are stretched; every other band has what was measured, and so have all where the settings
    do not say otherwise.
    """
    names = measured.names
    mean, std = dict(zip(names, measured.mean, strict=True)), dict(zip(names, measured.std, strict=True))
    if len(model.mean) == len(names) != len(RGB) or (len(names) == len(RGB) and model.mean != ModelConfig.mean):
        mean, std = (dict(zip(names, numbers, strict=True)) for numbers in (model.mean, model.std))
    elif len(model.mean) == len(RGB):
        as_they_are = {name for name, limits in zip(names, measured.ranges, strict=True) if limits is None}
        for name, *numbers in zip(RGB, model.mean, model.std, strict=True):
            if name in as_they_are:
                mean[name], std[name] = numbers
    ranges = dict(zip(names, model.ranges or measured.ranges, strict=True))
    if learned is not None and learned.band_names != RGB:
        known = dict(zip(learned.band_names, learned.ranges or [None] * len(learned.mean), strict=True))
        for name, *numbers in zip(learned.band_names, *learned.normalisation(), strict=True):
            # Weights expect the values they were learned with, as far as the pixels are of that kind.
            if name in names and (known[name] is None) == (ranges[name] is None):
                (mean[name], std[name]), ranges[name] = numbers, known[name]
    limits = tuple(ranges.values())
    return replace(
        model,
        bands=names,
        mean=tuple(mean.values()),
        std=tuple(std.values()),
        ranges=limits if any(limits) else (),
    )


def _sample(dataset: Dataset, scene: Scene, tiles: int) -> list[list[NDArray[Any]]]:
    """Return values of each band, as they are, in pieces spread over the areas of a scene."""
    image, bands = stacked(Raster(scene.image), dataset.bands, (), scene.also)
    assert isinstance(image, Raster | Stack)
    found: list[list[NDArray[Any]]] = [[] for _ in bands]
    with image:
        whole = Window(0, 0, image.height, image.width)
        windows = [tile.owned for tile in area_tiles(scene.areas or (whole,), _SIDE_PX)]
        step = -(-len(windows) // tiles)
        for window in windows[::step]:
            for values, part in zip(found, _values(image, bands, window), strict=True):
                values.append(part)
    return found


def _values(image: Raster | Stack, bands: Bands, window: Window) -> list[NDArray[Any]]:
    """Return the values of each band where its raster and the image have data."""
    own = image.image if isinstance(image, Stack) else image
    assert isinstance(own, Raster)
    numbers = tuple(band for band in bands if isinstance(band, int)) or (1,)
    own.check_bands(numbers)
    pixels, valid = own.values(window, numbers)
    by_band: dict[int | str, NDArray[Any]] = dict(zip(numbers, (band[valid] for band in pixels), strict=True))
    for name, raster in image.further.items() if isinstance(image, Stack) else ():
        number = (image.numbers[name],)  # type: ignore[union-attr]
        raster.check_bands(number)
        band, known = raster.values(window, number)
        by_band[name] = band[0][known & valid]
    return [each[np.isfinite(each)] for each in (by_band[band] for band in bands)]


def _range(values: NDArray[Any]) -> tuple[float, float]:
    low, high = (float(f"{value:.6g}") for value in np.percentile(values, USUAL))
    return (low, high) if low < high else (low, low + 1.0)
