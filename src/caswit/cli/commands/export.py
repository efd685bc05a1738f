"""caswit export: a model as an ONNX file."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser(
        "export",
        "Write a model as an ONNX file, and see that ONNX Runtime computes the same with it as PyTorch. The file takes "
        "a tile and its context, uint8, and gives the tile's logits; normalisation is inside.",
        usage="caswit export MODEL OUT.onnx [--single-input | --deepness]",
    )
    command.add_argument("model", type=str, help="model folder, or hf:owner/name")
    command.add_argument("out", type=str, help="ONNX file to write")
    command.add_argument(
        "--single_input",
        action="store_true",
        help="takes one wider window in place of tile and context, which are made of it inside",
    )
    command.add_argument(
        "--deepness",
        action="store_true",
        help="for the QGIS plugin Deepness: one window of 0-1 in, probabilities of the same size out, and its metadata",
    )
    return command


def run(arguments: Namespace) -> None:
    """Do it and say what the file takes and gives."""
    from caswit.config import check
    from caswit.inference.onnx.graphs import Form
    from caswit.inference.onnx.write import export

    check(
        not (arguments.single_input and arguments.deepness),
        "give --single-input or --deepness, not both: the second has a single input too",
    )
    form: Form = "tile and context"
    if arguments.single_input or arguments.deepness:
        form = "deepness" if arguments.deepness else "single input"
    exported = export(arguments.model, Path(arguments.out), form)
    for role, values in (("takes", exported.inputs), ("gives", exported.outputs)):
        for name, what in values.items():
            print(f"{role}  {name:<13} {what}")
    print(
        f"same as PyTorch but for {exported.difference:.1e}, where values reach {exported.largest:.3g}\n"
        f"{arguments.out} ({exported.size_bytes / 1e6:.1f} MB)"
    )
