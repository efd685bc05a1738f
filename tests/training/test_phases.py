"""Networks of table 2 in training: their own losses, and trainings in several steps."""

import copy
import csv
import dataclasses
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from caswit.config import DataConfig, ModelConfig, PhaseConfig, Recipe, TileConfig, TrainConfig
from caswit.errors import ConfigError
from caswit.nn.baselines.parts import BatchNorm
from caswit.nn.baselines.table2 import Table2Network
from caswit.progress import Progress
from caswit.training.optim import learning_rate
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train
from caswit.weights.model_folder import load_model
from conftest import CLASSES, SIZE, georeference, picture
from dying import Killed, kill_after
from networks import Toy, ToyOfGroups, ToyUncertain, stands_for

pytestmark = pytest.mark.e2e

THREE = (
    PhaseConfig(name="far", share=0.5, lr=1e-2),
    PhaseConfig(name="near", share=0.3),
    PhaseConfig(name="all", share=0.2, lr=5e-4),
)


@pytest.fixture
def uneven(tmp_path, make_raster, label) -> Path:
    """A dataset whose tiles have very different shares of labelled pixels; one has none."""
    label[:, :40, :100] = 0
    scenes = []
    for seed, split in enumerate(("train", "val")):
        make_raster(picture(*SIZE, seed), f"{split}.tif", **georeference())
        make_raster(label, f"{split}_label.tif", **georeference())
        scenes.append({"image": f"{split}.tif", "label": f"{split}_label.tif", "split": split})
    file = tmp_path / "dataset.yaml"
    file.write_text(yaml.safe_dump({"name": "uneven", "classes": CLASSES.to_dicts(), "scenes": scenes}))
    return file


def make_recipe(dataset: Path, **settings) -> Recipe:
    usual = {"batch": 4, "max_steps": 10, "lr": 1e-3, "precision": "fp32", "accelerator": "cpu", "pictures": 1}
    return Recipe(
        data=DataConfig(dataset=str(dataset)),
        model=ModelConfig(arch="isdnet"),
        tile=TileConfig(tile_px=32),
        train=TrainConfig(**{**usual, **settings}),
    )


def read_log(run: Path, column: str = "loss") -> list[str]:
    with (run / "log.csv").open() as file:
        return [row[column] for row in csv.DictReader(file)]


def losses(run: Path) -> list[float]:
    return [float(x) for x in read_log(run)]


def assert_same_run(one: Path, other: Path) -> None:
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    for column in ("step", "loss", "lr", "val_miou"):
        assert read_log(one, column) == read_log(other, column)


