"""Networks of segmentation_models_pytorch as model folders like any other."""

import dataclasses
import sys

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch

from caswit.config import EvaluateConfig, ModelConfig, PredictConfig, TileConfig
from caswit.errors import ConfigError, install
from caswit.evaluation.run import evaluate
from caswit.mapping.run import predict
from caswit.nn.baselines.smp import Baseline
from caswit.nn.caswit import TrainingLogits
from caswit.raster.reader import Raster
from caswit.raster.windows import Window
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from caswit.weights.summary import costs, describe
from conftest import CLASSES, TILE, picture

PSPNET = ModelConfig(arch="pspnet", encoder="resnet18")
DEEPLAB = ModelConfig(arch="deeplabv3plus", encoder="resnet18")
EXACT = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    info = ModelInfo(model=PSPNET, tile=TILE, classes=CLASSES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(info).eval()
    path = tmp_path_factory.mktemp("baseline") / "model"
    save_model(network, info, path)
    return path, network


@pytest.mark.parametrize("settings", [PSPNET, DEEPLAB], ids=lambda s: s.arch)
@torch.no_grad()
def test_a_baseline_is_smps_network_on_normalised_images(settings):
    network = Baseline(num_classes=3, settings=settings).eval()
    theirs = smp.create_model(settings.arch, encoder_name="resnet18", encoder_weights=None, classes=3).eval()
    theirs.load_state_dict(network.network.state_dict())
    image = torch.from_numpy(picture(64, 96))[None]
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (settings.mean, settings.std))
    logits = network(image)
    assert logits.shape == (1, 3, 64, 96)
    torch.testing.assert_close(logits, theirs((image.float() - mean) / std))


@pytest.mark.parametrize(("settings", "millions"), [(PSPNET, 11.4), (DEEPLAB, 12.3)], ids=["pspnet", "deeplabv3plus"])
def test_they_have_the_known_parameters(settings, millions):
    """Those of the rows of table 2."""
    with torch.device("meta"):
        network = Baseline(num_classes=8, settings=settings)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, rel=0.02)


def test_training_gives_logits_without_a_context():
    network = Baseline(num_classes=3, settings=DEEPLAB).train()
    logits = network(torch.from_numpy(np.stack([picture(32, 32, seed) for seed in (0, 1)])), None)
    assert isinstance(logits, TrainingLogits)
    assert logits.context is None
    assert not network.reads_context


def test_a_model_folder_says_the_architecture_and_loads(folder):
    path, network = folder
    loaded = load_model(path)
    assert loaded.info.model == PSPNET
    assert isinstance(loaded.network, Baseline)
    image = torch.from_numpy(picture(32, 32))[None]
    torch.testing.assert_close(loaded.network(image), network(image), rtol=0, atol=0)


def test_it_predicts_and_evaluates_like_any_model(folder, dataset_file, tmp_path):
    path, _ = folder
    predict(tmp_path / "scene.tif", tmp_path / "map.tif", path, PredictConfig(**EXACT))
    with Raster(tmp_path / "map.tif") as raster:
        ids = np.unique(raster.read_band(Window(0, 0, raster.height, raster.width), fill=255))
    assert set(ids) <= {1, 2, 7}
    evaluation = evaluate(path, dataset_file, tmp_path / "report", settings=EvaluateConfig(**EXACT))
    assert evaluation.context_factor is None
    assert evaluation.counts.confusion.sum() > 0


def test_it_is_described(folder):
    path, network = folder
    assert "pspnet with encoder resnet18 (segmentation_models_pytorch)" in describe(path)
    parameters = costs(load_model(path)).parameters
    assert sum(parameters.values()) == sum(p.numel() for p in network.parameters())


class TestRefusals:
    def test_settings_that_mean_nothing(self):
        with pytest.raises(ConfigError, match=r"size is for caswit, got 'nano' with arch pspnet; leave it out"):
            dataclasses.replace(PSPNET, size="nano")
        with pytest.raises(ConfigError, match="encoder is for baselines, got 'resnet18' with arch caswit"):
            ModelConfig(encoder="resnet18")
        with pytest.raises(ConfigError, match="arch must be one of caswit, unet, "):
            ModelConfig(arch="segnet", encoder="resnet18")

    def test_an_encoder_that_is_not_there(self):
        with pytest.raises(ConfigError, match=r"'resnet19' .* has no such encoder.*similar names: .*resnet18"):
            Baseline(num_classes=2, settings=ModelConfig(arch="unet", encoder="resnet19"))

    def test_tiles_that_do_not_fit(self):
        info = ModelInfo(model=PSPNET, tile=TileConfig(tile_px=40), classes=CLASSES)
        with pytest.raises(ConfigError, match="needs tile_px in multiples of 32, got 40"):
            build(info)

    def test_recomputing_activations(self):
        with pytest.raises(ConfigError, match="checkpoint_gradients is for caswit only"):
            Baseline(num_classes=2, settings=PSPNET).checkpoint_gradients()

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def no_network(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(smp, "create_model", no_network)
        settings = dataclasses.replace(PSPNET, encoder_weights="imagenet")
        with pytest.raises(ConfigError, match=r"cannot be downloaded \(no route to host\); try encoder_weights: null"):
            Baseline(num_classes=2, settings=settings, pretrained=True)

    def test_without_the_extra(self, folder, capsys, monkeypatch):
        from caswit.cli.main import main

        monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
        with pytest.raises(SystemExit) as stop:
            main(["info", str(folder[0])])
        assert stop.value.code == 2
        assert install("baselines") in capsys.readouterr().err
