"""caswit inspect and caswit prepare as users run them."""

import csv

import numpy as np
import pytest
from PIL import Image

from caswit.cli.main import main
from conftest import picture
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
    said = capsys.readouterr().out
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


def test_several_contexts_are_drawn_beside_each_other(flair, tmp_path, capsys):
    """Each with its labels: two more pictures in a row."""
    drawn = {}
    for name, factors in (("one", "2"), ("two", "2 4")):
        run(flair, "--split", "train", "--n", 1, "--out", tmp_path / name, "--context-factor", *factors.split())
        picture = np.asarray(Image.open(tmp_path / name / "tile-01.png"))[48:72]  # rows of the pictures alone
        drawn[name] = int((picture < 255).any((0, 2)).sum())
    assert drawn["two"] >= drawn["one"] + 1.5 * PATCH_PX