def run_in_two_processes(tmp_path: Path, recipe: Recipe, toy: str) -> Path:
    """Train with two processes, in each of which the toy stands for the network."""
    script, file = tmp_path / "run.py", tmp_path / "recipe.yaml"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[1])!r})\n"
        "from types import SimpleNamespace\nimport networks\nfrom caswit.cli.main import main\n"
        f"sys.modules['caswit.nn.baselines.isdnet'] = SimpleNamespace(ISDNet=networks.{toy})\n"
        "main(sys.argv[1:])\n"
    )
    content = dataclasses.asdict(recipe)
    file.write_text(yaml.safe_dump(_plain(content)))
    words = [sys.executable, str(script), "train", str(file), "--out", str(tmp_path / "two"), "--train.devices", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return tmp_path / "two"


def _plain(value):
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


class TestOwnLoss:
    def test_a_mean_over_labelled_pixels_is_the_cross_entropy_of_any_other_network(self, uneven, tmp_path, monkeypatch):
        """Whole and in four passes, of which some have hardly any labels."""
        stands_for(monkeypatch, ToyOfGroups)
        for accumulate in (1, 4):
            train(make_recipe(uneven, max_steps=6, accumulate=accumulate), tmp_path / f"own-{accumulate}")
        with monkeypatch.context() as patch:
            forward = Table2Network.forward
            patch.setattr(Table2Network, "forward", lambda self, hr, context, label=None: forward(self, hr, context))
            train(make_recipe(uneven, max_steps=6), tmp_path / "cross-entropy")
        expected = losses(tmp_path / "cross-entropy")
        assert losses(tmp_path / "own-1") == pytest.approx(expected, rel=1e-5)
        assert losses(tmp_path / "own-4") == pytest.approx(expected, rel=1e-4)

    def test_class_weights_are_refused(self, uneven):
        with pytest.raises(ConfigError, match="class_weights are for cross-entropy, and isdnet has a loss of its own"):
            make_recipe(uneven, class_weights=(1.0, 2.0, 1.0))

    def test_one_tile_per_pass_is_refused(self, uneven, tmp_path, monkeypatch):
        stands_for(monkeypatch, Toy)
        with pytest.raises(ConfigError, match=r"too few for batch norm; raise batch or lower accumulate$"):
            train(make_recipe(uneven, accumulate=4), tmp_path / "run")

    def test_one_tile_per_pass_is_enough_for_norms_that_take_one(self, uneven, tmp_path, monkeypatch):
        class ToyOfOne(Toy):
            def __init__(self, **settings) -> None:
                super().__init__(**settings, norm=BatchNorm)

        stands_for(monkeypatch, ToyOfOne)
        assert len(losses(train(make_recipe(uneven, accumulate=4), tmp_path / "run").parent)) > 0

    def test_it_starts_from_the_weights_that_the_recipe_names(self, uneven, tmp_path, monkeypatch):
        class Pretrained(ToyOfGroups):
            def __init__(self, **settings) -> None:
                super().__init__(**settings)
                if self.pretrained:
                    torch.nn.init.constant_(self.weigh, 7)

        stands_for(monkeypatch, Pretrained)
        recipe = make_recipe(uneven, max_steps=1)
        recipe = dataclasses.replace(recipe, model=ModelConfig(arch="isdnet", encoder_weights="imagenet"))
        train(recipe, tmp_path / "run")
        assert load_file(tmp_path / "run" / "model" / "model.safetensors")["weigh"] == pytest.approx(7, abs=0.01)


class TestPhases:
    @pytest.fixture(autouse=True)
    def toy(self, monkeypatch):
        stands_for(monkeypatch, Toy)

    @pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
    def test_in_each_only_its_part_changes(self, uneven, tmp_path, monkeypatch, optimizer):
        """Neither gradient, momentum nor decay moves the others, and their batch norms keep their statistics."""
        saved = []
        keep = RunFolder.save

        def save(self, file, checkpoint):
            if file == self.last:
                saved.append(copy.deepcopy(checkpoint))
            keep(self, file, checkpoint)

        monkeypatch.setattr(RunFolder, "save", save)
        settings = {"weight_decay": 0.5, "optimizer": optimizer, "val_every_steps": 2}
        train(make_recipe(uneven, phases=THREE, save_every_s=0.0, **settings), tmp_path / "run")
        states = {checkpoint["step"]: checkpoint["model"] for checkpoint in saved}
        assert list(states) == list(range(1, 11))
        parts = [*["far"] * 5, *["near"] * 3, *["all"] * 2]
        for step in range(2, 11):
            changed = {name for name, x in states[step].items() if not torch.equal(x, states[step - 1][name])}
            prefixes = Toy.phases[parts[step - 1]]
            learning = {name for name in states[step] if name.startswith(prefixes)}
            assert changed <= learning, step
            assert learning - changed <= {"far.0.bias", "near.0.bias"}, step  # a batch norm takes it away again

    def test_each_has_a_schedule_and_an_optimiser_of_its_own(self, uneven, tmp_path, monkeypatch):
        recipe = make_recipe(uneven, phases=THREE, warmup_steps=1, schedule="poly")
        train(recipe, tmp_path / "run")
        expected = []
        for phase, steps in zip(THREE, (5, 3, 2), strict=True):
            own = dataclasses.replace(recipe.train, phases=(), lr=phase.lr or recipe.train.lr)
            expected += [learning_rate(own, step, step / steps) for step in range(steps)]
        assert [float(x) for x in read_log(tmp_path / "run", "lr")] == pytest.approx(expected, rel=1e-5)
        assert read_log(tmp_path / "run", "phase") == [*["far"] * 5, *["near"] * 3, *["all"] * 2]
        last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
        assert {int(state["step"]) for state in last["optimizer"]["state"].values()} == {2}
        assert last["phase"] == {"number": 2, "began": 8}

    @pytest.mark.parametrize("settings", [{}, {"optimizer": "sgd", "ema_decay": 0.9}], ids=["adamw", "sgd with ema"])
    @pytest.mark.parametrize("deaths", [(2,), (6,), (7,), (9,), (4, 3, 3)], ids=str)
    def test_a_run_that_died_resumes_to_the_same_weights(self, uneven, tmp_path, monkeypatch, deaths, settings):
        """In the middle of each phase, right where one begins, and in one after the other."""
        recipe = make_recipe(uneven, phases=THREE, save_every_s=0.0, val_every_steps=4, **settings)
        train(recipe, tmp_path / "whole")
        for number, steps in enumerate(deaths):
            with monkeypatch.context() as patch:
                kill_after(patch, steps)
                with pytest.raises(Killed):
                    train(recipe, tmp_path / "broken", resume=number > 0)
        train(recipe, tmp_path / "broken", resume=True)
        assert_same_run(tmp_path / "whole", tmp_path / "broken")
        assert read_log(tmp_path / "whole", "phase") == read_log(tmp_path / "broken", "phase")

    def test_one_phase_of_everything_is_a_training_without_phases(self, uneven, tmp_path):
        train(make_recipe(uneven), tmp_path / "none")
        train(make_recipe(uneven, phases=(PhaseConfig(name="all", share=1),)), tmp_path / "one")
        assert_same_run(tmp_path / "none", tmp_path / "one")

    def test_the_console_says_which_it_is(self, uneven, tmp_path, monkeypatch, caplog):
        caplog.set_level(logging.INFO, "caswit")
        notes = []
        monkeypatch.setattr(Progress, "advance", lambda self, amount, note="": notes.append(note.partition(" loss")[0]))
        train(make_recipe(uneven, phases=THREE), tmp_path / "run")
        said = [record.getMessage() for record in caplog.records]
        assert "phase far (1 of 3): steps 1 to 5, lr 0.01" in said
        assert "phase near (2 of 3): steps 6 to 8, lr 0.001" in said
        assert "phase all (3 of 3): steps 9 to 10, lr 0.0005" in said
        assert notes == [*["far:"] * 5, *["near:"] * 3, *["all:"] * 2]

    def test_without_any_all_learns_at_once_and_a_line_says_so(self, uneven, tmp_path, caplog):
        caplog.set_level(logging.INFO, "caswit")
        train(make_recipe(uneven, max_steps=1), tmp_path / "run")
        assert (
            "ISDNet: all of it learns at once; the phases that train.phases can name are far, near, all" in caplog.text
        )
        assert "phase" not in (tmp_path / "run" / "log.csv").read_text()

    @pytest.mark.parametrize("ema_decay", [None, 0.9])
    def test_the_model_is_of_the_last_phase_and_finished(self, uneven, tmp_path, monkeypatch, ema_decay):
        """Validations of earlier phases see what has learned by then, and are no candidates for the best model."""
        seen = []
        forward = Toy.forward

        def noted(self, *images):
            if not self.training:
                seen.append(self.phase)
            return forward(self, *images)

        monkeypatch.setattr(Toy, "forward", noted)
        train(make_recipe(uneven, phases=THREE, val_every_steps=1, ema_decay=ema_decay), tmp_path / "run")
        assert [phase for n, phase in enumerate(seen) if n == 0 or phase != seen[n - 1]] == ["far", "near", None]
        made = load_model(tmp_path / "run" / "model").info.provenance
        scores = [float(x) for x in read_log(tmp_path / "run", "val_miou")]
        assert made["step"] in (9, 10)
        assert made["best_val_miou"] == pytest.approx(max(scores[8:]), rel=1e-4)

    def test_phases_follow_the_clock_where_it_is_ahead(self, uneven, tmp_path):
        train(make_recipe(uneven, phases=THREE, max_steps=100_000, max_minutes=0.05), tmp_path / "run")
        names = read_log(tmp_path / "run", "phase")
        assert sorted(set(names), key=names.index) == ["far", "near", "all"]

    @pytest.mark.slow
    def test_two_processes_learn_what_one_does(self, uneven, tmp_path, monkeypatch):
        """Also a weight that is in the loss alone, and learns in the last phase: data parallelism has to know of it."""
        stands_for(monkeypatch, ToyUncertain)
        recipe = make_recipe(uneven, phases=THREE)
        train(recipe, tmp_path / "one")
        two = run_in_two_processes(tmp_path, recipe, "ToyUncertain")
        assert losses(two) == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
        one, other = (load_file(run / "model" / "model.safetensors") for run in (tmp_path / "one", two))
        assert one["doubt"] != 0
        assert max((one[name] - other[name]).abs().max() for name in one) < 1e-4


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_every_optimiser_resumes_to_the_same_weights(uneven, tmp_path, monkeypatch, optimizer):
    stands_for(monkeypatch, Toy)
    recipe = make_recipe(uneven, save_every_s=0.0, optimizer=optimizer, schedule="poly", lr=1e-2)
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "broken")
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_from_before_there_were_these_settings_resumes(uneven, tmp_path, monkeypatch):
    """Its recipe says nothing of them, and it did what is now the default."""
    stands_for(monkeypatch, Toy)
    recipe = make_recipe(uneven, save_every_s=0.0)
    train(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        kill_after(patch, 4)
        with pytest.raises(Killed):
            train(recipe, tmp_path / "broken")
    file = tmp_path / "broken" / "recipe.yaml"
    content = yaml.safe_load(file.read_text())
    for name in ("optimizer", "schedule", "poly_power", "momentum", "phases"):
        del content["train"][name]
    del content["model"]["width"]
    file.write_text(yaml.safe_dump(content))
    train(recipe, tmp_path / "broken", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    with pytest.raises(ConfigError, match=r"its run has train.optimizer=adamw, got sgd"):
        train(make_recipe(uneven, save_every_s=0.0, optimizer="sgd"), tmp_path / "broken", resume=True)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def toy(self, monkeypatch):
        stands_for(monkeypatch, Toy)

    def test_a_name_that_the_network_does_not_have(self, uneven, tmp_path, monkeypatch):
        phases = (THREE[0], PhaseConfig(name="fusion", share=0.5))
        with pytest.raises(ConfigError, match=r"isdnet has no phase 'fusion'; its phases are far, near, all$"):
            train(make_recipe(uneven, phases=phases), tmp_path / "run")
        monkeypatch.setattr(Toy, "phases", {})
        with pytest.raises(ConfigError, match=r"no phase 'far', 'fusion'; it has none; leave train.phases out"):
            train(make_recipe(uneven, phases=phases), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("shares", [(0.5, 0.4), (0.5, 0.6)])
    def test_shares_that_are_no_whole_run(self, uneven, shares):
        phases = tuple(PhaseConfig(name=name, share=share) for name, share in zip(Toy.phases, shares, strict=False))
        with pytest.raises(ConfigError, match=r"shares of train.phases must sum to 1, got (0\.9|1\.1) \(far 0\.5"):
            make_recipe(uneven, phases=phases)
        three = tuple(PhaseConfig(name=name, share=0.333) for name in Toy.phases)
        assert make_recipe(uneven, phases=three).train.phases == three

    def test_numbers_that_cannot_be(self, uneven):
        with pytest.raises(ConfigError, match="share of phase 'far' must be above 0"):
            PhaseConfig(name="far", share=0)
        with pytest.raises(ConfigError, match="lr of phase 'far' must be above 0 or null"):
            PhaseConfig(name="far", share=1, lr=0)
        with pytest.raises(ConfigError, match="lr of phase 'far' must be at least min_lr"):
            make_recipe(uneven, phases=(PhaseConfig(name="far", share=1, lr=1e-8),))

    def test_a_run_too_short_for_a_phase(self, uneven, tmp_path):
        with pytest.raises(ConfigError, match=r"all has no step in a run of 2 with share 0\.2; try at least 5 steps"):
            train(make_recipe(uneven, phases=THREE, max_steps=2), tmp_path / "run")
        assert not (tmp_path / "run").exists()
        with pytest.raises(ConfigError, match="all has no step in a run of 2"):
            train(make_recipe(uneven, phases=THREE, max_steps=None, epochs=0.5), tmp_path / "run")

    def test_a_longer_run(self, uneven, tmp_path):
        train(make_recipe(uneven, phases=THREE), tmp_path / "run")
        with pytest.raises(ConfigError, match=r"its run has train.max_steps=10, got 20"):
            train(make_recipe(uneven, phases=THREE, max_steps=20), tmp_path / "run", resume=True)

    def test_other_networks(self, uneven):
        with pytest.raises(ConfigError, match=r"train\.phases are for networks of table 2, got 3 with caswit"):
            dataclasses.replace(make_recipe(uneven, phases=THREE), model=ModelConfig())
