"""caswit train: a model from a recipe."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.commands.parsing import make_parser, settings_of
from caswit.config import Recipe


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "train",
        "Train a model from a recipe. Any field of the recipe can be given as --section.field VALUE.",
        usage="caswit train RECIPE --out DIR [--resume] [--section.field VALUE ...]",
    )
    command.add_argument("--recipe", action="config", help="YAML file with the settings below (or first argument)")
    command.add_argument("--out", type=str, required=True, help="run folder; its model/ is the result")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_class_arguments(Recipe, fail_untyped=True)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.launch import is_first_process
    from caswit.train import train

    model = train(settings_of(Recipe, arguments), Path(arguments.out), resume=arguments.resume)
    if is_first_process():
        print(f"model: {model}\nlog:   {model.parent / 'log.csv'}")
