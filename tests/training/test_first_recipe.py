"""The recipe that caswit recipe writes where it is to begin from random weights."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from caswit.cli.main import main
from caswit.cli.recipe import parse_recipe, read_recipe
from caswit.training.first_recipe import context_factor
from caswit.weights.model_folder import load_model
from conftest import CLASSES, georeference

SHORT = ["--train.max_steps", "1", "--train.batch", "2", "--train.warmup_steps", "0", "--train.accelerator", "cpu"]


@pytest.fixture
def written(tmp_path, make_raster, monkeypatch):
    """Write the recipe for square scenes of a side and a ground size, and return it as a dict."""
    monkeypatch.chdir(tmp_path)

    def write(*splits: str, side: int = 64, labelled: float = 1.0, **where) -> dict:
        rng = np.random.default_rng(0)
        label = rng.integers(1, 3, (1, side, side), dtype=np.uint8)
        label[:, round(labelled * side) :] = 0  # ignored
        scenes = []
        for i, split in enumerate(splits):
            make_raster(rng.integers(1, 255, (3, side, side), dtype=np.uint8), f"{i}.tif", **where)
            make_raster(label, f"{i}_label.tif", **where)
            scenes.append({"image": f"{i}.tif", "label": f"{i}_label.tif", "split": split})
        content = {"name": "squares", "classes": CLASSES.to_dicts(), "scenes": scenes}
        Path("dataset.yaml").write_text(yaml.safe_dump(content))
        Path("first.yaml").unlink(missing_ok=True)
        main(["recipe", "dataset.yaml", "--out", "first.yaml"])
        return yaml.safe_load(Path("first.yaml").read_text())

    return write


@pytest.mark.e2e
@pytest.mark.usefixtures("shallow")
def test_the_recipe_runs_as_it_stands(written):
    written("train", "train", side=128, **georeference(gsd=0.2))
    main(["train", "first.yaml", "--out", "run", *SHORT])
    info = load_model(Path("run/model")).info
    assert (info.model.size, info.tile.read_gsd_m, info.tile.tile_px) == ("nano", 0.4, 64)


@pytest.mark.parametrize(
    ("gsd_m", "read"), [(0.13, 0.26), (0.29, 0.58), (0.3, None), (1.0, None)], ids=["drone", "fine", "at", "coarse"]
)
def test_fine_pixels_are_read_at_twice_their_size(written, gsd_m, read):
    assert written("train", side=128, **georeference(gsd=gsd_m))["tile"]["read_gsd_m"] == pytest.approx(read)


def test_images_that_do_not_say_their_ground_size_are_read_as_they_are(written):
    assert written("train")["tile"]["read_gsd_m"] is None


def test_what_validates(written):
    own = written("train", "val")
    assert (own["data"]["val_split"], own["train"]["keep"]) == ("val", "best")
    assert "hold_out" not in own["data"]
    part = written("train")
    assert (part["data"]["val_split"], part["data"]["hold_out"], part["train"]["keep"]) == ("held_out", 0.25, "best")
    parse_recipe(read_recipe(Path("first.yaml")), Path("first.yaml"))


def test_labels_here_and_there_are_drawn_around_and_all_learned(written):
    few = written("train", labelled=0.3)
    assert (few["data"]["val_split"], few["data"]["sampling"], few["train"]["keep"]) == (None, "labelled", "last")
    parse_recipe(read_recipe(Path("first.yaml")), Path("first.yaml"))


@pytest.mark.parametrize(("side", "tile_px"), [(700, 256), (300, 256), (260, 256), (130, 128), (64, 64)])
def test_tiles_fit_into_the_smallest_scene(written, side, tile_px):
    assert written("train", side=side)["tile"]["tile_px"] == tile_px


@pytest.mark.parametrize("tile", [4, 8])
@pytest.mark.parametrize("image", [8, 9, 13, 16, 20, 27, 64, 100])
def test_the_context_lies_within_the_image_for_the_most_part(image, tile):
    """Against pixels counted one by one, over all places of the tile."""

    def seen(factor: int) -> float:
        margin = tile * (factor - 1) // 2
        there = np.zeros(image + 2 * margin, bool)
        there[margin : margin + image] = True
        return float(np.mean([there[x : x + factor * tile].mean() for x in range(image - tile + 1)])) ** 2

    expected = 4 if seen(4) >= 0.6 else 2 if seen(2) >= 0.6 else None
    assert context_factor(image, tile) == expected


def test_small_images_have_no_context_and_large_ones_have_it(written):
    assert written("train", side=64)["model"]["fusion_stages"] == []
    assert written("train", side=300)["model"]["fusion_stages"] == []
    large = written("train", side=1500)
    assert (large["model"]["fusion_stages"], large["tile"]["context_factor"]) == ([2, 3, 4], 4)
    between = written("train", side=700)
    assert (between["model"]["fusion_stages"], between["tile"]["context_factor"]) == ([2, 3, 4], 2)


def test_more_data_take_more_steps_within_bounds(written):
    assert [written("train", side=side)["train"]["max_steps"] for side in (128, 2048)] == [600, 600]
    assert 600 < written(*["train"] * 3, side=2048)["train"]["max_steps"] <= 3000
