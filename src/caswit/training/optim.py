"""Optimiser and learning-rate schedule (paper section 4.3)."""

import math

import torch
from torch import nn

from caswit.config import LearningConfig


def adamw(network: nn.Module, settings: LearningConfig) -> torch.optim.AdamW:
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
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def learning_rate(settings: LearningConfig, step: int, progress: float) -> float:
    """Learning rate of a step: cosine from lr to min_lr, after an optional linear rise.

    Args:
        settings: lr, min_lr, warmup_lr and warmup_steps.
        step: Number of the step, from 0.
        progress: How far the run is, 0..1.
    """
    cosine = (1 + math.cos(math.pi * progress)) / 2
    falling = settings.min_lr + (settings.lr - settings.min_lr) * cosine
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return settings.warmup_lr * (1 - warm) + falling * warm
