"""Training: repeatable, resumable at any moment, the same on one device or several."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from caswit.config import AugmentConfig, DataConfig, EvaluateConfig, ModelConfig, Recipe, TileConfig, TrainConfig
from caswit.data.label_counts import median_frequencies
from caswit.data.synthetic import CLASSES, landscape
from caswit.errors import ConfigError, DataError
from caswit.evaluation.run import evaluate
from caswit.raster.reader import Raster, write_raster
from caswit.training.supervised import train
from caswit.weights.learned import Learned
from caswit.weights.model_folder import load_model, torch_load
from dying import Killed, kill_after
from shallow import COMMAND, ENVIRONMENT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

GOLDEN = Path(__file__).parents[1] / "golden" / "train_nano_cpu.txt"


@pytest.fixture(scope="module")
def landscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset.yaml over two small drawn scenes; a third of the training labels is ignored."""
    folder = tmp_path_factory.mktemp("landscapes")
    scenes = []
    for seed, split in enumerate(("train", "val")):
        drawn = landscape(seed, 96, 128)
        label = drawn.label.copy()
        if split == "train":
            label[:, :40] = 9
        write_raster(folder / f"{split}.tif", drawn.image, crs="EPSG:2154", gsd_m=0.2)
        write_raster(folder / f"{split}_label.tif", label[None], crs="EPSG:2154", gsd_m=0.2)
        scenes.append({"image": f"{split}.tif", "label": f"{split}_label.tif", "split": split})
    classes = [{"id": i, "name": name, "color": color} for i, name, color in CLASSES]
    classes.append({"id": 9, "name": "unlabelled", "color": "#000000", "ignore": True})
    file = folder / "dataset.yaml"
    file.write_text(yaml.safe_dump({"name": "landscapes", "classes": classes, "scenes": scenes}))
    return file


def make_recipe(dataset: Path, *, model: dict | None = None, data: dict | None = None, **settings) -> Recipe:
    """12 grid tiles of 32 px: six steps of two tiles are an epoch."""
    defaults = {"batch": 2, "max_steps": 8, "lr": 1e-3, "precision": "fp32", "accelerator": "cpu", "pictures": 1}
    return Recipe(
        data=DataConfig(dataset=str(dataset), **(data or {})),
        model=ModelConfig(**{"size": "pico", **(model or {})}),
        tile=TileConfig(tile_px=32, context_factor=2),
        augment=AugmentConfig(spatial=True, brightness=0.1, contrast=0.2, gamma=0.2),
        train=TrainConfig(**{**defaults, **settings}),
    )


def read_log(run: Path, column: str = "loss") -> list[float]:
    with (run / "log.csv").open() as file:
        return [float(row[column]) for row in csv.DictReader(file) if row[column]]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_same_seed_same_losses_and_another_seed_others(landscapes, tmp_path):
    one, two, three = tmp_path / "one", tmp_path / "two", tmp_path / "three"
    train(make_recipe(landscapes, max_steps=4), one)
    train(make_recipe(landscapes, max_steps=4), two)
    train(make_recipe(landscapes, max_steps=4, seed=1), three)
    assert read_log(one) == read_log(two)
    assert_same_weights(one, two)
    assert read_log(one) != read_log(three)


@pytest.mark.parametrize(("deaths", "ema_decay"), [((1,), None), ((3, 2), None), ((7,), None), ((3, 2), 0.9)])
def test_a_run_that_died_resumes_to_the_same_weights(landscapes, tmp_path, monkeypatch, deaths, ema_decay):
    """Epochs are six steps long: the deaths are in the middle of one, and just after one."""
    recipe = make_recipe(landscapes, save_every_s=0.0, data={"sampling": "random"}, ema_decay=ema_decay)
    train(recipe, tmp_path / "whole")
    for number, steps in enumerate(deaths):
        with monkeypatch.context() as patch:
            kill_after(patch, steps)
            with pytest.raises(Killed):
                train(recipe, tmp_path / "broken", resume=number > 0)
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "broken")
    assert read_log(tmp_path / "whole", "val_miou") == read_log(tmp_path / "broken", "val_miou")
    assert [int(s) for s in read_log(tmp_path / "broken", "step")] == list(range(1, 9))


