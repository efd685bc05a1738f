"""caswit inspect and caswit prepare as users run them."""

import csv
import html
import re

import numpy as np
import pytest
import yaml
from PIL import Image

from caswit.cli.main import main
from caswit.viz.pictures import strip
from conftest import georeference, picture
from trees import PATCH_PX, flair_paths, make_flair_hub, write_dataset, write_flair_csv

pytestmark = pytest.mark.e2e


@pytest.fixture
def flair(tmp_path, monkeypatch):
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    rgb = picture(3 * PATCH_PX, 3 * PATCH_PX)
    ids = np.zeros((1, 3 * PATCH_PX, 3 * PATCH_PX), np.uint8)
    ids[:, :, PATCH_PX:] = 6
    ids[:, :2] = 18
    patches = make_flair_hub(tmp_path / "flair", np.concatenate([rgb, rgb[:1]]), ids, holes=[(2, 2)])
    write_flair_csv(tmp_path / "flair" / "X_TRAIN.csv", patches)
    return write_dataset(tmp_path / "dataset.yaml", source={"kind": "flair_hub", "root": "flair"})


def run(*words):
    main(["inspect", *map(str, words), "--tile_px", str(PATCH_PX)])


def test_it_shows_tiles_and_counts_classes(flair, tmp_path, capsys):
    out = tmp_path / "out"
    run(flair, "--split", "train", "--n", 3, "--out", out)
    said, progress = capsys.readouterr()
    assert "pictures: 3/3 tiles" in progress
    assert "| building | 3,008 | 37.60 % |" in said  # 94 rows of 32
    assert "| water | 4,992 | 62.40 % |" in said
    assert "8,000 pixels are labelled; 2.3 % are ignored or missing." in said
    assert "| D012-2019 | 96 x 96 | 0.2 m | EPSG:2154 | 8 |" in said
    assert len(list(out.glob("tile-*.png"))) == 3
    (row,) = csv.DictReader((out / "scenes.csv").read_text().splitlines())
    assert float(row["share of water"]) == pytest.approx(0.624)
    assert np.asarray(Image.open(out / "tile-01.png")).std() > 20


def test_broken_files_are_listed(flair, tmp_path, capsys):
    image = tmp_path / "flair" / flair_paths("3-1")[0]
    image.write_bytes(image.read_bytes()[:-9])
    with pytest.raises(SystemExit) as left:
        run(flair, "--n", 0, "--out", tmp_path / "out")
    assert left.value.code == 2
    assert "truncated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run(flair, "--n", 0, "--out", tmp_path / "out", "--skip-broken")
    said = capsys.readouterr().out
    assert "Left out, 1:" in said
    assert str(image) in said


def test_prepare_then_inspect(tmp_path, capsys):
    for split in ("train", "val", "test"):
        for kind, pixels in (
            ("image", np.moveaxis(picture(70, 80), 0, -1)),
            ("label", np.full((70, 80), 5, np.uint8)),
        ):
            (tmp_path / "URUR" / split / kind).mkdir(parents=True)
            Image.fromarray(pixels).save(tmp_path / "URUR" / split / kind / "7.png")
    main(["prepare", "urur", str(tmp_path / "URUR")])
    file = write_dataset(tmp_path / "urur.yaml", source={"kind": "urur", "root": "URUR"})
    run(file, "--split", "test", "--n", 1, "--out", tmp_path / "out")
    assert "| bareland | 5,600 | 100.00 % |" in capsys.readouterr().out


def test_several_contexts_are_drawn_beside_each_other(flair, tmp_path, monkeypatch):
    """Each with its labels: two more pictures in a row."""
    rows = []

    def noted(panels, **settings):
        rows.append([caption for caption, _ in panels])
        return strip(panels, **settings)

    monkeypatch.setattr("caswit.evaluation.inspect.strip", noted)
    for factors in (["2"], ["2", "4"]):
        run(flair, "--split", "train", "--n", 1, "--out", tmp_path / "out", "--context-factor", *factors)
    one, two = rows[0], rows[2]  # between them stands the title
    assert one == ["context", "labels", "tile", "labels"]
    assert two == ["context x 2", "labels", "context x 4", "labels", "tile", "labels"]


