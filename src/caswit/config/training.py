"""Settings of supervised training, the sections of its recipe, and what pretraining shares with it."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, get_args

from caswit.config.checks import check, nearest_multiple
from caswit.config.inference import Precision
from caswit.config.nn import CONTEXTS, NUM_STAGES, ModelConfig, TileConfig
from caswit.config.weights import InitConfig, parse_init
from caswit.errors import ConfigError, brief


def _check_bands(bands: tuple[int, ...] | None) -> None:
    check(
        bands is None or (len(bands) > 0 and min(bands) >= 1),
        f"data.bands must be numbers from 1, got {brief(bands)}; try [1, 2, 3]",
    )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data to train on."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    train_split: str = "train"
    """Split of the scenes to learn from."""
    val_split: str | None = "val"
    """Split of the scenes to validate on; null for none."""
    sampling: Literal["grid", "random", "balanced", "labelled"] = "grid"
    """grid: every tile of a fixed grid once an epoch (the paper); random: windows anywhere, scenes by area; balanced:
    windows about tiles that have a class, every class as often; labelled: windows around labelled pixels, for labels
    that cover little of the scenes."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    crop_px: int | None = None
    """Side in pixels of the tiles that are learned from, where it is not that of validation and maps; null:
    tile.tile_px."""
    hold_out: float = 0.0
    """Share of the training scenes that is kept back as val_split, where the dataset has no such split: whole scenes
    where they are many, else the end of each."""
    label_fraction: float = 1.0
    """Share of the grid's training tiles whose labels are used, chosen by the seed. All other labels are ignored."""
    bands: tuple[int, ...] | None = None
    """Numbers of the bands of the images, from 1, that are red, green and blue, or those of model.bands, where the
    dataset.yaml names none; null: 1, 2 and 3."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers, bands that do not exist, and a training without labels."""
        _check_bands(self.bands)
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")
        check(0 <= self.hold_out <= 0.5, f"hold_out must be in [0, 0.5], got {self.hold_out}; try 0.2")
        check(
            not self.hold_out or self.val_split is not None,
            f"hold_out keeps {self.hold_out:g} of the scenes as val_split, which is null; try val_split: val",
        )
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
    """Read pixels whose ground size is larger or smaller by up to this share: 0.25 means 1 / 1.25 to 1.25 times."""
    brightness: float = 0.0
    """Add up to this share of 255, either way."""
    contrast: float = 0.0
    """Stretch around mid-grey by up to this share, either way."""
    gamma: float = 0.0
    """Raise to a power between 1 / (1 + gamma) and 1 + gamma."""
    tint: float = 0.0
    """Multiply each band by its own factor between 1 / (1 + tint) and 1 + tint: imitates other cameras and light."""
    saturation: float = 0.0
    """Move colours towards grey, or away from it, by up to this share."""
    blur: float = 0.0
    """Blur every other sample with a Gaussian of up to this many pixels: imitates softer cameras, enlarged images."""
    noise: float = 0.0
    """Add noise of a standard deviation up to this share of 255 to the tile."""
    context_dropout: float = 0.0
    """Share of samples with masked context: black around the tile, as around a small image."""
    context_swap: float = 0.0
    """Share of samples whose context shows another place around the tile: what a network learns of surroundings then
    has to hold without them."""
    context_tint: float = 0.0
    """Multiply each band of the context by its own factor between 1 / (1 + context_tint) and 1 + context_tint, apart
    from the tile's."""
    holes: float = 0.0
    """Share of samples with a hole or an edge cut into tile and context: black, and its labels ignored."""
    per_band: bool = False
    """Draw brightness, contrast and gamma for each band apart, instead of once for all; tint always differs by band."""
    band_dropout: float = 0.0
    """Share of samples in which one band, drawn at random, is 0 in tile and context: the network then learns not to
    rely on any one of them."""

    def __post_init__(self) -> None:
        """Refuse strengths that would wipe out the image."""
        for name in ("brightness", "contrast", "saturation", "noise"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} must be in [0, 1), got {value}; try {0.05 if name == 'noise' else 0.2}")
        check(0 <= self.context_dropout <= 1, f"context_dropout must be in [0, 1], got {self.context_dropout}; try 0.1")
        check(0 <= self.context_swap <= 1, f"context_swap must be in [0, 1], got {self.context_swap}; try 0.1")
        check(0 <= self.holes <= 1, f"holes must be in [0, 1], got {self.holes}; try 0.25")
        check(0 <= self.band_dropout <= 1, f"band_dropout must be in [0, 1], got {self.band_dropout}; try 0.1")
        for name, most in (("scale", 3), ("gamma", 4), ("tint", 4), ("context_tint", 4), ("blur", 16)):
            value = getattr(self, name)
            check(0 <= value <= most, f"{name} must be in [0, {most}], got {value}; try 0.25")


