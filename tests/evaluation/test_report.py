import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
from PIL import Image

from caswit.config import IGNORE_INDEX
from caswit.evaluation import metrics, report
from caswit.files import atomic_path, atomic_write_bytes
from caswit.viz import pages

NAMES = ("building", "<b>bare & | soil", "water", "snow")
COLOURS = np.array([[219, 14, 154], [169, 113, 1], [21, 83, 174], [255, 255, 255]], np.uint8)
VOID = {"meta", "img", "br", "link", "input", "hr"}


@pytest.fixture(scope="module")
def evaluation():
    rng = np.random.default_rng(0)
    truth = np.repeat(np.repeat(rng.integers(0, 3, (6, 6)), 8, axis=0), 8, axis=1)
    prediction = np.where(rng.random(truth.shape) < 0.1, 0, truth)
    truth[:5, :5] = IGNORE_INDEX
    image = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
    return report.Evaluation(
        title="CASWiT on <dubai>",
        dataset="dubai",
        split="val",
        model="caswit-nano",
        class_names=NAMES,
        class_colours=COLOURS,
        counts=metrics.count(prediction, truth, num_classes=4, band_px=2),
        band_px=2,
        band_ratio=0.03,
        tile_px=48,
        context_factor=2,
        scenes=1,
        tiles=1,
        elapsed_s=3723.4,
        software_version="9.8.7",
        examples=(
            report.Example(title="scene 1", image=image, truth=truth, prediction=prediction),
            report.Example(
                title="unlabelled",
                image=image,
                truth=np.full_like(truth, IGNORE_INDEX),
                prediction=prediction,
            ),
        ),
    )


@pytest.fixture(scope="module")
def written(evaluation, tmp_path_factory):
    out = tmp_path_factory.mktemp("report") / "not" / "yet"
    report.write_report(evaluation, out)
    return out


