"""Commands for models: models, info, quantize, export, push. Each imports what computes when it runs."""

from pathlib import Path

from caswit.config import check
from caswit.errors import ModelError


def models(*, name: str | None) -> None:
    """List the models that come with caswit.

    Every command accepts their names in place of a model folder.
    """
    from caswit.weights.zoo import zoo_models

    if name is not None:
        print(_card(name), end="")
        return
    for model in zoo_models():
        size = sum(file.stat().st_size for file in model.folder.iterdir())
        print(f"{model.name}  ({size / 1e6:.1f} MB)")
        print(f"  {model.summary}")
        print(f"  pixels of {model.gsd_m[0]:g} to {model.gsd_m[1]:g} m; classes: {', '.join(model.classes)}")
        print(f"  card: caswit models {model.name}; files: {model.folder}")


def _card(name: str) -> str:
    """Return the card of a model, without the lines for the hub that come first."""
    from caswit.weights.model_folder import model_folder  # imports torch, which the list need not wait for
    from caswit.weights.publish import CARD

    file = model_folder(name) / CARD
    if not file.is_file():
        raise ModelError(f"{file}: no such file, the model has no card; caswit push writes one, caswit info says more")
    text = file.read_text(encoding="utf-8")
    return text.split("---\n", 2)[2] if text.startswith("---\n") else text


def info(*, model: str, speed: bool) -> None:
    """Describe a model: architecture, size, and the images it expects.

    The model may be trained or pretrained. With --speed: what is fastest on this processor.
    """
    from caswit.weights.summary import describe

    if not speed:
        print(describe(Path(model)))
        return
    from caswit.inference.load import speed_page
    from caswit.weights.model_folder import load_model

    print(speed_page(load_model(model)))


def quantize(*, model: str, dataset: str, out: str, split: str, tiles: int) -> None:
    """Make eight-bit weights of a model for CPUs, and compare them with it.

    Writes a copy of the model folder with them, which predict, evaluate and serve read with --precision int8. Ranges
    are taken from tiles of the dataset's split train.
    """
    from caswit.evaluation.quantize import lines, quantize

    int8 = quantize(model, Path(dataset), Path(out), split=split, tiles=tiles)
    print("\n".join(lines(int8.comparison)))
    print(f"{out}: use it with --precision int8")


def export(*, model: str, out: str, single_input: bool, deepness: bool) -> None:
    """Write a model as an ONNX file for other programs and QGIS.

    It is written only if ONNX Runtime computes the same with it as PyTorch. The file takes a tile and its context,
    uint8, and gives the tile's logits; normalisation is inside.
    """
    from caswit.inference.onnx.graphs import Form
    from caswit.inference.onnx.write import export

    check(
        not (single_input and deepness),
        "give --single-input or --deepness, not both: the second has a single input too",
    )
    form: Form = "deepness" if deepness else "single input" if single_input else "tile and context"
    exported = export(model, Path(out), form)
    for role, values in (("takes", exported.inputs), ("gives", exported.outputs)):
        for name, what in values.items():
            print(f"{role}  {name:<13} {what}")
    if deepness:
        print(f"needs  a black rim of {exported.rim_px} px of the model around the layer: see docs/export.md")
    print(
        f"same as PyTorch but for {exported.difference:.1e}, where values reach {exported.largest:.3g}\n"
        f"{out} ({exported.size_bytes / 1e6:.1f} MB)"
    )


def push(
    *,
    model: str,
    repo: str,
    report: str | None,
    license: str | None,
    about: str | None,
    half: bool,
    private: bool,
    overwrite: bool,
) -> None:
    """Publish a model with a model card on the Hugging Face hub.

    Others can then use it as hf:owner/name. Log in first with: hf auth login.
    """
    from caswit.weights.publish import push

    where = push(
        Path(model),
        repo,
        report=None if report is None else Path(report),
        about=None if about is None else Path(about),
        half=half,
        license_name=license,
        private=private,
        overwrite=overwrite,
    )
    print(where)
