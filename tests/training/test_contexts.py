"""Trainings with several contexts: from a recipe, from the weights of one context, resumed, pretrained."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from caswit.cli.main import main
from caswit.config import EvaluateConfig
from caswit.data.synthetic import CLASSES, landscape
from caswit.evaluation.run import evaluate
from caswit.raster.reader import write_raster
from caswit.weights.model_folder import load_model
from caswit.weights.summary import describe
from dying import Killed, kill_after

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small drawn landscape in dataset.yaml, recipe.yaml with two contexts, and a model of one in one/model."""
    folder = tmp_path_factory.mktemp("landscapes")
    drawn = landscape(0, 96, 128)
    write_raster(folder / "scene.tif", drawn.image, crs="EPSG:2154", gsd_m=0.2)
    write_raster(folder / "label.tif", drawn.label[None], crs="EPSG:2154", gsd_m=0.2)
    scenes = [{"image": "scene.tif", "label": "label.tif", "split": split} for split in ("train", "val")]
    classes = [{"id": i, "name": name, "color": color} for i, name, color in CLASSES]
    dataset = folder / "dataset.yaml"
    dataset.write_text(yaml.safe_dump({"name": "landscapes", "classes": classes, "scenes": scenes}))
    recipe = {
        "data": {"dataset": str(dataset)},
        "model": {"size": "pico"},
        "tile": {"tile_px": 32, "context_factor": [2, 4]},
        "augment": {"spatial": True, "holes": 0.5, "context_dropout": 0.2, "tint": 0.1, "blur": 1.0},
        "train": {"batch": 2, "max_steps": 4, "precision": "fp32", "accelerator": "cpu", "pictures": 1, "val_tiles": 2},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    train(folder, "one", "--tile.context_factor", "2", "--train.max_steps", "2")
    return folder


def train(folder: Path, out: str, *words: str) -> None:
    main(["train", str(folder / "recipe.yaml"), "--out", str(folder / out), *words])


def test_a_run_has_all_contexts_in_its_files(folder, capsys):
    train(folder, "two")
    assert yaml.safe_load((folder / "two" / "recipe.yaml").read_text())["tile"]["context_factor"] == [2, 4]
    config = json.loads((folder / "two" / "model" / "config.json").read_text())
    assert config["tile"]["context_factor"] == [2, 4]
    assert list((folder / "two" / "pictures").glob("*.png"))
    loaded = load_model(folder / "two" / "model")
    assert loaded.info.tile.context_factor == (2, 4)
    assert loaded.network.contexts == 2
    page = describe(folder / "two" / "model")
    assert "squares of 64 and 128 px around it, averaged by 2 and 4 (the context factors)" in page
    settings = EvaluateConfig(device="cpu", masked_context=True)
    evaluation = evaluate(
        folder / "two" / "model", folder / "dataset.yaml", folder / "scores", split="val", settings=settings
    )
    assert evaluation.context_factor == (2, 4)
    assert "- context: 2 and 4 times the tile's side" in (folder / "scores" / "report.md").read_text()


def test_a_list_of_one_writes_the_number(folder):
    """Files of one context are as they were, however it is written."""
    train(folder, "listed", "--tile.context_factor", "[2]", "--train.max_steps", "2")
    for name in ("recipe.yaml", "model/config.json"):
        one, listed = ((folder / run / name).read_text() for run in ("one", "listed"))
        assert one == listed
    assert one.count('"context_factor": 2') == 2


def test_a_network_of_one_context_starts_one_of_two(folder, caplog):
    """Its weights are all used; before the first step the second context is read as the first was."""
    with caplog.at_level("INFO"):
        init = "--init={path: " + str(folder / "one" / "model") + ", decoder: true}"
        train(folder, "started", init, "--train.lr", "1e-12", "--train.min_lr", "0", "--train.max_steps", "1")
    assert "100% of the encoders" in caplog.text
    assert "; at zero, so that contexts are read alike: 4 of " in caplog.text
    first, then = (load_file(folder / run / "model" / "model.safetensors") for run in ("one", "started"))
    assert set(first) < set(then)
    for name, value in first.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(then[name], value, rtol=0, atol=1e-6)
    # What the recipe does not say follows from the model: here both contexts of ``started``.
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    del recipe["tile"]
    (folder / "silent.yaml").write_text(yaml.safe_dump(recipe))
    words = ["train", str(folder / "silent.yaml"), "--init", str(folder / "started"), "--out", str(folder / "silent")]
    main([*words, "--train.max_steps", "1"])
    assert load_model(folder / "silent" / "model").info.tile.context_factor == (2, 4)


def test_a_run_that_died_resumes_to_the_same_weights(folder, monkeypatch):
    with monkeypatch.context() as patch:
        kill_after(patch, 3)
        with pytest.raises(Killed):
            train(folder, "died", "--train.save_every_s", "0", "--data.val_split", "null")
    train(folder, "died", "--train.save_every_s", "0", "--data.val_split", "null", "--resume")
    train(folder, "lived", "--train.save_every_s", "0", "--data.val_split", "null")
    died, lived = (load_file(folder / run / "model" / "model.safetensors") for run in ("died", "lived"))
    assert all(torch.equal(died[name], lived[name]) for name in lived)


def test_pretraining_with_two_contexts_starts_a_training(folder, caplog):
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["augment"] = {"spatial": True}
    del recipe["train"]["val_tiles"]
    (folder / "pretrain.yaml").write_text(yaml.safe_dump(recipe))
    main(["pretrain", str(folder / "pretrain.yaml"), "--out", str(folder / "pretrained"), "--train.max_steps", "2",
          "--train.warmup_steps", "0"])  # fmt: skip
    assert list((folder / "pretrained" / "pictures").glob("*.png"))
    with caplog.at_level("INFO"):
        train(folder, "tuned", "--init", str(folder / "pretrained" / "model"), "--train.max_steps", "1")
    assert "100% of the encoders" in caplog.text
    assert "at zero" not in caplog.text
