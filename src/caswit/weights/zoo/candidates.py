"""Which models of the zoo fit an image, and why: ``caswit predict IMAGE --list``. Does not import torch."""

from pathlib import Path

from caswit.raster.ground import distance_km
from caswit.raster.reader import PixelEncoding, Raster
from caswit.weights.zoo import ZooModel, zoo_models


def candidates(image: str, gsd_m: float | None = None) -> list[str]:
    """Return lines on an image, and on each model of the zoo: whether it is chosen for it, and why.

    Args:
        image: A raster, of which the header is read.
        gsd_m: Ground size of its pixels in metres, where the user knows better than the file.

    Raises:
        DataError: It cannot be opened.
    """
    with Raster(image, PixelEncoding()) as raster:
        grid, bands, dtype = raster.grid, raster.count, raster.dtype
    gsd_m = gsd_m or grid.source_gsd_m
    size = "ground size unknown" if gsd_m is None else f"pixels of {gsd_m:.3g} m"
    bounds = grid.degrees
    where = "" if bounds is None else f", near {(bounds[1] + bounds[3]) / 2:.3f} N {(bounds[0] + bounds[2]) / 2:.3f} E"
    lines = [f"{Path(image).name}: {size}, {bands} band{'s' * (bands != 1)} of {dtype}{where}"]
    models = zoo_models()
    fitting = [] if gsd_m is None else [model for model in models if model.fits(gsd_m, models)[0]]
    for model in models:
        away = distance_km(bounds, model.learned.area) if bounds and model.learned.area else None
        lines += ["", f"{model.name}  {_verdict(model, gsd_m, fitting)}", f"  {model.summary}"]
        lines.append(f"  bands: red, green, blue; classes: {', '.join(model.classes)}")
        lines += [f"  {place}"] if (place := model.learned.where(away)) else []
    if dtype != "uint8":
        lines += ["", f"pixels are {dtype}, the models take 8 bits: add --rescale auto, or --rescale LOW HIGH"]
    return lines


def _verdict(model: ZooModel, gsd_m: float | None, fitting: list[ZooModel]) -> str:
    if gsd_m is None:
        return "cannot be judged: give the ground size of a pixel with --gsd-m METRES"
    why = model.fits(gsd_m, zoo_models())[1]
    if model not in fitting:
        return f"not for this image: {why}"
    return f"chosen: {why}" if len(fitting) == 1 else f"fits, as others do; choose it with --model: {why}"
