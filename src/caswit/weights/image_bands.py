"""Which bands of an image a model reads: by name or number, and which of them are rasters beside it."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from pathlib import Path

from caswit.errors import ConfigError, brief
from caswit.raster.reader import Raster
from caswit.raster.stack import Bands, Further, has_layout, model_bands
from caswit.weights.model_folder import ModelInfo, PretrainedInfo

log = logging.getLogger(__name__)


def bands_to_read(
    image: Path | str,
    info: ModelInfo | PretrainedInfo,
    numbers: tuple[int, ...] | None = None,
    further: Sequence[Further] = (),
    opened: Raster | None = None,
) -> Bands:
    """Return what a model reads of an image and the rasters beside it, in the order of its bands.

    Red, green and blue alone are found by number, as a model of them always was.

    Args:
        image: The image, or the first one of several.
        info: Of the model.
        numbers: Of the image's bands, where the user says them.
        further: Rasters beside the image.
        opened: The image where it is open already.

    Raises:
        DataError: The image lacks a band.
        ConfigError: There are more or fewer numbers than bands, or a raster for a band that the model does not read.
    """
    names, beside = info.model.band_names, [each.name for each in further]
    check_further(info, further)
    own = [name for name in names if name not in beside]
    if numbers is not None:
        if len(numbers) != len(own):
            count = "three" if len(own) == 3 else len(own)
            raise ConfigError(
                f"bands must be {count} number{'s' * (len(own) != 1)} from 1, of {', '.join(own)}, got {list(numbers)}"
            )
        by_name = dict(zip(own, numbers, strict=True))
        return tuple(by_name.get(name, name) for name in names)
    if not info.model.has_other_bands and not further:
        return info.bands
    with nullcontext(opened) if opened is not None else Raster(image) as raster:
        found = model_bands(str(image), raster, names, info.bands, beside, info.layout)
        ranges = [(n, r) for n, r in zip(names, info.model.ranges, strict=False) if r and n not in beside]
        if raster.dtype == "uint8" and ranges:
            _say_unstretched(str(image), ", ".join(f"{name} {low:g} to {high:g}" for name, (low, high) in ranges))
        if has_layout(raster, info.layout):
            _say_assumed(str(image), ", ".join(n or "another" for n in info.layout), "as in the images it learned from")
        elif not any(raster.descriptions) and not any(isinstance(band, int) for band in info.bands):
            _say_assumed(str(image), ", ".join(own), "in this order")
        return found


@cache
def _say_unstretched(image: str, learned: str) -> None:
    # Once: the viewer opens an image for every pixel under the pointer.
    log.warning("%s: pixels are uint8 and read as they are; the model learned from other values (%s)", image, learned)


@cache
def _say_assumed(image: str, names: str, why: str) -> None:
    log.warning("%s: its bands have no names; they are taken for %s, %s (--bands says others)", image, names, why)


def check_further(info: ModelInfo | PretrainedInfo, further: Sequence[Further]) -> None:
    """Raise ConfigError for a raster of a band that the model does not read."""
    names = info.model.band_names
    if strange := [each.name for each in further if each.name not in names]:
        raise ConfigError(f"also names {strange[0]}, the model reads {', '.join(names)}; leave it out")


def parse_also(text: str | None) -> tuple[Further, ...]:
    """Return the rasters of ``--also dsm=dsm.tif,slope=slope.tif``; a band other than the first is dsm=dsm.tif:2.

    Raises:
        ConfigError: A part is no name and file, or a file is missing.
    """
    found = []
    for part in (text or "").split(",") if text else ():
        name, equals, file = part.strip().partition("=")
        path, colon, number = file.rpartition(":")
        band = int(number) if colon and number.isdecimal() else 1
        path = path if colon and number.isdecimal() else file
        if not (name and equals and path):
            raise ConfigError(f"also must be names and files, got {brief(text)}; try dsm=dsm.tif")
        if not Path(path).exists() and "://" not in path and not path.startswith("/vsi"):
            raise ConfigError(f"also: {path}: no such file")
        found.append(Further(name, path, max(1, band)))
    return tuple(found)
