"""Settings of what is done with a trained model, and of the demonstration."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check

Precision = Literal["auto", "bf16", "fp32"]
ProtocolName = Literal["flair15", "urur8"]


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

    protocol: ProtocolName | None = None
    """Classes that count: flair15 (FLAIR-HUB without ids 15-18, predicted or true), urur8 (URUR with "others"); null:
    those of the dataset."""
    boundary_ratio: float = 0.02
    """Width of the band of Boundary IoU, as a share of the tile's diagonal (0.02: the reference)."""
    boundary_px: int | None = None
    """The same in pixels, instead of the share."""
    pictures: int = 6
    """Tiles shown in the report, from the best to the worst."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot score."""
        super().__post_init__()
        check(self.pictures >= 0, f"pictures must be 0 or more, got {self.pictures}")
        allowed = get_args(ProtocolName)
        check(
            self.protocol is None or self.protocol in allowed,
            f"protocol must be one of {', '.join(allowed)} or null, got {self.protocol!r}",
        )
        check(
            self.boundary_px is None or self.boundary_px >= 1,
            f"boundary_px must be at least 1, got {self.boundary_px}; try 3",
        )
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
