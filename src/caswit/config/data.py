"""Settings of the data: the sources that a dataset.yaml may name."""

from dataclasses import dataclass
from typing import Literal, get_args

from caswit.config.checks import check
from caswit.errors import brief

Neighbours = Literal["any", "same_split"]
LabelValues = Literal["auto", "ids", "colors"]


@dataclass(frozen=True, kw_only=True)
class FlairHubSource:
    """FLAIR-HUB as downloaded, after ``caswit prepare flair_hub ROOT``."""

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
    """Ending that a mask's name adds to its image's, before the extension: _label for a.tif and a_label.tif."""
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
"""Settings of each source by its name, the ``kind`` in ``source: {kind: ...}``."""


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    check(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {brief(value)}")
