"""Settings of pretraining: the sections of its recipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from caswit.config.checks import check, nearest_multiple
from caswit.config.nn import NUM_STAGES, ModelConfig, TileConfig
from caswit.config.training import AugmentConfig, ImageryConfig, LearningConfig, PhaseConfig
from caswit.config.weights import InitConfig, parse_init

TOKEN_PX = 4
"""Side of a token of stage 1."""


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """The parts of tile and context that are masked in pretraining (paper section 3.5)."""

    ratio: float = 0.75
    """Share of the tile's cells that are masked, at random."""
    mask_cell_px: int = 32
    """Side of a cell in pixels, a multiple of 4: 32 as in SimMIM, 4 for single tokens."""
    context_ratio: float | None = None
    """Side of the masked middle of the context, or of each of several, as a share of its side; null: what the tile
    covers (paper: 0.5)."""

    def __post_init__(self) -> None:
        """Refuse masks that mask nothing, or whose cells are not whole tokens."""
        check(0 < self.ratio <= 1, f"mask.ratio must be above 0 and at most 1, got {self.ratio}; try 0.75")
        cell = self.mask_cell_px
        near = nearest_multiple(cell, TOKEN_PX)
        check(
            cell > 0 and cell % TOKEN_PX == 0, f"mask_cell_px must be a multiple of {TOKEN_PX}, got {cell}; try {near}"
        )
        middle = self.context_ratio
        check(middle is None or 0 <= middle <= 1, f"context_ratio must be in [0, 1] or null, got {middle}; try null")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LearningConfig):
    """Settings of pretraining. Defaults are SimMIM's for 100 epochs of Swin-B, the length the paper states."""

    epochs: float = 100.0
    """Length of the run in passes over the fixed grid of tiles, unless max_steps is set."""
    lr: float = 2e-4
    """Highest learning rate, for a batch of lr_batch."""
    min_lr: float = 1e-5
    """Learning rate at the end of the schedule, for a batch of lr_batch."""
    warmup_lr: float = 1e-6
    """Learning rate from which the linear rise begins, for a batch of lr_batch."""
    lr_batch: int | None = 512
    """Learning rates grow with the batch and are stated for this one; null: they are used as they are."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate first rises linearly, unless warmup_steps is set."""
    warmup_steps: int | None = None
    """Steps over which the learning rate first rises linearly, 0 for none; null takes it from warmup_epochs."""
    weight_decay: float = 0.05
    """Weight decay; biases, norms, position biases and mask tokens are exempt."""
    clip_norm: float | None = 5.0
    """Largest norm of the gradient; null does not clip."""
    picture_every_steps: int | None = None
    """Optimiser steps between pictures of reconstructions; null: once an epoch."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        super().__post_init__()
        for name in ("lr_batch", "picture_every_steps"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.warmup_epochs >= 0, f"warmup_epochs must be 0 or more, got {self.warmup_epochs}; try 10")

    @property
    def validate_every(self) -> int | None:
        """Optimiser steps between pictures; None: once an epoch."""
        return self.picture_every_steps

    # Without labels there is no score by which a step could be the best, and no mean of weights was tried.
    @property
    def ema_decay(self) -> float | None:
        """None: no running mean of the weights."""
        return None

    @property
    def average_with_start(self) -> float | None:
        """None: no share of the weights that the run starts from."""
        return None

    @property
    def patience(self) -> int | None:
        """None: the run ends with its last step."""
        return None

    @property
    def phases(self) -> tuple[PhaseConfig, ...]:
        """(): all of the network learns at once."""
        return ()

    @property
    def layer_decay(self) -> float | None:
        """None: all of the network learns at one rate."""
        return None

    @property
    def validate_start(self) -> bool:
        """False: there is nothing to score before the first step."""
        return False

    @property
    def keep(self) -> str:
        """Keep the weights of the last step."""
        return "last"

    def resolve_schedule(self, steps_per_epoch: int, max_steps: int) -> Self:
        """Return the settings with learning rates for this batch, and warm-up in steps.

        Raises:
            ConfigError: The warm-up would not end before the run does.
        """
        # SimMIM's linear rule: a learning rate is stated for a batch and grows with it.
        scale = 1.0 if self.lr_batch is None else self.batch / self.lr_batch
        rates = {name: getattr(self, name) * scale for name in ("lr", "min_lr", "warmup_lr")}
        steps = round(self.warmup_epochs * steps_per_epoch) if self.warmup_steps is None else self.warmup_steps
        check(
            steps < max_steps,
            f"the warm-up of {steps} steps does not end before the run of {max_steps} does; "
            f"try train.warmup_steps={max(1, max_steps // 10)}",
        )
        return dataclasses.replace(self, **rates, lr_batch=None, warmup_steps=steps)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Every setting behind pretrained weights."""

    data: ImageryConfig
    """The imagery to learn from."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(drop_path=0.0))
    """The network, whose decoder is not built; drop_path is 0 in SimMIM."""
    tile: TileConfig = field(default_factory=TileConfig)
    """Geometry of tiles and context."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to tiles."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """Masks of tile and context."""
    train: PretrainConfig = field(default_factory=PretrainConfig)
    """Optimiser, schedule, loss and devices."""
    init: Mapping[str, Any] | str | None = None
    """Weights to start from, as in a training recipe. Null starts from random weights."""

    def __post_init__(self) -> None:
        """Refuse networks with a part that would not learn."""
        _ = self.start
        check(self.model.arch == "caswit", f"pretraining is for arch caswit, got {self.model.arch}; leave it out")
        unread = [s for s in self.model.fusion_stages if s < NUM_STAGES]
        check(
            self.model.feed_forward or not unread,
            f"with feed_forward=false the reconstruction does not depend on fusion after stages {unread}; "
            "pretrain with model.feed_forward=true, or model.fusion_stages=[4]",
        )

    @property
    def start(self) -> InitConfig | None:
        """Return ``init`` as settings."""
        return None if self.init is None else parse_init(self.init)
