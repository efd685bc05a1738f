"""Write the evaluation report: ``report.json`` for programs, ``report.md`` and ``report.html`` for people.

All three are made from one value, ``report_values``, so they cannot disagree.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, ContextFactor
from caswit.evaluation.boundary_errors import EdgeCounts
from caswit.evaluation.context_report import ContextReport
from caswit.evaluation.metrics import Counts, Scores, score
from caswit.files import atomic_write_bytes
from caswit.viz.pages import hex_colour, percent, render
from caswit.viz.pictures import Image, colourise, data_uri, error_map, shrink

PICTURE_PX = 640
"""Longest side of a picture: sharp on a dense screen, and a report small enough to send by mail."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """One tile that the report shows."""

    title: str
    image: Image
    """(H, W, 3)."""
    truth: NDArray[Any]
    """(H, W) class indices, IGNORE_INDEX where unlabelled."""
    prediction: NDArray[Any]
    """(H, W) class indices."""
    masked_context: NDArray[Any] | None = None
    """(H, W) class indices that the same model predicts with masked context."""
    group: str = "Examples"
    """Heading under which it is shown."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """An evaluation: the model, the data, the protocol and the counts. Scores are computed from the counts."""

    title: str
    dataset: str
    split: str
    model: str
    class_names: Sequence[str]
    class_colours: Image
    """(C, 3)."""
    counts: Counts
    band_px: int
    """Width of the boundary band of Boundary IoU, in pixels."""
    band_ratio: float
    """Width of the boundary band of Boundary IoU, as a fraction of the tile's diagonal."""
    tile_px: int | Literal["whole"]
    """Side of the tiles that were predicted; whole: each image at once."""
    context_factor: ContextFactor | None
    """Side of the context, or of each, in tile sides; None for a model without context branch."""
    scenes: int
    tiles: int
    elapsed_s: float
    software_version: str
    examples: Sequence[Example] = field(default=())
    overlap_px: int = 0
    """Pixels by which neighbouring tiles overlapped at least; their logits were averaged."""
    boundary_errors: EdgeCounts | None = None
    """Errors near the outlines of the truth and elsewhere."""
    masked_context_counts: Counts | None = None
    """Counts of the same model and tiles with masked context; None if that was not evaluated."""
    context: ContextReport | None = None
    """What else was measured of the context; None if that was not asked for."""
    protocol: str | None = None
    """Named benchmark whose classes are scored; None for the classes of the dataset."""
    confidence: Mapping[str, Any] | None = None
    """Mean confidence of the model in percent: over all pixels, and by class that it predicts."""
    model_sha256: str = ""
    """First digits of the SHA-256 of the model's weights."""

    @property
    def scores(self) -> Scores:
        """The scores, as fractions of 0..1: ``miou``, ``mf1``, ``mbiou``, ``overall_accuracy``, and those by class."""
        return score(self.counts)


class Panel(NamedTuple):
    """One picture of a row, for the template macro ``picture_row``."""

    caption: str
    alt: str
    uri: str


def write_report(evaluation: Evaluation, out: Path) -> None:
    """Write ``report.html``, ``report.md`` and ``report.json`` into the folder ``out``."""
    report = report_values(evaluation)
    rows: dict[str, list[tuple[str, list[Panel]]]] = {}
    for example in evaluation.examples:
        panels = example_panels(example, evaluation.class_names, evaluation.class_colours)
        rows.setdefault(example.group, []).append((example.title, panels))
    contexts = []
    if evaluation.masked_context_counts is not None:
        of = partial(replace, evaluation, masked_context_counts=None, context=None)
        contexts.append(("Masked", report_values(of(counts=evaluation.masked_context_counts))))
        if evaluation.context is not None:
            contexts.append(("Swapped", report_values(of(counts=evaluation.context.swapped))))
        contexts.append(("As is", report))
    # Everything is rendered before the first file is written, and report.json comes last: where it is, the report is
    # complete, which the table of experiments relies on when it continues.
    files = {
        "report.html": render("report.html.j2", report=report, rows=rows, contexts=contexts),
        "report.md": render("report.md.j2", report=report),
        "report.json": json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n",
    }
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        atomic_write_bytes(out / name, text.encode())


