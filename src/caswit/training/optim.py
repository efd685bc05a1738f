"""Optimiser, learning-rate schedule (paper section 4.3) and running mean of the weights (EMA)."""

import math

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from caswit.config import LearningConfig

_TABLES = ("relative_position_bias_table", "context_embedding")
"""Endings of the names of matrices that are added to something, as biases are."""


def make_optimizer(network: nn.Module, settings: LearningConfig) -> torch.optim.Optimizer:
    """Return the optimiser; biases, norms, gates, embeddings and position biases do not decay, as Swin is trained."""
    tables = [name for name, _ in network.named_parameters() if name.endswith(_TABLES)]
    # timm makes one group only where the decay is 0. A checkpoint of the optimiser numbers the parameters by group,
    # so there are always both, the decayed ones first.
    groups = param_groups_weight_decay(network, weight_decay=1.0, no_weight_decay_list=tables)
    groups = [{**group, "weight_decay": settings.weight_decay * group["weight_decay"]} for group in reversed(groups)]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)


def learning_rate(settings: LearningConfig, step: int, progress: float) -> float:
    """Return the learning rate of a step: it falls from lr to min_lr, after an optional linear rise.

    Args:
        settings: lr, min_lr, schedule, poly_power, warmup_lr and warmup_steps.
        step: Number of the step, from 0.
        progress: Part of the run that is done, 0..1.
    """
    cosine = settings.schedule == "cosine"
    left = (1 + math.cos(math.pi * progress)) / 2 if cosine else (1 - progress) ** settings.poly_power
    falling = settings.min_lr + (settings.lr - settings.min_lr) * left
    warm = min(1.0, (step + 1) / ((settings.warmup_steps or 0) + 1))
    return settings.warmup_lr * (1 - warm) + falling * warm


class EMA(ModelEmaV3):  # type: ignore[misc]
    """The exponential moving average of a network's weights and buffers: steadier than those of any one step.

    ``update(network, step)`` moves it towards the network after step number ``step``, counted from 1.
    """

    def get_decay(self, step: int) -> float:
        """Return the share of the past that this step keeps."""
        # The random first weights must be forgotten within a few dozen steps, whatever the decay. This is the ramp
        # of TensorFlow's moving average; timm's own warm-up drops all of the past at first and then rises faster.
        return float(min(self.decay, (1 + step) / (10 + step)))
