"""Parts of the network that do not learn, and learning rates that fall from layer to layer."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file
from timm.models.swin_transformer import SwinTransformer
from timm.optim import param_groups_layer_decay

from caswit.config import DataConfig, InitConfig, ModelConfig, Recipe, TileConfig, TrainConfig
from caswit.errors import ConfigError
from caswit.nn.caswit import SIZES, CASWiT
from caswit.nn.losses import supervised_loss
from caswit.training.optim import layer_scales, make_optimizer, set_learning_rate
from caswit.training.supervised import train
from caswit.weights.model_folder import ModelInfo, build, save_model, torch_load
from conftest import CLASSES

MODEL = {"size": "pico", "stem": "conv", "fusion_stages": (2, 3), "gated": True, "decoder_channels": 16}


@pytest.mark.equivalence
@pytest.mark.parametrize("decay", [0.65, 0.8, 1.0])
def test_encoders_learn_at_the_rates_of_timms_layer_decay(decay):
    size = {name: x for name, x in SIZES["nano"].items() if name != "decoder_channels"}
    swin = SwinTransformer(**size, num_classes=3, always_partition=True, strict_img_size=False)
    names = {id(p): name for name, p in swin.named_parameters()}
    theirs = {
        names[id(p)]: group["lr_scale"]
        for group in param_groups_layer_decay(swin, layer_decay=decay)
        for p in group["params"]
    }
    ours = layer_scales(CASWiT(num_classes=3, size="nano", decoder_channels=16), decay)
    assert len(theirs) > 100
    for branch in ("hr", "context"):
        encoder = f"{branch}_encoder."
        scales = {name.removeprefix(encoder): s for name, s in ours.items() if name.startswith(encoder)}
        assert scales == pytest.approx({name: s for name, s in theirs.items() if name.startswith(("layers", "patch"))})
        assert ours[f"{branch}_norms.3.weight"] == pytest.approx(theirs["norm.weight"])
    assert {s for name, s in ours.items() if "decoder." in name} == {1.0} == {theirs["head.fc.weight"]}


def test_fusion_learns_like_the_block_before_it_and_every_weight_is_in_one_group():
    network = CASWiT(num_classes=3, **MODEL)
    scales = layer_scales(network, 0.5)
    for stage in (2, 3):
        blocks = network.hr_encoder.layers[stage - 1].blocks
        last = scales[f"hr_encoder.layers.{stage - 1}.blocks.{len(blocks) - 1}.norm1.weight"]
        assert {s for name, s in scales.items() if name.startswith(f"fusion.{stage}.")} == {last}
    plain = make_optimizer(network, TrainConfig())
    optimizer = make_optimizer(network, TrainConfig(layer_decay=0.5, lr=1e-3))
    decays = {id(p): group["weight_decay"] for group in plain.param_groups for p in group["params"]}
    seen = [p for group in optimizer.param_groups for p in group["params"]]
    assert len(seen) == len({id(p) for p in seen}) == len(list(network.parameters()))
    set_learning_rate(optimizer, 2e-3)
    by_id = {id(p): name for name, p in network.named_parameters()}
    for group in optimizer.param_groups:
        for p in group["params"]:
            assert group["lr"] == pytest.approx(2e-3 * scales[by_id[id(p)]])
            assert group["weight_decay"] == decays[id(p)]


def test_without_layer_decay_the_rate_is_the_same_everywhere():
    optimizer = make_optimizer(CASWiT(num_classes=3, **MODEL), TrainConfig())
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


def frozen_names(network: CASWiT, stages: int) -> set[str]:
    """Written down once more: stem and first stages of both encoders."""
    begin = tuple(
        f"{branch}_encoder.{part}."
        for branch in ("hr", "context")
        for part in ("patch_embed", *(f"layers.{i}" for i in range(stages)))
    )
    return {name for name in network.state_dict() if name.startswith(begin)}


def images(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    one, two = torch.randint(0, 256, (2, count, 3, 64, 64), dtype=torch.uint8)
    return one, two


def gradients(network: CASWiT) -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    label = torch.randint(0, 3, (2, 64, 64))
    out = network(*images())
    supervised_loss(out, (label, label), (torch.tensor(8192.0),) * 2, alpha=0.5).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("stages", [1, 3, 4])
def test_frozen_parts_have_no_gradient_and_are_in_no_group_and_all_others_have_one(stages):
    """Data parallelism waits for a gradient of every weight that it knows."""
    network = CASWiT(num_classes=3, **MODEL, drop_path=0.0)
    network.freeze(stages)
    frozen = frozen_names(network, stages)
    learning = {name for name, _ in network.named_parameters()} - frozen
    assert gradients(network).keys() == learning
    groups = make_optimizer(network, TrainConfig(layer_decay=0.8)).param_groups
    by_id = {id(p): name for name, p in network.named_parameters()}
    assert {by_id[id(p)] for group in groups for p in group["params"]} == learning


def test_frozen_norms_stay_and_others_follow_whatever_mode_is_asked_for():
    network = CASWiT(num_classes=3, **MODEL, drop_path=0.5)
    network.freeze(2)
    for mode in (True, False, True):
        network.train(mode)
    frozen = frozen_names(network, 2)
    before = {name: x.clone() for name, x in network.state_dict().items()}
    stem = network.hr_encoder.embed(images()[0].float())
    assert torch.equal(stem, network.hr_encoder.embed(images()[0].float()))  # nothing random is left in it
    network(*images())
    after = network.state_dict()
    moved = {name for name in after if "running" in name and not torch.equal(before[name], after[name])}
    assert any(name.startswith("hr_encoder.patch_embed") and "running" in name for name in frozen)
    assert moved == {name for name in after if "running" in name} - frozen


def test_recomputed_activations_give_the_same_gradients():
    networks = [CASWiT(num_classes=3, **MODEL, drop_path=0.0, decoder_norm="group") for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    for network in networks:
        network.freeze(2)
    networks[1].checkpoint_gradients()
    plain, recomputed = map(gradients, networks)
    assert plain.keys() == recomputed.keys()
    assert all(torch.allclose(plain[name], recomputed[name], atol=1e-6) for name in plain)


@pytest.fixture
def start(tmp_path):
    info = ModelInfo(model=ModelConfig(**MODEL), tile=TileConfig(tile_px=32, context_factor=2), classes=CLASSES)
    torch.manual_seed(0)
    save_model(build(info), info, tmp_path / "start" / "model")
    return tmp_path / "start"


def recipe(dataset_file, start, **settings) -> Recipe:
    usual = {"batch": 2, "max_steps": 4, "lr": 1e-3, "accelerator": "cpu", "alpha": 0.0, "keep": "last"}
    return Recipe(
        data=DataConfig(dataset=str(dataset_file), val_split=None, sampling="random"),
        model=ModelConfig(**MODEL),
        tile=TileConfig(tile_px=32, context_factor=2),
        train=TrainConfig(**usual | settings),
        init={"path": str(start), "decoder": True},
    )


@pytest.mark.e2e
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(("freeze", "stages"), [(2, 2), ("encoders", 4)])
def test_a_training_leaves_frozen_weights_as_they_were(dataset_file, start, tmp_path, freeze, stages, ema_decay):
    model = train(recipe(dataset_file, start, freeze=freeze, ema_decay=ema_decay, weight_decay=0.5), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (start / "model", model))
    same = {name for name in before if torch.equal(before[name], after[name])}
    frozen = frozen_names(CASWiT(num_classes=3, **MODEL), stages) & before.keys()
    assert frozen <= same
    assert {name for name in before if name.startswith("fusion")}.isdisjoint(same)
    assert len(same - frozen) < 0.1 * len(before)


@pytest.mark.e2e
@pytest.mark.parametrize("kept", [True, False])
def test_batch_norms_keep_their_statistics_where_asked_to(dataset_file, start, tmp_path, kept):
    model = train(recipe(dataset_file, start, freeze_norms=kept), tmp_path / "run")
    before, after = (load_file(folder / "model.safetensors") for folder in (start / "model", model))
    statistics = {name for name in before if "running_" in name}
    assert any(name.startswith("decoder") for name in statistics)
    assert all(torch.equal(before[name], after[name]) == kept for name in statistics)
    assert not any(torch.equal(before[name], after[name]) for name in before if name.endswith("norm.weight"))


@pytest.mark.e2e
def test_a_frozen_run_that_was_stopped_goes_on_to_the_same_weights(dataset_file, start, tmp_path):
    settings = recipe(dataset_file, start, freeze=2, layer_decay=0.7, ema_decay=0.9)
    whole = train(settings, tmp_path / "whole")
    first = dataclasses.replace(settings, train=dataclasses.replace(settings.train, max_minutes=None, max_steps=4))
    stopping = dataclasses.replace(first, train=dataclasses.replace(first.train, stop_minutes=1e-9))
    for _ in range(3):  # one step each
        with pytest.raises(BaseException, match="stopped"):
            train(stopping, tmp_path / "broken", resume=True)
    assert torch_load(tmp_path / "broken" / "checkpoints" / "last.pt")["step"] == 3
    broken = train(settings, tmp_path / "broken", resume=True)
    one, two = (load_file(folder / "model.safetensors") for folder in (whole, broken))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.e2e
@pytest.mark.slow
def test_two_devices_learn_a_frozen_network_as_one_does_also_where_they_go_on(dataset_file, start, tmp_path):
    settings = recipe(dataset_file, start, freeze=3, layer_decay=0.7, lr=1e-5, precision="fp32", average_with_start=0.5)
    content = dataclasses.asdict(
        dataclasses.replace(settings, model=ModelConfig(**MODEL, decoder_norm="group", drop_path=0))
    )
    for devices, parts in ((1, [[]]), (2, [["--train.stop_minutes", "1e-9"], ["--resume"]])):
        content["train"]["devices"] = devices
        plain = yaml.safe_load(yaml.dump(content).replace("!!python/tuple", ""))
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(plain))
        for words in parts:
            done = subprocess.run(
                [sys.executable, "-m", "caswit", "train", "r.yaml", "--out", str(devices), *words],
                capture_output=True,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        assert done.returncode == 0, done.stderr
    logs = [(tmp_path / str(devices) / "log.csv").read_text().splitlines()[1:] for devices in (1, 2)]
    losses = [[float(line.split(",")[2]) for line in log] for log in logs]
    assert len(losses[0]) == 4
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    one, two = (load_file(tmp_path / str(devices) / "model" / "model.safetensors") for devices in (1, 2))
    assert all(torch.allclose(x, two[name], atol=1e-4) for name, x in one.items())


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"freeze": 5}, "freeze must be encoders, a number of stages from 1 to 4, or null, got 5"),
        ({"freeze": "decoder"}, "got 'decoder'"),
        ({"freeze": True}, "got True"),
        ({"layer_decay": 0.0}, "layer_decay must be above 0 and at most 1, or null, got 0.0; try 0.8"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(ConfigError) as refused:
        TrainConfig(**settings)
    assert complaint in str(refused.value)


def test_freezing_needs_weights_and_a_network_of_ours():
    data = DataConfig(dataset="x")
    with pytest.raises(ConfigError, match="the recipe has no init; add one"):
        Recipe(data=data, train=TrainConfig(freeze=2))
    with pytest.raises(ConfigError, match="freeze_norms: true keeps the statistics that init names"):
        Recipe(data=data, train=TrainConfig(freeze_norms=True))
    unet = ModelConfig(arch="unet", encoder="resnet18")
    with pytest.raises(ConfigError, match=r"train.layer_decay is for arch caswit, got 0.8 with unet"):
        Recipe(data=data, model=unet, train=TrainConfig(layer_decay=0.8))
    assert InitConfig(path="x")