def report_values(evaluation: Evaluation) -> dict[str, Any]:
    """Return the content of ``report.json``: plain numbers and strings, scores as fractions of 0..1."""
    scores = score(evaluation.counts)
    names = list(evaluation.class_names)
    per_class = ("iou", "f1", "biou", "precision", "recall", "support", "present")
    means = ("miou", "mf1", "mbiou", "overall_accuracy")
    means_present = ("miou_present", "mf1_present", "mbiou_present")
    optional = {}  # under the keys of earlier versions, since other programs read them
    if evaluation.boundary_errors is not None:
        optional["edges"] = evaluation.boundary_errors.values()
    if evaluation.masked_context_counts is not None:
        optional["without_surroundings"] = _means(evaluation.masked_context_counts)
        if evaluation.context is not None:
            optional["context_report"] = evaluation.context.values(evaluation.counts, evaluation.masked_context_counts)
    if evaluation.confidence:
        optional["confidence"] = dict(evaluation.confidence)
    return {
        "title": evaluation.title,
        **{key: getattr(scores, key) for key in (*means, *means_present, "miou_truth")},
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
        **optional,
        "evaluated": _evaluated(evaluation),
        "software": {"name": "caswit", "version": evaluation.software_version},
    }


def _means(counts: Counts) -> dict[str, Any]:
    scores = score(counts)
    return {
        **{key: getattr(scores, key) for key in ("miou", "mf1", "mbiou", "overall_accuracy")},
        "iou": scores.iou.tolist(),
    }


def example_panels(example: Example, class_names: Sequence[str], class_colours: Image) -> list[Panel]:
    """Draw image, truth, prediction and errors of one tile, and the prediction with masked context."""
    image, truth, prediction = (shrink(x, PICTURE_PX) for x in (example.image, example.truth, example.prediction))
    right = _share_right(example)
    errors = error_map(image, wrong=truth != prediction, ignored=truth == IGNORE_INDEX)

    def class_map(caption: str, alt: str, classes: NDArray[Any]) -> Panel:
        return Panel(caption, alt, data_uri(colourise(classes, class_colours)))

    panels = [
        Panel("Image", f"Aerial image: {example.title}", data_uri(image, photo=True)),
        class_map("Truth", f"Labelled map: {_listed(truth, class_names)}", truth),
        class_map("Prediction", f"Predicted map: {_listed(prediction, class_names)}", prediction),
        Panel(f"Errors ({right} right)", f"Errors: {right} right", data_uri(errors, photo=True)),
    ]
    if example.masked_context is not None:
        masked = shrink(example.masked_context, PICTURE_PX)
        panels.append(class_map("Masked context", "Predicted map with masked context", masked))
    return panels


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """Return everything that must be equal, or at least known, to compare these scores with others."""
    keys = ("dataset", "split", "model", "model_sha256", "protocol", "scenes", "tiles", "tile_px")
    return {
        **{key: getattr(evaluation, key) for key in keys},
        "overlap_px": evaluation.overlap_px,
        "context_factor": evaluation.context_factor,
        "labelled_pixels": int(evaluation.counts.confusion.sum()),
        "band_px": evaluation.band_px,
        "band_ratio": evaluation.band_ratio,
        "elapsed_s": evaluation.elapsed_s,
    }


def _share_right(example: Example) -> str:
    """Write the overall accuracy of one tile."""
    labelled = example.truth != IGNORE_INDEX
    if not labelled.any():
        return "no labelled pixel"
    return f"{percent((example.truth == example.prediction)[labelled].mean(), 1)} %"


def _listed(classes: NDArray[Any], class_names: Sequence[str]) -> str:
    """List the classes of a map, the most frequent first, as its text alternative."""
    indices, pixels = np.unique(classes[classes < len(class_names)], return_counts=True)
    return ", ".join(class_names[index] for index in indices[np.argsort(-pixels)]) or "nothing"
