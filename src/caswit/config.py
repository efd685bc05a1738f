"""Settings of every command. Each field's text is its help, its comment in a recipe and its documentation.

Nothing here imports torch: ``caswit --help`` reads this module and must be instant.
"""

from dataclasses import dataclass, field
from typing import Literal, get_args

from caswit.errors import ConfigError

Size = Literal["nano", "tiny", "small", "base", "large"]
Decoder = Literal["upernet"]
Norm = Literal["batch", "group"]
Precision = Literal["auto", "bf16", "fp32"]
NUM_STAGES = 4
IGNORE_INDEX = 255
"""Class index of pixels that count neither in the loss nor in any score; also nodata of class maps."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``ok``."""
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class TileConfig:
    """Geometry of what the model sees, in pixels of the image."""

    tile_px: int = 512
    """Side of the high-resolution tile the model labels, in pixels."""
    context_factor: int = 2
    """The context covers this many times the tile's side and is area-averaged to the tile's size."""

    def __post_init__(self) -> None:
        """Refuse tiles whose pixels would not line up with the averaged pixels of the context."""
        check(self.tile_px >= 32, f"tile_px must be at least 32, got {self.tile_px}; try 256")
        check(
            1 <= self.context_factor <= 16,
            f"context_factor must be in 1..16, got {self.context_factor}; try 2",
        )
        step = 2 * self.context_factor
        check(
            self.tile_px % step == 0,
            f"tile_px must be a multiple of 2 x context_factor = {step}, got tile_px={self.tile_px}; "
            f"try {round(self.tile_px / step) * step}",
        )

    @property
    def context_px(self) -> int:
        """Side of the context window, in pixels of the image."""
        return self.tile_px * self.context_factor

    @property
    def margin_px(self) -> int:
        """How far the context reaches beyond each side of the tile, in pixels of the image."""
        return (self.context_px - self.tile_px) // 2


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network. Defaults are the paper's CASWiT-Base."""

    size: Size = "base"
    """Swin size of both branches: nano (two CPU cores), tiny, small, base (the paper), large."""
    decoder: Decoder = "upernet"
    """Decoder head."""
    fusion_stages: tuple[int, ...] = (1, 2, 3, 4)
    """Stages after which hr reads the context; [] is the plain Swin + UPerNet, without a context branch."""
    gated: bool = False
    """Scale what is read from the context by a learned gate tanh(g), which starts at 0."""
    feed_forward: bool = True
    """Fused maps feed the next hr stage; false: only the decoder sees them."""
    decoder_channels: int | None = None
    """Width of the decoder; null takes the size's own (512, nano 96)."""
    decoder_norm: Norm = "batch"
    """Normalisation in the decoder; group norm for batches of one tile per device."""
    drop_path: float = 0.1
    """Highest stochastic-depth rate of the Swin blocks, in training only."""
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    """Mean of the three bands on the 0-255 scale (default: ImageNet's)."""
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    """Standard deviation of the three bands on the 0-255 scale (default: ImageNet's)."""

    def __post_init__(self) -> None:
        """Refuse names and stages that do not exist and rates that make no sense."""
        for name, choices in (("size", Size), ("decoder", Decoder), ("decoder_norm", Norm)):
            value = getattr(self, name)
            allowed = get_args(choices)
            check(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        stages = self.fusion_stages
        check(
            list(stages) == sorted(set(stages) & set(range(1, NUM_STAGES + 1))),
            f"fusion_stages must be increasing numbers from 1 to {NUM_STAGES}, got {list(stages)}; "
            "try [1, 2, 3, 4], or [] for no context",
        )
        check(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}; try 0.1")
        for name in ("mean", "std"):
            check(len(getattr(self, name)) == 3, f"{name} must have three numbers, got {list(getattr(self, name))}")
        check(min(self.std) > 0, f"std must be above 0, got {list(self.std)}")
        check(
            self.decoder_channels is None or self.decoder_channels > 0,
            f"decoder_channels must be above 0, got {self.decoder_channels}; try 96 or 512",
        )


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

    def __post_init__(self) -> None:
        """Refuse a negative number of workers."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, always the same for a tile and its context."""

    spatial: bool = False
    """One of the eight flips and quarter turns."""
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
        check(0 <= self.gamma <= 4, f"gamma must be in [0, 4], got {self.gamma}; try 0.25")


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


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a trained model is run."""

    batch: int = 4
    """Tiles per forward pass."""
    precision: Precision = "auto"
    """bf16 autocast, fp32, or auto: bf16 where the device has it."""
    device: str = "auto"
    """torch device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        check(self.batch >= 1, f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class PredictConfig(ComputeConfig):
    """How a large image is cut and predicted. Only the overlap and the precision change the map."""

    overlap_px: int | None = None
    """Pixels by which neighbouring tiles overlap; each keeps its half. Null: a quarter of the tile."""
    block_px: int = 4096
    """Largest side of the part of the image held in memory."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot predict."""
        super().__post_init__()
        check(self.block_px >= 32, f"block_px must be at least 32, got {self.block_px}; try 4096")
        check(
            self.overlap_px is None or self.overlap_px >= 0,
            f"overlap_px must be 0 or more, got {self.overlap_px}; try 128",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(ComputeConfig):
    """How labelled scenes are scored."""

    boundary_ratio: float = 0.02
    """Width of the band of Boundary IoU, as a share of the tile's diagonal (0.02: the reference)."""
    pictures: int = 6
    """Tiles shown in the report, from the best to the worst."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot score."""
        super().__post_init__()
        check(self.pictures >= 0, f"pictures must be 0 or more, got {self.pictures}")
        check(
            0 < self.boundary_ratio < 1,
            f"boundary_ratio must be between 0 and 1, got {self.boundary_ratio}; try 0.02",
        )


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demonstration."""

    seed: int = 0
    """Fixes the landscapes and both trainings."""
    steps: int = 300
    """Training steps of each of the two networks."""

    def __post_init__(self) -> None:
        """Refuse a demonstration that trains nothing."""
        check(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
