"""caswit pretrain: encoders and fusion from imagery without labels."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import recipe_parser, settings_of
from caswit.config import PretrainRecipe


def parser() -> ArgumentParser:
    """What the command takes."""
    return recipe_parser("pretrain", "Pretrain on imagery without labels.", PretrainRecipe)


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.training.fabric import is_first_process
    from caswit.training.pretrain import pretrain

    model = pretrain(settings_of(PretrainRecipe, arguments), Path(arguments.out), resume=arguments.resume)
    if is_first_process():
        print(f"weights: {model}, for init: in a training recipe\nlog:     {model.parent / 'log.csv'}")
