"""Commands for maps and images: predict, explain, serve, inspect. Each imports what computes when it runs."""

import sys
from pathlib import Path

from caswit.config import ComputeConfig, InspectConfig, MapRunConfig, OutputConfig, PredictConfig, ServeConfig, check
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

    The same call goes on where an interrupted one stopped.
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


def explain(
    settings: ComputeConfig, *, image: str, model: str | None, out: str, gsd_m: float | None, **place: float | None
) -> None:
    """Show which places the network read when it labelled a pixel.

    Also shows what it would say with masked context, and how much of its attention lies on padding.
    """
    pairs = (("row", "col"), ("x", "y"), ("lon", "lat"))
    given = {name: value for pair in pairs for name in pair if (value := place[name]) is not None}
    if tuple(given) not in pairs:
        said = ", ".join(f"--{name}" for name in given) or "none"
        raise ConfigError(f"name the pixel with --row and --col, --x and --y, or --lon and --lat; got {said}")
    from caswit.explain.figure import explain

    check(gsd_m is None or gsd_m > 0, f"gsd_m must be above 0, got {gsd_m}; try 0.2")
    for line in explain(Path(image), model, Path(out), place=given, gsd_m=gsd_m, settings=settings):
        print(line)
    print(out)


def serve(settings: ServeConfig, *, where: str, model: str | None) -> None:
    """Show images and maps in a browser.

    Swipe between them, measure areas, and see confidence, errors and the attention behind a pixel.
    """
    from caswit.serve.server import serve

    folder = None if model is None else Path(model)
    serve(Path(where), folder, settings, say=lambda line: print(line, flush=True))


def inspect(settings: InspectConfig, *, dataset: str, split: str, n: int, out: str, skip_broken: bool) -> None:
    """Show tiles, contexts, labels and figures of a dataset.

    See that it is right before training on it.
    """
    from caswit.evaluation.inspect import inspect

    report = inspect(dataset, Path(out), split=split, tiles=n, skip_broken=skip_broken, settings=settings)
    print(report.read_text(encoding="utf-8"), end="")
    print(f"\npictures: {report.parent}")
