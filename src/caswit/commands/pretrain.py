"""caswit pretrain: encoders and fusion from imagery without labels."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.commands.parsing import make_parser, settings_of
from caswit.config import PretrainRecipe


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "pretrain",
        "Pretrain on imagery without labels. Any field of the recipe can be given as --section.field VALUE.",
        usage="caswit pretrain RECIPE --out DIR [--resume] [--section.field VALUE ...]",
    )
    command.add_argument("--recipe", action="config", help="YAML file with the settings below (or first argument)")
    command.add_argument("--out", type=str, required=True, help="run folder; its model/ is the result")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_class_arguments(PretrainRecipe, fail_untyped=True)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.launch import is_first_process
    from caswit.pretrain import pretrain

    model = pretrain(settings_of(PretrainRecipe, arguments), Path(arguments.out), resume=arguments.resume)
    if is_first_process():
        print(f"weights: {model}, for init: in a training recipe\nlog:     {model.parent / 'log.csv'}")
