"""Settings of the demonstration, the paper's tables and its figures."""

from dataclasses import dataclass, field

from caswit.config.checks import check
from caswit.config.evaluation import EvaluateConfig, ProtocolName
from caswit.config.inference import ComputeConfig
from caswit.config.nn import Size


@dataclass(frozen=True, kw_only=True)
class PaperFigures:
    """What the paper prints for a row; percent and MB. Null: it prints nothing."""

    miou: float | None = None
    """Mean intersection over union."""
    mf1: float | None = None
    """Mean F1 score."""
    mbiou: float | None = None
    """Mean Boundary IoU."""
    memory_mb: float | None = None
    """Peak memory at inference."""
    per_class: dict[str, float] | None = None
    """IoU by class name."""


@dataclass(frozen=True, kw_only=True)
class RowConfig:
    """The row of a table that a recipe stands for. ``caswit train`` does not look at it."""

    name: str
    """As the paper calls it."""
    table: str = ""
    """The table of the paper it is from."""
    split: str = "test"
    """Split that is scored."""
    protocol: ProtocolName | None = None
    """Classes that count; see caswit evaluate."""
    pretraining: str | None = None
    """The pretraining recipe whose weights ``init`` names; said where they are missing."""
    paper: PaperFigures = field(default_factory=PaperFigures)
    """What the paper prints."""


@dataclass(frozen=True, kw_only=True)
class TableConfig(EvaluateConfig):
    """How the rows are run and scored."""

    dataset: str | None = None
    """Run the rows on this dataset.yaml instead of their own; "landscapes": synthetic ones, others for each seed."""
    split: str | None = None
    """Split that is scored; null: the row's own, or test on landscapes."""
    size: Size | None = None
    """Size that stands for the paper's base; smaller rows get the next smaller size, larger rows the next larger."""
    max_steps: int | None = None
    """Training steps of every row; null: the recipe's."""
    seeds: tuple[int, ...] = (0,)
    """Train and score every row once with each."""
    pretrained: str | None = None
    """What rows start from whose recipe starts from weights of caswit, {seed} in it is the seed; null: what the recipe
    names."""
    measure_memory: bool = True
    """Measure the peak memory of every row at inference, batch 1, in a process of its own."""

    def __post_init__(self) -> None:
        """Refuse a table of nothing."""
        super().__post_init__()
        object.__setattr__(self, "seeds", tuple(self.seeds))
        check(len(self.seeds) > 0, "seeds needs at least one number; try --seeds 0")
        check(len(set(self.seeds)) == len(self.seeds), f"seeds must differ, got {list(self.seeds)}")
        check(min(self.seeds) >= 0, f"seeds must be 0 or more, got {list(self.seeds)}")
        check(self.max_steps is None or self.max_steps > 0, f"max_steps must be above 0, got {self.max_steps}")


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
