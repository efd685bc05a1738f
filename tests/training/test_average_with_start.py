"""The mean of a model before and after its training (train.average_with_start)."""

import csv
import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from caswit.config import DataConfig, ModelConfig, Recipe, TileConfig, TrainConfig
from caswit.errors import CaswitError, ConfigError, ModelError, Stopped
from caswit.training.optim import StartAverage
from caswit.training.supervised import train
from caswit.weights.model_folder import ModelInfo, build, save_model
from conftest import CLASSES

MODEL = {"size": "pico", "stem": "conv", "fusion_stages": (2,), "gated": True, "decoder_channels": 16}


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        for _ in range(seed):
            made.train()(torch.randn(8, 3))
        return made


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_it_is_the_mean_of_weights_and_statistics_and_both_stay_as_they_are(share):
    before, after = network(1), network(3)
    start = {name: x.clone() for name, x in before.state_dict().items()}
    end = {name: x.clone() for name, x in after.state_dict().items()}
    mean = StartAverage(after, start, share).of(after).state_dict()
    assert mean.keys() == end.keys()
    for name, x in mean.items():
        expected = [
            (1 - share) * e + share * s if x.is_floating_point() else e
            for s, e in zip(start[name].flatten().tolist(), end[name].flatten().tolist(), strict=True)
        ]
        assert x.flatten().tolist() == pytest.approx(expected, abs=1e-6)
        assert torch.equal(start[name], before.state_dict()[name])
        assert torch.equal(end[name], after.state_dict()[name])
        assert share not in (0, 1) or torch.equal(x, (end, start)[int(share)][name]) or "num_batches" in name
    assert mean["1.num_batches_tracked"] == 3


@pytest.fixture
def start(tmp_path, shallow) -> Path:
    info = ModelInfo(model=ModelConfig(**MODEL), tile=TileConfig(tile_px=32, context_factor=2), classes=CLASSES)
    torch.manual_seed(0)
    save_model(build(info), info, tmp_path / "start" / "model")
    return tmp_path / "start"


def recipe(dataset_file, start, *, decoder=True, val_split=None, **settings) -> Recipe:
    usual = {"batch": 2, "max_steps": 3, "lr": 1e-2, "accelerator": "cpu", "alpha": 0.0, "keep": "last"}
    return Recipe(
        data=DataConfig(dataset=str(dataset_file), val_split=val_split, sampling="random"),
        model=ModelConfig(**MODEL),
        tile=TileConfig(tile_px=32, context_factor=2),
        train=TrainConfig(**usual | settings),
        init={"path": str(start), "decoder": decoder},
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def scores(run: Path) -> list[float]:
    with (run / "log.csv").open() as file:
        return [float(row["val_miou"]) for row in csv.DictReader(file) if row["val_miou"]]


@pytest.mark.e2e
@pytest.mark.parametrize("others", [{}, {"ema_decay": 0.9}, {"alpha": 0.5}, {"freeze_norms": True, "freeze": 1}])
def test_the_model_is_the_mean_of_the_start_and_what_it_would_have_been(dataset_file, start, tmp_path, others):
    """Training itself is not changed, and the EMA, where there is one, takes the place of the last weights."""
    before = weights(start / "model")
    plain = weights(train(recipe(dataset_file, start, **others), tmp_path / "plain"))
    found = weights(train(recipe(dataset_file, start, average_with_start=0.25, **others), tmp_path / "mean"))
    moved = 0
    for name, x in found.items():
        expected = 0.75 * plain[name] + 0.25 * before[name] if x.is_floating_point() else plain[name]
        torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)
        moved += not torch.equal(x, plain[name])
    assert moved > 50


@pytest.mark.e2e
def test_what_is_validated_is_what_becomes_the_model(dataset_file, start, tmp_path):
    """With a share of 1 every validation scores the start, and the first of equal ones is kept."""
    data = {"val_split": "val", "validate_start": True, "keep": "best", "val_every_steps": 1}
    text = dataset_file.read_text().replace("split: test", "split: val")
    dataset_file.write_text(text)
    assert "split: val" in text
    whole = train(recipe(dataset_file, start, average_with_start=1.0, **data), tmp_path / "one")
    assert len(set(scores(tmp_path / "one"))) == 1
    assert all(torch.equal(x, weights(start / "model")[name]) for name, x in weights(whole).items())
    train(recipe(dataset_file, start, **data), tmp_path / "plain")
    train(recipe(dataset_file, start, average_with_start=0.0, **data), tmp_path / "none")
    assert scores(tmp_path / "none") == scores(tmp_path / "plain")
    assert len(set(scores(tmp_path / "plain"))) > 1


@pytest.mark.e2e
def test_a_run_that_was_stopped_goes_on_to_the_same_mean_though_its_start_is_gone(dataset_file, start, tmp_path):
    settings = recipe(dataset_file, start, average_with_start=0.5, ema_decay=0.9)
    whole = weights(train(settings, tmp_path / "whole"))
    stopping = dataclasses.replace(settings, train=dataclasses.replace(settings.train, stop_minutes=1e-9))
    for _ in range(2):  # one step each
        with pytest.raises(Stopped):
            train(stopping, tmp_path / "broken", resume=True)
        shutil.rmtree(start, ignore_errors=True)
    broken = weights(train(settings, tmp_path / "broken", resume=True))
    assert all(torch.equal(x, broken[name]) for name, x in whole.items())


@pytest.mark.e2e
def test_a_run_whose_start_was_deleted_is_refused(dataset_file, start, tmp_path):
    settings = recipe(dataset_file, start, average_with_start=0.5)
    stopping = dataclasses.replace(settings, train=dataclasses.replace(settings.train, stop_minutes=1e-9))
    with pytest.raises(Stopped):
        train(stopping, tmp_path / "run")
    file = tmp_path / "run" / "checkpoints" / "start.pt"
    torch.save({"model": {"hr_encoder": torch.zeros(2)}}, file)
    with pytest.raises(ModelError, match=r"start.pt: does not fit the recipe \(.*the run cannot go on from it"):
        train(settings, tmp_path / "run", resume=True)
    file.unlink()
    with pytest.raises(ModelError, match=r"start.pt: cannot be read as a checkpoint"):
        train(settings, tmp_path / "run", resume=True)


@pytest.mark.e2e
def test_a_start_that_lacks_a_part_of_the_model_is_refused(dataset_file, start, tmp_path):
    with pytest.raises(ConfigError, match=r"mean with weights that init lacks .* a start without decoder"):
        train(recipe(dataset_file, start, decoder=False, average_with_start=0.5), tmp_path / "run")
    dataset_file.write_text(dataset_file.read_text().replace("name: water", "name: lake"))
    with pytest.raises(ConfigError, match=r"got a start without the class lake; leave it out"):
        train(recipe(dataset_file, start, average_with_start=0.5), tmp_path / "run")
    train(recipe(dataset_file, start), tmp_path / "without")


def test_values_that_make_no_sense_are_refused():
    for share in (-0.1, 1.5):
        with pytest.raises(CaswitError, match=r"average_with_start must be in \[0, 1\] or null, got .*; try 0.5"):
            TrainConfig(average_with_start=share)
    with pytest.raises(ConfigError, match=r"0.5 is a share of the weights that init names, and the recipe has no init"):
        Recipe(data=DataConfig(dataset="x"), train=TrainConfig(average_with_start=0.5))
