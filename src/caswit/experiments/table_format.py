"""Print our rows beside the paper's as Markdown and CSV; scores are percent."""

import csv
import io
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caswit.config import PaperFigures, RowConfig
from caswit.experiments.memory import PeakMemory

SCORES = {"miou": "mIoU", "mf1": "mF1", "mbiou": "mBIoU"}
MISSING = "-"


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Everything measured of one row, so far."""

    row: RowConfig
    steps: int | None = None
    """Training steps; None where nothing was trained."""
    reports: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Content of report.json, by seed."""
    memory: PeakMemory | None = None
    error: str | None = None
    """Reason why a seed is missing, in one line."""

    def values(self, pick: Callable[[Mapping[str, Any]], float]) -> dict[int, float]:
        """Pick a score from every report, in percent, by seed."""
        return {seed: 100 * pick(report) for seed, report in self.reports.items()}

    def score(self, key: str) -> dict[int, float]:
        """Return one of ``SCORES`` in percent, by seed."""
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
    head = ["row", *(f"{name}, {who}" for name in SCORES.values() for who in ("paper", "ours"))]
    head += ["mIoU to first row, paper", "ours", "memory MB, paper", "ours"]
    yield _table_line(head)
    yield _table_line(["---", *["---:"] * (len(head) - 1)])
    for each in rows:
        paper = each.row.paper
        cells = [each.row.name]
        for key in SCORES:
            cells += [_number(getattr(paper, key)), mean_std(each.score(key).values())]
        ours = _difference(each.score("miou"), first.score("miou"))
        theirs = None
        if paper.miou is not None and first.row.paper.miou is not None:
            theirs = paper.miou - first.row.paper.miou
        cells += [MISSING] * 2 if each is first else [_number(theirs, "+.2f"), mean_std(ours, "+.2f")]
        memory = MISSING if each.memory is None else str(each.memory)
        yield _table_line([*cells, _number(paper.memory_mb, ".0f"), memory])


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

    def plain(text: str) -> str:
        return text.lower().replace("_", " ")

    return next((value for each, value in (paper.per_class or {}).items() if plain(each) == plain(name)), None)


def _notes(rows: Sequence[RowResult]) -> Iterator[str]:
    """Write how rows were measured, one line for all that were measured alike, and why some are missing."""
    alike: dict[str, list[str]] = {}
    for each in rows:
        for report in list(each.reports.values())[:1]:
            alike.setdefault(_measured(each, report["evaluated"]), []).append(each.row.name)
    for how, names in alike.items():
        yield f"- {'ours' if len(alike) == 1 else ', '.join(names)}: {how}"
    for each in rows:
        if each.error:
            yield f"- {each.row.name}: not run: {each.error}"
    for description in dict.fromkeys(r.memory.description for r in rows if r.memory):
        yield f"- memory: peak at inference, batch 1: {description}"
    yield "- the paper's figures are for its own data, model sizes and training"
    yield "- percent; with several seeds the mean ± the standard deviation over seeds, differences seed by seed"


def _measured(result: RowResult, what: Mapping[str, Any]) -> str:
    seeds = f"seed{'s' * (len(result.reports) > 1)} {', '.join(map(str, sorted(result.reports)))}"
    protocol = f", protocol {what['protocol']}" if what["protocol"] else ""
    return (
        f"{what['dataset']}, split {what['split']}, {result.steps} steps, {seeds}, {what['tiles']} tiles of "
        f"{what['tile_px']} px, boundary band {what['band_px']} px{protocol}"
    )


def scores_csv(results: Sequence[RowResult]) -> str:
    """Write a CSV line for each row and seed."""
    lines = []
    for each in results:
        for seed, report in each.reports.items():
            what, paper = report["evaluated"], each.row.paper
            lines.append(
                {"table": each.row.table, "row": each.row.name, "seed": seed}
                | {key: what[key] for key in ("dataset", "split", "protocol", "band_px", "tile_px")}
                | {"steps": each.steps}
                | {key: f"{100 * report[key]:.4f}" for key in (*SCORES, "overall_accuracy")}
                | {f"paper_{key}": getattr(paper, key) for key in (*SCORES, "memory_mb")}
                | {key: getattr(each.memory, key, None) for key in ("allocated_mb", "reserved_mb", "resident_mb")}
            )
    return _csv(lines)


def classes_csv(results: Sequence[RowResult]) -> str:
    """Write a CSV line for each row, seed and class."""
    return _csv(
        [
            {"table": each.row.table, "row": each.row.name, "seed": seed, "class": name}
            | {"iou": f"{100 * scores['iou']:.4f}", "paper_iou": _paper_class(each.row.paper, name)}
            for each in results
            for seed, report in each.reports.items()
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


def _difference(ours: Mapping[int, float], first: Mapping[int, float]) -> list[float]:
    """Subtract the first row seed by seed, over seeds that both have."""
    # A seed draws the landscapes and the order of the data for all rows alike, so that differences within a seed vary
    # less than the scores do.
    return [value - first[seed] for seed, value in ours.items() if seed in first]


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
