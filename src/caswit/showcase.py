"""The models of the package, each at work on the sample that comes with it."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from caswit.box import BoxedModel, boxed_models
from caswit.checkpoint import load_model
from caswit.config import PredictConfig
from caswit.mapping.run import predict
from caswit.raster.io import Raster
from caswit.raster.windows import Window
from caswit.report import Panel
from caswit.viz import colourise, data_uri, overlay, shrink

_SIDE_PX = 640


class Shown(NamedTuple):
    """A model and what it made of its sample."""

    model: BoxedModel
    legend: list[tuple[str, str]]
    """Class names and colours."""
    panels: list[Panel]
    map: Path
    """GeoTIFF."""


def showcase(folder: Path) -> list[Shown]:
    """Map every model's sample into a folder, as ``caswit predict`` would.

    Raises:
        CaswitError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_shown(model, folder / f"{model.name}.tif") for model in boxed_models()]


def _shown(model: BoxedModel, out: Path) -> Shown:
    predict(model.sample, out, model.name, PredictConfig(gsd_m=model.sample_gsd_m))
    classes = load_model(model.name).info.classes
    with Raster(model.sample) as photo, Raster(out) as found:
        whole = Window(0, 0, photo.height, photo.width)
        pixels = np.moveaxis(photo.read_image(whole)[0], 0, -1)
        ids = found.read_band(whole, fill=255)
    indices = shrink(classes.indices(ids, out.name, ids == 255), _SIDE_PX)
    image = shrink(pixels, _SIDE_PX)
    panels = [
        Panel("Image", f"Sample of {model.name}", data_uri(image, photo=True)),
        Panel("Map", f"Land cover that {model.name} found", data_uri(colourise(indices, classes.colors))),
        Panel("Both", "The map over the image", data_uri(overlay(image, indices, classes.colors), photo=True)),
    ]
    return Shown(model, [(c.name, c.color) for c in classes.predicted], panels, out)
