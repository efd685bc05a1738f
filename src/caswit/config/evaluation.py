"""Settings of scoring a model and of inspecting a dataset."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check
from caswit.config.inference import TTAConfig
from caswit.config.nn import TileConfig
from caswit.errors import brief

ProtocolName = Literal["flair15", "urur8"]


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(TTAConfig):
    """Settings of scoring labelled scenes."""

    protocol: ProtocolName | None = None
    """Classes that are scored: flair15 (FLAIR-HUB without ids 15-18, predicted or true), urur8 (URUR with "others");
    null: those of the dataset."""
    boundary_ratio: float = 0.02
    """Width of the band of Boundary IoU as a share of the tile's diagonal; 0.02 is the reference's."""
    boundary_px: int | None = None
    """Width of the band of Boundary IoU in pixels, in place of boundary_ratio; null: boundary_ratio is used."""
    pictures: int = 6
    """Number of tiles shown in the report: half of them the worst, half the best."""
    masked_context: bool = False
    """Score a second time with the context around every tile blacked out, to show what it adds; doubles the time."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""
    workers: int = 0
    """Processes that read ahead of the network, each up to two blocks of 2048 pixels a side; 0 reads in turns."""

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that cannot be scored with."""
        super().__post_init__()
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")
        check(self.pictures >= 0, f"pictures must be 0 or more, got {self.pictures}")
        allowed = get_args(ProtocolName)
        check(
            self.protocol is None or self.protocol in allowed,
            f"protocol must be one of {', '.join(allowed)} or null, got {brief(self.protocol)}",
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
class InspectConfig:
    """Settings of the tiles that are shown."""

    tile_px: int = 512
    """Side of the tiles that are shown, in pixels."""
    context_factor: int | tuple[int, ...] = 2
    """The context covers this many times the tile's side; several numbers show several contexts."""
    read_gsd_m: float | None = None
    """Ground size in metres that images are resampled to while they are read; null: pixels as they are."""

    def __post_init__(self) -> None:
        """Raise ConfigError for tiles that no model could have."""
        TileConfig(tile_px=self.tile_px, context_factor=self.context_factor, read_gsd_m=self.read_gsd_m)
