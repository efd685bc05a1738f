"""Settings of the data: the sources a dataset.yaml may name, what a training reads, how its samples change."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check

Neighbours = Literal["any", "same_split"]
LabelValues = Literal["auto", "ids", "colors"]


@dataclass(frozen=True, kw_only=True)
class FlairHubSource:
    """FLAIR-HUB as downloaded, its zip files unpacked side by side."""

    root: str
    """Folder that holds D004-2021_AERIAL_RGBI/ and so on."""
    splits: str | dict[str, str] | None = None
    """A GeoPackage with the column split_flairhub, or {train: A.csv, val: B.csv, test: C.csv}; null: those in root."""
    neighbours: Neighbours = "any"
    """Patches that a tile's context may show: any (the paper), or those of the same split only."""

    def __post_init__(self) -> None:
        """Refuse neighbours that do not exist."""
        _check_choice("neighbours", self.neighbours, Neighbours)


@dataclass(frozen=True, kw_only=True)
class UrurSource:
    """URUR as downloaded, after ``caswit prepare urur ROOT``."""

    root: str
    """Folder that holds train/, val/ and test/, each with image/ and label/."""


@dataclass(frozen=True, kw_only=True)
class SwissimageSource:
    """SWISSIMAGE 10 cm: one-kilometre GeoTIFFs, without labels."""

    root: str
    """Folder searched with its sub-folders for swissimage-dop10_*_2056.tif."""
    split: str = "unlabelled"
    """Split that all scenes get."""


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """Images and masks paired by name."""

    root: str
    """Folder with images/ and labels/, with or without a folder for each split above or below them."""
    images: str | None = None
    """Name of the folders of images; null finds images, image, imgs, img."""
    labels: str | None = None
    """Name of the folders of masks; null finds labels, label, masks, mask, gt."""
    label_suffix: str = ""
    """What a mask's name has more than its image's, before the extension: _label for a.tif and a_label.tif."""
    split: str = "train"
    """Split of the scenes where folders do not say it."""
    label_values: LabelValues = "auto"
    """ids: masks hold class ids; colors: the colours of the class table; auto: by the number of bands."""

    def __post_init__(self) -> None:
        """Refuse label values that do not exist."""
        _check_choice("label_values", self.label_values, LabelValues)


SourceConfig = FlairHubSource | UrurSource | SwissimageSource | FolderSource
SOURCES: dict[str, type[SourceConfig]] = {
    "flair_hub": FlairHubSource,
    "urur": UrurSource,
    "swissimage": SwissimageSource,
    "folder": FolderSource,
}
"""What ``source: {kind: ...}`` may say."""


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    check(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What to train on."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    train_split: str = "train"
    """Split of the scenes to learn from."""
    val_split: str | None = "val"
    """Split of the scenes to validate on; null for none."""
    sampling: Literal["grid", "random"] = "grid"
    """grid: every tile of a fixed grid once an epoch (the paper); random: windows anywhere, scenes by area."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    label_fraction: float = 1.0
    """Share of the grid's training tiles whose labels are used; the seed says which. All other labels are ignored."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers, and to learn from nothing."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")
        check(
            0 < self.label_fraction <= 1,
            f"label_fraction must be above 0 and at most 1, got {self.label_fraction}; try 0.1",
        )


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Random changes to training samples, always the same for a tile and its context."""

    spatial: bool = False
    """One of the eight flips and quarter turns."""
    scale: float = 0.0
    """Read pixels whose ground size is larger or smaller by up to this share: 0.25 is 1 / 1.25 to 1.25 times."""
    brightness: float = 0.0
    """Add up to this share of 255, either way."""
    contrast: float = 0.0
    """Stretch around mid-grey by up to this share, either way."""
    gamma: float = 0.0
    """Raise to a power between 1 / (1 + gamma) and 1 + gamma."""
    tint: float = 0.0
    """Multiply each band by its own factor between 1 / (1 + tint) and 1 + tint: other cameras, haze, evening."""
    saturation: float = 0.0
    """Move colours towards grey, or away from it, by up to this share."""
    blur: float = 0.0
    """Blur every other sample with a Gaussian of up to so many pixels: softer cameras, enlarged images."""
    noise: float = 0.0
    """Add noise of a standard deviation up to this share of 255 to the tile."""
    context_dropout: float = 0.0
    """Share of samples whose surroundings are black, as around a small image."""

    def __post_init__(self) -> None:
        """Refuse strengths that would wipe out the image."""
        for name in ("brightness", "contrast", "saturation", "noise"):
            value = getattr(self, name)
            check(0 <= value < 1, f"{name} must be in [0, 1), got {value}; try {0.05 if name == 'noise' else 0.2}")
        check(0 <= self.context_dropout <= 1, f"context_dropout must be in [0, 1], got {self.context_dropout}; try 0.1")
        for name, most in (("scale", 3), ("gamma", 4), ("tint", 4), ("blur", 16)):
            value = getattr(self, name)
            check(0 <= value <= most, f"{name} must be in [0, {most}], got {value}; try 0.25")


@dataclass(frozen=True, kw_only=True)
class ImageryConfig:
    """What to learn from; labels are not read."""

    dataset: str
    """A dataset.yaml; $NAME in the path is taken from the environment."""
    splits: tuple[str, ...] = ()
    """Splits of the scenes to learn from; [] takes every scene, labelled or not."""
    sampling: Literal["grid", "random"] = "grid"
    """grid: every tile of a fixed grid once an epoch; random: windows anywhere, scenes by area."""
    workers: int = 0
    """Processes that read samples beside the training process; 0 reads in the training process."""
    skip_broken: bool = False
    """Leave out files that are missing or broken, and list them."""

    def __post_init__(self) -> None:
        """Refuse a negative number of workers."""
        check(self.workers >= 0, f"workers must be 0 or more, got {self.workers}")
