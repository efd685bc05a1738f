"""Fine-tuning: what a recipe takes over from the model it starts from, and the recipe that caswit recipe writes."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml

from caswit.cli.main import main
from caswit.cli.recipe import parse_recipe, read_recipe
from caswit.config import InitConfig, ModelConfig, TileConfig
from caswit.weights.inherited import INHERITED, inherited_settings
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from conftest import CLASSES

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

# No value is the default of a recipe.
MODEL = {
    "size": "pico",
    "stem": "conv",
    "fusion_stages": (2, 4),
    "gated": True,
    "feed_forward": False,
    "decoder": "segformer",
    "decoder_channels": 24,
    "decoder_norm": "group",
    "mean": (100.0, 101.0, 102.0),
    "std": (50.0, 51.0, 52.0),
}
TILE = {"tile_px": 64, "context_factor": 4, "read_gsd_m": 0.6}
SHORT = ["--train.max_steps", "1", "--train.batch", "2", "--train.accelerator", "cpu", "--data.val_split", "null"]


@pytest.fixture
def model(tmp_path) -> Path:
    """A run folder with a model."""
    info = ModelInfo(
        model=ModelConfig(**MODEL, drop_path=0.3), tile=TileConfig(**TILE), classes=CLASSES, bands=(3, 2, 1)
    )
    save_model(build(info), info, tmp_path / "before" / "model")
    return tmp_path / "before"


def write(file: Path, dataset: Path, **sections) -> Path:
    file.write_text(yaml.safe_dump({"data": {"dataset": str(dataset)}, **sections}))
    return file


def config(run: Path) -> dict:
    return json.loads((run / "model" / "config.json").read_text())


def test_what_a_recipe_does_not_say_follows_from_init(model, dataset_file, tmp_path, caplog):
    """The documented fine-tuning failed: 'only 88% of the encoders' weights are there'."""
    caplog.set_level("INFO")
    file = write(tmp_path / "r.yaml", dataset_file, init=str(model), train={"lr": 1e-4})
    main(["train", str(file), "--out", str(tmp_path / "run"), *SHORT])
    made = config(tmp_path / "run")
    expected = asdict(ModelConfig(**MODEL, bands=("red", "green", "blue")))  # which a finished model names
    assert made["model"] == json.loads(json.dumps(expected))  # drop_path is the training's own
    assert made["tile"] == TILE
    assert made["bands"] == [3, 2, 1]
    assert (
        "because the recipe does not say: model.size=pico, model.stem=conv, model.fusion_stages=[2, 4]" in caplog.text
    )


def test_what_recipe_and_command_line_say_wins(model, dataset_file, tmp_path, caplog):
    caplog.set_level("INFO")
    file = write(tmp_path / "r.yaml", dataset_file, init=str(model), model={"gated": False}, tile={"context_factor": 2})
    main(["train", str(file), "--out", str(tmp_path / "run"), *SHORT, "--tile.read_gsd_m", "null"])
    made = config(tmp_path / "run")
    assert made["model"]["gated"] is False
    assert made["model"]["size"] == "pico"
    assert made["tile"] == {"tile_px": 64, "context_factor": 2, "read_gsd_m": None}
    said = next(line for line in caplog.messages if "does not say" in line)
    assert not any(name in said for name in ("gated", "context_factor", "read_gsd_m"))


def test_bands_of_the_dataset_win_and_scores_read_the_models(model, dataset_file, tmp_path, caplog):
    named = dataset_file.with_name("named.yaml")
    named.write_text(yaml.safe_dump(yaml.safe_load(dataset_file.read_text()) | {"bands": [2, 1, 3]}))
    caplog.set_level("INFO")
    for file, bands in ((dataset_file, [3, 2, 1]), (named, [2, 1, 3])):
        run = tmp_path / file.stem
        recipe = write(tmp_path / "r.yaml", file, init=str(model))
        main(["train", str(recipe), "--out", str(run), *SHORT])
        assert config(run)["bands"] == bands
    assert "bands [2, 1, 3] are read, which " in caplog.text
    main(["evaluate", str(tmp_path / "dataset" / "model"), str(dataset_file), "--out", str(tmp_path / "score")])
    scores = [json.loads((tmp_path / "score" / "report.json").read_text())["miou"]]
    both = yaml.safe_load(dataset_file.read_text()) | {"bands": [3, 2, 1]}
    dataset_file.write_text(yaml.safe_dump(both))
    main(["evaluate", str(tmp_path / "dataset" / "model"), str(dataset_file), "--out", str(tmp_path / "score")])
    scores.append(json.loads((tmp_path / "score" / "report.json").read_text())["miou"])
    assert scores[0] == scores[1]


