"""Optimiser and learning-rate schedule (paper section 4.3)."""

import math

import torch
from torch import nn

from caswit.config import TrainConfig


def adamw(network: nn.Module, settings: TrainConfig) -> torch.optim.AdamW:
    """AdamW that does not decay biases, norms, gates and position biases, as Swin is trained."""
    decayed: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        vector = parameter.ndim <= 1 or name.endswith("relative_position_bias_table")
        (exempt if vector else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": settings.weight_decay},
        {"params": exempt, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr)


def learning_rate(settings: TrainConfig, step: int, progress: float) -> float:
    """Learning rate of a step: cosine from lr to min_lr, after an optional linear rise.

    Args:
        settings: lr, min_lr and warmup_steps.
        step: Number of the step, from 0.
        progress: How far the run is, 0..1.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    falling = settings.min_lr + (settings.lr - settings.min_lr) * cosine
    return falling * min(1.0, (step + 1) / (settings.warmup_steps + 1))
