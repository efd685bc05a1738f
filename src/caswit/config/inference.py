"""Settings of a trained model at work."""

from dataclasses import dataclass, field
from typing import Literal

from caswit.config.checks import KEEPS_MAP, check

Precision = Literal["auto", "bf16", "fp32"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a trained model is run."""

    batch: int = field(default=4, metadata=KEEPS_MAP)
    """Tiles per forward pass."""
    precision: Precision = "auto"
    """fp32 is the plain network. bf16 and auto, which is bf16 where the device has it, take the fast path on a CPU."""
    device: str = field(default="auto", metadata=KEEPS_MAP)
    """torch device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        check(self.batch >= 1, f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class TTAConfig(ComputeConfig):
    """How a trained model is run where its answers to several questions are averaged."""

    tta: Literal[1, 2, 4, 8] = 1
    """Average over so many flips and quarter turns of each tile: 8 times the work for steadier maps."""

    def __post_init__(self) -> None:
        """Refuse numbers that are no set of symmetries."""
        super().__post_init__()
        check(self.tta in (1, 2, 4, 8), f"tta must be 1, 2, 4 or 8, got {self.tta}")
