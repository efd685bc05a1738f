"""Settings of a training, supervised or not: the sections of its recipe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from caswit.config.checks import check
from caswit.config.data import AugmentConfig, DataConfig, ImageryConfig
from caswit.config.inference import Precision
from caswit.config.nn import NUM_STAGES, ModelConfig, TileConfig
from caswit.config.weights import InitConfig, parse_init


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """Optimiser, schedule, devices. Defaults are those of the paper's supervised training (section 4.3)."""

    seed: int = 0
    """Fixes the initial weights, the samples and their augmentation."""
    batch: int = 16
    """Tiles per optimiser step, over all devices and accumulated passes together."""
    accumulate: int = 1
    """Forward passes a batch is split into on each device, to save memory."""
    epochs: float = 20.0
    """Length of the run in passes over the fixed grid of training tiles, unless max_steps is set."""
    max_steps: int | None = None
    """Length of the run in optimiser steps; null takes it from epochs."""
    max_minutes: float | None = None
    """Stop after this long; the learning rate then falls with the clock where that is further on."""
    lr: float = 6e-5
    """Highest learning rate of AdamW."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 0.0
    """Learning rate from which the linear rise begins."""
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and position biases are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging of gradients and of their squares."""
    eps: float = 1e-8
    """AdamW's smallest divisor."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null does not clip."""
    precision: Precision = "auto"
    """bf16 autocast, fp32, or auto: bf16 where the device has it."""
    checkpoint_gradients: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    deterministic: bool | None = None
    """Only operations that repeat to the bit on the same machine; null: on the CPU, where they all exist."""
    save_every_s: float = 120.0
    """Write the checkpoint that --resume continues from this often, in seconds."""
    pictures: int = 4
    """Tiles in each picture that is drawn on the way."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""
    devices: int = 1
    """Number of devices; more than one trains data-parallel (DDP)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        for name in ("batch", "accumulate", "devices"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        parts = self.accumulate * self.devices
        check(
            self.batch % parts == 0,
            f"batch must be a multiple of devices x accumulate = {parts}, got {self.batch}; "
            f"try {max(1, round(self.batch / parts)) * parts}",
        )
        check(self.epochs > 0, f"epochs must be above 0, got {self.epochs}")
        for name in ("max_steps", "max_minutes", "clip_norm"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.lr >= self.min_lr >= 0, f"lr must be at least min_lr, got lr={self.lr} and min_lr={self.min_lr}")
        check(self.lr > 0, f"lr must be above 0, got {self.lr}; try 6e-5")
        check(
            0 <= self.warmup_lr <= self.lr,
            f"warmup_lr must be in [0, lr], got {self.warmup_lr} with lr={self.lr}; try 0",
        )
        for name in ("seed", "warmup_steps"):
            check(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
        check(
            all(0 <= b < 1 for b in self.betas),
            f"betas must be two numbers in [0, 1), got {list(self.betas)}; try [0.9, 0.999]",
        )
        check(self.eps > 0, f"eps must be above 0, got {self.eps}; try 1e-8")

    def absolute(self, steps_per_epoch: int, max_steps: int) -> "LearningConfig":
        """The same in steps and for this batch; here it is so already."""
        _ = steps_per_epoch, max_steps
        return self


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearningConfig):
    """How to learn from labels. Defaults are the paper's (section 4.3)."""

    alpha: float = 0.5
    """Weight of the context head's loss; 0 trains without a context head."""
    class_weights: tuple[float, ...] | None = None
    """Weights of the classes in the loss, in the order of the class table without ignored ones."""
    ema_decay: float | None = None
    """Share of the past in a running mean of the weights (EMA), e.g. 0.99: the mean is validated and becomes the model,
    while the weights go on as they would. Null: no mean."""
    val_every_steps: int | None = None
    """Validate this often; null: once an epoch."""
    keep: Literal["best", "last"] = "best"
    """Which weights become model/: the best validation mIoU, or those of the last step."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        super().__post_init__()
        every = self.val_every_steps
        check(every is None or every > 0, f"val_every_steps must be above 0 or null, got {every}")
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay must be between 0 and 1 or null, got {self.ema_decay}; try 0.99",
        )
        check(self.alpha >= 0, f"alpha must be 0 or more, got {self.alpha}; try 0.5")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything behind a result."""

    data: DataConfig
    """What to train on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    tile: TileConfig = field(default_factory=TileConfig)
    """Geometry of what the model sees."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to training samples."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How to learn."""
    init: Mapping[str, Any] | str | None = None
    """Weights to start from: {from: SOURCE, path: FILE, ...}, or the path of a model or run of caswit;
    docs/weights.md has the keys. Null starts from random weights."""

    def __post_init__(self) -> None:
        """Refuse weights that are not described as they should be."""
        _ = self.start
        check(
            self.init is None or self.model.arch == "caswit",
            f"init is for arch caswit, got {self.init!r} with {self.model.arch}; try model.encoder_weights: imagenet",
        )

    @property
    def start(self) -> InitConfig | None:
        """``init`` as settings."""
        return None if self.init is None else parse_init(self.init)


TOKEN_PX = 4
"""Side of a token of stage 1."""


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
