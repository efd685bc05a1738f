"""caswit train: a model from a recipe."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import recipe_parser, settings_of
from caswit.config import Recipe


def parser() -> ArgumentParser:
    """What the command takes."""
    return recipe_parser("train", "Train a model from a recipe.", Recipe)


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.training.fabric import is_first_process
    from caswit.training.supervised import train

    model = train(settings_of(Recipe, arguments), Path(arguments.out), resume=arguments.resume)
    if is_first_process():
        print(f"model: {model}\nlog:   {model.parent / 'log.csv'}")
