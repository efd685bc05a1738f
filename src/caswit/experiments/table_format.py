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
_MEMORY = ("process_mb", "allocated_mb", "reserved_mb", "resident_mb")


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """Everything measured of one row, so far."""

    row: RowConfig
    steps: int | None = None
    """Training steps; None where nothing was trained."""
    size: str = ""
    """Swin size, encoder or width of the network."""
    start: str = ""
    """What its training started from."""
    reports: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """Content of report.json, by seed: scenes are cut as the method cuts them."""
    reports_alike: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    """The same with tiles as those of all other rows, without overlap."""
    common_px: int = 512
    """Side of these tiles."""
    memory: PeakMemory | None = None
    error: str | None = None
    """Reason why a seed is missing, in one line."""

    @property
    def cuts_otherwise(self) -> bool:
        """True where the method cuts scenes otherwise than the tiles of all rows."""
        return bool(self.reports_alike) and self.reports_alike != self.reports

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
    yield from _remarks(rows)
    yield "- the paper's figures are for its own data, model sizes and training"
    yield "- percent; with several seeds the mean ± the standard deviation over seeds, differences seed by seed"


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
        whose = "memory" if len(sizes) == 1 else f"memory of {', '.join(names)}"
        yield f"- {whose}: peak at inference, batch 1: {description}"
    if any(each.cuts_otherwise for each in rows):
        tiles = f"at {rows[0].common_px} px tiles: without overlap{_other_tiles(rows)}"
        yield f"- ours: scenes cut as the method cuts them; {tiles}"
    if any(each.row.quoted for each in rows):
        yield "- quoted: published by the networks' authors, not trained here"


def _other_tiles(rows: Sequence[RowResult]) -> str:
    """Name the rows whose context factors do not allow tiles of the common side, with theirs."""
    found = []
    for each in rows:
        sides = {report["evaluated"]["tile_px"] for report in each.reports_alike.values()} - {each.common_px}
        found += [f", {each.row.name} {side} px" for side in sorted(sides)]
    return "".join(found)


def _measured(result: RowResult, what: Mapping[str, Any]) -> str:
    seeds = f"seed{'s' * (len(result.reports) > 1)} {', '.join(map(str, sorted(result.reports)))}"
    protocol = f", protocol {what['protocol']}" if what["protocol"] else ""
    where = f"{what['dataset']}, split {what['split']}, {result.steps} steps, {seeds}"
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
        for seed, report in each.reports.items():
            what, paper = report["evaluated"], each.row.paper
            lines.append(
                {"table": each.row.table, "row": each.row.name, "seed": seed}
                | {key: what[key] for key in ("dataset", "split", "protocol", "band_px", "tile_px")}
                | {"overlap_px": what.get("overlap_px", 0), "steps": each.steps}
                | {"size": each.size, "start": each.start}
                | {key: f"{100 * report[key]:.4f}" for key in (*SCORES, "overall_accuracy")}
                | _alike(each, seed)
                | {f"paper_{key}": getattr(paper, key) for key in (*SCORES, "memory_mb")}
                | {key: getattr(each.memory, key, None) for key in _MEMORY}
            )
    return _csv(lines)


def _alike(result: RowResult, seed: int) -> dict[str, Any]:
    """Return the columns of the scores with the tiles of all rows."""
    report = result.reports_alike.get(seed)
    if report is None:
        return dict.fromkeys(("common_tile_px", *(f"common_tiles_{key}" for key in SCORES)))
    scores = {f"common_tiles_{key}": f"{100 * report[key]:.4f}" for key in SCORES}
    return {"common_tile_px": report["evaluated"]["tile_px"], **scores}


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
