"""The evaluation report: `report.json` for programs, `report.md` and `report.html` for people.

All three are renderings of one value, `report_values`, so they cannot disagree.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.evaluation.boundary_errors import EdgeCounts
from caswit.evaluation.metrics import Counts, score
from caswit.files import atomic_write_bytes
from caswit.viz import pictures as viz
from caswit.viz.pages import hex_colour, percent, render

PICTURE_PX = 640
"""Longest side of a picture in the report: sharp on a dense screen, small enough to mail."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One tile to show."""

    title: str
    image: viz.Image
    """(H, W, 3)."""
    truth: NDArray[Any]
    """(H, W) class indices, `IGNORE_INDEX` where unlabelled."""
    prediction: NDArray[Any]
    """(H, W) class indices."""
    without_surroundings: NDArray[Any] | None = None
    """(H, W) class indices of the same model with black surroundings."""
    group: str = "Examples"
    """Heading under which it is shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What was evaluated, how, and what was counted. Scores follow from the counts."""

    title: str
    dataset: str
    split: str
    model: str
    class_names: Sequence[str]
    class_colours: viz.Image
    """(C, 3)."""
    counts: Counts
    band_px: int
    """Width of the boundary band of Boundary IoU, in pixels."""
    band_ratio: float
    """The same width as a fraction of the tile's diagonal."""
    tile_px: int
    context_factor: int | None
    """None: the model has no context branch."""
    scenes: int
    tiles: int
    elapsed_s: float
    software_version: str
    examples: Sequence[Example] = field(default=())
    edges: EdgeCounts | None = None
    """Where the errors lie."""
    counts_without: Counts | None = None
    """The same with the surroundings of every tile black; None where that was not asked for."""
    protocol: str | None = None
    """The named benchmark whose classes were scored; None: those of the dataset."""
    model_sha256: str = ""
    """First digits of the checksum of the model's weights."""


class Panel(NamedTuple):
    """One picture of a row, as the `picture_row` macro takes it."""

    caption: str
    alt: str
    uri: str


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write `report.html`, `report.md` and `report.json` into the folder `out`.

    Everything is rendered before the first file is written, and `report.json` comes last: where it
    is, the report is complete.
    """
    report = report_values(evaluation)
    rows: dict[str, list[tuple[str, list[Panel]]]] = {}
    for example in evaluation.examples:
        panels = example_panels(example, evaluation.class_names, evaluation.class_colours)
        rows.setdefault(example.group, []).append((example.title, panels))
    blind = None
    if evaluation.counts_without is not None:
        blind = report_values(replace(evaluation, counts=evaluation.counts_without, counts_without=None))
    files = {
        "report.html": render("report.html.j2", report=report, rows=rows, blind=blind),
        "report.md": render("report.md.j2", report=report),
        "report.json": json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write_bytes(out / name, text.encode())


def report_values(evaluation: Evaluation) -> dict[str, Any]:
    """The content of `report.json`: plain numbers and strings, scores as fractions in 0..1."""
    scores = score(evaluation.counts)
    names = list(evaluation.class_names)
    per_class = ("iou", "f1", "biou", "precision", "recall", "support", "present")
    means = ("miou", "mf1", "mbiou", "overall_accuracy")
    means_present = ("miou_present", "mf1_present", "mbiou_present")
    return {
        "title": evaluation.title,
        **{key: getattr(scores, key) for key in means + means_present},
        "per_class": {
            name: {key: getattr(scores, key)[index].item() for key in per_class}
            | {"colour": hex_colour(evaluation.class_colours[index])}
            for index, name in enumerate(names)
        },
        "confusion": {
            "classes": names,
            "rows": "truth",
            "columns": "prediction",
            "pixels": evaluation.counts.confusion.tolist(),
        },
        "boundary": {
            "classes": names,
            "intersection": evaluation.counts.boundary_intersection.tolist(),
            "union": evaluation.counts.boundary_union.tolist(),
        },
        **({} if evaluation.edges is None else {"edges": evaluation.edges.values()}),
        **({} if evaluation.counts_without is None else {"without_surroundings": _means(evaluation.counts_without)}),
        "evaluated": _evaluated(evaluation),
        "software": {"name": "caswit", "version": evaluation.software_version},
    }


def _means(counts: Counts) -> dict[str, Any]:
    scores = score(counts)
    return {
        **{key: getattr(scores, key) for key in ("miou", "mf1", "mbiou", "overall_accuracy")},
        "iou": scores.iou.tolist(),
    }


def example_panels(example: Example, class_names: Sequence[str], class_colours: viz.Image) -> list[Panel]:
    """Image, truth, prediction and errors of one tile."""
    image = viz.shrink(example.image, PICTURE_PX)
    truth = viz.shrink(example.truth, PICTURE_PX)
    prediction = viz.shrink(example.prediction, PICTURE_PX)
    ignored = truth == IGNORE_INDEX
    right = _share_right(example)
    errors = viz.error_map(image, wrong=truth != prediction, ignored=ignored)
    truth_picture = viz.colourise(truth, class_colours)
    prediction_picture = viz.colourise(prediction, class_colours)
    in_truth, in_prediction = (_mentioned(each, class_names) for each in (truth, prediction))
    blind = []
    if example.without_surroundings is not None:
        picture = viz.colourise(viz.shrink(example.without_surroundings, PICTURE_PX), class_colours)
        blind = [Panel("Surroundings black", "Predicted map with black surroundings", viz.data_uri(picture))]
    return [
        Panel("Image", f"Aerial image: {example.title}", viz.data_uri(image, photo=True)),
        Panel("Truth", f"Labelled map: {in_truth}", viz.data_uri(truth_picture)),
        Panel("Prediction", f"Predicted map: {in_prediction}", viz.data_uri(prediction_picture)),
        Panel(f"Errors ({right} right)", f"Errors: {right} right", viz.data_uri(errors, photo=True)),
        *blind,
    ]


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """Everything a reader needs to compare these scores with others."""
    keys = ("dataset", "split", "model", "model_sha256", "protocol", "scenes", "tiles", "tile_px", "context_factor")
    return {
        **{key: getattr(evaluation, key) for key in keys},
        "labelled_pixels": int(evaluation.counts.confusion.sum()),
        "band_px": evaluation.band_px,
        "band_ratio": evaluation.band_ratio,
        "elapsed_s": evaluation.elapsed_s,
    }


def _share_right(example: Example) -> str:
    """Overall accuracy of one tile as text."""
    labelled = example.truth != IGNORE_INDEX
    if not labelled.any():
        return "no labelled pixel"
    return f"{percent((example.truth == example.prediction)[labelled].mean(), 1)} %"


def _mentioned(classes: NDArray[Any], class_names: Sequence[str]) -> str:
    """The classes of a map, most frequent first, for those who cannot see it."""
    indices, pixels = np.unique(classes[classes < len(class_names)], return_counts=True)
    return ", ".join(class_names[index] for index in indices[np.argsort(-pixels)]) or "nothing"
