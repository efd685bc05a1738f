"""Which models of the zoo fit an image, and why: ``caswit predict IMAGE --list``. Does not import torch."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from caswit.errors import DataError
from caswit.raster.ground import Degrees
from caswit.raster.reader import PixelEncoding, Raster
from caswit.weights.zoo import ZooModel, best_of, fitting_models, zoo_models


def candidates(images: Sequence[str], gsd_m: float | None = None) -> list[str]:
    """Return lines on images, and on each model of the zoo: whether it is chosen for them, and why.

    Images of the same ground size, bands and type are told together, by the first of them.

    Args:
        images: Rasters, of which the headers are read.
        gsd_m: Ground size of their pixels in metres, where the user knows better than the files.

    Raises:
        DataError: None can be opened.
    """
    alike: dict[tuple[str, int, str], list[_Image]] = {}
    unreadable: list[DataError] = []
    for name in images:
        try:
            image = _look(name, gsd_m)
        except DataError as error:
            unreadable.append(error)
        else:
            alike.setdefault((image.size, image.bands, image.dtype), []).append(image)
    if not alike:
        raise unreadable[0]
    lines: list[str] = []
    for group in alike.values():
        more = f" ({len(group)} images; this is the first)" if len(group) > 1 else ""
        lines += [*([""] * bool(lines)), *_about(group[0], more)]
    return lines + [line for error in unreadable for line in ("", f"broken: {error}")]


class _Image(NamedTuple):
    """What the header of an image says."""

    name: str
    gsd_m: float | None
    bands: int
    dtype: str
    bounds: Degrees | None

    @property
    def size(self) -> str:
        """Ground size of its pixels, in words."""
        return "ground size unknown" if self.gsd_m is None else f"pixels of {self.gsd_m:.3g} m"


def _look(image: str, gsd_m: float | None) -> _Image:
    with Raster(image, PixelEncoding()) as raster:
        grid = raster.grid
        return _Image(Path(image).name, gsd_m or grid.source_gsd_m, raster.count, raster.dtype, grid.degrees)


def _about(image: _Image, more: str) -> list[str]:
    bounds, gsd_m, bands = image.bounds, image.gsd_m, image.bands
    where = "" if bounds is None else f", near {(bounds[1] + bounds[3]) / 2:.3f} N {(bounds[0] + bounds[2]) / 2:.3f} E"
    lines = [f"{image.name}: {image.size}, {bands} band{'s' * (bands != 1)} of {image.dtype}{where}{more}"]
    models = zoo_models()
    fitting = [] if gsd_m is None else fitting_models(gsd_m, models)
    for model in models:
        lines += ["", f"{model.name}  {_verdict(model, gsd_m, fitting)}", f"  {model.summary}"]
        lines.append(f"  bands: red, green, blue; classes: {', '.join(model.classes)}")
        lines += [f"  {place}"] if (place := model.learned.where(bounds)) else []
    if bands < 3:
        lines += ["", f"the image has {bands} band{'s' * (bands != 1)}, and the models read red, green and blue"]
    if image.dtype != "uint8":
        lines += ["", f"pixels are {image.dtype}, the models take 8 bits: add --rescale auto, or --rescale LOW HIGH"]
    return lines


def _verdict(model: ZooModel, gsd_m: float | None, fitting: list[ZooModel]) -> str:
    if gsd_m is None:
        return "cannot be judged: give the ground size of a pixel with --gsd-m METRES"
    why = model.fits(gsd_m, zoo_models())[1]
    if model not in fitting:
        return f"not for this image: {why}"
    if model is not best_of(fitting):
        return f"fits, as others do; choose it with --model: {why}"
    return f"chosen: {why}" + ", and it has the most classes" * (len(fitting) > 1)
