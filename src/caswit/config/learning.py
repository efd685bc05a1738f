"""How to learn: what supervised training and pretraining have in common."""

from dataclasses import dataclass

from caswit.config.checks import check
from caswit.config.running import Precision


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
