"""caswit evaluate: scores on labelled scenes."""

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from caswit.cli.commands.parsing import make_parser, settings_of
from caswit.config import EvaluateConfig


def parser() -> ArgumentParser:
    """What the command takes."""
    command = make_parser("evaluate", "Score a model on labelled scenes; writes report.html, .md and .json.")
    command.add_argument("model", type=str, help="model folder, or hf:owner/name")
    command.add_argument("dataset", type=str, help="dataset.yaml with labelled scenes")
    command.add_argument("--split", default="test", help="split whose scenes are scored")
    command.add_argument("--out", type=str, required=True, help="folder of the report")
    command.add_class_arguments(EvaluateConfig)
    return command


def run(arguments: Namespace) -> None:
    """Do it and say where the result is."""
    from caswit.evaluation.metrics import score
    from caswit.evaluation.run import evaluate

    settings = settings_of(EvaluateConfig, arguments)
    model, dataset, out = (Path(path) for path in (arguments.model, arguments.dataset, arguments.out))
    evaluation = evaluate(model, dataset, out, split=arguments.split, settings=settings)
    scores = score(evaluation.counts)
    print(f"mIoU {scores.miou:.4f}  mF1 {scores.mf1:.4f}  mBIoU {scores.mbiou:.4f} (band {evaluation.band_px} px)")
    print(f"overall accuracy {scores.overall_accuracy:.4f} over {evaluation.tiles} tiles")
    print(f"report: {out / 'report.html'}")
