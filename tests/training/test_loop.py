"""The loop with a task of its own: five members are all it needs, and old run folders go on."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.fabric import Fabric
from torch import Tensor, nn

from caswit.config import DataConfig, Recipe, TrainConfig
from caswit.errors import ConfigError
from caswit.training.loop import Batch, Loop, fit
from caswit.training.run_folder import RunFolder, read_log
from caswit.weights.model_folder import torch_load


class Points:
    """Sample ``n`` of a line."""

    tiles_per_epoch = 4

    def __getitem__(self, number: int) -> Batch:
        x = torch.randn(3, generator=torch.Generator().manual_seed(number))
        return {"x": x, "y": x.sum()[None]}

    def forget_files(self) -> None:
        pass


class Line:
    """Learn the sum of three numbers. ``seen`` are the weights that were validated and saved."""

    def __init__(self, folder: RunFolder, *, fails_at: int | None = None) -> None:
        self.samples, self.folder, self.fails_at = Points(), folder, fails_at
        self.seen: list[dict[str, Tensor]] = []
        self.provenance: dict[str, Any] = {}

    def loss_normalizer(self, batch: Batch) -> Tensor:
        return torch.tensor([len(batch["x"])])

    def loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().sum() / normalizer[0]

    def validate(self, network: nn.Module, step: int) -> dict[str, float]:
        self.seen.append(weights(network))
        if step == self.fails_at:
            raise KeyError(step)
        return {"val_miou": 0.5 - abs(step - 4) / 10, "val_mf1": 0.0}

    def save(self, network: nn.Module, provenance: dict[str, Any]) -> None:
        self.seen.append(weights(network))
        self.provenance = provenance
        self.folder.model.mkdir()


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in network.state_dict().items()}


def line_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))


def make_recipe(**settings) -> Recipe:
    defaults = {"batch": 4, "max_steps": 6, "lr": 0.1, "ema_decay": 0.5, "val_every_steps": 1, "save_every_s": 1e-9}
    return Recipe(data=DataConfig(dataset="x"), train=TrainConfig(**{**defaults, **settings}))


def run(path: Path, network: nn.Module | None = None, fails_at: int | None = None, **settings) -> Line:
    recipe, folder = make_recipe(**settings), RunFolder(path)
    folder.check(recipe, resume=True)
    task = Line(folder, fails_at=fails_at)
    with torch.random.fork_rng():
        fit(Fabric(accelerator="cpu"), recipe, folder, task, network or line_network())
    return task


def read_losses(path: Path) -> list[str]:
    return [row["loss"] for row in read_log(path / "log.csv")]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(x, other[name]) for name, x in one.items())


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_best_or_the_last_ema_weights_are_saved(tmp_path, keep):
    task = run(tmp_path, keep=keep)
    assert len(task.seen) == 6 + 1
    assert same(task.seen[-1], task.seen[3 if keep == "best" else 5])
    assert task.provenance["step"] == (4 if keep == "best" else 6)
    assert task.provenance["best_val_miou"] == 0.5


def test_the_network_that_learns_never_has_the_ema_weights(tmp_path):
    """Neither after a validation that fails nor in the checkpoint."""
    network, plain = line_network(), line_network()
    with pytest.raises(KeyError):
        run(tmp_path / "fails", network, fails_at=3)
    run(tmp_path / "plain", plain, ema_decay=None, max_steps=3, lr=0.1, min_lr=0.1)
    run(tmp_path / "ema", max_steps=3, min_lr=0.1)
    last = torch_load(tmp_path / "ema" / "checkpoints" / "last.pt")
    assert same(last["model"], weights(plain))
    assert not same(last["model"], last["ema"])
    saved = torch_load(tmp_path / "fails" / "checkpoints" / "last.pt")
    assert saved["step"] == 2
    assert not same(saved["model"], weights(network))  # it took its third step


def stopped_run_of_version_0_1_0(path: Path) -> None:
    """Leave a run as version 0.1.0 left it after three of six steps: other names, and no settings of later versions."""
    with pytest.raises(KeyError):
        run(path, fails_at=4)
    folder = RunFolder(path)
    checkpoint = torch_load(folder.last)
    assert checkpoint["step"] == 3
    checkpoint["average"] = checkpoint.pop("ema")
    names = ("model", "optimizer", "step", "elapsed_s", "best_miou", "average")
    torch.save({name: checkpoint[name] for name in names}, folder.last)
    content = yaml.safe_load(folder.recipe.read_text())
    content["train"]["average"] = content["train"].pop("ema_decay")
    content["augment"]["hide_context"] = content["augment"].pop("context_dropout")
    content["tile"]["gsd_m"] = content["tile"].pop("read_gsd_m")
    for section, name in (("train", "deterministic"), ("data", "label_fraction"), ("model", "stem")):
        del content[section][name]
    folder.recipe.write_text(yaml.safe_dump(content))


def test_a_run_of_version_0_1_0_resumes_to_the_same_weights(tmp_path):
    whole = run(tmp_path / "whole")
    stopped_run_of_version_0_1_0(tmp_path / "old")
    resumed = run(tmp_path / "old")
    assert read_losses(tmp_path / "old") == read_losses(tmp_path / "whole")
    assert all(same(a, b) for a, b in zip(whole.seen[-3:], resumed.seen[-3:], strict=True))
    assert resumed.provenance == whole.provenance


def test_a_setting_that_an_old_recipe_does_not_know_counts_as_its_default(tmp_path):
    stopped_run_of_version_0_1_0(tmp_path)
    with pytest.raises(ConfigError, match=r"train\.deterministic=None, got True"):
        run(tmp_path, deterministic=True)


# Longer runs


class Again(Line):
    """Writes its model over an older one."""

    def save(self, network: nn.Module, provenance: dict[str, Any]) -> None:
        self.folder.model.mkdir(exist_ok=True)
        super_seen, self.provenance = self.seen, provenance
        super_seen.append(weights(network))


def rates(path: Path) -> list[float]:
    return [float(row["lr"]) for row in read_log(path / "log.csv")]


def go_on(path: Path, **settings) -> Line:
    recipe, folder = make_recipe(**settings), RunFolder(path)
    folder.check(recipe, resume=True)
    task = Again(folder)
    with torch.random.fork_rng():
        fit(Fabric(accelerator="cpu"), recipe, folder, task, line_network())
    return task


@pytest.mark.parametrize("length", [{"max_steps": 6}, {"max_steps": None, "epochs": 6.0}], ids=["steps", "epochs"])
def test_a_finished_run_can_be_trained_longer(tmp_path, caplog, length):
    """The rate of each step is that of the longer schedule from there on, and a line says what it does."""
    caplog.set_level("INFO")
    whole, out = tmp_path / "whole", tmp_path / "out"
    longer = {name: value and 2 * value for name, value in length.items()}
    go_on(out, **length)
    assert "longer" not in caplog.text
    go_on(whole, **longer)
    task = go_on(out, **longer)
    assert task.provenance["step"] in range(1, 13)
    assert [row["step"] for row in read_log(out / "log.csv")] == [str(n) for n in range(1, 13)]
    assert rates(out)[6:] == rates(whole)[6:]
    was, now = rates(out)[5:7]
    assert now > was
    (said,) = [m for m in caplog.messages if "longer" in m]
    assert said.startswith(f"the run is longer than it was: after step 6 the learning rate rises from {was:.3g} to")
    # Interrupted on the way, it goes on like any other.
    with pytest.raises(KeyError):
        run(tmp_path / "killed", fails_at=9, **longer)
    go_on(tmp_path / "killed", **longer)
    assert read_losses(tmp_path / "killed") == read_losses(whole)


def test_a_run_made_longer_in_its_warm_up_says_what_the_learning_rate_does(tmp_path, caplog):
    caplog.set_level("INFO")
    with pytest.raises(KeyError):
        run(tmp_path / "same", fails_at=3, warmup_steps=4)
    go_on(tmp_path / "same", warmup_steps=4)
    assert "longer" not in caplog.text
    out = tmp_path / "longer"
    with pytest.raises(KeyError):
        run(out, fails_at=3, warmup_steps=4)
    go_on(out, warmup_steps=4, max_steps=12)
    (said,) = [m for m in caplog.messages if "longer" in m]
    peak = rates(out)[4]
    assert said == (
        f"the run is longer than it was: after step 2 the learning rate rises as before, to {peak:.3g} at the end of "
        f"the warm-up of 4 steps, and then falls to {make_recipe().train.min_lr:.3g} at the end of 12 steps"
    )
    assert max(rates(out)) == peak


def test_a_run_made_longer_that_ends_within_its_warm_up_promises_no_peak(tmp_path, caplog):
    """It said that the rate would rise to its peak at the end of a warm-up that the run never comes to."""
    caplog.set_level("INFO")
    with pytest.raises(KeyError):
        run(tmp_path, fails_at=3, warmup_steps=20)
    go_on(tmp_path, warmup_steps=20, max_steps=12)
    (said,) = [m for m in caplog.messages if "longer" in m]
    assert said == (
        "the run is longer than it was: its 12 steps end within the warm-up of 20, in which the learning rate rises as "
        "before"
    )


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        ({"max_steps": 6}, {"max_steps": 4}, "max_steps=6, got max_steps=4; on resuming the length can only be raised"),
        ({"max_steps": 6}, {"max_steps": None}, "max_steps=6, got max_steps=None"),
        ({"max_steps": 6}, {"epochs": 40.0}, "max_steps=6, got max_steps=6; on resuming"),
        ({"max_steps": None, "epochs": 6.0}, {"max_steps": None, "epochs": 3.0}, "epochs=6.0, got epochs=3.0"),
        ({"max_steps": None, "epochs": 6.0}, {"max_steps": 9, "epochs": 6.0}, "epochs=6.0, got max_steps=9"),
    ],
)
def test_a_run_is_not_made_shorter_or_measured_otherwise(tmp_path, was, now, says):
    run(tmp_path, **was)
    with pytest.raises(ConfigError, match=says):
        RunFolder(tmp_path).check(make_recipe(**now), resume=True)


def test_a_table_does_not_make_runs_longer(tmp_path):
    run(tmp_path)
    RunFolder(tmp_path).check(make_recipe(max_steps=12), resume=True)
    with pytest.raises(ConfigError, match=r"train\.max_steps=6, got 12"):
        RunFolder(tmp_path).check(make_recipe(max_steps=12), resume=True, longer=False)
    assert not RunFolder(tmp_path).finished(make_recipe(max_steps=12))


# Checkpoints


@pytest.mark.parametrize(("millions", "seconds"), [(1, 120), (51, 900)])
def test_large_networks_are_saved_every_fifteen_minutes(tmp_path, monkeypatch, millions, seconds):
    network = line_network()
    monkeypatch.setattr(nn.Parameter, "numel", lambda self: millions * 1_000_000 // 6)
    recipe, folder = make_recipe(save_every_s=None), RunFolder(tmp_path)
    loop = Loop(Fabric(accelerator="cpu"), recipe, folder, Line(folder), network)
    assert loop.save_every_s == seconds
    assert (
        Loop(Fabric(accelerator="cpu"), make_recipe(save_every_s=7.0), folder, Line(folder), network).save_every_s == 7
    )


def test_a_validation_is_followed_by_a_checkpoint(tmp_path, monkeypatch):
    saved = []
    save = RunFolder.save
    monkeypatch.setattr(
        RunFolder, "save", lambda self, file, x: (saved.append((file.stem, x["step"])), save(self, file, x))
    )
    run(tmp_path, save_every_s=1e6, val_every_steps=2)
    assert [step for name, step in saved if name == "last"] == [2, 4, 6]


# Early stopping. ``Line`` scores best after step 4 and worse before and after it.


@pytest.mark.parametrize(("patience", "last"), [(1, 5), (2, 6), (3, 6)])
def test_a_run_ends_after_validations_without_a_better_score(tmp_path, caplog, patience, last):
    caplog.set_level("INFO")
    whole = run(tmp_path / "whole", max_steps=6)
    task = run(tmp_path / "out", patience=patience)
    assert [row["step"] for row in read_log(tmp_path / "out" / "log.csv")] == [str(n) for n in range(1, last + 1)]
    assert read_losses(tmp_path / "out") == read_losses(tmp_path / "whole")[:last]
    assert same(task.seen[-1], whole.seen[3])
    assert task.provenance["step"] == 4
    said = "ended after step 5 of 6: no better mIoU than 0.5000 in 1 validation; --resume"
    assert sum(m.startswith(said) for m in caplog.messages) == (last < 6)


def test_a_run_that_died_keeps_its_patience(tmp_path):
    run(tmp_path / "whole", patience=1)
    with pytest.raises(KeyError):
        run(tmp_path / "died", patience=1, fails_at=5)
    run(tmp_path / "died", patience=1)
    assert read_losses(tmp_path / "died") == read_losses(tmp_path / "whole")
    assert len(read_losses(tmp_path / "died")) == 5


def test_an_ended_run_stays_ended_until_its_patience_is_raised(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr("caswit.training.loop.is_complete", Path.is_dir)
    caplog.set_level("INFO")
    whole = go_on(tmp_path / "whole", max_steps=6)
    go_on(tmp_path / "out", patience=1)
    again = go_on(tmp_path / "out", patience=1)
    assert again.seen == []
    assert sum("larger train.patience" in m for m in caplog.messages) == 2
    task = go_on(tmp_path / "out", patience=5)
    assert read_losses(tmp_path / "out") == read_losses(tmp_path / "whole")
    assert same(task.seen[-1], whole.seen[-1])


def test_a_run_that_was_told_to_stop_writes_its_model_on_resuming(tmp_path):
    """It died after the checkpoint of its last validation, before the model."""
    run(tmp_path, patience=1)
    (tmp_path / "model").rmdir()
    task = run(tmp_path, patience=1)
    assert len(task.seen) == 1
    assert task.provenance["step"] == 4


def test_patience_needs_validations():
    with pytest.raises(ConfigError, match=r"train\.patience counts validations, got 3 with data\.val_split=null"):
        Recipe(data=DataConfig(dataset="x", val_split=None), train=TrainConfig(patience=3))
    with pytest.raises(ConfigError, match="patience must be above 0 or null, got 0"):
        TrainConfig(patience=0)


def test_the_loop_logs_what_log_csv_has(tmp_path, monkeypatch):
    said = {}
    monkeypatch.setattr(
        "caswit.training.loggers.TensorBoard.log", lambda self, numbers, step: said.update({step: numbers})
    )
    run(tmp_path / "out", max_steps=3, loggers=("tensorboard",))
    rows = read_log(tmp_path / "out" / "log.csv")
    assert [f"{said[n]['train/loss']:.6g}" for n in (1, 2, 3)] == [row["loss"] for row in rows]
    assert [f"{said[n]['val/miou']:.6g}" for n in (1, 2, 3)] == [row["val_miou"] for row in rows]
    run(tmp_path / "none", max_steps=1, loggers=("csv",))
    assert not list((tmp_path / "none").glob("events.out*"))
    assert read_losses(tmp_path / "none")


@pytest.mark.parametrize("fails_at", [None, 0, 1, 3])
def test_the_start_is_validated_once_however_often_the_run_stops(tmp_path, fails_at):
    if fails_at is not None:
        with pytest.raises(KeyError):
            run(tmp_path, fails_at=fails_at, validate_start=True)
    task = run(tmp_path, validate_start=True)
    rows = read_log(tmp_path / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(7))
    assert (rows[0]["loss"], rows[0]["val_miou"]) == ("", "0.1")
    if fails_at is None:
        assert same(task.seen[0], weights(line_network()))
    assert task.provenance["step"] == 4


def test_the_start_stays_if_no_step_is_better(tmp_path, monkeypatch):
    monkeypatch.setattr(Line, "validate", lambda self, network, step: {"val_miou": 0.9 - 0.1 * step, "val_mf1": 0.0})
    task = run(tmp_path, validate_start=True)
    assert same(task.seen[-1], weights(line_network()))
    assert task.provenance["step"] == 0
    assert task.provenance["best_val_miou"] == 0.9