def test_a_run_goes_on_when_what_it_started_from_is_gone_or_another(model, dataset_file, tmp_path):
    file = write(tmp_path / "r.yaml", dataset_file, init=str(model))
    words = ["train", str(file), "--out", str(tmp_path / "run"), *SHORT]
    main(words)
    shutil.rmtree(tmp_path / "run" / "model")
    shutil.rmtree(model)
    main([*words, "--resume"])
    assert config(tmp_path / "run")["model"]["size"] == "pico"


def test_rows_of_a_table_follow_too(model, dataset_file, tmp_path):
    file = write(tmp_path / "r.yaml", dataset_file, init={"path": str(model)}, model={"size": "pico"})
    recipe = parse_recipe(read_recipe(file), file)
    assert recipe.model == ModelConfig(**MODEL)
    assert recipe.tile == TileConfig(**TILE)


def test_nothing_follows_from_weights_of_other_libraries_or_of_nowhere(tmp_path):
    assert inherited_settings(None) == {}
    assert inherited_settings(InitConfig(source="timm", timm=True)) == {}
    assert inherited_settings(InitConfig(path=str(tmp_path / "none"))) == {}
    assert inherited_settings(InitConfig(path="swin-nano-dubai")).keys() == set(INHERITED)


@pytest.mark.parametrize("start", ["model", "swin-nano-dubai"])
def test_the_written_recipe_runs_as_it_stands(model, dataset_file, tmp_path, monkeypatch, capsys, start):
    monkeypatch.chdir(tmp_path)
    start = str(model) if start == "model" else start
    main(["recipe", "dataset.yaml", "--from", start])
    text = capsys.readouterr().out
    main(["recipe", "--from", start, "dataset.yaml", "--out", "fine.yaml"])
    assert Path("fine.yaml").read_text() == text
    Path("tiny.yaml").write_text(text.replace("max_steps: 300", "max_steps: 1").replace("batch: 8", "batch: 2"))
    main(["train", "tiny.yaml", "--out", "run", "--tile.tile_px", "64"])
    loaded = load_model(Path("run/model"))
    assert loaded.info.classes.names == ("building", "land", "water")
    before = load_model(start if start != str(model) else model / "model").network.state_dict()
    learned = loaded.network.state_dict()
    moved = [(learned[n] - x).abs().max() for n, x in before.items() if n.startswith("hr_encoder") and x.ndim > 1]
    assert all(torch.stack(moved) < 1e-3)  # one step away


def test_a_recipe_for_pretrained_weights_and_images_of_unknown_ground_size(model, dataset_file, make_raster, image):
    file = dataset_file.parent / "pre.yaml"
    write(file, dataset_file)
    short = ["--train.max_steps", "1", "--train.batch", "2", "--train.accelerator", "cpu", "--train.warmup_epochs", "0"]
    run = dataset_file.parent / "pre"
    main(["pretrain", str(file), "--out", str(run), *short, "--init", str(model), "--model.feed_forward", "true"])
    assert config(run)["model"]["fusion_stages"] == [2, 4]
    make_raster(image, "scene.tif")
    main(["recipe", str(dataset_file), "--from", str(run), "--out", str(dataset_file.parent / "fine.yaml")])
    made = yaml.safe_load((dataset_file.parent / "fine.yaml").read_text())
    assert "decoder" not in made["init"]
    assert made["tile"]["read_gsd_m"] is None
    assert made["train"]["lr"] == "9.0e-04" or made["train"]["lr"] == pytest.approx(9e-4)
    main(["train", str(dataset_file.parent / "fine.yaml"), "--out", str(run.with_name("fine")), *SHORT[:6]])


def test_a_recipe_is_not_written_over_another_file(model, dataset_file, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("x: 1")
    with pytest.raises(SystemExit):
        main(["recipe", str(dataset_file), "--from", str(model), "--out", str(tmp_path / "mine.yaml")])
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "mine.yaml").read_text() == "x: 1"
