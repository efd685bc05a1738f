"""Settings of running a trained model."""

from dataclasses import dataclass, field
from typing import Literal

from caswit.config.checks import KEEPS_MAP, check

Precision = Literal["auto", "bf16", "fp32"]
"""Precisions to train in."""
RunPrecision = Literal["auto", "bf16", "fp32", "int8"]
"""Precisions to run a trained model in."""
Fill = Literal["black", "holes", "mirror"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """Settings of running a trained model."""

    batch: int = field(default=4, metadata=KEEPS_MAP)
    """Tiles per forward pass."""
    precision: RunPrecision = "auto"
    """auto is bf16 where the device has it. On a CPU bf16 and auto run the network arranged for CPUs,
    fp32 the network as it was trained. int8 takes a model that caswit quantize wrote, on a CPU, and changes some
    labels."""
    device: str = field(default="auto", metadata=KEEPS_MAP)
    """torch device: auto, cpu, cuda, cuda:1 or mps."""

    def __post_init__(self) -> None:
        """Raise ConfigError for an empty batch."""
        check(self.batch >= 1, f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class TTAConfig(ComputeConfig):
    """Settings of running a trained model with test-time augmentation."""

    tta: Literal[1, 2, 4, 8] = 1
    """Test-time augmentation: average over this many flips and rotations of each tile; 8 takes 8 times as long."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a number that is not one of the sets of flips and rotations."""
        super().__post_init__()
        check(self.tta in (1, 2, 4, 8), f"tta must be 1, 2, 4 or 8, got {self.tta}")


@dataclass(frozen=True, kw_only=True)
class ExplainConfig(ComputeConfig):
    """Settings of reading an image and explaining one of its pixels."""

    bands: tuple[int, ...] | None = None
    """Numbers of the bands of the image, from 1, in the order of the model's. Null: those of their names in the file,
    else those the model was trained on."""
    also: str | None = None
    """Rasters on the same ground for bands that the image lacks, warped to its grid: dsm=dsm.tif, several with commas
    between."""

    def __post_init__(self) -> None:
        """Raise ConfigError for numbers that are none of a band."""
        super().__post_init__()
        check(
            self.precision != "int8",
            "precision int8 is for labels: attention is read off the network as it was trained; take auto",
        )
        check(min(self.bands or (1,)) >= 1, f"bands must be numbers from 1, got {self.bands}; try 1 2 3")
