"""caswit models: what comes with the package."""

from jsonargparse import ArgumentParser, Namespace

from caswit.box import boxed_models
from caswit.commands.parsing import make_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("models", "List the models that come with caswit; every command takes their names.")
    command.add_argument("name", type=str, nargs="?", help="print this model's card instead")
    return command


def run(arguments: Namespace) -> None:
    """Print the list, or a card."""
    from caswit.checkpoint import model_folder
    from caswit.push import CARD

    if arguments.name is not None:
        print((model_folder(arguments.name) / CARD).read_text(encoding="utf-8"), end="")
        return
    for model in boxed_models():
        size = sum(file.stat().st_size for file in model.folder.iterdir())
        print(f"{model.name}  ({size / 1e6:.1f} MB)")
        print(f"  {model.summary}")
        print(f"  pixels of {model.gsd_m[0]:g} to {model.gsd_m[1]:g} m; classes: {', '.join(model.classes)}")
        print(f"  card: caswit models {model.name}; files: {model.folder}")
