"""caswit inspect: pictures and figures of a dataset."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import InspectConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "inspect", "Show tiles, contexts and labels of a dataset, and figures of its scenes, before training on it."
    )
    command.add_argument("dataset", type=str, help="dataset.yaml")
    command.add_argument("--split", default="train", help="split to look at")
    command.add_argument("--n", type=int, default=6, help="tiles to show, spread over the split")
    command.add_argument("--out", type=str, required=True, help="folder to write")
    command.add_argument("--skip_broken", action="store_true", help="leave out what is missing or broken, and list it")
    command.add_class_arguments(InspectConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.evaluation.inspect import inspect

    settings = settings_of(InspectConfig, arguments)
    report = inspect(
        arguments.dataset,
        Path(arguments.out),
        split=arguments.split,
        tiles=arguments.n,
        skip_broken=arguments.skip_broken,
        settings=settings,
    )
    print(report.read_text(encoding="utf-8"), end="")
    print(f"\npictures: {report.parent}")
