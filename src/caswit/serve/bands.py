"""Which bands of an image a page shows as red, green and blue, and what each of its bands is called."""

from collections.abc import Mapping, Sequence

from caswit.config import RGB
from caswit.raster.overviews import RasterInfo

Shown = tuple[int, int, int]
"""Numbers of the bands that are drawn as red, green and blue, from 1."""
Numbers = Mapping[str, int]
"""Numbers of bands by name."""


def numbers_of(names: Sequence[str], bands: Sequence[int | str]) -> Numbers:
    """Return the numbers of those bands that an image itself has, as a model or a dataset names them.

    Args:
        names: Of all bands.
        bands: Of each its number; a name is that of a raster beside the image, or of a band in its file.
    """
    return {name: band for name, band in zip(names, bands, strict=True) if isinstance(band, int)}


def band_names(about: RasterInfo, *others: Numbers) -> tuple[str, ...]:
    """Return what each band that can be shown is called: by the file, its colour there, or else by ``others``.

    The alpha of a picture is none of them. Without any name a band is called by its number.
    """
    found = []
    for number, (called, colour) in enumerate(zip(about.descriptions, about.colours, strict=True), 1):
        elsewhere = (name for each in others for name, band in each.items() if band == number)
        found.append(called or colour or next(elsewhere, ""))
    return tuple(found[: about.bands - about.alpha])


def shown_bands(about: RasterInfo, said: Shown | None, *others: Numbers) -> Shown:
    """Return the bands to show unless the page says others.

    Args:
        about: Of the image.
        said: Those that the user asks for, where the image has them.
        others: Of the model, and of the dataset that lists the image.
    """
    if said is not None and max(said) <= about.bands:
        return said
    count = about.bands - about.alpha
    own = {name: number for number, name in enumerate(about.descriptions, 1) if name}
    for numbers in ({n: band for n, band in own.items() if n.casefold() in RGB}, *others):
        colours = {name.casefold(): band for name, band in numbers.items()}
        # A model that reads near infrared and two colours is shown as it reads.
        found = [colours[name] for name in RGB] if set(RGB) <= set(colours) else [*numbers.values()]
        if len(found) >= 3 and max(found[:3]) <= count:
            red, green, blue = found[:3]
            return red, green, blue
    return (1, 2, 3) if count >= 3 else (1, 1, 1)
