"""Settings of a self-supervised pretraining: the sections of its recipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from caswit.config.checks import check
from caswit.config.learning import LearningConfig
from caswit.config.network import NUM_STAGES, ModelConfig, TileConfig
from caswit.config.starting import InitConfig, parse_init
from caswit.config.training import AugmentConfig

TOKEN_PX = 4
"""Side of a token of stage 1."""


@dataclass(frozen=True, kw_only=True)
class ImageryConfig:
    """What to learn from; labels are not read."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    splits: tuple[str, ...] = ()
    """Splits of the scenes to learn from; [] takes every scene, labelled or not."""
    sampling: Literal["grid", "random"] = "grid"
    """grid: every tile of a fixed grid once an epoch; random: windows anywhere, scenes by area."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """What the network must not see (paper section 3.5)."""

    ratio: float = 0.75
    """Share of the tile's cells that are masked, at random."""
    mask_cell_px: int = 32
    """Side of a cell in pixels, a multiple of 4: 32 as in SimMIM, 4 for single tokens."""
    context_ratio: float | None = None
    """Side of the masked middle of the context, as a share of its side; null: what the tile covers (paper: 0.5)."""

    def __post_init__(self) -> None:
        """Refuse masks that hide nothing, or do not end where tokens do."""
        check(0 < self.ratio <= 1, f"mask.ratio must be above 0 and at most 1, got {self.ratio}; try 0.75")
        cell = self.mask_cell_px
        near = max(1, round(cell / TOKEN_PX)) * TOKEN_PX
        check(
            cell > 0 and cell % TOKEN_PX == 0, f"mask_cell_px must be a multiple of {TOKEN_PX}, got {cell}; try {near}"
        )
        middle = self.context_ratio
        check(middle is None or 0 <= middle <= 1, f"context_ratio must be in [0, 1] or null, got {middle}; try null")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(LearningConfig):
    """How to learn without labels. Defaults are SimMIM's for 100 epochs of Swin-B, the length the paper states."""

    epochs: float = 100.0
    """Length of the run in passes over the fixed grid of tiles, unless max_steps is set."""
    lr: float = 2e-4
    """Highest learning rate of AdamW, for a batch of lr_batch."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine, for a batch of lr_batch."""
    warmup_lr: float = 1e-6
    """Learning rate from which the linear rise begins, for a batch of lr_batch."""
    lr_batch: int | None = 512
    """Learning rates grow with the batch and are stated for this one; null: they are used as they are."""
    warmup_epochs: float = 10.0
    """Epochs over which the learning rate first rises linearly, unless warmup_steps is set."""
    weight_decay: float = 0.05
    """AdamW weight decay; biases, norms, position biases and mask tokens are exempt."""
    clip_norm: float | None = 5.0
    """Largest norm of the gradient; null does not clip."""
    picture_every_steps: int | None = None
    """Draw reconstructions this often; null: once an epoch."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        super().__post_init__()
        for name in ("lr_batch", "picture_every_steps"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.warmup_epochs >= 0, f"warmup_epochs must be 0 or more, got {self.warmup_epochs}; try 10")

    def absolute(self, steps_per_epoch: int, max_steps: int) -> "PretrainConfig":
        """The same with learning rates for this batch, and warm-up in steps.

        Raises:
            ConfigError: The warm-up would not end before the run does.
        """
        scale = 1.0 if self.lr_batch is None else self.batch / self.lr_batch
        rates = {name: getattr(self, name) * scale for name in ("lr", "min_lr", "warmup_lr")}
        steps = self.warmup_steps or round(self.warmup_epochs * steps_per_epoch)
        check(
            steps < max_steps,
            f"the warm-up of {steps} steps does not end before the run of {max_steps} does; "
            f"try train.warmup_steps={max(1, max_steps // 10)}",
        )
        return dataclasses.replace(self, **rates, lr_batch=None, warmup_steps=steps)


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """Everything behind pretrained weights."""

    data: ImageryConfig
    """What to learn from."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(drop_path=0.0))
    """The network, whose decoder is not built; drop_path is 0 in SimMIM."""
    tile: TileConfig = field(default_factory=TileConfig)
    """Geometry of what the model sees."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to tiles."""
    mask: MaskConfig = field(default_factory=MaskConfig)
    """What the network must not see."""
    train: PretrainConfig = field(default_factory=PretrainConfig)
    """How to learn."""
    init: Mapping[str, Any] | str | None = None
    """Weights to start from, as in a training recipe. Null starts from random weights."""

    def __post_init__(self) -> None:
        """Refuse networks of which a part would learn nothing."""
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
        """``init`` as settings."""
        return None if self.init is None else parse_init(self.init)
