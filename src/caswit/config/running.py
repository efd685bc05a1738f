"""Settings of scoring a trained model, and of the demonstration."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check
from caswit.config.network import TileConfig

Precision = Literal["auto", "bf16", "fp32"]
ProtocolName = Literal["flair15", "urur8"]


@dataclass(frozen=True, kw_only=True)
class ComputeConfig:
    """How a trained model is run."""

    batch: int = 4
    """Tiles per forward pass."""
    precision: Precision = "auto"
    """fp32 is the plain network. bf16 and auto, which is bf16 where the device has it, take the fast path on a CPU."""
    device: str = "auto"
    """torch device: auto, cpu, cuda, cuda:1, mps."""

    def __post_init__(self) -> None:
        """Refuse an empty batch."""
        check(self.batch >= 1, f"batch must be at least 1, got {self.batch}")


@dataclass(frozen=True, kw_only=True)
class AveragedConfig(ComputeConfig):
    """How a trained model is run where its answers to several questions are averaged."""

    turns: Literal[1, 2, 4, 8] = 1
    """Average over so many flips and quarter turns of each tile: 8 times the work for steadier maps."""

    def __post_init__(self) -> None:
        """Refuse numbers that are no set of symmetries."""
        super().__post_init__()
        check(self.turns in (1, 2, 4, 8), f"turns must be 1, 2, 4 or 8, got {self.turns}")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(AveragedConfig):
    """How labelled scenes are scored."""

    protocol: ProtocolName | None = None
    """Classes that count: flair15 (FLAIR-HUB without ids 15-18, predicted or true), urur8 (URUR with "others"); null:
    those of the dataset."""
    boundary_ratio: float = 0.02
    """Width of the band of Boundary IoU, as a share of the tile's diagonal (0.02: the reference)."""
    boundary_px: int | None = None
    """The same in pixels, instead of the share."""
    pictures: int = 6
    """Tiles shown in the report: half of them the worst, half the best."""
    without_context: bool = False
    """Score once more with the surroundings of every tile black: what context is worth. Doubles the time."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

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
class FiguresConfig(ComputeConfig):
    """What is drawn."""

    tiles: int = 8
    """Rows of figure 8."""
    candidates: int = 64
    """Tiles, spread over the split, among which those that show most are looked for."""
    panel_px: int = 640
    """Side of a picture; 640 is 54 mm at 300 dots per inch."""
    opacity: float = 0.5
    """Of the classes over the photograph."""

    def __post_init__(self) -> None:
        """Refuse figures of nothing."""
        super().__post_init__()
        check(1 <= self.tiles <= 64, f"tiles must be in 1..64, got {self.tiles}; try 8")
        check(
            self.candidates >= self.tiles,
            f"candidates must be at least tiles={self.tiles}, got {self.candidates}; try {8 * self.tiles}",
        )
        check(64 <= self.panel_px <= 4096, f"panel_px must be in 64..4096, got {self.panel_px}; try 640")
        check(0 < self.opacity <= 1, f"opacity must be above 0 and at most 1, got {self.opacity}; try 0.5")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """How a dataset is looked at."""

    tile_px: int = 512
    """Side of the tiles that are shown."""
    context_factor: int = 2
    """The context covers this many times the tile's side."""
    gsd_m: float | None = None
    """Ground size in metres that images are resampled to while they are read; null: pixels as they are."""

    def __post_init__(self) -> None:
        """Refuse tiles that no model could have."""
        TileConfig(tile_px=self.tile_px, context_factor=self.context_factor, gsd_m=self.gsd_m)


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
