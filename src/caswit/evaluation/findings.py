"""What is odd about a dataset: labels beside their image or shifted against it, classes that never occur, no CRS.

The report of ``caswit inspect`` says it first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.data.classes import ClassTable
from caswit.data.reader import SceneReader
from caswit.evaluation.label_shift import SURE, Shift, correlations, estimate_shift
from caswit.raster.warped import Overlap, WarpedLabel, overlap
from caswit.raster.windows import some_of
from caswit.viz.pages import percent, table_cell

_SHIFTED_SCENES = 24
"""Scenes whose labels are compared with edges of the image: a second or two each."""
_SHOWN = 6
"""Scenes that a line names, and messages about what was left out."""
_OUTSIDE = 0.01
"""A label of which a larger share lies beside its image is odd."""


class LabelLook(NamedTuple):
    """How the labels of a scene are read, and how they fit its image."""

    scene: str
    read_as: str
    """In words: class ids, colours, warped from another CRS."""
    labelled: bool
    """Whether any pixel has a label."""
    source_gsd_m: float | None
    crs: str
    overlap: Overlap | None
    """What image and label share, where they lie on different grids."""
    shift: Shift | None
    """Where labels lie against the image's edges; None where that was not estimated or there are too few outlines."""


@dataclass(kw_only=True)
class Findings:
    """Everything beyond the counts that the report says."""

    classes: ClassTable
    split: str
    """The split that is inspected."""
    looks: list[LabelLook] = field(default_factory=list)
    without_crs: list[str] = field(default_factory=list)
    """Scenes of the split, labelled or not."""
    shares: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    """By split with labels: (C,) share of each class in the labelled pixels."""
    scenes: int = 0
    pooled: Shift | None = None
    """Shift of all scenes together that have too few outlines each."""
    broken: Sequence[str] = ()
    """What was left out because it is missing or broken, a message each; it may grow until the report is written."""

    def odd(self) -> list[str]:
        """Return a line for everything that is odd, the worst first."""
        return [
            *self._left_out(),
            *self._outside(),
            *self._shifted(),
            *self._unlabelled(),
            *self._absent(),
            *self._nowhere(),
        ]

    def _left_out(self) -> list[str]:
        said = list(dict.fromkeys(self.broken))
        more = [f"left out: {len(said) - _SHOWN} more, listed as Left out"] if len(said) > _SHOWN else []
        return [*(f"left out: {line}" for line in said[:_SHOWN]), *more]

    def _outside(self) -> list[str]:
        lines = []
        for look in self.looks:
            if look.overlap is None or look.overlap.outside <= _OUTSIDE:
                continue
            if look.overlap.covered == 0:
                lines.append(f"{look.scene}: the label lies nowhere on the image; compare CRS and corners of both")
            else:
                share, covered = percent(look.overlap.outside, 0), percent(look.overlap.covered, 0)
                lines.append(
                    f"{look.scene}: {share} % of the label lies outside the image, of which it covers {covered} %"
                )
        return lines

    def _shifted(self) -> list[str]:
        lines = [
            f"{look.scene}: labels lie {look.shift.said(look.source_gsd_m)}, judged by the edges of the image "
            f"({percent(look.shift.sure, 0)} % sure, from {look.shift.blocks} places)"
            for look in self.looks
            if look.shift is not None and look.shift.odd
        ]
        if self.pooled is not None and self.pooled.odd:
            lines.append(
                f"small scenes together: labels lie {self.pooled.said(None)}, judged by the edges of the images "
                f"({percent(self.pooled.sure, 0)} % sure, from {self.pooled.blocks} places)"
            )
        return lines

    def _unlabelled(self) -> list[str]:
        none = [look.scene for look in self.looks if not look.labelled]
        return [f"no pixel is labelled in {_some(none)}"] if none else []

    def _absent(self) -> list[str]:
        """Say which classes no split has, and which are missing in some."""
        names, present = self.classes.names, {split: share > 0 for split, share in self.shares.items()}
        if not present:
            return []
        nowhere = [n for i, n in enumerate(names) if not any(p[i] for p in present.values())]
        lines = [f"no label has {_some(nowhere)}: nothing can be learned of {_it(nowhere)}"] if nowhere else []
        for split, has in present.items():
            lacks = [n for i, n in enumerate(names) if not has[i] and n not in nowhere]
            if lacks:
                lines.append(f"split {split} has no {_some(lacks, 'and no')}, which other splits have")
        return lines

    def _nowhere(self) -> list[str]:
        if not self.without_crs:
            return []
        which = "no scene has" if len(self.without_crs) == self.scenes else f"without a CRS: {_some(self.without_crs)};"
        has = " a CRS:" if which.startswith("no ") else ""
        return [f"{which}{has} ground size is unknown, and labels on another grid cannot be placed"]

    def markdown(self) -> str:
        """Return the sections that report.md ends with."""
        lines: list[str] = []
        if self.shares:
            lines += ["", "## Share of each class", "", f"| class | ids | {' | '.join(map(table_cell, self.shares))} |"]
            lines.append("|---|---|" + "---:|" * len(self.shares))
            for index, each in enumerate(self.classes.predicted):
                shares = " | ".join(f"{percent(share[index])} %" for share in self.shares.values())
                lines.append(f"| {table_cell(each.name)} | {', '.join(map(str, each.ids))} | {shares} |")
        lines += ["", "## What is odd", ""]
        lines += [f"- {line}" for line in self.odd()] or ["Nothing."]
        return "\n".join(lines) + "\n"

    def values(self) -> dict[str, Any]:
        """Return what the template of the HTML page shows."""
        rows = [
            {
                "scene": look.scene,
                "read_as": look.read_as,
                "covered": None if look.overlap is None else percent(look.overlap.covered, 0),
                "shift": None if look.shift is None else look.shift.said(look.source_gsd_m),
                "sure": None if look.shift is None else percent(look.shift.sure, 0),
                "unsure": look.shift is not None and look.shift.sure < SURE,
                "odd": look.shift is not None and look.shift.odd,
            }
            for look in self.looks
        ]
        classes = [
            {
                "name": each.name,
                "colour": each.color,
                "ids": ", ".join(map(str, each.ids)),
                "shares": [float(share[index]) for share in self.shares.values()],
            }
            for index, each in enumerate(self.classes.predicted)
        ]
        return {"odd": self.odd(), "labels": rows, "classes": classes, "splits": list(self.shares)}


