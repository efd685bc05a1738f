"""Print our rows beside the paper's as Markdown and CSV; scores are percent."""

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import PaperFigures, RowConfig
from caswit.data.classes import plain_name
from caswit.evaluation.metrics import Counts, score
from caswit.experiments.memory import PeakMemory

SCORES = {"miou": "mIoU", "mf1": "mF1", "mbiou": "mBIoU"}
MISSING = "-"
_MOST_NAMED = 8
"""Scenes of a fold that are named below a table."""
_MEMORY = ("process_mb", "allocated_mb", "reserved_mb", "resident_mb")


class FoldRun(NamedTuple):
    """A training without one fold of the scenes, on which it is scored."""

    seed: int
    fold: int
    """From 1."""


Run = int | FoldRun
"""A seed, or with folds a seed and a fold."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Everything measured of one row, so far."""

    row: RowConfig
    steps: Mapping[Run, int] = field(default_factory=dict)
    """Training steps, by run: with max_minutes they differ."""
    size: str = ""
    """Swin size, encoder or width of the network."""
    start: str = ""
    """What its training started from."""
    reports: Mapping[Run, Mapping[str, Any]] = field(default_factory=dict)
    """Content of report.json, by run: scenes are cut as the method cuts them."""
    reports_alike: Mapping[Run, Mapping[str, Any]] = field(default_factory=dict)
    """The same with tiles as those of all other rows, without overlap."""
    common_px: int = 512
    """Side of these tiles."""
    folds: int | None = None
    """Number of folds of the scenes; None without."""
    held_out: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    """Images that are scored, by fold."""
    memory: PeakMemory | None = None
    error: str | None = None
    """Reason why a seed is missing, in one line."""

    @property
    def cuts_otherwise(self) -> bool:
        """True where the method cuts scenes otherwise than the tiles of all rows."""
        return bool(self.reports_alike) and self.reports_alike != self.reports

    def values(self, pick: Callable[[Mapping[str, Any]], float]) -> dict[Run, float]:
        """Pick a score from every report, in percent, by run."""
        return {run: 100 * pick(report) for run, report in self.reports.items()}

    def score(self, key: str) -> dict[Run, float]:
        """Return one of ``SCORES`` in percent, by run."""
        return self.values(lambda report: report[key])


def markdown(results: Sequence[RowResult]) -> str:
    """Write a page: for each table of the paper its rows, its classes, and how they were measured."""
    parts = []
    for name in dict.fromkeys(r.row.table for r in results):
        rows = [r for r in results if r.row.table == name]
        title = f"Table {name}" if name else "Rows"
        parts += [f"## {title}\n", *_scores(rows), "", *_classes(rows), *_notes(rows), ""]
    return "\n".join(parts).rstrip() + "\n"


