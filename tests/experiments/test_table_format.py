"""Rows beside the paper's."""

import csv
import io
import statistics

from caswit.config import PaperFigures, RowConfig
from caswit.experiments.memory import PeakMemory
from caswit.experiments.table_format import RowResult, classes_csv, markdown, mean_std, scores_csv

EVALUATED = {"dataset": "d", "split": "val", "protocol": None, "band_px": 4, "tile_px": 128, "tiles": 9}


def report(miou, **classes):
    return {
        "miou": miou,
        "mf1": miou + 0.1,
        "mbiou": miou - 0.1,
        "overall_accuracy": 0.9,
        "per_class": {name: {"iou": iou} for name, iou in classes.items()},
        "evaluated": EVALUATED,
    }


FIRST = RowResult(
    row=RowConfig(name="Baseline", table="3", paper=PaperFigures(miou=70.11, mf1=81.72)),
    steps=3,
    reports={0: report(0.50, house=0.2), 1: report(0.60, house=0.4)},
)
SECOND = RowResult(
    row=RowConfig(name="Ours", table="3", paper=PaperFigures(miou=71.40, per_class={"House": 33.0})),
    steps=3,
    reports={1: report(0.63, house=0.5), 0: report(0.51, house=0.3)},
    memory=PeakMemory(device="cpu", precision="fp32", resident_mb=812.4, before_mb=400.6),
)
ABSENT = RowResult(row=RowConfig(name="SSL", table="3"), error="r.yaml: starts from x, which does not exist")


def cells(text: str, name: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_mean_std():
    assert mean_std([]) == "-"
    assert mean_std([1.234]) == "1.23"
    assert mean_std([1.0, 2.0, 4.0]) == f"2.33 ± {statistics.stdev([1, 2, 4]):.2f}"


def test_a_row_has_the_papers_figures_and_ours():
    text = markdown([FIRST, SECOND, ABSENT])
    assert cells(text, "Baseline") == [
        "Baseline", "70.11", "55.00 ± 7.07", "81.72", "65.00 ± 7.07", "-", "45.00 ± 7.07", "-", "-", "-", "-",
    ]  # fmt: skip
    ours = cells(text, "Ours")
    assert ours[1:3] == ["71.40", "57.00 ± 8.49"]
    assert ours[-1] == "812 (401)"
    assert cells(text, "SSL")[1:] == ["-"] * 10


def test_differences_are_taken_seed_by_seed():
    """1 and 3 points: their spread is far below that of the scores."""
    assert cells(markdown([FIRST, SECOND]), "Ours")[7:9] == ["+1.29", "+2.00 ± 1.41"]


def test_classes_and_what_is_missing():
    text = markdown([FIRST, SECOND, ABSENT])
    assert cells(text, "house") == ["house", "30.00 ± 14.14", "40.00 ± 14.14 (33.00)", "-"]
    assert "- SSL: not run: r.yaml: starts from x, which does not exist\n" in text
    assert "resident memory of the process" in text


def test_rows_measured_alike_share_a_line():
    assert "- ours: d, split val, 3 steps, seeds 0, 1, 9 tiles of 128 px, boundary band 4 px\n" in markdown(
        [FIRST, SECOND]
    )
    longer = RowResult(row=RowConfig(name="Long"), steps=9, reports={0: report(0.3)})
    text = markdown([RowResult(row=RowConfig(name="A"), steps=3, reports=FIRST.reports), longer])
    assert "- A: d, split val, 3 steps, seeds 0, 1," in text
    assert "- Long: d, split val, 9 steps, seed 0," in text


def test_tables_are_kept_apart():
    other = RowResult(row=RowConfig(name="PSPNet", table="2"), reports={0: report(0.3)})
    text = markdown([FIRST, other])
    assert text.index("## Table 3") < text.index("## Table 2")
    assert cells(text, "PSPNet")[7:9] == ["-", "-"]  # the first row of its own table


def test_csv_has_a_line_for_each_seed():
    lines = list(csv.DictReader(io.StringIO(scores_csv([FIRST, SECOND, ABSENT]))))
    assert [(line["row"], line["seed"], line["miou"]) for line in lines] == [
        ("Baseline", "0", "50.0000"), ("Baseline", "1", "60.0000"), ("Ours", "1", "63.0000"), ("Ours", "0", "51.0000"),
    ]  # fmt: skip
    assert lines[0]["paper_miou"] == "70.11"
    assert lines[2]["resident_mb"] == "812.4"
    classes = list(csv.DictReader(io.StringIO(classes_csv([SECOND]))))
    assert classes[0] == {
        "table": "3", "row": "Ours", "seed": "1", "class": "house", "iou": "50.0000", "paper_iou": "33.0",
    }  # fmt: skip


def test_nothing_run_is_an_empty_file():
    assert scores_csv([ABSENT]) == classes_csv([ABSENT]) == ""
