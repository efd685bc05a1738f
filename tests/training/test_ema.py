"""The running mean of weights."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from caswit.config import TrainConfig
from caswit.errors import ConfigError
from caswit.training.averaging import advance, copied, loaded


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
    average = copied(model)
    for number in range(5):
        step(model, number)
        reference.update_parameters(model)
        advance(average, model, keep=0.9, step=late)
    for name, x in reference.module.state_dict().items():
        if x.is_floating_point():
            torch.testing.assert_close(average[name], x)
    assert average["1.num_batches_tracked"] == 5


def test_the_first_weights_are_soon_forgotten():
    model = network()
    average = copied(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    for number in range(1, 40):
        advance(average, model, keep=0.999, step=number)
    torch.testing.assert_close(average["0.weight"], torch.ones(4, 3), atol=1e-3, rtol=0)


def test_the_network_gets_its_own_weights_back():
    model = network()
    average = copied(model)
    step(model, 0)
    before = copied(model)

    def fail() -> None:
        with loaded(average, model):
            assert torch.equal(model.state_dict()["0.weight"], average["0.weight"])
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


@pytest.mark.parametrize("average", [0.0, 1.0, 2.0])
def test_no_share_is_refused(average):
    with pytest.raises(ConfigError, match="average must be between 0 and 1 or null"):
        TrainConfig(ema_decay=average)
