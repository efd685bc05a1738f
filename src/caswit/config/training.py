"""Settings of a training: the sections of a recipe."""

from dataclasses import dataclass, field
from typing import Literal

from caswit.config.checks import check
from caswit.config.network import ModelConfig, TileConfig
from caswit.config.running import Precision


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    train_split: str = "train"
    """Split of the scenes to learn from."""
    val_split: str | None = "val"
    """Split of the scenes to validate on; null for none."""
    sampling: Literal["grid", "random"] = "grid"
    """grid: every tile of a fixed grid once an epoch (the paper); random: windows anywhere, scenes by area."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, always the same for a tile and its context."""

    spatial: bool = False
    """One of the eight flips and quarter turns."""
    scale: float = 0.0
    """Read pixels whose ground size is larger or smaller by up to this share: 0.25 is 1 / 1.25 to 1.25 times."""
    brightness: float = 0.0
    """Add up to this share of 255, either way."""
    contrast: float = 0.0
    """Stretch around mid-grey by up to this share, either way."""
    gamma: float = 0.0
    """Raise to a power between 1 / (1 + gamma) and 1 + gamma."""

    def __post_init__(self) -> None:
        """Refuse strengths that would wipe out the image."""
        for name in ("brightness", "contrast"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} must be in [0, 1), got {value}; try 0.2")
        for name, most in (("scale", 3), ("gamma", 4)):
            value = getattr(self, name)
            check(0 <= value <= most, f"{name} must be in [0, {most}], got {value}; try 0.25")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to learn. Defaults are the paper's (section 4.3)."""

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
    warmup_steps: int = 0
    """Steps over which the learning rate first rises linearly from 0."""
    weight_decay: float = 0.01
    """AdamW weight decay; biases, norms and position biases are exempt."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null does not clip."""
    alpha: float = 0.5
    """Weight of the context head's loss; 0 trains without a context head."""
    class_weights: tuple[float, ...] | None = None
    """Weights of the classes in the loss, in the order of the class table without ignored ones."""
    precision: Precision = "auto"
    """bf16 autocast, fp32, or auto: bf16 where the device has it."""
    checkpoint_gradients: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    deterministic: bool | None = None
    """Only operations that repeat to the bit on the same machine; null: on the CPU, where they all exist."""
    val_every_steps: int | None = None
    """Validate this often; null: once an epoch."""
    save_every_s: float = 120.0
    """Write the checkpoint that --resume continues from this often, in seconds."""
    keep: Literal["best", "last"] = "best"
    """Which weights become model/: the best validation mIoU, or those of the last step."""
    pictures: int = 4
    """Validation pictures per validation."""
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
        for name in ("max_steps", "max_minutes", "val_every_steps", "clip_norm"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.lr >= self.min_lr >= 0, f"lr must be at least min_lr, got lr={self.lr} and min_lr={self.min_lr}")
        check(self.lr > 0, f"lr must be above 0, got {self.lr}; try 6e-5")
        for name in ("seed", "warmup_steps"):
            check(getattr(self, name) >= 0, f"{name} must be 0 or more, got {getattr(self, name)}")
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
