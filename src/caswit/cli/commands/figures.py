"""caswit figures: the paper's figures for one's own data."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import FiguresConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "figures", "Draw the paper's figures 5, 6 and 8 for your data, at print quality: one PNG file each."
    )
    command.add_argument("model", type=str, help="model folder of a network that reads its context")
    command.add_argument("dataset", type=str, help="dataset.yaml with labelled scenes")
    command.add_argument("--out", type=str, required=True, help="folder to write")
    command.add_argument("--baseline", type=str, help="model folder of the column beside it; default: no surroundings")
    command.add_argument("--split", default="test", help="split whose scenes are drawn")
    command.add_class_arguments(FiguresConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the results are."""
    from caswit.experiments.paper_figures import figures

    baseline = None if arguments.baseline is None else Path(arguments.baseline)
    model, dataset, out = (Path(path) for path in (arguments.model, arguments.dataset, arguments.out))
    settings = settings_of(FiguresConfig, arguments)
    for file in figures(model, dataset, out, baseline=baseline, split=arguments.split, settings=settings):
        print(file)
