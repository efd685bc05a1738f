"""Bands of an image by number or name, and further rasters on the same ground that are read as bands of it.

A band is a number, from 1, or a name: that of a further raster, or what the image calls one of its bands. A pixel has
data where the image has; where only a further raster has none, its band is 0.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from caswit.errors import DataError, brief
from caswit.raster.mosaic import Mosaic
from caswit.raster.reader import Bool, PixelEncoding, Raster, UInt8
from caswit.raster.windows import Window, spread_windows

Bands = tuple[int | str, ...]
Ranges = tuple[tuple[float, float] | None, ...]


class Further(NamedTuple):
    """A further raster on the ground of an image, one band of which is read."""

    name: str
    path: str
    band: int = 1
    driver: str | None = None
    """The only GDAL driver that may open it; None leaves the choice to GDAL."""


class Stack:
    """An image and further rasters, warped to its grid (bilinear) while they are read. Use as a context manager.

    Args:
        image: The image; it is closed with the stack.
        further: The other rasters.
        ranges: By name, what becomes 0 and 255 in those that are not uint8.

    Raises:
        DataError: One cannot be opened, or does not lie where the image does.
    """

    def __init__(
        self,
        image: Raster | Mosaic,
        further: Sequence[Further],
        ranges: Mapping[str, tuple[float, float] | None],
    ) -> None:
        self.image, self.path, self.grid = image, image.path, image.grid
        self.height, self.width = image.height, image.width
        self.numbers = {each.name: each.band for each in further}
        self.further: dict[str, Raster] = {}
        for each in further:
            limits = ranges.get(each.name)
            encoding = PixelEncoding(ranges=() if limits is None else (limits,))
            self.further[each.name] = Raster(each.path, encoding, each.driver, onto=(image.grid, image.path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        for raster in (self.image, *self.further.values()):
            raster.close()

    def check_image(self, bands: Bands) -> None:
        """Raise DataError unless all bands are there and can be read as uint8."""
        self.image.check_image(_numbers(bands))
        for name, raster in self.further.items():
            if name in bands:
                raster.check_image((self.numbers[name],))

    def read_image(self, window: Window, bands: Bands) -> tuple[UInt8, Bool]:
        """Read bands, (n, H, W) uint8, black where the image has no data, and where it has some, (H, W)."""
        own, valid = self.image.read_image(window, _numbers(bands))
        found = dict(zip(_numbers(bands), own, strict=True))
        stacked = [found[band] if isinstance(band, int) else self._further(band, window)[0] * valid for band in bands]
        return np.stack(stacked), valid

    def _further(self, name: str, window: Window) -> tuple[UInt8, Bool]:
        pixels, valid = self.further[name].read_image(window, (self.numbers[name],))
        return pixels[0], valid

    def read_alpha(self, window: Window, bands: Bands = ()) -> NDArray[Any] | None:
        """Read the image's alpha, as ``Raster.read_alpha``."""
        return self.image.read_alpha(window, _numbers(bands))

    def is_empty(self, window: Window) -> bool:
        """Return whether the image surely has no data in a window."""
        return self.image.is_empty(window)


Image = Raster | Mosaic | Stack
"""What a scene's pixels are read from."""


def sources_of(image: Image) -> tuple[list[str], str]:
    """Return the names of the rasters that an image is read from, and a text of how their pixels become bytes."""
    match image:
        case Stack():
            names, how = sources_of(image.image)
            further = [sources_of(raster) for raster in image.further.values()]
            return names + [name for some, _ in further for name in some], repr((how, image.numbers, further))
        case Mosaic():
            return [source.path for source in image.sources], repr((image.sources, image.encoding))
        case Raster():
            return [image.path], repr(image.encoding)


def _numbers(bands: Bands) -> tuple[int, ...]:
    # Which pixels have data, the image says, of which at least one band is read for it.
    return tuple(band for band in bands if isinstance(band, int)) or (1,)


def further_of(bands: Bands, further: Sequence[Further]) -> tuple[Further, ...]:
    """Return the further rasters that some bands name."""
    return tuple(each for each in further if each.name in bands)


def own_ranges(bands: Bands, ranges: Ranges, further: Sequence[Further]) -> Ranges:
    """Return the ranges of those bands that are the image's own."""
    names = {each.name for each in further}
    return tuple(limits for band, limits in zip(bands, ranges, strict=True) if band not in names) if ranges else ()


