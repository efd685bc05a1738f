"""caswit explain: what the network looked at when it labelled a pixel."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import ComputeConfig
from caswit.errors import ConfigError


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "explain",
        "Show what the network looked at when it labelled a pixel, and what it would say without the surroundings.",
    )
    command.add_argument("image", type=str, help="RGB uint8 raster, any format GDAL reads")
    command.add_argument("--row", type=int, help="row of the pixel, from 0")
    command.add_argument("--col", type=int, help="column of the pixel, from 0")
    command.add_argument("--x", type=float, help="instead: easting in the image's CRS")
    command.add_argument("--y", type=float, help="northing in the image's CRS")
    command.add_argument("--lon", type=float, help="instead: longitude in degrees")
    command.add_argument("--lat", type=float, help="latitude in degrees")
    command.add_argument("--model", type=str, required=True, help="model folder")
    command.add_argument("--out", type=str, required=True, help="PNG to write")
    command.add_class_arguments(ComputeConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    place = _place(arguments)
    from caswit.explain.figure import explain

    image, model, out = (Path(path) for path in (arguments.image, arguments.model, arguments.out))
    for line in explain(image, model, out, place=place, settings=settings_of(ComputeConfig, arguments)):
        print(line)
    print(arguments.out)


def _place(arguments: Namespace) -> dict[str, float]:
    """The one pair of coordinates that was given, by name."""
    pairs = (("row", "col"), ("x", "y"), ("lon", "lat"))
    given = [name for pair in pairs for name in pair if arguments[name] is not None]
    if tuple(given) not in pairs:
        said = ", ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"name the pixel with --row and --col, --x and --y, or --lon and --lat; got {said}")
    return {name: arguments[name] for name in given}