class Page(HTMLParser):
    """Collects tags, attributes and text, and fails on tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module")
def page(written):
    return Page((written / "report.html").read_text(encoding="utf-8"))


def test_three_files_and_nothing_else_are_written(written):
    names = {path.name for path in written.iterdir()}
    assert names == {"report.html", "report.md", "report.json"}


def test_json_holds_the_counts_from_which_its_scores_follow(written, evaluation):
    content = json.loads((written / "report.json").read_text(encoding="utf-8"))
    counts = metrics.Counts(
        confusion=np.array(content["confusion"]["pixels"]),
        boundary_intersection=np.array(content["boundary"]["intersection"]),
        boundary_union=np.array(content["boundary"]["union"]),
    )
    assert np.array_equal(counts.confusion, evaluation.counts.confusion)
    scores = metrics.score(counts)
    for key in ("miou", "mf1", "mbiou", "overall_accuracy", "miou_present", "mbiou_present"):
        assert content[key] == getattr(scores, key)
    assert tuple(content["per_class"]) == tuple(content["confusion"]["classes"]) == NAMES
    for index, row in enumerate(content["per_class"].values()):
        assert row["iou"] == scores.iou[index]
        assert row["support"] == scores.support[index]
        assert row["present"] == (index != 3)
    assert content["per_class"]["building"]["colour"] == "#db0e9a"


def test_json_says_what_was_evaluated_with_what(written, evaluation):
    content = json.loads((written / "report.json").read_text(encoding="utf-8"))
    assert content["evaluated"] == {
        "dataset": "dubai",
        "split": "val",
        "model": "caswit-nano",
        "model_sha256": "",
        "protocol": None,
        "scenes": 1,
        "tiles": 1,
        "tile_px": 48,
        "overlap_px": 0,
        "context_factor": 2,
        "labelled_pixels": 48 * 48 - 25,
        "band_px": 2,
        "band_ratio": 0.03,
        "elapsed_s": 3723.4,
    }
    assert content["software"] == {"name": "caswit", "version": "9.8.7"}
    assert content == report.report_values(evaluation)


def test_html_shows_scores_classes_and_how_it_was_measured(page, evaluation):
    scores = metrics.score(evaluation.counts)
    for value in (scores.miou, scores.mf1, scores.mbiou, scores.overall_accuracy):
        assert f"{100 * value:.2f}" in page.text
    assert f"Without absent classes: {100 * scores.miou_present:.2f} %" in page.text
    for text in ("CASWiT on <dubai>", *NAMES, "9.8.7", "1 h 2 min", "2 px (3.0 % of the diagonal)"):
        assert text in page.text
    assert "absent: neither in the truth nor predicted" in page.text
    assert f"Not in the truth of this split: {NAMES[3]}, with an IoU of 0 in these means." in page.text


def test_markdown_names_the_classes_without_truth(written, evaluation):
    text = (written / "report.md").read_text(encoding="utf-8")
    scores = metrics.score(evaluation.counts)
    assert f"\nNot in the truth of this split: {NAMES[3]}, with an IoU of 0 in these means. mIoU of the" in text
    assert f" mIoU of the other classes: {100 * scores.iou[scores.support > 0].mean():.2f}.\n" in text


def test_html_stands_alone(page, written):
    assert not page.all("script")
    assert not page.all("link")
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    html = (written / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"https?://|url\(", re.sub(r"base64,[^\"]*", "", html))


def test_html_can_be_read_without_eyes(page):
    images = page.all("img")
    assert len(images) == 8
    assert all(image["alt"] for image in images)
    assert images[2]["alt"].startswith("Predicted map: ")
    assert all(header.get("scope") in ("row", "col") for header in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"


def test_confusion_cells_tell_their_pixels(page, evaluation):
    cells = [cell["title"] for cell in page.all("td") if " predicted as " in cell.get("title", "")]
    assert len(cells) == 16
    pixels = evaluation.counts.confusion[2, 0]
    assert pixels > 0
    assert f"water predicted as building: {pixels} px" in cells


def test_markdown_tables_keep_their_columns(written, evaluation):
    lines = (written / "report.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    columns = [len(re.split(r"(?<!\\)\|", row)) - 2 for row in rows]
    assert columns == [4] * 3 + [7] * 6 + [5] * 6
    assert f"| {100 * metrics.score(evaluation.counts).miou:.2f} |" in rows[2]
    assert any(row.startswith("| <b>bare & \\| soil |") for row in rows)
    assert "\n\n\n" not in "\n".join(lines)


def test_report_without_examples_or_context(evaluation, tmp_path):
    plain = dataclasses.replace(evaluation, examples=(), context_factor=None)
    report.write_report(plain, tmp_path)
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("img")
    assert "Examples" not in page.text
    assert "- context: none\n" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_report_of_nothing_labelled_is_still_a_page(evaluation, tmp_path):
    empty = dataclasses.replace(evaluation, counts=metrics.Counts.zeros(4), examples=())
    report.write_report(empty, tmp_path)
    Page((tmp_path / "report.html").read_text(encoding="utf-8"))


@pytest.mark.parametrize("broken", ["report.md.j2", "report.html.j2"])
def test_failed_rendering_leaves_the_old_report(evaluation, tmp_path, monkeypatch, broken):
    (tmp_path / "report.html").write_text("old")
    render = report.render

    def fail(name, **values):
        return render(name, **{} if name == broken else values)

    monkeypatch.setattr(report, "render", fail)
    with pytest.raises(jinja2.UndefinedError, match="'report' is undefined"):
        report.write_report(evaluation, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_the_protocol_is_named_for_people_and_programs(evaluation, tmp_path):
    """report.html did not name it."""
    report.write_report(dataclasses.replace(evaluation, protocol="urur8"), tmp_path / "named")
    report.write_report(evaluation, tmp_path / "own")
    for name in ("report.html", "report.md", "report.json"):
        assert "urur8" in (tmp_path / "named" / name).read_text(encoding="utf-8")
        assert "Protocol" not in (tmp_path / "own" / name).read_text(encoding="utf-8")


def test_large_pictures_are_shrunk():
    side = 2 * report.PICTURE_PX
    classes = np.zeros((side, side), np.uint8)
    image = np.zeros((side, side, 3), np.uint8)
    example = report.Example(title="large", image=image, truth=classes, prediction=classes)
    panels = report.example_panels(example, NAMES, COLOURS)
    assert [panel.caption for panel in panels][-1] == "Errors (100.0 % right)"
    assert panels[1].alt == "Labelled map: building"
    assert sum(len(panel.uri) for panel in panels) < 100_000


def test_error_panel_is_red_where_the_prediction_is_wrong():
    truth = np.zeros((64, 64), np.uint8)
    prediction = truth.copy()
    prediction[:, :16] = 1
    image = np.full((64, 64, 3), 90, np.uint8)
    example = report.Example(title="", image=image, truth=truth, prediction=prediction)
    panel = report.example_panels(example, NAMES, COLOURS)[-1]
    assert panel.caption == "Errors (75.0 % right)"
    content = base64.b64decode(panel.uri.split(",")[1])
    picture = np.asarray(Image.open(io.BytesIO(content))).astype(int)
    redness = picture[..., 0] - picture[..., 1]
    assert redness[:, :14].min() > 60  # JPEG blurs the edge
    assert redness[:, 18:].max() < 60


def test_comparison_table_subtracts_the_first_from_the_last(evaluation):
    first = report.report_values(evaluation)
    last = json.loads(json.dumps(first))
    last["miou"] += 0.05
    last["per_class"]["water"]["iou"] -= 0.25
    source = (
        '{% import "parts.html.j2" as parts %}'
        '{{ parts.comparison_table([("without", first), ("with", last)]) }}'
        '{{ parts.class_table(first, "Compact", compact=true) }}'
    )
    page = Page(pages._environment().from_string(source).render(first=first, last=last))
    assert "+5.0" in page.text
    assert "-25.0" in page.text
    assert page.text.count("+0.0") == 6
    assert "Precision" not in page.text


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "kept.txt"
    atomic_write_bytes(path, b"old")
    with pytest.raises(TypeError):
        atomic_write_bytes(path, "text is not bytes")
    assert path.read_bytes() == b"old"
    with pytest.raises(RuntimeError):
        fail_halfway(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def fail_halfway(path):
    with atomic_path(path) as partial:
        assert (partial.parent, partial.suffix) == (path.parent, ".tmp")
        partial.write_bytes(b"half")
        raise RuntimeError