class TestFindings:
    """What is odd is said in report.md, on the page, and to the user."""

    @pytest.fixture
    def content(self, dataset_file):
        return yaml.safe_load(dataset_file.read_text())

    def inspected(self, tmp_path, content, capsys, split="train"):
        file = tmp_path / "d.yaml"
        file.write_text(yaml.safe_dump(content))
        run(file, "--split", split, "--n", 1, "--out", tmp_path / "out")
        page = (tmp_path / "out" / "report.html").read_text()
        said = capsys.readouterr().out
        lines = said.split("## What is odd\n\n")[1].split("\n\n")[0].splitlines()
        if lines != ["Nothing."]:
            assert all(html.escape(line.removeprefix("- ")) in page for line in lines)
        return lines, page, said

    def test_a_dataset_without_faults(self, tmp_path, content, capsys):
        lines, page, said = self.inspected(tmp_path, content, capsys)
        assert lines == ["Nothing."]
        assert "| building | 1 | " in said
        assert page.count('<img src="data:image/jpeg') == 4
        # What may be long is broken into lines, so that the last column is not cut off.
        assert '<td class="words">class ids</td>' in page
        assert "td.words { white-space: normal;" in page
        share = re.search(r"\| water \| 7 \| ([\d.]+) % \| ([\d.]+) % \|", said)
        assert share[1] == share[2]  # one scene is in both splits

    def test_classes_that_never_occur(self, tmp_path, content, capsys, make_raster, label):
        make_raster(np.where(label == 7, 0, label), "less_label.tif", **georeference())
        content["scenes"][1]["label"] = "less_label.tif"
        content["classes"].append({"ids": [20, 21], "name": "snow | ice"})
        lines, _, said = self.inspected(tmp_path, content, capsys)
        assert "- no label has snow | ice: nothing can be learned of it" in lines
        assert "- split test has no water, which other splits have" in lines
        assert "| snow \\| ice | 20, 21 | 0.00 % | 0.00 % |" in said

    def test_labels_outside_and_warped(self, tmp_path, content, capsys, make_raster, label):
        make_raster(label, "moved.tif", **georeference(x=700_026))
        make_raster(label, "away.tif", **georeference(x=800_000))
        content["scenes"][0]["label"] = "moved.tif"
        content["scenes"].append({"image": "scene.tif", "label": "away.tif", "split": "train"})
        lines, page, _ = self.inspected(tmp_path, content, capsys)
        assert "- scene: 40 % of the label lies outside the image, of which it covers 60 %" in lines
        assert "- scene: the label lies nowhere on the image; compare CRS and corners of both" in lines
        assert "- no pixel is labelled in scene" in lines
        assert "class ids, warped from another grid" in page

    def test_scenes_without_a_crs(self, tmp_path, content, capsys, make_raster, image, label):
        make_raster(image, "bare.tif")
        make_raster(label, "bare_label.tif")
        content["scenes"].append({"image": "bare.tif", "label": "bare_label.tif", "split": "train"})
        lines, _, _ = self.inspected(tmp_path, content, capsys)
        assert lines == ["- without a CRS: bare; ground size is unknown, and labels on another grid cannot be placed"]

    def test_a_broken_label_of_another_split_is_listed(self, tmp_path, content, capsys, make_raster, label):
        make_raster(label + np.uint8(60), "bad_label.tif", **georeference())
        content["scenes"][1]["label"] = "bad_label.tif"
        lines, page, said = self.inspected(tmp_path, content, capsys)
        assert "Left out, 1:" in said
        assert lines[0].startswith("- left out: ")  # it stood only further above
        assert "bad_label.tif: label ids 60" in lines[0]
        assert "bad_label.tif: label ids 60, 61, 62, 67 not in the class table" in page
