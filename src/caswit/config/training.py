"""Settings of a training: the sections of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from caswit.config.checks import check
from caswit.config.learning import LearningConfig
from caswit.config.network import ModelConfig, TileConfig
from caswit.config.starting import InitConfig, parse_init


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
    label_fraction: float = 1.0
    """Share of the grid's training tiles whose labels are used; the seed says which. All other labels are ignored."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers, and to learn from nothing."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")
        check(
            0 < self.label_fraction <= 1,
            f"label_fraction must be above 0 and at most 1, got {self.label_fraction}; try 0.1",
        )


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
    tint: float = 0.0
    """Multiply each band by its own factor between 1 / (1 + tint) and 1 + tint: other cameras, haze, evening."""
    saturation: float = 0.0
    """Move colours towards grey, or away from it, by up to this share."""
    blur: float = 0.0
    """Blur every other sample with a Gaussian of up to so many pixels: softer cameras, enlarged images."""
    noise: float = 0.0
    """Add noise of a standard deviation up to this share of 255 to the tile."""
    hide_context: float = 0.0
    """Share of samples whose surroundings are black, as around a small image."""

    def __post_init__(self) -> None:
        """Refuse strengths that would wipe out the image."""
        for name in ("brightness", "contrast", "saturation", "noise"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} must be in [0, 1), got {value}; try {0.05 if name == 'noise' else 0.2}")
        check(0 <= self.hide_context <= 1, f"hide_context must be in [0, 1], got {self.hide_context}; try 0.1")
        for name, most in (("scale", 3), ("gamma", 4), ("tint", 4), ("blur", 16)):
            value = getattr(self, name)
            check(0 <= value <= most, f"{name} must be in [0, {most}], got {value}; try 0.25")


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearningConfig):
    """How to learn from labels. Defaults are the paper's (section 4.3)."""

    alpha: float = 0.5
    """Weight of the context head's loss; 0 trains without a context head."""
    class_weights: tuple[float, ...] | None = None
    """Weights of the classes in the loss, in the order of the class table without ignored ones."""
    average: float | None = None
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
            self.average is None or 0 < self.average < 1,
            f"average must be between 0 and 1 or null, got {self.average}; try 0.99",
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
