"""A running mean of a network's weights (after Polyak and Juditsky 1992): steadier than those of any one step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def copied(network: nn.Module) -> State:
    """The weights and buffers as they are now."""
    return {name: x.detach().clone() for name, x in network.state_dict().items()}


@torch.no_grad()
def advance(average: State, network: nn.Module, *, keep: float, step: int) -> None:
    """Move the mean towards the weights.

    Args:
        average: Changed in place.
        network: After its step.
        keep: Share of the past, in (0, 1). Early on less is kept, so that the first weights are forgotten.
        step: Number of the step, from 1.
    """
    keep = min(keep, (1 + step) / (10 + step))
    for name, x in network.state_dict().items():
        mean = average[name] = average[name].to(x.device)  # a checkpoint comes from the CPU
        if mean.is_floating_point():
            mean.lerp_(x, 1 - keep)
        else:
            mean.copy_(x)


@contextmanager
def loaded(average: State, network: nn.Module) -> Iterator[None]:
    """Give the network the mean, and its own weights back at the end."""
    own = copied(network)
    network.load_state_dict(average)
    try:
        yield
    finally:
        network.load_state_dict(own)
