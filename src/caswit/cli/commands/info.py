"""caswit info: what a model is."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("info", "Say what a model is, what it costs and what it expects.")
    command.add_argument("model", type=str, help="model folder, or hf:owner/name")
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.weights.summary import describe

    print(describe(Path(arguments.model)))
