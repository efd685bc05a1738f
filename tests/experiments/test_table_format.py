"""Rows beside the paper's."""

import csv
import dataclasses
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
    steps={0: 3, 1: 3},
    reports={0: report(0.50, house=0.2), 1: report(0.60, house=0.4)},
)
SECOND = RowResult(
    row=RowConfig(name="Ours", table="3", paper=PaperFigures(miou=71.40, per_class={"House": 33.0})),
    steps={0: 3, 1: 3},
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
        "Baseline", "-", "-", "70.11", "55.00 ± 7.07", "81.72", "65.00 ± 7.07", "-", "45.00 ± 7.07", "-", "-", "-", "-",
    ]  # fmt: skip
    ours = cells(text, "Ours")
    assert ours[3:5] == ["71.40", "57.00 ± 8.49"]
    assert ours[-1] == "812 (401)"
    assert cells(text, "SSL")[1:] == ["-"] * 12


def test_differences_are_taken_seed_by_seed():
    """1 and 3 points: their spread is far below that of the scores."""
    assert cells(markdown([FIRST, SECOND]), "Ours")[9:11] == ["+1.29", "+2.00 ± 1.41"]


def test_classes_and_what_is_missing():
    text = markdown([FIRST, SECOND, ABSENT])
    assert cells(text, "house") == ["house", "30.00 ± 14.14", "40.00 ± 14.14 (33.00)", "-"]
    assert "- SSL: not run: r.yaml: starts from x, which does not exist\n" in text
    assert "resident memory of the process" in text


def test_rows_measured_alike_share_a_line():
    assert "- ours: d, split val, 3 steps, seeds 0, 1, 9 tiles of 128 px, boundary band 4 px\n" in markdown(
        [FIRST, SECOND]
    )
    longer = RowResult(row=RowConfig(name="Long"), steps={0: 9}, reports={0: report(0.3)})
    text = markdown([RowResult(row=RowConfig(name="A"), steps={0: 3, 1: 3}, reports=FIRST.reports), longer])
    assert "- A: d, split val, 3 steps, seeds 0, 1," in text
    assert "- Long: d, split val, 9 steps, seed 0," in text


def test_classes_without_labels_are_named():
    """They count 0 in every mean, where a reader would take them for failures."""

    def counted(**pixels):
        scores = {name: {"iou": 0.5, "support": count} for name, count in pixels.items()}
        return dataclasses.replace(FIRST, reports={0: report(0.5) | {"per_class": scores}})

    text = markdown([counted(house=9, snow=0, clear_cut=0), counted(house=9, snow=0, clear_cut=4)])
    assert "- not in the labels that are scored, with 0 in every mean over classes: snow\n" in text
    assert "not in the labels" not in markdown([counted(house=9, snow=1)])
    assert "not in the labels" not in markdown([FIRST])  # reports without pixels do not tell


def test_steps_that_differ_by_seed():
    """A run that the clock ended has steps of its own."""
    row = dataclasses.replace(FIRST, steps={0: 120, 1: 95})
    assert "- ours: d, split val, 95 to 120 steps, seeds 0, 1," in markdown([row])
    assert [line["steps"] for line in csv.DictReader(io.StringIO(scores_csv([row])))] == ["120", "95"]


def test_tables_are_kept_apart():
    other = RowResult(row=RowConfig(name="PSPNet", table="2"), steps={0: 3}, reports={0: report(0.3)})
    text = markdown([FIRST, other])
    assert text.index("## Table 3") < text.index("## Table 2")
    assert cells(text, "PSPNet")[9:11] == ["-", "-"]  # the first row of its own table


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


def whole(miou, **how):
    return report(miou) | {"evaluated": EVALUATED | {"tile_px": "whole", "tiles": 4} | how}


ISDNET = RowResult(
    row=RowConfig(name="ISDNet", table="3", paper=PaperFigures(miou=45.8), note="whole images"),
    size="width 0.25",
    start="scratch",
    steps={0: 3},
    reports={0: whole(0.4)},
    reports_alike={0: report(0.3)},
    common_px=128,
)


def test_methods_that_cut_otherwise_have_both_scores_side_by_side():
    first = dataclasses.replace(FIRST, reports_alike=FIRST.reports, common_px=128, size="nano", start="imagenet")
    text = markdown([first, ISDNET])
    assert cells(text, "row")[:6] == ["row", "size", "start", "mIoU, paper", "ours", "ours at 128 px tiles"]
    assert cells(text, "ISDNet")[1:6] == ["width 0.25", "scratch", "45.80", "40.00", "30.00"]
    assert cells(text, "Baseline")[1:6] == ["nano", "imagenet", "70.11", "55.00 ± 7.07", "55.00 ± 7.07"]
    assert "- ISDNet: d, split val, 3 steps, seed 0, 4 whole images, boundary band 4 px\n" in text
    assert "- ISDNet: whole images\n" in text
    assert "at 128 px tiles: without overlap\n" in text
    lines = list(csv.DictReader(io.StringIO(scores_csv([first, ISDNET]))))
    assert [(x["tile_px"], x["miou"], x["common_tile_px"], x["common_tiles_miou"]) for x in lines][1:] == [
        ("128", "60.0000", "128", "60.0000"), ("whole", "40.0000", "128", "30.0000"),
    ]  # fmt: skip
    assert [(x["size"], x["start"]) for x in lines][-1] == ("width 0.25", "scratch")


def test_tiles_that_contexts_do_not_allow_are_named():
    other = dataclasses.replace(ISDNET, reports_alike={0: whole(0.3, tile_px=132)})
    assert "at 128 px tiles: without overlap, ISDNet 132 px\n" in markdown(
        [dataclasses.replace(FIRST, common_px=128), other]
    )


def test_tables_of_one_protocol_have_no_second_column():
    assert "px tiles |" not in markdown([dataclasses.replace(FIRST, reports_alike=FIRST.reports)])


def test_overlaps_are_said():
    patches = dataclasses.replace(FIRST, reports={0: whole(0.5, tile_px=508, overlap_px=50)})
    assert "4 tiles of 508 px that overlap by 50 px or more," in markdown([patches])


def test_quoted_figures_are_a_row_of_their_own():
    row = RowConfig(
        name="Swin-B", table="3", paper=PaperFigures(miou=64.02), quoted=PaperFigures(miou=64.05, mf1=76.88)
    )
    text = markdown([FIRST, RowResult(row=row, reports={0: report(0.5)}, steps={0: 3})])
    assert cells(text, "Swin-B, quoted") == [
        "Swin-B, quoted", "-", "-", "64.05", "-", "76.88", "-", "-", "-", "-6.06", "-", "-", "-",
    ]  # fmt: skip
    assert text.index("| Swin-B, quoted |") < text.index("| Swin-B |")
    assert "- quoted: published by the networks' authors" in text
    # On a table's first line there is nothing to compare with.
    assert cells(markdown([RowResult(row=row, steps={0: 3}, reports={0: report(0.5)})]), "Swin-B, quoted")[9] == "-"


def test_differences_are_to_a_quoted_figure_where_the_paper_has_no_other():
    first = RowConfig(name="Swin-T", table="3", quoted=PaperFigures(miou=62.0))
    text = markdown([RowResult(row=first, steps={0: 3}, reports={0: report(0.5)}), SECOND])
    assert cells(text, "Ours")[9] == "+9.40"
