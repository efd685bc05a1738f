"""caswit train --dry-run: what it says, and that it leaves nothing."""

import re

import pytest
import yaml

from caswit.cli.main import main
from caswit.training.dry_run import DryRun

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

SAID = DryRun(
    title="CASWiT-nano",
    weights=1000,
    learning=900,
    scenes=(2, 1),
    tiles=(48, 25),
    crop="8 tiles of 256 px",
    loss=1.5,
    step_s=2.0,
    reading_s=0.1,
    validation_s=10.0,
    steps=300,
    validations=3,
    max_minutes=None,
    memory_mb=2048,
    device="cpu",
)


def test_the_time_is_that_of_all_steps_and_validations():
    assert SAID.total_s == 300 * 2 + 3 * 10
    assert SAID._replace(max_minutes=5).total_s == 300
    lines = SAID.lines()
    assert lines[0] == "network: CASWiT-nano, 1,000 weights, 900 of them learn"
    assert lines[3].startswith("memory:  2.0 GB")
    assert lines[4] == "time:    about 10:30 for 300 steps of 2.00 s and 3 validations of 10.0 s"
    assert SAID._replace(validations=1).lines()[4].endswith("and 1 validation of 10.0 s")


@pytest.fixture
def recipe(dataset_file, tmp_path):
    content = {
        "data": {"dataset": str(dataset_file), "val_split": "test", "sampling": "random", "crop_px": 32},
        "model": {"size": "pico", "decoder_channels": 16, "fusion_stages": [2]},
        "tile": {"tile_px": 64},
        "train": {"batch": 4, "accumulate": 2, "max_steps": 6, "val_every_steps": 4, "accelerator": "cpu"},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_it_measures_a_step_and_writes_nothing(recipe, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*"))
    main(["train", str(recipe), "--out", str(tmp_path / "run"), "--dry-run"])
    said = capsys.readouterr().out.splitlines()
    assert sorted(tmp_path.rglob("*")) == before
    # Crops of 32 px in a scene of 90 x 130, and validation tiles of 64 px.
    assert said[1] == "data:    1 scene to learn from, 15 tiles an epoch; 1 to validate on, 6 tiles"
    assert re.fullmatch(r"step:    4 tiles of 32 px in 2 passes; loss \d\.\d{3}; [\d.]+ s, of which .*", said[2])
    assert 100 < 1024 * float(re.match(r"memory:  ([\d.]+) GB", said[3])[1]) < 20_000
    assert "for 6 steps" in said[4]
    assert "and 2 validations" in said[4]
    assert said[-1] == "nothing was written"


def test_what_would_stop_the_training_stops_the_dry_run(recipe, tmp_path, capsys):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "last.pt").touch()
    for words, complaint in ((["--train.class_weights", "[1, 2]"], "one weight for each"), ([], "already holds a run")):
        with pytest.raises(SystemExit):
            main(["train", str(recipe), "--out", str(tmp_path / ("run" if not words else "new")), "--dry-run", *words])
        assert complaint in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
