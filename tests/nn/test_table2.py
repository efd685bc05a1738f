"""Networks of table 2 behind the interface of every network."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import caswit.inference.onnx.write
from caswit.cli.main import main
from caswit.config import TABLE2, EvaluateConfig, ModelConfig, PredictConfig, TileConfig
from caswit.errors import ConfigError, ModelError
from caswit.evaluation.run import evaluate
from caswit.inference.onnx.write import export
from caswit.mapping.run import predict
from caswit.nn.baselines.table2 import Table2Network, network_class
from caswit.nn.caswit import TrainingLogits
from caswit.raster.reader import Raster
from caswit.raster.windows import Window
from caswit.serve.live import LiveModel
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from caswit.weights.publish import model_card, public_config
from caswit.weights.summary import costs, describe
from conftest import CLASSES, TILE, picture
from networks import Toy, ToyOfContext, stands_for

ISDNET = ModelConfig(arch="isdnet")
RELAY = ModelConfig(arch="relay_tokens")
EXACT = {"precision": "fp32", "device": "cpu"}


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    """One of the tile alone, and one that reads its context."""
    stands_for(monkeypatch, Toy)
    stands_for(monkeypatch, ToyOfContext, "relay_tokens", "RelayTokens")


def make(tmp_path, settings=ISDNET):
    """Return a model folder and the network that was saved."""
    info = ModelInfo(model=settings, tile=TILE, classes=CLASSES, trained_gsd_m=0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(info).eval()
    save_model(network, info, tmp_path / "toy" / "model")
    return tmp_path / "toy" / "model", network


class TestNetwork:
    @torch.no_grad()
    def test_it_sees_normalised_images(self):
        network = Table2Network(num_classes=3, settings=ISDNET).eval()
        image = torch.from_numpy(picture(64, 96))[None]
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (ISDNET.mean, ISDNET.std))
        expected = network.network((image.float() - mean) / std)
        assert expected.shape == (1, 3, 64, 96)
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
        # Reads no context, whatever it is given.
        torch.testing.assert_close(network(image, image), expected, rtol=0, atol=0)

    @torch.no_grad()
    def test_the_context_is_normalised_too(self):
        network = Table2Network(num_classes=3, settings=RELAY).eval()
        hr, context = (torch.from_numpy(picture(32, 32, seed))[None] for seed in (0, 1))
        expected = network.network(network.normalise(hr), network.normalise(context))
        torch.testing.assert_close(network(hr, context), expected, rtol=0, atol=0)
        with pytest.raises(ModelError, match="needs a context image"):
            network(hr)

    def test_training_gives_its_own_loss_where_there_is_a_label(self):
        network = Table2Network(num_classes=3, settings=ISDNET).train()
        image = torch.from_numpy(np.stack([picture(32, 32, seed) for seed in (0, 1)]))
        label = torch.full((2, 32, 32), 255, dtype=torch.uint8)
        assert network(image).loss is None
        found = network(image, None, label)
        assert isinstance(found, TrainingLogits)
        assert found.context is None
        assert found.loss.item() == 0
        label[0, :4] = 2
        with torch.autocast("cpu", torch.bfloat16):
            found = network(image, None, label)
        assert found.loss.dtype == torch.float32
        expected = torch.nn.functional.cross_entropy(found.hr[:1, :, :4].float(), label[:1, :4].long())
        torch.testing.assert_close(found.loss, expected)

    @pytest.mark.parametrize("shape", [(1, 3, 60, 64), (1, 3, 64, 60)])
    def test_sides_that_do_not_fit(self, shape):
        network = Table2Network(num_classes=3, settings=ISDNET).eval()
        with pytest.raises(ModelError, match=r"in multiples of 8 px, got \d+ x \d+; try tiles of 64 x 64"):
            network(torch.zeros(shape))
        with pytest.raises(ModelError, match="must have 3 bands"):
            network(torch.zeros(1, 4, 64, 64))

    def test_recomputing_activations_is_refused(self):
        with pytest.raises(ConfigError, match="checkpoint_gradients is for caswit only"):
            Table2Network(num_classes=3, settings=ISDNET).checkpoint_gradients()

    def test_the_settings_reach_it(self):
        network = Table2Network(num_classes=3, settings=dataclasses.replace(ISDNET, width=0.5), pretrained=True)
        assert network.network.pretrained
        assert network.network.far[0].out_channels == 8


class TestPhases:
    def test_only_parts_of_the_phase_learn(self):
        network = Table2Network(num_classes=3, settings=ISDNET)
        names = [name for name, _ in network.network.named_parameters()]
        assert all(network.learns(name) for name in names)
        network.phase = "far"
        assert {name for name in names if network.learns(name)} == {n for n in names if n.startswith("far.")}
        network.phase = "near"
        assert network.learns("weigh")

    def test_batch_norms_of_other_parts_keep_what_they_know(self):
        network = Table2Network(num_classes=3, settings=ISDNET)
        network.phase = "near"
        network.train()
        before = {name: x.clone() for name, x in network.state_dict().items()}
        network(torch.from_numpy(picture(32, 32))[None])
        changed = {name for name, x in network.state_dict().items() if not torch.equal(x, before[name])}
        assert changed == {"near.1.running_mean", "near.1.running_var", "near.1.num_batches_tracked"}
        network.phase = None
        assert all(m.training for m in network.train().modules())


class TestModelFolder:
    @pytest.mark.parametrize("settings", [ISDNET, RELAY, dataclasses.replace(ISDNET, width=0.5)], ids=str)
    @torch.no_grad()
    def test_it_loads_as_it_was_saved(self, tmp_path, settings):
        folder, network = make(tmp_path, settings)
        loaded = load_model(folder)
        assert loaded.info.model == settings
        assert isinstance(loaded.network, Table2Network)
        assert not loaded.network.training
        images = [torch.from_numpy(picture(32, 32, seed))[None] for seed in (0, 1)]
        torch.testing.assert_close(loaded.network(*images), network(*images), rtol=0, atol=0)

    def test_files_hold_the_names_of_the_network(self, tmp_path):
        folder, network = make(tmp_path)
        assert load_file(folder / "model.safetensors").keys() == network.network.state_dict().keys()

    def test_weights_stay_in_their_file(self, tmp_path):
        loaded = load_model(make(tmp_path)[0])
        weights = dict(loaded.network.network.named_parameters())
        assert all(x.data_ptr() == loaded.weights[name].data_ptr() for name, x in weights.items())

    def test_weights_of_another_network(self, tmp_path):
        folder, _ = make(tmp_path)
        content = json.loads((folder / "config.json").read_text())
        content["model"]["width"] = 3
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match=r"does not hold the weights .* size mismatch for far\.0\.weight"):
            load_model(folder)

    def test_tiles_that_do_not_fit(self):
        info = ModelInfo(model=ISDNET, tile=TileConfig(tile_px=44), classes=CLASSES)
        with pytest.raises(ConfigError, match="arch isdnet needs tile_px in multiples of 8, got 44"):
            build(info)


class TestCommands:
    @pytest.mark.parametrize("settings", [ISDNET, RELAY], ids=lambda s: s.arch)
    def test_it_predicts_and_evaluates(self, dataset_file, tmp_path, settings):
        folder, _ = make(tmp_path, settings)
        predict(tmp_path / "scene.tif", tmp_path / "map.tif", folder, PredictConfig(**EXACT))
        with Raster(tmp_path / "map.tif") as raster:
            ids = np.unique(raster.read_band(Window(0, 0, raster.height, raster.width), fill=255))
        assert set(ids) <= {1, 2, 7}
        model = json.loads((tmp_path / "map.stac.json").read_text())["properties"]
        assert model["mlm:architecture"] == {"isdnet": "ISDNet", "relay_tokens": "Relay Tokens"}[settings.arch]
        evaluation = evaluate(folder, dataset_file, tmp_path / "report", settings=EvaluateConfig(**EXACT))
        assert evaluation.context_factor == (2 if settings is RELAY else None)
        assert evaluation.counts.confusion.sum() > 0

    def test_it_is_described(self, tmp_path):
        folder, network = make(tmp_path, dataclasses.replace(ISDNET, width=0.5))
        page = describe(folder)
        assert "network        ISDNet of width 0.5\n" in page
        parameters = costs(load_model(folder)).parameters
        assert list(parameters) == ["weigh", "far", "near"]
        assert sum(parameters.values()) == sum(p.numel() for p in network.parameters())

    def test_its_card(self, tmp_path):
        card = model_card(public_config(make(tmp_path, RELAY)[0]), "me/toy", None)
        assert "Relay Tokens: labels every pixel of an orthophoto as one of 3 classes." in card
        assert "| context | 2 times the tile's side |" in card
        (tmp_path / "other").mkdir()
        assert "| context | none |" in model_card(public_config(make(tmp_path / "other")[0]), "me/toy", None)

    def test_attention_is_for_caswit(self, tmp_path, dataset_file, capsys):
        folder, _ = make(tmp_path, RELAY)
        words = ["explain", str(tmp_path / "scene.tif"), "--out", str(tmp_path / "out.png"), "--model", str(folder)]
        with pytest.raises(SystemExit) as stop:
            main([*words, "--row", "10", "--col", "10"])
        assert stop.value.code == 2
        assert (
            capsys.readouterr()
            .err.splitlines()[-1]
            .endswith("this model is not of arch caswit, so there is no cross-attention to show")
        )
        live = LiveModel(folder, EvaluateConfig(**EXACT))
        assert not live.explains
        assert live.confidence(tmp_path / "scene.tif", 10, 10)["name"] in CLASSES.names

    @pytest.mark.parametrize("settings", [ISDNET, RELAY], ids=lambda s: s.arch)
    def test_it_is_exported(self, tmp_path, settings):
        exported = export(make(tmp_path, settings)[0], tmp_path / "toy.onnx", "single input")
        assert exported.difference < 1e-4

    def test_what_cannot_be_exported_is_one_line(self, tmp_path, monkeypatch):
        class Twisted(Toy):
            def forward(self, image, context=None):
                return torch.linalg.matrix_exp(super().forward(image)) if not self.training else None

        stands_for(monkeypatch, Twisted)
        with pytest.raises(ModelError, match=r"^toy: ISDNet cannot be exported as ONNX \(.*\)$"):
            export(make(tmp_path)[0], tmp_path / "toy.onnx")
        assert not (tmp_path / "toy.onnx").exists()


def test_glnet_says_at_once_that_it_is_not_exported(monkeypatch, tmp_path):
    """It was traced for a minute, and the line came after 3000 others, of torch's graph."""
    monkeypatch.undo()  # no toys
    monkeypatch.setattr(caswit.inference.onnx.write, "make_graph", lambda *_: pytest.fail("began to trace"))
    folder, _ = make(tmp_path, ModelConfig(arch="glnet", width=0.0625))
    with pytest.raises(ModelError, match=r"GLNet cannot be exported as ONNX, .*; export another network$"):
        export(folder, tmp_path / "toy.onnx")


