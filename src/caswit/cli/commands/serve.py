"""caswit serve: images and maps in a browser."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import ServeConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "serve", "Look at images and maps in a browser: swipe, areas, confidence, errors, and what the model looks at."
    )
    command.add_argument("where", type=str, help="folder of images and maps, or one image")
    command.add_argument("--model", type=str, help="model folder, for confidence and attention at a click")
    command.add_class_arguments(ServeConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it until interrupted."""
    from caswit.serve.server import serve

    model = None if arguments.model is None else Path(arguments.model)
    serve(Path(arguments.where), model, settings_of(ServeConfig, arguments), say=lambda line: print(line, flush=True))
