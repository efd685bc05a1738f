"""Commands for maps and images: predict, explain, serve, inspect. Each imports what computes when it runs."""

import sys
from pathlib import Path

from caswit.config import ComputeConfig, InspectConfig, MapRunConfig, OutputConfig, PredictConfig, ServeConfig
from caswit.errors import ConfigError

_SKIPPED = 3
"""Exit status of a map with blocks that could not be read."""


def predict(
    settings: PredictConfig,
    outputs: OutputConfig,
    run: MapRunConfig,
    *,
    images: list[str],
    out: str,
    model: str | None,
) -> None:
    """Map the land cover of images of any size.

    After an interruption, the same command continues where it stopped.
    """
    from caswit.mapping.run import predict

    result = predict(images, Path(out), model, settings, outputs, run)
    print(out)
    if result.skipped:
        print(f"{len(result.skipped)} blocks could not be read and are nodata:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in result.skipped), file=sys.stderr)
        print(
            "the same command tries only these again; if the image was repaired in the meantime, add --restart",
            file=sys.stderr,
        )
        sys.exit(_SKIPPED)


def explain(settings: ComputeConfig, *, image: str, model: str, out: str, **place: float | None) -> None:
    """Show what the network attended to when it labelled a pixel.

    Also shows the class with masked context.
    """
    pairs = (("row", "col"), ("x", "y"), ("lon", "lat"))
    given = {name: value for pair in pairs for name in pair if (value := place[name]) is not None}
    if tuple(given) not in pairs:
        said = ", ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"name the pixel with --row and --col, --x and --y, or --lon and --lat; got {said}")
    from caswit.explain.figure import explain

    for line in explain(Path(image), Path(model), Path(out), place=given, settings=settings):
        print(line)
    print(out)


def serve(settings: ServeConfig, *, where: list[str], model: str | None) -> None:
    """Show images and maps in a browser.

    Swipe between them, measure areas, and see confidence, errors and the attention behind a pixel.
    """
    from caswit.serve.server import serve

    folder = None if model is None else Path(model)
    serve([Path(place) for place in where], folder, settings, say=lambda line: print(line, flush=True))


def inspect(settings: InspectConfig, *, dataset: str, split: str, n: int, out: str, skip_broken: bool) -> None:
    """Show tiles, contexts, labels and statistics of a dataset.

    For a check before training on it.
    """
    from caswit.evaluation.inspect import inspect

    report = inspect(dataset, Path(out), split=split, tiles=n, skip_broken=skip_broken, settings=settings)
    print(report.read_text(encoding="utf-8"), end="")
    print(f"\npictures: {report.parent}")
