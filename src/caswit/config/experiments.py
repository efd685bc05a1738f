"""Settings of the demonstration, of the paper's tables and of its figures."""

from dataclasses import dataclass, field
from typing import Literal

from caswit.config.checks import check
from caswit.config.evaluation import ProtocolName, ScoreConfig, TilingConfig
from caswit.config.inference import ComputeConfig
from caswit.config.nn import Size
from caswit.errors import brief


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """The paper's figures for a row, in percent and MB; null where it prints none."""

    miou: float | None = None
    """Mean intersection over union."""
    mf1: float | None = None
    """Mean F1 score."""
    mbiou: float | None = None
    """Mean Boundary IoU."""
    memory_mb: float | None = None
    """Peak memory at inference, in MB."""
    per_class: dict[str, float] | None = None
    """IoU by class name."""


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """The row of a table that a recipe describes, for ``caswit table``; ``caswit train`` ignores it."""

    name: str
    """Name of the row in the paper."""
    table: str = ""
    """Number of the table in the paper."""
    split: str = "test"
    """Split that is scored."""
    protocol: ProtocolName | None = None
    """Classes that are scored, as in caswit evaluate; null: those of the dataset."""
    pretraining: str | None = None
    """Pretraining recipe whose weights ``init`` names, for the message when they are missing."""
    inference: TilingConfig = field(default_factory=TilingConfig)
    """How the method cuts scenes when it is tested; null fields: tiles of the recipe, without overlap."""
    paper: PaperFigures = field(default_factory=PaperFigures)
    """The paper's figures."""
    quoted: PaperFigures | None = None
    """Figures that the network's authors published, as the paper quotes them, with the keys of paper; they are printed
    as a row of their own."""
    note: str = ""
    """What a reader of the table must know of this row, in one sentence."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(ScoreConfig):
    """Settings of the rows that are trained and scored."""

    dataset: str | None = None
    """A dataset.yaml for every row, in place of its own; "landscapes": synthetic ones, different for each seed."""
    split: str | None = None
    """Split that is scored; null: the row's own, or test on landscapes."""
    size: Size | None = None
    """Swin size in place of the paper's base; rows with a smaller or larger one get the next smaller or larger size."""
    start: Literal["imagenet", "scratch"] | None = None
    """Start of the rows that do not start from weights of caswit: scratch (random weights) or imagenet (timm's, or a
    baseline's own); null: what each recipe says. The paper's text allows both."""
    max_steps: int | None = None
    """Number of training steps of every row; null: the recipe's."""
    max_minutes: float | None = None
    """Minutes that every row trains, for as many steps as it takes in them, at most max_steps; null: the recipe's. The
    time counts, so nothing else should run on the machine."""
    tile_scale: float | None = None
    """Sides of all tiles and crops as a share of the recipes' own; below 1, with --dataset, batches are small ones too
    and one process trains. null: 0.25 on landscapes, 1 on other data."""
    tile_px: int | None = None
    """Side of the tiles of the column in which all networks tile alike, without overlap; null: that of the rows whose
    method tiles so itself, or else 512 px times tile_scale."""
    seeds: tuple[int, ...] = (0,)
    """Seeds: every row is trained and scored once with each."""
    folds: int | None = None
    """Deal the scenes that a recipe learns from and validates on into this many folds: each row is trained without each
    fold in turn and scored on it; null: score the row's own split."""
    pretrained: str | None = None
    """Pretrained weights for rows whose recipe starts from weights of caswit; {seed} in the path is replaced by the
    seed; null: those that the recipe names."""
    measure_memory: bool = True
    """Measure the peak memory of every row at inference with batch 1, in a process of its own."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a table without runs."""
        super().__post_init__()
        check(
            self.start in (None, "imagenet", "scratch"), f"start must be imagenet or scratch, got {brief(self.start)}"
        )
        check(
            not (self.start == "imagenet" and self.size in ("pico", "nano")),
            f"start=imagenet: timm has no weights for size {self.size}; try start=scratch, or size tiny or above",
        )
        check(len(self.seeds) > 0, "seeds needs at least one number; try --seeds 0")
        check(len(set(self.seeds)) == len(self.seeds), f"seeds must differ, got {list(self.seeds)}")
        check(min(self.seeds) >= 0, f"seeds must be 0 or more, got {list(self.seeds)}")
        check(
            self.precision != "int8",
            "precision int8 is for models that caswit quantize wrote, and rows are trained here; take auto",
        )
        check(self.folds is None or self.folds >= 2, f"folds must be at least 2, got {self.folds}; try 4")
        check(
            self.folds is None or self.split is None,
            f"folds are scored one after the other, so there is no split to name, got {brief(self.split)}; leave out "
            "--split or --folds",
        )
        check(self.max_steps is None or self.max_steps > 0, f"max_steps must be above 0, got {self.max_steps}")
        minutes = self.max_minutes
        check(minutes is None or minutes > 0, f"max_minutes must be above 0, got {minutes}; try 1")
        check(
            self.tile_scale is None or (self.dataset is not None and 0 < self.tile_scale <= 1),
            f"tile_scale must be above 0 and at most 1 and needs --dataset, got {self.tile_scale}; try 0.25",
        )
        check(self.tile_px is None or self.tile_px >= 32, f"tile_px must be at least 32, got {self.tile_px}; try 512")


@dataclass(frozen=True, kw_only=True)
class FiguresConfig(ComputeConfig):
    """Settings of drawing the paper's figures."""

    tiles: int = 8
    """Number of rows of figure 8."""
    candidates: int = 64
    """Number of tiles, spread over the split, from which those with the clearest difference are chosen."""
    panel_px: int = 640
    """Side of a picture in pixels; 640 is 54 mm at 300 dots per inch."""
    opacity: float = 0.5
    """Opacity of the classes drawn over the photograph, above 0 and at most 1."""

    def __post_init__(self) -> None:
        """Raise ConfigError for figures that cannot be drawn."""
        super().__post_init__()
        check(1 <= self.tiles <= 64, f"tiles must be in 1..64, got {self.tiles}; try 8")
        check(
            self.candidates >= self.tiles,
            f"candidates must be at least tiles={self.tiles}, got {self.candidates}; try {8 * self.tiles}",
        )
        check(64 <= self.panel_px <= 4096, f"panel_px must be in 64..4096, got {self.panel_px}; try 640")
        check(0 < self.opacity <= 1, f"opacity must be above 0 and at most 1, got {self.opacity}; try 0.5")


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Seed and length of the demonstration."""

    seed: int = 0
    """Seed of the landscapes and of both trainings."""
    steps: int = 300
    """Number of training steps of each of the two networks."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a demonstration without training."""
        check(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check(self.seed >= 0, f"seed must be 0 or more, got {self.seed}")
