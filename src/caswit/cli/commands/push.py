"""caswit push: a model on the Hugging Face hub."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "push", "Put a model and a card about it on the Hugging Face hub (log in with: hf auth login)."
    )
    command.add_argument("model", type=str, help="model folder, trained or pretrained")
    command.add_argument("repo", type=str, help="owner/name on the hub; or a folder as ./name, to look at first")
    command.add_argument("--report", type=str, default=None, help="report of caswit evaluate, for the card's scores")
    command.add_argument(
        "--license", type=str, default=None, help="licence of the weights for the card, e.g. cc-by-4.0"
    )
    command.add_argument("--about", type=str, default=None, help="YAML file of what the card says: data, limits, ...")
    command.add_argument("--half", action="store_true", help="store weights in 16 bits: half the size")
    command.add_argument("--private", action="store_true", help="make a new repository private")
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the model is."""
    from caswit.weights.publish import push

    report = None if arguments.report is None else Path(arguments.report)
    where = push(
        Path(arguments.model),
        arguments.repo,
        report=report,
        about=None if arguments.about is None else Path(arguments.about),
        half=arguments.half,
        license_name=arguments.license,
        private=arguments.private,
    )
    print(where)
