"""--skip-broken as users write it, after each command that reads a dataset."""

import logging

import pytest
import yaml

from caswit.cli.main import main

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

SMALL = {
    "model": {"size": "pico", "fusion_stages": [4]},
    "tile": {"tile_px": 32, "context_factor": 2},
    "train": {"max_steps": 1, "batch": 2, "precision": "fp32", "accelerator": "cpu", "pictures": 0},
}


@pytest.fixture
def broken(dataset_file):
    """The same with a scene in every split that is not there."""
    content = yaml.safe_load(dataset_file.read_text())
    missing = [{"image": "scene.tif", "label": "gone.tif", "split": split} for split in ("train", "test", "unlabelled")]
    content["scenes"] += missing
    dataset_file.write_text(yaml.safe_dump(content))
    return dataset_file


@pytest.fixture
def words(request, broken, tmp_path, model_folder):
    """A command and its arguments."""
    command = request.param
    if command == "evaluate":
        return [command, str(model_folder), str(broken), "--pictures", "0", "--device", "cpu"]
    recipe = tmp_path / "recipe.yaml"
    data = {"dataset": str(broken)} | ({"val_split": None} if command != "pretrain" else {})
    settings = SMALL | {"data": data, "row": {"split": "test"}}
    if command == "pretrain":
        settings = SMALL | {"data": data, "mask": {"mask_cell_px": 16}}
        settings["tile"] = {"tile_px": 64, "context_factor": 2}
        settings["train"] = {**SMALL["train"], "lr_batch": None, "warmup_epochs": 0.0}
    recipe.write_text(yaml.safe_dump(settings))
    return [command, str(recipe)] + (["--measure_memory", "false", "--pictures", "0"] if command == "table" else [])


@pytest.mark.parametrize("words", ["train", "pretrain", "evaluate", "table"], indirect=True)
def test_a_missing_file_stops_a_command_unless_it_is_told_to_go_on(words, tmp_path, capsys, caplog):
    with pytest.raises(SystemExit) as left:
        main([*words, "--out", str(tmp_path / "strict")])
    assert left.value.code == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("caswit: ")]
    assert "no such file" in line
    assert "gone.tif" in line
    assert "--skip-broken leaves them out" in line
    with caplog.at_level(logging.WARNING):
        main([*words, "--out", str(tmp_path / "out"), "--skip-broken"])
    said = [record.getMessage() for record in caplog.records]
    assert sum("left out" in line and "gone.tif" in line for line in said) >= 3
