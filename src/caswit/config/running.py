"""Settings of scoring a trained model, and of the demonstration."""

from dataclasses import dataclass
from typing import Literal

from caswit.config.checks import check

Precision = Literal["auto", "bf16", "fp32"]


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