@pytest.mark.parametrize("arch", TABLE2)
@torch.no_grad()
def test_each_is_saved_and_loaded_and_described(arch, monkeypatch, tmp_path):
    monkeypatch.undo()  # no toys
    settings = ModelConfig(arch=arch, width=0.125)
    assert settings.reads_context == network_class(arch).reads_context
    tile = TileConfig(tile_px=96, context_factor=(2, 3) if arch == "fctl" else 2)
    network = build(ModelInfo(model=settings, tile=tile, classes=CLASSES)).eval()
    save_model(network, ModelInfo(model=settings, tile=tile, classes=CLASSES), tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    hr = torch.from_numpy(picture(96, 96))[None]
    context = hr if arch != "fctl" else torch.stack([hr, hr], 1)
    logits = network(hr, context)
    assert logits.shape == (1, 3, 96, 96)
    torch.testing.assert_close(dict(loaded.network.state_dict()), dict(network.state_dict()), rtol=0, atol=0)
    # Where weights lie in memory can decide which kernels add up, and so the last digit.
    torch.testing.assert_close(loaded.network(hr, context), logits)
    with FlopCounterMode(display=False) as counter:
        network(hr, context)
    assert costs(loaded).flops == counter.get_total_flops() > 0
    assert f"network        {settings.title}\n" in describe(tmp_path / "model")


def test_the_page_of_networks_names_each_as_a_recipe_does():
    page = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()
    named = {name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)}
    assert {*TABLE2, "pspnet", "deeplabv3plus"} <= named


class TestSettings:
    def test_they_need_a_name_alone(self):
        assert ISDNET.encoder is None
        assert ISDNET.width == 1
        assert not ISDNET.reads_context
        assert ModelConfig(arch="fctl").reads_context

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"encoder": "resnet18"}, "encoder is for baselines of segmentation_models_pytorch, got 'resnet18'"),
            ({"size": "nano"}, "size is for caswit, got 'nano' with arch isdnet; leave it out"),
            ({"width": 0.0}, r"width must be above 0 and at most 4, got 0\.0; try 0\.25"),
            ({"width": float("nan")}, "width must be above 0"),
            ({"encoder_weights": "places"}, "encoder_weights of arch isdnet must be imagenet or null, got 'places'"),
            ({"encoder_weights": "imagenet", "width": 0.5}, "encoder_weights need width 1, got 0.5"),
            ({"arch": "unet", "encoder": "resnet18", "width": 0.5}, "width is for stdc1, .* with arch unet; leave it"),
            ({"arch": "caswit", "width": 0.5}, "width is for stdc1, .*, got 0.5 with arch caswit; try size"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(ISDNET, **settings)
