"""Training on a GPU that is not there: everything is on the right device, and the numbers are the CPU's."""

import dataclasses

import pytest
import torch
from lightning.fabric import Fabric
from lightning.fabric.accelerators import CPUAccelerator
from lightning.fabric.strategies import SingleDeviceStrategy
from safetensors.torch import load_file

import caswit.training.fabric
from caswit.config import (
    AugmentConfig,
    DataConfig,
    ImageryConfig,
    ModelConfig,
    PretrainConfig,
    PretrainRecipe,
    Recipe,
    TileConfig,
    TrainConfig,
)  # fmt: skip
from caswit.errors import Stopped
from caswit.training.pretrain import pretrain
from caswit.training.supervised import train
from pretend_gpu import GPU, OnGPU, pretend_gpu

pytestmark = [pytest.mark.equivalence, pytest.mark.usefixtures("shallow")]


class _Accelerator(CPUAccelerator):
    def setup_device(self, device):
        assert device == GPU


@pytest.fixture
def on_gpu(monkeypatch):
    """Fabric on the GPU that is not there."""

    def fabric(settings, *, unused_weights):
        return Fabric(strategy=SingleDeviceStrategy(GPU, _Accelerator()), precision="32-true")

    def use():
        monkeypatch.setattr(caswit.training.fabric, "_fabric", fabric)
        return pretend_gpu()

    return use


SETTINGS = {"batch": 4, "max_steps": 2, "lr": 1e-3, "precision": "fp32", "deterministic": True, "pictures": 1}


def test_refuses_to_mix_devices():
    with pretend_gpu() as device:
        there = torch.ones(2, 3, device=device)
        assert there.device == device
        assert isinstance(there @ there.T, OnGPU)
        assert (there + 1).cpu().tolist() == [[2.0] * 3] * 2
        with pytest.raises(RuntimeError, match="on cuda:0 and on the CPU"):
            there + torch.ones(2, 3)


def learned(run):
    """The weights of the model of a run."""
    (file,) = run.glob("*/*.safetensors")
    return load_file(file)


def assert_close(one, other):
    ours, theirs = learned(one), learned(other)
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


def recipe(dataset_file, model, **settings):
    return Recipe(
        data=DataConfig(dataset=str(dataset_file), train_split="train", val_split=None),
        model=ModelConfig(size="pico", decoder_channels=16, stem="conv", drop_path=0.0, **model),
        tile=TileConfig(tile_px=32),
        augment=AugmentConfig(spatial=True, context_dropout=0.3),
        train=TrainConfig(**SETTINGS, ema_decay=0.9, clip_norm=1.0, class_weights=(1.0, 2.0, 3.0), **settings),
    )


@pytest.mark.parametrize(
    "model", [{"fusion_stages": (2, 4), "gated": True}, {"fusion_stages": ()}], ids=["caswit", "tile"]
)
def test_training_is_that_of_the_cpu(dataset_file, tmp_path, on_gpu, model):
    # Adam divides small gradients by themselves: what is rounding becomes a step.
    settings = recipe(dataset_file, model, accumulate=2, optimizer="sgd")
    train(settings, tmp_path / "cpu")
    with on_gpu():
        train(settings, tmp_path / "gpu")
    assert_close(tmp_path / "gpu", tmp_path / "cpu")


def test_a_run_goes_on_to_the_bit(dataset_file, tmp_path, on_gpu):
    """The state of the optimiser, of EMA and of clipping is where the weights are."""
    settings = recipe(dataset_file, {"fusion_stages": (3,)})
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    with on_gpu():
        train(settings, whole)
        shorter = dataclasses.replace(settings, train=dataclasses.replace(settings.train, stop_minutes=1e-9))
        with pytest.raises(Stopped):
            train(shorter, halves)
        train(settings, halves, resume=True)
    ours, theirs = learned(halves), learned(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_pretraining_is_that_of_the_cpu(dataset_file, tmp_path, on_gpu):
    settings = PretrainRecipe(
        data=ImageryConfig(dataset=str(dataset_file)),
        model=ModelConfig(size="pico", stem="conv", drop_path=0.0),
        tile=TileConfig(tile_px=64),
        train=PretrainConfig(**SETTINGS, optimizer="sgd", warmup_epochs=0.0, lr_batch=None),
    )
    pretrain(settings, tmp_path / "cpu")
    with on_gpu():
        pretrain(settings, tmp_path / "gpu")
    assert_close(tmp_path / "gpu", tmp_path / "cpu")
