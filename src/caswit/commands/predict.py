"""caswit predict: a class map of an image."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.commands.parsing import make_parser, settings_of
from caswit.config import PredictConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("predict", "Map the land cover of an image of any size.")
    command.add_argument("image", type=str, help="RGB uint8 raster, any format GDAL reads")
    command.add_argument("out", type=str, help="GeoTIFF to write, on the image's grid")
    command.add_argument("--model", type=str, required=True, help="model folder, or hf:owner/name")
    command.add_class_arguments(PredictConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.predict import predict

    image, out, model = (Path(path) for path in (arguments.image, arguments.out, arguments.model))
    predict(image, out, model, settings_of(PredictConfig, arguments))
    print(arguments.out)
