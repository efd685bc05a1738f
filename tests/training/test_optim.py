import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import WindowAttention
from torch import nn

from caswit.config import ModelConfig, TrainConfig
from caswit.nn.baselines.smp import Baseline
from caswit.nn.caswit import CASWiT
from caswit.nn.fusion import FusionBlock
from caswit.nn.simmim import SimMIM
from caswit.training.optim import adamw, learning_rate

PAPER = TrainConfig()


def test_the_papers_cosine_falls_from_6e_5_to_1e_6():
    assert learning_rate(PAPER, 0, 0.0) == 6e-5
    assert learning_rate(PAPER, 999, 1.0) == pytest.approx(1e-6, rel=1e-12)
    assert learning_rate(PAPER, 500, 0.5) == pytest.approx((6e-5 + 1e-6) / 2, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_a_run_equals_torchs_cosine_annealing(steps):
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=PAPER.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=steps, eta_min=PAPER.min_lr)
    for step in range(steps + 1):
        assert learning_rate(PAPER, step, step / steps) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-9)
        optimiser.step()
        schedule.step()


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 40), st.integers(0, 80))
def test_warm_up_rises_in_equal_steps_to_the_cosine(warmup_steps, step):
    warm = TrainConfig(warmup_steps=warmup_steps)
    share = learning_rate(warm, step, 0.3) / learning_rate(PAPER, step, 0.3)
    assert share == pytest.approx(min(1, (step + 1) / (warmup_steps + 1)))


@settings(derandomize=True, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.integers(0, 9))
def test_learning_rate_stays_in_its_range_and_falls_after_warm_up(a, b, step):
    early, late = (learning_rate(PAPER, step, p) for p in sorted((a, b)))
    assert PAPER.lr >= early >= late >= PAPER.min_lr * (1 - 1e-12)


def test_weights_of_linear_layers_and_convolutions_decay_and_nothing_else():
    """Norms, biases, gates and position biases are exempt."""
    network = CASWiT(num_classes=3, size="nano", decoder_channels=32, gated=True)
    settings = TrainConfig(lr=1e-3, weight_decay=0.05)
    decayed, exempt = adamw(network, settings).param_groups
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.05, 0.0)
    assert decayed["lr"] == exempt["lr"] == 1e-3
    modules = list(network.modules())
    weighted = [m for m in modules if isinstance(m, nn.Linear | nn.Conv2d)]
    norms = [m for m in modules if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)]
    spared = [
        *(m.bias for m in weighted if m.bias is not None),
        *(p for m in norms for p in (m.weight, m.bias)),
        *(m.gate for m in modules if isinstance(m, FusionBlock)),
        *(m.relative_position_bias_table for m in modules if isinstance(m, WindowAttention)),
    ]
    assert {id(p) for p in decayed["params"]} == {id(m.weight) for m in weighted}
    assert {id(p) for p in exempt["params"]} == {id(p) for p in spared}
    assert len(decayed["params"]) + len(exempt["params"]) == len(list(network.parameters()))


def groups_of_version_0_1_0(network: nn.Module) -> list[list[nn.Parameter]]:
    """Its checkpoints number the optimiser's state by these two lists, one after the other."""
    decayed, exempt = [], []
    for name, parameter in network.named_parameters():
        vector = parameter.ndim <= 1 or name.endswith("relative_position_bias_table")
        (exempt if vector else decayed).append(parameter)
    return [decayed, exempt]


NETWORKS = {
    "caswit": lambda: CASWiT(num_classes=3, size="nano", decoder_channels=32, gated=True),
    "segformer": lambda: CASWiT(num_classes=3, size="nano", decoder="segformer", fusion_stages=()),
    "conv stem": lambda: CASWiT(num_classes=3, size="nano", stem="conv", decoder_norm="group"),
    "pretraining": lambda: SimMIM(CASWiT(num_classes=0, size="nano"), context_ratio=0.5),
    "smp": lambda: Baseline(num_classes=3, settings=ModelConfig(arch="unet", encoder="resnet18")),
}


@pytest.mark.equivalence
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
@pytest.mark.parametrize("build", NETWORKS.values(), ids=NETWORKS)
def test_parameters_are_grouped_and_ordered_as_in_version_0_1_0(build, weight_decay):
    network = build()
    groups = adamw(network, TrainConfig(weight_decay=weight_decay)).param_groups
    assert [group["weight_decay"] for group in groups] == [weight_decay, 0.0]
    for group, parameters in zip(groups, groups_of_version_0_1_0(network), strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters]


def test_exempt_parameters_stay_where_no_gradient_pulls():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = [p.detach().clone() for p in network.parameters()]
    optimiser = adamw(network, TrainConfig(lr=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    weight, *others = network.parameters()
    torch.testing.assert_close(weight, before[0] * (1 - 0.1 * 0.5))
    assert all(torch.equal(p, b) for p, b in zip(others, before[1:], strict=True))
