"""Optimiser, learning-rate schedule (paper section 4.3) and means of weights: over the steps (EMA), with the start."""

import math
import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from caswit.config import LearningConfig, PretrainConfig, TrainConfig
from caswit.nn.caswit import CASWiT

_TABLES = ("relative_position_bias_table", "context_embedding")
"""Endings of the names of matrices that are added to something, as biases are."""
_STEM = re.compile(r"(hr|context)_encoder\.patch_embed\.")
# What halves the sides before a stage belongs to its first block, as timm counts.
_BLOCK = re.compile(r"(hr|context)_encoder\.layers\.(?P<stage>\d+)\.(downsample|blocks\.(?P<block>\d+))\.")
_FUSION = re.compile(r"fusion\.(?P<stage>\d+)\.")
_NORM = re.compile(r"(hr|context)_norms\.(?P<stage>\d+)\.")
SCALE = "lr_scale"
"""Entry of a parameter group: the factor of its learning rate, which timm's schedulers call so too; 1 without it."""


def make_optimizer(
    network: nn.Module, settings: TrainConfig | PretrainConfig, *, fused: bool = False
) -> torch.optim.Optimizer:
    """Return the optimiser of all weights that require a gradient.

    Biases, norms, gates, embeddings and position biases do not decay, as Swin is trained. With ``layer_decay`` there is
    a group for each learning rate, of which ``set_learning_rate`` knows. ``fused``: AdamW and Adam step in one kernel
    for many weights, which is what a GPU wants.
    """
    tables = [name for name, _ in network.named_parameters() if name.endswith(_TABLES)]
    # timm makes one group only where the decay is 0. A checkpoint of the optimiser numbers the parameters by group,
    # so there are always both, the decayed ones first.
    groups = param_groups_weight_decay(network, weight_decay=1.0, no_weight_decay_list=tables)
    groups = [{**group, "weight_decay": settings.weight_decay * group["weight_decay"]} for group in reversed(groups)]
    if settings.layer_decay is not None:
        assert isinstance(network, CASWiT), type(network)  # the recipe refuses others
        groups = _split(groups, network, layer_scales(network, settings.layer_decay))
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    kind = torch.optim.AdamW if settings.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps, fused=fused or None)


def load_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Load the state of an optimiser that this one goes on from, be it saved where steps were fused or not."""
    # Else a run that moves to a GPU, or from one, would keep the kernels of where it was.
    pairs = zip(optimizer.param_groups, state["param_groups"], strict=True)
    groups = [{**old, **({"fused": new["fused"]} if "fused" in new else {})} for new, old in pairs]
    optimizer.load_state_dict({**state, "param_groups": groups})


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give each group of parameters its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get(SCALE, 1.0)


def layer_scales(network: CASWiT, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of every parameter by name (BEiT, Bao et al. 2022, section 3.2).

    Layers are the stem, the blocks of an encoder one by one, and all that follows; each learns ``decay`` times as fast
    as the next. Equal to timm's ``param_groups_layer_decay`` for a Swin, whose classifier is the decoder here and whose
    norm is in the layer of the block before it. Both encoders are counted alike; fusion, and the norms of other stages,
    are in the layer of the last block before them (our choice).
    """
    depths = [len(stage.blocks) for stage in network.hr_encoder.layers]  # type: ignore[arg-type]

    def layer(name: str) -> int:
        if block := _BLOCK.match(name):
            return 1 + sum(depths[: int(block["stage"])]) + int(block["block"] or 0)
        if fusion := _FUSION.match(name):
            return sum(depths[: int(fusion["stage"])])
        if norm := _NORM.match(name):
            return sum(depths[: int(norm["stage"]) + 1])
        return 0 if _STEM.match(name) else 1 + sum(depths)

    return {name: decay ** (1 + sum(depths) - layer(name)) for name, _ in network.named_parameters()}


def _split(groups: list[dict[str, Any]], network: nn.Module, scales: Mapping[str, float]) -> list[dict[str, Any]]:
    """Return a group for each factor of the learning rate out of every group, in the order of the network."""
    scale_of = {parameter: scales[name] for name, parameter in network.named_parameters()}
    found = []
    for group in groups:
        for scale in dict.fromkeys(scale_of[parameter] for parameter in group["params"]):
            some = [parameter for parameter in group["params"] if scale_of[parameter] == scale]
            found.append({**group, "params": some, SCALE: scale})
    return found


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


class StartAverage:
    """The mean of a network that has learned and of the weights it started from, in a network of its own.

    WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903, equation 1, whose alpha is ``1 - share``): along the straight line
    between both, accuracy on other data is often better than at either end. Buffers, such as the statistics of batch
    norms, are averaged as weights are; counters are those of the network.

    Args:
        network: Of the same shape as those that are averaged; it is copied.
        start: Weights and buffers of the start, on any device.
        share: Share of the start in the mean, 0..1; 0 gives the network and 1 the start, to the bit.
    """

    def __init__(self, network: nn.Module, start: Mapping[str, Tensor], share: float) -> None:
        self.module, self.start, self.share = deepcopy(network), start, share
        self.module.load_state_dict(start)  # raises RuntimeError where it is of another shape

    def of(self, network: nn.Module) -> nn.Module:
        """Return the mean of a network and the start, which stays until the next call."""
        mean = {
            name: x.lerp(self.start[name].to(x), self.share) if x.is_floating_point() else x
            for name, x in network.state_dict().items()
        }
        self.module.load_state_dict(mean)
        return self.module
