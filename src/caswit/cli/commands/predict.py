"""caswit predict: a class map of images of any size."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import MapRunConfig, OutputConfig, PredictConfig

_SKIPPED = 3
"""Exit status of a map with blocks that could not be read."""


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "predict",
        "Map the land cover of images of any size. The same call goes on where an interrupted one stopped.",
        usage="caswit predict IMAGE [IMAGE ...] OUT.tif [--model MODEL] [options]",
    )
    command.add_argument(
        "images", type=str, nargs="+", help="rasters of one grid: files, addresses, folders, patterns, lists in .txt"
    )
    command.add_argument("out", type=str, help="Cloud-Optimized GeoTIFF to write, on the grid of the images")
    command.add_argument("--model", type=str,
                         help="folder, hf:owner/name or name (caswit models); default: by ground size")  # fmt: skip
    command.add_argument("--bands", type=int, nargs=3, metavar=("R", "G", "B"),
                         help="bands that are red, green and blue, from 1; default: the model's")  # fmt: skip
    command.add_argument("--rescale", type=float, nargs=2, metavar=("LOW", "HIGH"),
                         help="values that become 0 and 255, for pixels that are not 8 bit")  # fmt: skip
    command.add_class_arguments(PredictConfig, skip={"bands", "rescale"})
    command.add_class_arguments(OutputConfig)
    command.add_class_arguments(MapRunConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.mapping.run import predict

    for pair in ("bands", "rescale"):
        arguments[pair] = tuple(arguments[pair]) if arguments[pair] else None
    result = predict(
        arguments.images,
        Path(arguments.out),
        arguments.model,
        settings_of(PredictConfig, arguments),
        settings_of(OutputConfig, arguments),
        settings_of(MapRunConfig, arguments),
    )
    print(arguments.out)
    if result.skipped:
        print(f"{len(result.skipped)} blocks could not be read and are nodata:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in result.skipped), file=sys.stderr)
        print("the same call tries only these again; if the image was mended meanwhile, add --restart", file=sys.stderr)
        sys.exit(_SKIPPED)
