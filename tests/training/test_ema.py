"""The running mean of weights."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from caswit.config import TrainConfig
from caswit.errors import ConfigError
from caswit.training.optim import EMA


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def step(model: nn.Module, number: int) -> None:
    """Something that moves weights and buffers."""
    generator = torch.Generator().manual_seed(number)
    model.train()(torch.randn(8, 3, generator=generator)).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad
            parameter.grad = None


def test_it_is_torchs_exponential_average_once_it_has_begun():
    model, late = network(), 10**9
    reference = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    reference.update_parameters(model)  # the first call copies
    ema = EMA(model, 0.9)
    for number in range(5):
        step(model, number)
        reference.update_parameters(model)
        ema.update(model, late)
    average = ema.module.state_dict()
    for name, x in reference.module.state_dict().items():
        if x.is_floating_point():
            torch.testing.assert_close(average[name], x)
    assert average["1.num_batches_tracked"] == 5


@pytest.mark.equivalence
@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_it_is_to_the_bit_that_of_version_0_1_0(decay):
    """Weights, buffers and the ramp of the first steps; counters are copied."""
    model = network()
    ema, average = EMA(model, decay), {name: x.clone() for name, x in model.state_dict().items()}
    for number in range(1, 30):
        step(model, number)
        ema.update(model, number)
        keep = min(decay, (1 + number) / (10 + number))
        for name, x in model.state_dict().items():
            average[name] = average[name].lerp(x, 1 - keep) if x.is_floating_point() else x.clone()
    for name, x in ema.module.state_dict().items():
        assert torch.equal(x, average[name]), name


def test_the_first_weights_are_soon_forgotten():
    model = network()
    ema = EMA(model, 0.999)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for number in range(1, 40):
        ema.update(model, number)
    torch.testing.assert_close(ema.module.state_dict()["0.weight"], torch.ones(4, 3), atol=1e-3, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 1.0, 2.0])
def test_no_share_is_refused(decay):
    with pytest.raises(ConfigError, match="ema_decay must be between 0 and 1 or null"):
        TrainConfig(ema_decay=decay)
