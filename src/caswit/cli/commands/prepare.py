"""caswit prepare: what has to be done once before a downloaded dataset can be read."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("prepare", "Write tiled GeoTIFFs of URUR's PNG files, once; interrupted, it continues.")
    command.add_argument("kind", choices=["urur"], help="the dataset")
    command.add_argument("root", type=str, help="folder that holds train/, val/ and test/")
    command.add_argument("--workers", type=int, default=2, help="files written at the same time")
    command.add_argument("--skip_broken", action="store_true", help="leave out what is missing or broken, and list it")
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.data.sources.urur import prepare_urur

    print(prepare_urur(Path(arguments.root), workers=arguments.workers, skip_broken=arguments.skip_broken))