def stacked(image: Raster | Mosaic, bands: Bands, ranges: Ranges, further: Sequence[Further]) -> tuple[Image, Bands]:
    """Return what is read for some bands, and these with numbers for the names of the image's own.

    Args:
        image: Open, with the ``own_ranges``.
        bands: Numbers and names.
        ranges: Of each band, for pixels that are not uint8.
        further: Rasters that the bands may name.

    Raises:
        DataError: A name is neither that of a further raster nor of a band of the image.
    """
    used = further_of(bands, further)
    own = _named(image, bands, {each.name for each in used})
    if not used:
        return image, own
    limits = {str(band): pair for band, pair in zip(bands, ranges, strict=True)} if ranges else {}
    return Stack(image, used, limits), own


def _named(image: Raster | Mosaic, bands: Bands, elsewhere: set[str]) -> Bands:
    """Return bands with numbers for names of the image's own: by what it calls them, else in their order."""
    if not any(isinstance(band, str) and band not in elsewhere for band in bands):
        return bands
    called = [name.casefold() for name in first_of(image).descriptions]
    own = [band for band in bands if band not in elsewhere]
    if not any(called):  # a file that names nothing has its bands in the order of the list
        called = [str(band).casefold() for band in own[: len(called)]]
    return tuple(band if isinstance(band, int) or band in elsewhere else _found(image, band, called) for band in bands)


def _found(image: Raster | Mosaic, name: str, called: Sequence[str]) -> int:
    if name.casefold() in called:
        return called.index(name.casefold()) + 1
    there = ", ".join(n or "one without a name" for n in first_of(image).descriptions)
    raise DataError(
        f"{image.path}: has no band {brief(name)}; its bands: {there}; give their numbers, e.g. bands: {{{name}: 4}}"
    )


def first_of(image: Raster | Mosaic) -> Raster:
    """Return the raster, or the first of a mosaic."""
    return image.first if isinstance(image, Mosaic) else image


def in_list_order(names: Sequence[str], beside: Collection[str]) -> dict[str, int]:
    """Return the band of each name in an image that names none: its place among those without a raster beside it."""
    return {name: number for number, name in enumerate((n for n in names if n not in beside), 1)}


def has_layout(image: Raster, layout: Sequence[str]) -> bool:
    """Return whether an image names no band and has as many as there are names."""
    return not any(image.descriptions) and len(layout) == image.count


def model_bands(
    path: str, image: Raster, names: Sequence[str], numbers: Bands, further: Sequence[str], layout: Sequence[str] = ()
) -> Bands:
    """Return the bands of an image that a model of more or other bands than red, green and blue reads.

    They are those that the image calls by the model's names. An image that calls none so is read by the numbers that
    the model learned from; where these are names too, an image that names nothing has its bands as those images had, if
    it has as many, else in the order of the model's, as in a dataset.

    Args:
        path: Of the image, for messages.
        image: The raster, or the first one of several.
        names: Of the model's bands.
        numbers: Of the same bands in the images that the model learned from, a name where it was a raster apart.
        further: Names of the rasters that are given beside the image.
        layout: Names of all bands of the images that the model learned from; empty where they had none.

    Raises:
        DataError: The image lacks a band.
    """
    called = [name.casefold() for name in (layout if has_layout(image, layout) else image.descriptions)]
    by_name = any(name.casefold() in called for name in names)
    has = image.count - (image.alpha is not None and _is_mask(image))
    unnamed = not any(called) and not any(isinstance(number, int) for number in numbers)
    in_order = in_list_order(names, further) if unnamed else {}
    found: list[int | str] = []
    lacks = []
    for name, number in zip(names, numbers, strict=True):
        if name in further:
            found.append(name)
        elif by_name and name.casefold() in called:
            found.append(called.index(name.casefold()) + 1)
        elif not by_name and isinstance(number, int) and number <= has:
            found.append(number)
        elif in_order.get(name, has + 1) <= has:
            found.append(in_order[name])
        else:
            lacks.append(name)
    if lacks:
        there = f"{has} band{'s' * (has != 1)}"
        if by_name:
            there = f"bands called {', '.join(name for name in image.descriptions if name)}"
        raise DataError(
            f"{path}: lacks {', '.join(lacks)}: the model reads {', '.join(names)}, the image has {there}; give one "
            f"that has all, say which they are (--bands), or add rasters: --also {lacks[0]}=FILE"
        )
    return tuple(found)


def _is_mask(image: Raster) -> bool:
    """Return whether the band that an image calls alpha is one: it is nowhere between its ends, as near infrared is."""
    assert image.alpha is not None
    top = np.iinfo(image.dtype).max if np.issubdtype(np.dtype(image.dtype), np.integer) else 1
    for window in spread_windows(image.height, image.width):
        alpha, _ = image.values(window, (image.alpha,))
        if ((alpha != 0) & (alpha != top)).any():
            return False
    return True
