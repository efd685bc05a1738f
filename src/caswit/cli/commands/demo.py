"""caswit demo: the whole way on drawn landscapes."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import DemoConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "demo", "Train with and without context on drawn landscapes, score both, map one; a few minutes."
    )
    command.add_argument("--out", type=str, default="demo", help="folder to write, or to continue in")
    command.add_class_arguments(DemoConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.experiments.demo import demo

    result = demo(Path(arguments.out), settings_of(DemoConfig, arguments))
    alone, seeing = result.context_miou.values()
    print(f"classes that only the surroundings decide: mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    alone, seeing = result.miou.values()
    print(f"all classes:                               mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    print(f"report: {result.report}\nmap:    {result.report.with_name('map.tif')}")
