"""caswit models: what comes with the package."""

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser
from caswit.weights.zoo import zoo_models


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("models", "List the models that come with caswit; every command takes their names.")
    command.add_argument("name", type=str, nargs="?", help="print this model's card instead")
    return command


def run(arguments: Namespace) -> None:
    """Print the list, or a card."""
    if arguments.name is not None:
        print(_card(arguments.name), end="")
        return
    for model in zoo_models():
        size = sum(file.stat().st_size for file in model.folder.iterdir())
        print(f"{model.name}  ({size / 1e6:.1f} MB)")
        print(f"  {model.summary}")
        print(f"  pixels of {model.gsd_m[0]:g} to {model.gsd_m[1]:g} m; classes: {', '.join(model.classes)}")
        print(f"  card: caswit models {model.name}; files: {model.folder}")


def _card(name: str) -> str:
    """The card of a model, without the lines for the hub that come first."""
    from caswit.errors import ModelError
    from caswit.weights.model_folder import model_folder  # imports torch, which the list need not wait for
    from caswit.weights.publish import CARD

    file = model_folder(name) / CARD
    if not file.is_file():
        raise ModelError(f"{file}: no such file, the model has no card; caswit push writes one, caswit info says more")
    text = file.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text
