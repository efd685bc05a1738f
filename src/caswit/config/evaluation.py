"""Settings of scoring a model and of inspecting a dataset."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check
from caswit.config.inference import TTAConfig
from caswit.config.nn import TileConfig
from caswit.errors import brief

ProtocolName = Literal["flair15", "urur8"]


@dataclass(frozen=True, kw_only=True)
class TilingConfig:
    """How a scene is cut for the network while it is scored."""

    tile_px: int | Literal["whole"] | None = None
    """Side of the tiles in pixels that are read; whole: each image at once; null: that of the model's own tiles. The
    context keeps its factor."""
    overlap_px: int = 0
    """Pixels by which neighbouring tiles overlap at least, evenly spread; where they do, their scores are averaged."""

    def __post_init__(self) -> None:
        """Raise ConfigError for tiles that cannot be laid out."""
        tile = self.tile_px
        check(
            tile is None or tile == "whole" or tile >= 32,
            f"tile_px must be at least 32, whole or null, got {brief(tile)}; try 512",
        )
        check(self.overlap_px >= 0, f"overlap_px must be 0 or more, got {self.overlap_px}; try 50")
        check(
            tile != "whole" or self.overlap_px == 0,
            f"tile_px whole leaves nothing to overlap, got overlap_px={self.overlap_px}; leave it out",
        )
        check(
            not isinstance(tile, int) or self.overlap_px < tile,
            f"overlap_px must be below tile_px, got overlap_px={self.overlap_px} with tile_px={tile}; try 50",
        )


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(TTAConfig):
    """Settings of scoring labelled scenes, however they are cut."""

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
class EvaluateConfig(TilingConfig, ScoreConfig):
    """Settings of scoring labelled scenes."""

    context_report: bool = False
    """Report what the context does: scores with it masked and with another place's, class by class, gates, and what
    it costs; takes three times as long."""

    def __post_init__(self) -> None:
        """Raise ConfigError for settings that cannot be scored with."""
        ScoreConfig.__post_init__(self)
        TilingConfig.__post_init__(self)
        check(
            self.precision != "int8" or self.tile_px is None,
            f"tile_px must be null with precision int8, whose weights are for the model's own tiles, "
            f"got {brief(self.tile_px)}; leave it out",
        )
        check(
            self.precision != "int8" or not self.context_report,
            "context_report compares with a network without context, which has no int8 weights; leave out one of the "
            "two",
        )
        check(
            not self.context_report or self.tile_px != "whole",
            "context_report compares tiles, and tile_px whole has none to swap; leave one of them out",
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
