import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import WindowAttention
from torch import nn

from caswit.config import ModelConfig, TrainConfig
from caswit.errors import ConfigError
from caswit.nn.baselines.smp import Baseline
from caswit.nn.caswit import CASWiT
from caswit.nn.fusion import FusionBlock
from caswit.nn.simmim import SimMIM
from caswit.training.optim import learning_rate, load_state, make_optimizer

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
    decayed, exempt = make_optimizer(network, settings).param_groups
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
    groups = make_optimizer(network, TrainConfig(weight_decay=weight_decay)).param_groups
    assert [group["weight_decay"] for group in groups] == [weight_decay, 0.0]
    for group, parameters in zip(groups, groups_of_version_0_1_0(network), strict=True):
        assert [id(p) for p in group["params"]] == [id(p) for p in parameters]


def test_exempt_parameters_stay_where_no_gradient_pulls():
    network = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    before = [p.detach().clone() for p in network.parameters()]
    optimiser = make_optimizer(network, TrainConfig(lr=0.1, weight_decay=0.5))
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    weight, *others = network.parameters()
    torch.testing.assert_close(weight, before[0] * (1 - 0.1 * 0.5))
    assert all(torch.equal(p, b) for p, b in zip(others, before[1:], strict=True))


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_is_torchs_polynomial(power):
    settings = TrainConfig(schedule="poly", poly_power=power, lr=0.01, min_lr=0.0)
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=settings.lr)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimiser, total_iters=20, power=power)
    for step in range(21):
        assert learning_rate(settings, step, step / 20) == pytest.approx(optimiser.param_groups[0]["lr"], abs=1e-12)
        optimiser.step()
        schedule.step()
    ends_at = TrainConfig(schedule="poly", lr=0.01, min_lr=1e-4)
    assert learning_rate(ends_at, 7, 1.0) == pytest.approx(1e-4)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_sgd_and_adam_step_as_written_down(optimizer):
    """Weight decay is added to the gradient, of the weights alone."""
    settings = TrainConfig(optimizer=optimizer, lr=0.1, momentum=0.8, betas=(0.7, 0.95), weight_decay=0.2)
    network = nn.Linear(2, 1)
    ours = make_optimizer(network, settings)
    expected = {name: p.detach().clone() for name, p in network.named_parameters()}
    first = {name: torch.zeros_like(x) for name, x in expected.items()}
    second = {name: torch.zeros_like(x) for name, x in expected.items()}
    for step in range(1, 4):
        for name, p in network.named_parameters():
            p.grad = torch.full_like(p, float(step))
            gradient = p.grad + (0.2 * expected[name] if name == "weight" else 0)
            if optimizer == "sgd":
                first[name] = 0.8 * first[name] + gradient
                expected[name] = expected[name] - 0.1 * first[name]
            else:
                first[name] = 0.7 * first[name] + 0.3 * gradient
                second[name] = 0.95 * second[name] + 0.05 * gradient**2
                mean, square = first[name] / (1 - 0.7**step), second[name] / (1 - 0.95**step)
                expected[name] = expected[name] - 0.1 * mean / (square.sqrt() + settings.eps)
        ours.step()
    for name, p in network.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name])


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)], ids=["to a GPU", "from a GPU"])
def test_fused_steps_go_on_from_others_and_others_from_fused_ones(before, after):
    """Four steps, with a change of kernels after two, against four of one kind."""

    def steps(*kinds):
        torch.manual_seed(0)
        network, optimizer = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7)), None
        for fused in kinds:
            state = None if optimizer is None else copy.deepcopy(optimizer.state_dict())
            optimizer = make_optimizer(network, TrainConfig(lr=0.01, weight_decay=0.1), fused=fused)
            if state is not None:
                load_state(optimizer, state)
            assert {group["fused"] for group in optimizer.param_groups} == {fused or None}
            optimizer.zero_grad()
            network(torch.randn(3, 5)).square().sum().backward()
            optimizer.step()
        return [p.detach() for p in network.parameters()]

    for found, expected in zip(steps(before, before, after, after), steps(before, before, before, before), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "lion"}, "optimizer must be one of adamw, adam, sgd, got 'lion'"),
        ({"schedule": "step"}, "schedule must be one of cosine, poly, got 'step'"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\), got 1.0; try 0.9"),
        ({"poly_power": 0.0}, r"poly_power must be above 0, got 0.0; try 0.9"),
    ],
)
def test_what_cannot_train_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**settings)
