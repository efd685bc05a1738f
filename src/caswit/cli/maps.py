"""Commands for maps and images: predict, explain, serve, inspect. Each imports what computes when it runs."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from caswit.config import ExplainConfig, InspectConfig, MapRunConfig, OutputConfig, PredictConfig, ServeConfig, check
from caswit.errors import CaswitError, ConfigError, one_line

if TYPE_CHECKING:  # imports torch, and rasterio
    from collections.abc import Mapping

    from caswit.mapping.run import MapResult
    from caswit.raster.ground import ClassArea

_SKIPPED = 3
"""Exit status of a map with blocks that could not be read, and of several maps of which some could not be made."""


def predict(
    settings: PredictConfig,
    outputs: OutputConfig,
    run: MapRunConfig,
    *,
    images: list[str],
    out: str | None,
    out_dir: str | None,
    list: bool,
    model: str | None,
) -> None:
    """Map the land cover of images of any size.

    After an interruption, the same command continues where it stopped.
    """
    if list:
        from caswit.raster.image_list import list_images
        from caswit.weights.zoo.candidates import candidates

        print("\n".join(candidates(list_images(images), settings.gsd_m)))
        return
    if out_dir is not None:
        _predict_each(images, out_dir, model, settings, outputs, run)
        return
    if out is None:
        # All words are images where OUT may be left out, so the last one is OUT where it was not.
        *images, out = images
        if not images:
            raise ConfigError("missing: OUT.tif; caswit predict --help says what they are")
    from caswit.mapping.run import predict

    result = predict(images, Path(out), model, settings, outputs, run)
    for file in result.files:
        print(file)
    _say_areas(result.areas)
    if result.rescaled is not None:
        print(f"values {result.rescaled[0]:g} to {result.rescaled[1]:g} became 0 to 255")
    print(result.trust.line)
    _warn(result)
    if result.skipped:
        sys.exit(_SKIPPED)


def _predict_each(
    images: list[str],
    out_dir: str,
    model: str | None,
    settings: PredictConfig,
    outputs: OutputConfig,
    run: MapRunConfig,
) -> None:
    """Print each map as it is finished, and all their areas together at the end."""
    from caswit.mapping.many import predict_each
    from caswit.mapping.summary import add_areas

    areas, failed, skipped = [], [], False
    for image, result in predict_each(images, Path(out_dir), model, settings, outputs, run):
        if isinstance(result, CaswitError):
            said = str(result).removeprefix(f"{image}: ").removeprefix(f"{Path(image).name}: ")
            print(f"failed: {one_line(f'{image}: {said}', 1000)}", file=sys.stderr)
            failed.append(image)
            continue
        print(result.out, flush=True)
        _warn(result)
        areas.append(result.areas)
        skipped |= bool(result.skipped)
    if areas:
        _say_areas(add_areas(areas))
    if failed:
        count = f"{len(failed)} of {len(failed) + len(areas)}"
        print(f"{count} images have no map; the same command tries only these again", file=sys.stderr)
    if failed or skipped:
        sys.exit(_SKIPPED)


def _say_areas(areas: "Mapping[str, ClassArea]") -> None:
    from caswit.mapping.summary import area_table

    print("\n".join(["", *area_table(areas), ""]))


def _warn(result: "MapResult") -> None:
    """Say what speaks against a map."""
    if result.trust.warning is not None:
        print(f"warning: {result.trust.warning}", file=sys.stderr)
    if result.skipped:
        print(f"{len(result.skipped)} blocks could not be read and are nodata:", file=sys.stderr)
        print("\n".join(f"  {line}" for line in result.skipped), file=sys.stderr)
        print(
            "the same command tries only these again; if the image was repaired in the meantime, add --restart",
            file=sys.stderr,
        )


def explain(
    settings: ExplainConfig, *, image: str, model: str | None, out: str, gsd_m: float | None, **place: float | None
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