class Shifts:
    """Estimates the shifts of some scenes, spread over all."""

    def __init__(self, scenes: int) -> None:
        self._chosen = set(some_of(range(scenes), _SHIFTED_SCENES))
        self._rest: list[NDArray[np.float32]] = []

    def of(self, number: int, opened: SceneReader) -> Shift | None:
        """Return the shift of a labelled scene; None where it is not among those chosen, or has too few outlines."""
        if number not in self._chosen:
            return None
        surfaces = correlations(opened)
        found = estimate_shift(surfaces)
        if found is None:
            self._rest.append(surfaces)
        return found

    def pooled(self) -> Shift | None:
        """Return the shift of all scenes together that have too few outlines each."""
        return estimate_shift(np.concatenate(self._rest)) if self._rest else None


def look_at(opened: SceneReader, labelled: bool, shift: Shift | None) -> LabelLook:
    """Return how the labels of an open scene are read."""
    warped = isinstance(opened.label, WarpedLabel)
    shared = overlap(opened.image.grid, opened.label.label.grid) if isinstance(opened.label, WarpedLabel) else None
    values = opened.scene.label_values
    if opened.colors is not None:
        read_as = "nearest colours" if values == "near_colors" else "colours"
    elif opened.drawn is not None:
        read_as = opened.drawn.said
    elif opened.label is None:
        read_as = "none"
    else:
        plain = "class ids" if isinstance(values, str) else "classes by value"
        read_as = {"binary": "0 and the rest", "mask255": "0 and 255"}.get(str(values), plain)
        read_as += " in floats" if opened.label.dtype.startswith("float") else ""
    if warped:
        assert isinstance(opened.label, WarpedLabel)
        own, crs = opened.label.label.grid, opened.image.grid.crs
        where = "another grid" if own.crs == crs else own.crs.to_string()[:40]
        read_as += f", warped from {where}"
    grid = opened.image.grid
    crs_name = grid.crs.to_string()[:40] if grid.crs else ""
    return LabelLook(opened.scene.name, read_as, labelled, opened.source_gsd_m, crs_name, shared, shift)


def _some(names: Sequence[str], between: str = "and") -> str:
    """List names, at most ``_SHOWN`` of them."""
    shown = list(names[:_SHOWN]) + ([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
    *first, last = shown
    return f"{', '.join(first)} {between} {last}" if first else last


def _it(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