@dataclass(frozen=True, kw_only=True)
class ImageryConfig:
    """The imagery to learn from; labels are not read."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    splits: tuple[str, ...] = ()
    """Splits of the scenes to learn from; [] takes every scene, labelled or not."""
    sampling: Literal["grid", "random"] = "grid"
    """grid: every tile of a fixed grid once an epoch; random: windows anywhere, scenes by area."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    bands: tuple[int, ...] | None = None
    """Numbers of the bands of the images, from 1, that are red, green and blue, or those of model.bands, where the
    dataset.yaml names none; null: 1, 2 and 3."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers, and bands that do not exist."""
        _check_bands(self.bands)
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")


LoggerName = Literal["csv", "tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True, kw_only=True)
class LearningConfig:
    """Optimiser, schedule and devices. Defaults are those of the paper's supervised training (section 4.3)."""

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
    """Finish within this many minutes: the learning-rate schedule follows the clock if it is ahead of the steps."""
    stop_minutes: float | None = None
    """Save and end this job after this many minutes; --resume continues, with the schedule of the whole run."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """AdamW (the paper), Adam, whose weight decay is added to the gradient, or SGD with momentum."""
    schedule: Literal["cosine", "poly"] = "cosine"
    """Fall of the learning rate from lr to min_lr: half a cosine (the paper), or (1 - done)^poly_power."""
    poly_power: float = 0.9
    """Power of the schedule poly; 1 falls linearly."""
    momentum: float = 0.9
    """Momentum of SGD."""
    lr: float = 6e-5
    """Highest learning rate."""
    min_lr: float = 1e-6
    """Learning rate at the end of the schedule."""
    warmup_lr: float = 0.0
    """Learning rate from which the linear rise begins."""
    warmup_steps: int | None = 0
    """Steps over which the learning rate first rises linearly."""
    weight_decay: float = 0.01
    """Weight decay; biases, norms and position biases are exempt."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of AdamW and Adam for the running means of gradients and of their squares."""
    eps: float = 1e-8
    """Epsilon of AdamW and Adam, added to the divisor of an update."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null does not clip."""
    precision: Precision = "auto"
    """bf16 autocast, fp32, or auto: bf16 where the device has it."""
    checkpoint_gradients: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    deterministic: bool | None = None
    """Use only operations that give identical bits in every run on the same machine; null: on the CPU only."""
    save_every_s: float | None = None
    """Seconds between two writes of the checkpoint that --resume continues from; null: 120, or 900 for networks of over
    50 million weights. A checkpoint is also written after each validation."""
    pictures: int = 4
    """Number of tiles in each picture that is drawn during the run."""
    loggers: tuple[LoggerName, ...] = ("csv", "tensorboard")
    """Where losses and scores are logged: tensorboard, wandb, mlflow; csv stands for log.csv, which is always
    written."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""
    devices: int = 1
    """Number of devices on all machines together; more than one trains data-parallel (DDP)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        for name in ("batch", "accumulate", "devices"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        parts = self.accumulate * self.devices
        check(
            self.batch % parts == 0,
            f"batch must be a multiple of devices x accumulate = {parts}, got {self.batch}; "
            f"try {nearest_multiple(self.batch, parts)}",
        )
        check(self.epochs > 0, f"epochs must be above 0, got {self.epochs}")
        for name in ("max_steps", "max_minutes", "stop_minutes", "clip_norm"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.lr >= self.min_lr >= 0, f"lr must be at least min_lr, got lr={self.lr} and min_lr={self.min_lr}")
        check(self.lr > 0, f"lr must be above 0, got {self.lr}; try 6e-5")
        check(
            0 <= self.warmup_lr <= self.lr,
            f"warmup_lr must be in [0, lr], got {self.warmup_lr} with lr={self.lr}; try 0",
        )
        for name in ("seed", "warmup_steps"):
            value = getattr(self, name)
            check(value is None or value >= 0, f"{name} must be 0 or more, got {value}")
        check(
            all(0 <= b < 1 for b in self.betas),
            f"betas must be two numbers in [0, 1), got {list(self.betas)}; try [0.9, 0.999]",
        )
        check(self.eps > 0, f"eps must be above 0, got {self.eps}; try 1e-8")
        for name, values in (("optimizer", ("adamw", "adam", "sgd")), ("schedule", ("cosine", "poly"))):
            value = getattr(self, name)
            check(value in values, f"{name} must be one of {', '.join(values)}, got {brief(value)}")
        for name in self.loggers:
            known = get_args(LoggerName)
            check(name in known, f"loggers must be some of {', '.join(known)}, got {brief(name)}")
        check(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}; try 0.9")
        check(self.poly_power > 0, f"poly_power must be above 0, got {self.poly_power}; try 0.9")

    def resolve_schedule(self, steps_per_epoch: int, max_steps: int) -> Self:
        """Return the settings with learning rates for this batch and warm-up in steps, as these are already."""
        _ = steps_per_epoch, max_steps
        return dataclasses.replace(self, warmup_steps=self.warmup_steps or 0)


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A step of a training in several steps, in which one part of the network learns."""

    name: str
    """Name of the step, as the network has it."""
    share: float
    """Share of the run's optimiser steps; the shares of all steps sum to 1."""
    lr: float | None = None
    """Highest learning rate, from which the schedule begins anew; null: train.lr."""

    def __post_init__(self) -> None:
        """Refuse a step without a share of the run, or one that does not learn."""
        check(0 < self.share <= 1, f"share of phase {brief(self.name)} must be above 0 and at most 1, got {self.share}")
        check(self.lr is None or self.lr > 0, f"lr of phase {brief(self.name)} must be above 0 or null, got {self.lr}")


_ROUNDING = 2e-3
"""Largest difference from 1 of the sum of shares that are written with few digits, such as three times 0.333."""


LossName = Literal["cross_entropy", "dice", "focal", "lovasz", "ohem"]
LOSSES: tuple[str, ...] = get_args(LossName)


@dataclass(frozen=True, kw_only=True)
class TrainConfig(LearningConfig):
    """Settings of supervised training. Defaults are the paper's (section 4.3)."""

    alpha: float = 0.5
    """Weight of the context head's loss; 0 trains without a context head."""
    loss: dict[str, float] | LossName = "cross_entropy"
    """What both heads learn by: cross_entropy (the paper), dice, focal, lovasz, ohem (the hardest pixels), or a sum
    of these as {NAME: WEIGHT, ...}."""
    label_smoothing: float = 0.0
    """Share of each pixel's label that is spread over all classes, in cross_entropy and ohem."""
    focal_gamma: float = 2.0
    """Power of the focal loss: 0 is cross-entropy, more attends more to pixels that are wrong."""
    ohem_share: float = 0.25
    """Share of the labelled pixels of each tile that ohem learns from, those with the largest loss."""
    class_weights: tuple[float, ...] | Literal["auto"] | None = None
    """Weights of the classes in the loss, in the order of the class table without ignored ones; auto: the median of
    their frequencies over each one's own, counted in the training labels."""
    logit_adjustment: dict[str, float] | None = None
    """Numbers that are added to the logits of classes, by name, in the loss alone: the logarithm of a class's share in
    the labels over its share where the model will be used. Null: labels are as the world is."""
    ema_decay: float | None = None
    """Decay of the exponential moving average of the weights (EMA), e.g. 0.99: the average is validated and
    becomes the model, while training goes on unchanged. Null: no EMA."""
    average_with_start: float | None = None
    """Share, 0 to 1, of the weights that the run starts from (init) in the weights that are validated and become the
    model, e.g. 0.5: a mean of the model before and after, which forgets less of what it knew. Null: no share."""
    val_every_steps: int | None = None
    """Optimiser steps between validations; null: once an epoch."""
    val_tiles: int | None = None
    """Number of tiles, evenly spread over the validation split, that a validation scores; null: all."""
    patience: int | None = None
    """End the run once this many validations in a row brought no better mIoU; null: never."""
    keep: Literal["best", "last"] = "best"
    """Weights that become the model: those with the best validation mIoU, or those of the last step."""
    freeze: Literal["encoders"] | int | None = None
    """Parts that keep the weights they start from (init), batch norms included: encoders, or a number of their first
    stages, 1 to 4, the stem with them. Fusion and decoder learn. Null: everything learns."""
    freeze_norms: bool = False
    """Normalise by the running statistics that all batch norms start with; a few crops of little data have others."""
    layer_decay: float | None = None
    """Factor of the learning rate from each block of the encoders to the one before it, down to the stem, as in
    fine-tuning BEiT and SimMIM, e.g. 0.8; the decoder has the full rate. Null: one rate for all."""
    validate_start: bool = False
    """Validate before the first step too: with keep: best, the weights the run starts from stay if none are better."""
    phases: tuple[PhaseConfig, ...] = ()
    """Steps of the training of a network of table 2 that is trained in several, one after the other: a list of
    {name: NAME, share: SHARE, lr: LR}. [] trains the whole network at once."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot train."""
        super().__post_init__()
        for name in ("val_every_steps", "val_tiles", "patience"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay must be between 0 and 1 or null, got {self.ema_decay}; try 0.99",
        )
        check(
            self.average_with_start is None or 0 <= self.average_with_start <= 1,
            f"average_with_start must be in [0, 1] or null, got {self.average_with_start}; try 0.5",
        )
        check(self.alpha >= 0, f"alpha must be 0 or more, got {self.alpha}; try 0.5")
        check(
            self.freeze in (None, "encoders") or (type(self.freeze) is int and 1 <= self.freeze <= NUM_STAGES),
            f"freeze must be encoders, a number of stages from 1 to {NUM_STAGES}, or null, got {brief(self.freeze)}",
        )
        check(
            self.layer_decay is None or 0 < self.layer_decay <= 1,
            f"layer_decay must be above 0 and at most 1, or null, got {self.layer_decay}; try 0.8",
        )
        self._check_loss()
        self._check_phases()

    @property
    def losses(self) -> dict[str, float]:
        """The losses that are summed, by name, each with its weight."""
        return {self.loss: 1.0} if isinstance(self.loss, str) else dict(self.loss)

    def _check_loss(self) -> None:
        """Refuse losses that do not exist, and settings of losses that are not used."""
        names = ", ".join(LOSSES)
        for name, weight in self.losses.items():
            check(
                name in LOSSES,
                f"train.loss must be one of {names}, or weights of these, got {brief(name)}; "
                "try {cross_entropy: 1, dice: 0.5}",
            )
            check(
                math.isfinite(weight) and weight > 0,
                f"train.loss: the weight of {name} must be above 0, got {weight}; leave {name} out, or try 1",
            )
        check(len(self.losses) > 0, f"train.loss needs at least one of {names}, got {{}}; try cross_entropy")
        check(
            0 <= self.label_smoothing < 1,
            f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}; try 0.1",
        )
        check(0 <= self.focal_gamma <= 10, f"focal_gamma must be in [0, 10], got {self.focal_gamma}; try 2")
        check(0 < self.ohem_share <= 1, f"ohem_share must be above 0 and at most 1, got {self.ohem_share}; try 0.25")
        for name, users in (
            ("label_smoothing", ("cross_entropy", "ohem")),
            ("class_weights", ("cross_entropy", "focal", "ohem")),
        ):
            check(
                not getattr(self, name) or any(user in self.losses for user in users),
                f"{name}: only the losses {', '.join(users)} take it, got train.loss={brief(self.loss)}; leave it out",
            )
        weights = self.class_weights
        check(
            weights is None or isinstance(weights, tuple | list) or weights == "auto",
            f"class_weights must be a list of numbers, auto or null, got {brief(weights)}",
        )
        if isinstance(weights, tuple | list):
            check(
                all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights),
                f"class_weights must be numbers from 0, not all of them 0, got {brief(list(weights))}; try auto",
            )
        for name, offset in (self.logit_adjustment or {}).items():
            check(
                abs(offset) <= 20,  # e^-20 is the share of one pixel of half a gigapixel
                f"logit_adjustment of {brief(name)} must be in [-20, 20], got {offset}; "
                "try -2.3 for a class ten times rarer in the labels",
            )

    @property
    def frozen_stages(self) -> int:
        """Number of the encoders' first stages that do not learn."""
        return NUM_STAGES if self.freeze == "encoders" else int(self.freeze or 0)

    def _check_phases(self) -> None:
        """Refuse steps that are no whole run, or whose learning rates do not fit the schedule."""
        total = sum(phase.share for phase in self.phases)
        check(
            not self.phases or abs(total - 1) <= _ROUNDING,
            f"the shares of train.phases must sum to 1, got {total:.4g} "
            f"({', '.join(f'{p.name} {p.share:g}' for p in self.phases)})",
        )
        least = max(self.min_lr, self.warmup_lr)
        for phase in self.phases:
            check(
                phase.lr is None or phase.lr >= least,
                f"lr of phase {brief(phase.name)} must be at least min_lr and warmup_lr, got {phase.lr} with "
                f"min_lr={self.min_lr} and warmup_lr={self.warmup_lr}",
            )

    @property
    def validate_every(self) -> int | None:
        """Optimiser steps between validations; None: once an epoch."""
        return self.val_every_steps


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every setting behind a result."""

    data: DataConfig
    """The data to train on."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The network."""
    tile: TileConfig = field(default_factory=TileConfig)
    """Geometry of tiles and context."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to training samples."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimiser, schedule, loss and devices."""
    init: Mapping[str, Any] | str | None = None
    """Weights to start from: {from: SOURCE, path: FILE, ...}, or the path of a model or run of caswit;
    docs/weights.md has the keys. Null starts from random weights."""

    def __post_init__(self) -> None:
        """Refuse initial weights that are described wrongly or do not fit the network."""
        _ = self.start
        check(
            self.init is None or self.model.arch == "caswit",
            f"init is for arch caswit, got {brief(self.init)} with {self.model.arch}; "
            "try model.encoder_weights: imagenet",
        )
        whose = f"decoder {self.model.decoder}" if self.model.kind == "caswit" else self.model.arch
        check(
            self.train.class_weights is None or not self.model.has_own_loss,
            f"class_weights are for cross-entropy, and {whose} has a loss of its own; leave them out",
        )
        learning = self.train
        check(
            learning.logit_adjustment is None or not self.model.has_own_loss,
            f"train.logit_adjustment is for networks without a loss of their own, and {whose} has one; leave it out",
        )
        check(
            (learning.losses == {"cross_entropy": 1} and not learning.label_smoothing) or not self.model.has_own_loss,
            f"train.loss is for networks without a loss of their own, got {brief(learning.loss)} with label_smoothing="
            f"{learning.label_smoothing:g} and {whose}, which has one; leave them out",
        )
        check(
            self.train.patience is None or self.data.val_split is not None,
            f"train.patience counts validations, got {self.train.patience} with data.val_split=null; "
            "name a split, or leave patience out",
        )
        wanted, factors = CONTEXTS.get(self.model.arch), self.tile.context_factors
        check(
            wanted is None or len(factors) == wanted,
            f"tile.context_factor: {self.model.title} reads {wanted} context{'s'[: (wanted or 0) > 1]}, "
            f"got {brief(self.tile.context_factor)}; try {'[2, 3]' if wanted == 2 else '4'}",
        )
        for name, what in (("freeze", "the weights"), ("freeze_norms", "the statistics")):
            value = getattr(self.train, name)
            check(
                not value or self.init is not None,
                f"train.{name}: {str(value).lower()} keeps {what} that init names, and the recipe has no init; add one",
            )
        share = self.train.average_with_start
        check(
            share is None or self.init is not None,
            f"train.average_with_start: {share} is a share of the weights that init names, and the recipe has no init; "
            "add one",
        )
        for name in ("freeze", "freeze_norms", "layer_decay"):
            value = getattr(self.train, name)
            check(
                not value or self.model.arch == "caswit",
                f"train.{name} is for arch caswit, got {brief(value)} with {self.model.arch}; leave it out",
            )
        check(
            not self.train.phases or self.model.kind == "table2",
            f"train.phases are for networks of table 2, got {len(self.train.phases)} with {self.model.arch}; "
            "leave them out",
        )

        if self.data.crop_px is not None:
            try:
                _ = self.crop
            except ConfigError as error:
                raise ConfigError(f"data.crop_px: {error}") from error

    @property
    def start(self) -> InitConfig | None:
        """Return ``init`` as settings."""
        return None if self.init is None else parse_init(self.init)

    @property
    def crop(self) -> TileConfig:
        """Return the geometry of the tiles that are learned from."""
        side = self.data.crop_px
        return self.tile if side is None else dataclasses.replace(self.tile, tile_px=side)


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """What a fine-tuning without a recipe does not choose by itself."""

    steps: int | None = None
    """Length of the run in optimiser steps; null chooses it by the size of the data."""
    minutes: float | None = None
    """Finish within this many minutes, with the learning rate at its minimum."""
    seed: int = 0
    """Fixes the samples and their augmentation."""
    accelerator: str = "auto"
    """Device kind for Lightning Fabric: auto, cpu, cuda, mps."""

    def __post_init__(self) -> None:
        """Refuse runs without a length."""
        for name in ("steps", "minutes"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be above 0 or null, got {value}")
        check(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