def _scores(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write the table of means, with differences to the first row."""
    first = rows[0]
    # Where all methods cut scenes into the same tiles, a column for that would say everything twice.
    alike = any(each.cuts_otherwise for each in rows)
    head = ["row", "size", "start", "mIoU, paper", "ours", *[f"ours at {first.common_px} px tiles"] * alike]
    head += [f"{name}, {who}" for name in [*SCORES.values()][1:] for who in ("paper", "ours")]
    head += ["mIoU to first row, paper", "ours", "memory MB, paper", "ours"]
    yield _table_line(head)
    yield _table_line(["---"] * 3 + ["---:"] * (len(head) - 3))
    began = _published(first.row)
    for each in rows:
        paper = each.row.paper
        if each.row.quoted is not None:
            yield _table_line(_quoted(each.row, first, alike))
        cells = [each.row.name, each.size or MISSING, each.start or MISSING]
        cells += [_number(paper.miou), mean_std(each.score("miou").values())]
        cells += [mean_std(100 * report["miou"] for report in each.reports_alike.values())] * alike
        for key in [*SCORES][1:]:
            cells += [_number(getattr(paper, key)), mean_std(each.score(key).values())]
        ours = _difference(each.score("miou"), first.score("miou"))
        theirs = None if paper.miou is None or began is None else paper.miou - began
        cells += [MISSING] * 2 if each is first else [_number(theirs, "+.2f"), mean_std(ours, "+.2f")]
        memory = MISSING if each.memory is None else str(each.memory)
        yield _table_line([*cells, _number(paper.memory_mb, ".0f"), memory])


def _published(row: RowConfig) -> float | None:
    """Return the mIoU of a row in the paper, or the one that it quotes."""
    return row.quoted.miou if row.paper.miou is None and row.quoted else row.paper.miou


def _quoted(row: RowConfig, first: RowResult, alike: bool) -> list[str]:
    """Return the cells of figures that the paper quotes, which nothing of ours stands beside."""
    figures = row.quoted
    assert figures is not None
    cells = [f"{row.name}, quoted", MISSING, MISSING, _number(figures.miou), MISSING, *[MISSING] * alike]
    for key in [*SCORES][1:]:
        cells += [_number(getattr(figures, key)), MISSING]
    began = _published(first.row)
    theirs = None if figures.miou is None or began is None or first.row is row else figures.miou - began
    return [*cells, _number(theirs, "+.2f"), MISSING, _number(figures.memory_mb, ".0f"), MISSING]


def _classes(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write the IoU by class, the paper's in brackets."""
    names = list(dict.fromkeys(name for r in rows for report in r.reports.values() for name in report["per_class"]))
    if not names:
        return
    yield "IoU by class" + (", the paper's in brackets" if any(r.row.paper.per_class for r in rows) else "")
    yield ""
    yield _table_line(["class", *(r.row.name for r in rows)])
    yield _table_line(["---", *["---:"] * len(rows)])
    for name in names:
        yield _table_line([name, *(_class_cell(r, name) for r in rows)])
    yield ""


def _class_cell(result: RowResult, name: str) -> str:
    ours = mean_std(result.values(lambda report: report["per_class"].get(name, {"iou": float("nan")})["iou"]).values())
    paper = _paper_class(result.row.paper, name)
    return ours if paper is None else f"{ours} ({paper:.2f})"


def _paper_class(paper: PaperFigures, name: str) -> float | None:
    """Return the paper's IoU of a class, however it is spelled ("Swimming pool", "swimming_pool")."""
    known = {plain_name(each): value for each, value in (paper.per_class or {}).items()}
    return known.get(plain_name(name))


def _notes(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write how rows were measured, one line for all that were measured alike, and why some are missing."""
    alike: dict[str, list[str]] = {}
    for each in rows:
        for report in list(each.reports.values())[:1]:
            alike.setdefault(_measured(each, report["evaluated"]), []).append(each.row.name)
    for how, names in alike.items():
        yield f"- {'ours' if len(alike) == 1 else '; '.join(names)}: {how}"
    for each in rows:
        if each.error:
            yield f"- {each.row.name}: not run: {each.error}"
    yield from _remarks(rows)
    yield "- the paper's figures are for its own data, model sizes and training"
    if any(each.folds for each in rows):
        yield from _folds(rows)
        what = "folds" if len({run.seed for each in rows for run in _fold_runs(each)}) == 1 else "folds and seeds"
        yield f"- percent; the mean ± the standard deviation over {what}, differences fold by fold"
        return
    yield "- percent; with several seeds the mean ± the standard deviation over seeds, differences seed by seed"


def _seed(run: Run) -> int:
    return run.seed if isinstance(run, FoldRun) else run


def _fold_runs(result: RowResult) -> list[FoldRun]:
    return sorted(run for run in result.reports if isinstance(run, FoldRun))


def _folds(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write which scenes were scored, and the scores over all of them."""
    for each in rows:
        for seed in sorted({run.seed for run in _fold_runs(each)}):
            reports = [each.reports[run] for run in _fold_runs(each) if run.seed == seed]
            # One confusion matrix: a class that some folds lack weighs there as in one split of all scenes.
            pixels: NDArray[np.int64] = np.array([report["confusion"]["pixels"] for report in reports]).sum(0)
            none = np.zeros(len(pixels), np.int64)
            pooled = score(Counts(confusion=pixels, boundary_intersection=none, boundary_union=none))
            which = f"all {each.folds}" if len(reports) == each.folds else f"{len(reports)} of {each.folds}"
            yield (
                f"- {each.row.name}, seed {seed}: the scenes of {which} folds together, each scored by a network that "
                f"did not learn from it: mIoU {100 * pooled.miou:.2f}, mF1 {100 * pooled.mf1:.2f}"
            )
    said: dict[tuple[int, tuple[str, ...]], None] = {}
    for each in rows:
        for fold, images in sorted(each.held_out.items()):
            if (fold, images) not in said:
                said[fold, images] = None
                some = [Path(image).stem for image in images[:_MOST_NAMED]]
                more = f" and {len(images) - len(some)} more (folds.csv)" if len(images) > len(some) else ""
                yield f"- fold {fold} of {each.folds} scored {', '.join(some)}{more}"


def _remarks(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write what a reader must know of single rows, of memory, and of the columns."""
    for each in rows:
        if each.row.note:
            yield f"- {each.row.name}: {each.row.note}"
    sizes: dict[str, list[str]] = {}
    for each in rows:
        if each.memory is not None:
            sizes.setdefault(f"{each.memory.description}, {each.memory.image}", []).append(each.row.name)
    for description, names in sizes.items():
        whose = "memory" if len(sizes) == 1 else f"memory of {'; '.join(names)}"
        yield f"- {whose}: peak at inference, batch 1: {description}"
    if any(each.cuts_otherwise for each in rows):
        tiles = f"at {rows[0].common_px} px tiles: without overlap{_other_tiles(rows)}"
        yield f"- ours: scenes cut as the method cuts them; {tiles}"
    if absent := _absent(rows):
        yield f"- not in the labels that are scored, with 0 in every mean over classes: {', '.join(absent)}"
    if any(each.row.quoted for each in rows):
        yield "- quoted: published by the networks' authors, not trained here"


def _absent(rows: Sequence[RowResult]) -> list[str]:
    """Return the classes that no scored label of any row has."""
    support: Counter[str] = Counter()
    for report in (report for row in rows for report in row.reports.values()):
        # Reports of earlier versions do not tell.
        support.update({name: scores.get("support", 1) for name, scores in report["per_class"].items()})
    return [name for name, pixels in support.items() if not pixels]


def _other_tiles(rows: Sequence[RowResult]) -> str:
    """Name the rows whose context factors do not allow tiles of the common side, with theirs."""
    found = []
    for each in rows:
        sides = {report["evaluated"]["tile_px"] for report in each.reports_alike.values()} - {each.common_px}
        found += [f", {each.row.name} {side} px" for side in sorted(sides)]
    return "".join(found)


def _measured(result: RowResult, what: Mapping[str, Any]) -> str:
    runs = sorted({_seed(run) for run in result.reports})
    seeds = f"seed{'s' * (len(runs) > 1)} {', '.join(map(str, runs))}"
    protocol = f", protocol {what['protocol']}" if what["protocol"] else ""
    taken = [result.steps[run] for run in result.reports]
    least, most = min(taken), max(taken)
    steps = f"{least} steps" if least == most else f"{least} to {most} steps"
    where = f"{what['dataset']}, split {what['split']}, {steps}, {seeds}"
    if result.folds:
        first = [report for run, report in result.reports.items() if _seed(run) == runs[0]]
        what = {**what, "tiles": sum(report["evaluated"]["tiles"] for report in first)}
        whole = str(what["dataset"]).rpartition(", fold ")[0]
        where = f"{whole}, {result.folds} folds of scenes, each held out once, {steps}, {seeds}"
    return f"{where}, {_tiles(what)}, boundary band {what['band_px']} px{protocol}"


def _tiles(what: Mapping[str, Any]) -> str:
    if what["tile_px"] == "whole":
        return f"{what['tiles']} whole images"
    overlap = what.get("overlap_px", 0)
    return f"{what['tiles']} tiles of {what['tile_px']} px" + f" that overlap by {overlap} px or more" * bool(overlap)


def scores_csv(results: Sequence[RowResult]) -> str:
    """Write a CSV line for each row and seed."""
    lines = []
    for each in results:
        for run, report in each.reports.items():
            what, paper = report["evaluated"], each.row.paper
            lines.append(
                {"table": each.row.table, "row": each.row.name, **_columns(run)}
                | {key: what[key] for key in ("dataset", "split", "protocol", "band_px", "tile_px")}
                | {"overlap_px": what.get("overlap_px", 0), "steps": each.steps[run]}
                | {"size": each.size, "start": each.start}
                | {key: f"{100 * report[key]:.4f}" for key in (*SCORES, "overall_accuracy")}
                | _alike(each, run)
                | {f"paper_{key}": getattr(paper, key) for key in (*SCORES, "memory_mb")}
                | {key: getattr(each.memory, key, None) for key in _MEMORY}
            )
    return _csv(lines)


def _columns(run: Run) -> dict[str, int]:
    """Return the columns that name a run."""
    return run._asdict() if isinstance(run, FoldRun) else {"seed": run}


def folds_csv(results: Sequence[RowResult]) -> str:
    """Write a CSV line for each scored image of each row and fold; nothing without folds."""
    return _csv(
        [
            {"table": each.row.table, "row": each.row.name, "fold": fold, "image": image}
            for each in results
            for fold, images in sorted(each.held_out.items())
            for image in images
        ]
    )


def _alike(result: RowResult, run: Run) -> dict[str, Any]:
    """Return the columns of the scores with the tiles of all rows."""
    report = result.reports_alike.get(run)
    if report is None:
        return dict.fromkeys(("common_tile_px", *(f"common_tiles_{key}" for key in SCORES)))
    scores = {f"common_tiles_{key}": f"{100 * report[key]:.4f}" for key in SCORES}
    return {"common_tile_px": report["evaluated"]["tile_px"], **scores}


def classes_csv(results: Sequence[RowResult]) -> str:
    """Write a CSV line for each row, seed and class."""
    return _csv(
        [
            {"table": each.row.table, "row": each.row.name, **_columns(run), "class": name}
            | {"iou": f"{100 * scores['iou']:.4f}", "paper_iou": _paper_class(each.row.paper, name)}
            for each in results
            for run, report in each.reports.items()
            for name, scores in report["per_class"].items()
        ]
    )


def mean_std(values: Any, form: str = ".2f") -> str:
    """Write the mean, and the standard deviation over two or more seeds."""
    numbers = list(values)
    if not numbers:
        return MISSING
    mean = format(statistics.fmean(numbers), form)
    return mean if len(numbers) == 1 else f"{mean} ± {statistics.stdev(numbers):.2f}"


def _difference(ours: Mapping[Run, float], first: Mapping[Run, float]) -> list[float]:
    """Subtract the first row run by run, over seeds and folds that both have."""
    # A seed draws the landscapes and the order of the data for all rows alike, so that differences within a seed vary
    # less than the scores do.
    return [value - first[run] for run, value in ours.items() if run in first]


def _number(value: float | None, form: str = ".2f") -> str:
    return MISSING if value is None else format(value, form)


def _table_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _csv(lines: Sequence[Mapping[str, Any]]) -> str:
    if not lines:
        return ""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()