@pytest.mark.slow
def test_sigkill_and_resume_on_the_command_line(landscapes, tmp_path):
    """The real thing: a process of its own, SIGKILL at any moment; this one goes on."""
    recipe = make_recipe(landscapes, max_steps=20, save_every_s=0.0, val_every_steps=7)
    train(recipe, tmp_path / "whole")
    file = tmp_path / "recipe.yaml"
    file.write_text(_yaml(dataclasses.asdict(recipe)))
    log = tmp_path / "broken" / "log.csv"
    process = subprocess.Popen(
        [*COMMAND, "train", file, "--out", tmp_path / "broken"], env=ENVIRONMENT, stderr=subprocess.DEVNULL
    )
    while not log.exists() or len(log.read_text().splitlines()) < 12:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken" / "model").exists()
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "broken")
    assert read_log(tmp_path / "whole") == read_log(tmp_path / "broken")


def _yaml(recipe: dict) -> str:
    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return yaml.safe_dump(plain(recipe))


MANY_LOSSES = {"cross_entropy": 1.0, "dice": 1.0, "focal": 0.5, "lovasz": 0.5, "ohem": 0.2}


@pytest.mark.parametrize("loss", ["cross_entropy", MANY_LOSSES], ids=["one", "sum"])
def test_accumulated_passes_are_one_batch(landscapes, tmp_path, loss):
    """Also where one pass has no labelled pixel at all."""
    settings = {"model": {"decoder_norm": "group", "drop_path": 0.0}, "max_steps": 4, "batch": 4, "loss": loss}
    train(make_recipe(landscapes, **settings), tmp_path / "whole")
    train(make_recipe(landscapes, **settings, accumulate=4), tmp_path / "parts")
    assert read_log(tmp_path / "parts") == pytest.approx(read_log(tmp_path / "whole"), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross_entropy", MANY_LOSSES])
def test_two_processes_have_the_loss_of_one_with_twice_the_batch(landscapes, tmp_path, loss):
    settings = {"model": {"decoder_norm": "group", "drop_path": 0.0}, "max_steps": 4, "batch": 4, "loss": loss}
    train(make_recipe(landscapes, **settings), tmp_path / "one")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(_yaml(dataclasses.asdict(make_recipe(landscapes, **settings, devices=2))))
    words = [*COMMAND, "train", recipe, "--out", tmp_path / "two"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert read_log(tmp_path / "two") == pytest.approx(read_log(tmp_path / "one"), rel=1e-4)
    assert read_log(tmp_path / "two", "val_miou") == pytest.approx(read_log(tmp_path / "one", "val_miou"), abs=2e-3)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    drift = [(one[n] - two[n]).abs().max().item() for n in one if one[n].is_floating_point()]
    assert max(drift) < 1e-3


@pytest.mark.golden
def test_losses_are_the_golden_ones(landscapes, tmp_path):
    """Regenerate with ``CASWIT_GOLDEN=write pytest -k golden`` and say in the commit why they changed.

    Group norms, because a batch norm of two tiles whose deepest maps are one pixel divides by the difference of two
    values: then another order of the same sums moves these losses by 0.5 %, and here by less than 1e-5.
    """
    model = {"size": "nano", "decoder_norm": "group"}
    train(make_recipe(landscapes, max_steps=12, lr=1e-5, model=model), tmp_path / "run")
    losses = read_log(tmp_path / "run")
    if os.environ.get("CASWIT_GOLDEN") == "write":
        GOLDEN.write_text("".join(f"{loss:.6g}\n" for loss in losses))
    assert losses == pytest.approx([float(line) for line in GOLDEN.read_text().split()], rel=1e-4)


def test_the_run_folder_holds_everything(landscapes, tmp_path):
    run = tmp_path / "run"
    model = train(make_recipe(landscapes, max_steps=7), run)
    assert model == run / "model"
    assert (run / "checkpoints" / "last.pt").is_file()
    assert (run / "checkpoints" / "best.pt").is_file()
    assert [p.name for p in sorted((run / "pictures").iterdir())] == ["step_0000006.png", "step_0000007.png"]
    assert list(run.glob("events.out.tfevents.*"))
    assert yaml.safe_load((run / "recipe.yaml").read_text())["train"]["max_steps"] == 7
    loaded = load_model(model)
    assert loaded.info.trained_gsd_m == pytest.approx(0.2)
    assert loaded.info.classes.names[0] == "building"
    assert loaded.info.provenance["recipe"]["train"]["seed"] == 0
    assert not [p for p in run.rglob("*") if p.name.endswith(".tmp")]


def test_training_learns(landscapes, tmp_path):
    """50 steps on 12 tiles: the loss halves. A run that only runs would not."""
    train(make_recipe(landscapes, max_steps=50, batch=4, lr=3e-3, data={"val_split": None}), tmp_path / "run")
    losses = read_log(tmp_path / "run")
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_best_keeps_the_best_weights_and_last_the_last(landscapes, tmp_path):
    settings = {"max_steps": 12, "val_every_steps": 1}
    train(make_recipe(landscapes, **settings, keep="best"), tmp_path / "best")
    train(make_recipe(landscapes, **settings, keep="last"), tmp_path / "last")
    history = read_log(tmp_path / "best", "val_miou")
    best = load_model(tmp_path / "best" / "model").info.provenance
    assert best["step"] == 1 + int(np.argmax(history))
    assert best["best_val_miou"] == pytest.approx(max(history), rel=1e-5)
    assert load_model(tmp_path / "last" / "model").info.provenance["step"] == 12


def test_an_ema_changes_the_model_and_not_the_training(landscapes, tmp_path):
    runs = {name: tmp_path / name for name in ("plain", "ema")}
    train(make_recipe(landscapes, keep="last"), runs["plain"])
    train(make_recipe(landscapes, keep="last", ema_decay=0.9), runs["ema"])
    assert read_log(runs["plain"]) == read_log(runs["ema"])
    plain, ema = (weights(run) for run in runs.values())
    assert any(not torch.equal(x, ema[name]) for name, x in plain.items())
    last = torch_load(runs["ema"] / "checkpoints" / "last.pt")
    for name, x in ema.items():
        assert torch.equal(x, last["ema"][name])
        assert torch.equal(plain[name], last["model"][name])


def test_the_model_says_where_it_learned_and_how_sure_it_is_of_its_validation_data(landscapes, tmp_path):
    """The end of a map puts the confidence it has there beside these."""
    train(make_recipe(landscapes, max_steps=2), tmp_path / "run")
    loaded = load_model(tmp_path / "run" / "model")
    learned = Learned.of(loaded.info.provenance)
    settings = EvaluateConfig(precision="fp32", batch=2, pictures=0)
    scores = evaluate(tmp_path / "run" / "model", landscapes, tmp_path / "scores", split="val", settings=settings)
    assert learned.confidence == scores.confidence["mean"]  # fewer tiles than are sampled: all of them
    assert learned.confidence_of_classes == scores.confidence["classes"]
    assert json.loads((tmp_path / "scores" / "report.json").read_text())["confidence"] == scores.confidence
    bounds = Raster(landscapes.with_name("train.tif")).grid.degrees
    assert learned.areas == (pytest.approx(bounds, abs=1e-4),)
    assert learned.where(bounds) == "trained on landscapes, where the image lies"


def test_classes_that_no_validation_label_has_are_named_once(landscapes, tmp_path, caplog):
    caplog.set_level("INFO")
    settings = {"max_steps": 2, "val_every_steps": 1, "pictures": 0}
    train(make_recipe(landscapes, **settings), tmp_path / "run")
    labels = np.unique(landscape(1, 96, 128).label)
    absent = [name for i, name, _ in CLASSES if i not in labels]
    assert 0 < len(absent) < len(CLASSES)
    (said,) = [m for m in caplog.messages if "not in the truth" in m]
    assert said == f"not in the truth of split val: {', '.join(absent)}, which count 0 in the means"


def test_max_minutes_stops_early_and_still_writes_the_model(landscapes, tmp_path):
    train(make_recipe(landscapes, max_steps=100_000, max_minutes=0.03), tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").is_file()
    rates = read_log(tmp_path / "run", "lr")
    assert 0 < len(rates) < 100_000
    assert rates[-1] < 0.5 * rates[0]  # the cosine follows the clock


def test_alpha_zero_trains_without_a_context_head(landscapes, tmp_path):
    train(make_recipe(landscapes, max_steps=2, alpha=0.0), tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    assert not [name for name in checkpoint["model"] if name.startswith("context_decoder")]


def test_the_baseline_reads_no_context(landscapes, tmp_path):
    train(make_recipe(landscapes, max_steps=2, model={"fusion_stages": ()}), tmp_path / "run")
    assert not [name for name in weights(tmp_path / "run") if "context" in name or "fusion" in name]


def test_options_of_a_run_that_trains_well(landscapes, tmp_path):
    """Class weights, gradient checkpointing, bf16, workers and random windows together."""
    settings = {"class_weights": (1.0,) * 8, "checkpoint_gradients": True, "precision": "bf16", "max_steps": 2}
    train(make_recipe(landscapes, **settings, data={"workers": 1, "sampling": "random"}), tmp_path / "run")
    assert np.isfinite(read_log(tmp_path / "run")).all()


def test_workers_do_not_change_the_losses(landscapes, tmp_path):
    train(make_recipe(landscapes, max_steps=3), tmp_path / "none")
    train(make_recipe(landscapes, max_steps=3, data={"workers": 2}), tmp_path / "two")
    assert read_log(tmp_path / "none") == read_log(tmp_path / "two")


class TestRefusals:
    def test_a_folder_with_a_run(self, landscapes, tmp_path):
        train(make_recipe(landscapes, max_steps=1), tmp_path / "run")
        with pytest.raises(ConfigError, match="--resume"):
            train(make_recipe(landscapes, max_steps=1), tmp_path / "run")

    def test_resuming_with_another_recipe(self, landscapes, tmp_path):
        train(make_recipe(landscapes, max_steps=1), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"train\.lr=0\.001, got 0\.002"):
            train(make_recipe(landscapes, max_steps=1, lr=2e-3), tmp_path / "run", resume=True)

    def test_resuming_a_finished_run_does_nothing(self, landscapes, tmp_path):
        train(make_recipe(landscapes, max_steps=1), tmp_path / "run")
        before = (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns
        train(make_recipe(landscapes, max_steps=1), tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "model" / "model.safetensors").stat().st_mtime_ns == before

    def test_a_broken_validation_label_before_anything_is_written(self, landscapes, tmp_path):
        content = yaml.safe_load(landscapes.read_text())
        for scene in content["scenes"]:
            scene |= {key: str(landscapes.parent / scene[key]) for key in ("image", "label")}
        content["scenes"][1]["label"] = str(tmp_path / "two.tif")
        write_raster(tmp_path / "two.tif", np.ones((2, 96, 128), np.uint8), crs="EPSG:2154", gsd_m=0.2)
        broken = tmp_path / "dataset.yaml"
        broken.write_text(yaml.safe_dump(content))
        with pytest.raises(DataError, match="one band of class ids"):
            train(make_recipe(broken, max_steps=1), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_not_a_folder_whose_run_died_before_it_saved(self, landscapes, tmp_path, monkeypatch):
        """There is nothing to lose, and nothing to resume."""
        with monkeypatch.context() as patch:
            kill_after(patch, 1)
            with pytest.raises(Killed):
                train(make_recipe(landscapes, max_steps=3, lr=2e-3), tmp_path / "run")
        train(make_recipe(landscapes, max_steps=2), tmp_path / "run")
        assert len(read_log(tmp_path / "run")) == 2

    def test_class_weights_of_another_table(self, landscapes, tmp_path):
        with pytest.raises(ConfigError, match="one weight for each of the 8 classes"):
            train(make_recipe(landscapes, class_weights=(1.0, 2.0)), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_logits_of_another_table_are_not_adjusted(self, landscapes, tmp_path):
        with pytest.raises(ConfigError, match=r"logit_adjustment: no class 'wter'; .*water.*; did you mean water\?$"):
            train(make_recipe(landscapes, logit_adjustment={"wter": 1.0}), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_one_tile_per_pass_with_batch_norm(self, landscapes, tmp_path):
        with pytest.raises(ConfigError, match="decoder_norm=group"):
            train(make_recipe(landscapes, batch=1), tmp_path / "run")

    def test_a_loss_that_explodes(self, landscapes, tmp_path):
        with pytest.raises(ConfigError, match="the loss became"):
            train(make_recipe(landscapes, lr=1e6, min_lr=1e6, max_steps=20), tmp_path / "run")

    def test_an_accelerator_that_is_not_there(self, landscapes, tmp_path):
        if torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        with pytest.raises(ConfigError, match="try"):
            train(make_recipe(landscapes, accelerator="cuda"), tmp_path / "run")


class TestClassesOfTheLabels:
    """Weights and draws that follow from counted labels."""

    def test_auto_weights_are_those_by_hand(self, landscapes, tmp_path, caplog):
        """A third of the labels is ignored; the counts are kept for the resumed run."""
        caplog.set_level("INFO")
        train(make_recipe(landscapes, max_steps=2, class_weights="auto"), tmp_path / "auto")
        counts = np.load(tmp_path / "auto" / "label_counts.npy")
        assert counts.shape == (12, len(CLASSES))
        assert counts.sum() == 96 * 128 - 96 * 40
        by_hand = median_frequencies(counts)
        (said,) = [m for m in caplog.messages if m.startswith("class weights by median frequency in 12 tiles: ")]
        assert f"{CLASSES[0][1]} {by_hand[0]:.3g}" in said
        train(make_recipe(landscapes, max_steps=2, class_weights=by_hand), tmp_path / "hand")
        assert_same_weights(tmp_path / "auto", tmp_path / "hand")

    def test_balanced_draws_resume_to_the_same_weights(self, landscapes, tmp_path, monkeypatch):
        recipe = make_recipe(landscapes, max_steps=4, save_every_s=0.0, data={"sampling": "balanced"})
        train(recipe, tmp_path / "whole")
        with monkeypatch.context() as patch:
            kill_after(patch, 12 + 2)  # each of the 12 tiles is counted first
            with pytest.raises(Killed):
                train(recipe, tmp_path / "broken")
        monkeypatch.setattr("caswit.training.supervised.count_labels", None)  # counted once
        train(recipe, tmp_path / "broken", resume=True)
        assert_same_weights(tmp_path / "whole", tmp_path / "broken")
        train(make_recipe(landscapes, max_steps=4), tmp_path / "grid")
        assert read_log(tmp_path / "grid") != read_log(tmp_path / "whole")

    def test_labels_of_which_none_is_known(self, landscapes, tmp_path):
        content = yaml.safe_load(landscapes.read_text())
        for scene in content["scenes"]:
            scene |= {key: str(landscapes.parent / scene[key]) for key in ("image", "label")}
        content["scenes"][0]["label"] = str(tmp_path / "none.tif")
        write_raster(tmp_path / "none.tif", np.full((1, 96, 128), 9, np.uint8), crs="EPSG:2154", gsd_m=0.2)
        file = tmp_path / "dataset.yaml"
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(DataError, match="the tiles of split train have no label"):
            train(make_recipe(file, class_weights="auto"), tmp_path / "run")
