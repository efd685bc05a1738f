"""Settings of the data: the sources that a dataset.yaml may name."""

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from caswit.config.checks import check
from caswit.errors import brief

Neighbours = Literal["any", "same_split"]
LabelValues = Literal["auto", "ids", "colors", "near_colors", "binary", "mask255"]


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
    image_suffix: str = ""
    """Ending of the names of images, before the extension: _sat for a_sat.jpg. Rasters without it are no images."""
    label_suffix: str = ""
    """Ending of the names of masks, before the extension: _label for a.tif and a_label.tif, _mask for a_mask.png."""
    split: str = "train"
    """Split of the scenes where folders do not say it."""
    label_values: LabelValues = "auto"
    """ids: masks hold class ids; colors: the colours of the class table; near_colors: the nearest of these, off by up
    to 127 in each band; binary: 0 is the class with id 0, every other value the other class; mask255: 255 is, and no
    other value is allowed; auto: ids in one band, or mask255 where labels of two classes hold 0 and 255 alone, colors
    in three or four bands."""

    def __post_init__(self) -> None:
        """Refuse label values that do not exist."""
        _check_choice("label_values", self.label_values, LabelValues)


@dataclass(frozen=True, kw_only=True)
class InriaSource:
    """Inria Aerial Image Labeling as downloaded: five cities with labels, five without."""

    root: str
    """Folder that holds train/images, train/gt and perhaps test/images; or the one that holds AerialImageDataset/."""
    splits: Literal["papers", "official"] | dict[str, str] = "papers"
    """papers: the 126, 27 and 27 images that papers on large images use; official: images 1 to 5 of each city are val,
    the others train; or {train: A.txt, val: B.txt, test: C.txt}, files with a name in each line."""


@dataclass(frozen=True, kw_only=True)
class DeepGlobeSource:
    """DeepGlobe land cover as downloaded: NUMBER_sat.jpg, and NUMBER_mask.png where there is a label."""

    root: str
    """Folder of the images and masks, or of the folders that hold them: land-train or train, and so on."""
    splits: Literal["papers"] | dict[str, str] = "papers"
    """papers: the lists that papers use, of 454, 207 and 142 images; or {train: A.txt, val: B.txt, test: C.txt}, files
    with a name in each line."""


@dataclass(frozen=True, kw_only=True)
class IsicSource:
    """ISIC 2018, task 1 (outlines of skin lesions), as downloaded."""

    root: str
    """Folder that holds ISIC2018_Task1-2_Training_Input, ISIC2018_Task1_Training_GroundTruth and so on."""
    splits: Literal["tenths", "official"] | dict[str, str] = "tenths"
    """tenths: of the training images those whose number ends in 8 are val, in 9 test; official: training, validation
    and test images of the challenge; or {train: A.txt, val: B.txt, test: C.txt}, files with a name in each line."""


@dataclass(frozen=True, kw_only=True)
class CragSource:
    """CRAG, glands in colon tissue, as downloaded: masks hold a number for each gland."""

    root: str
    """Folder that holds train/ and valid/ (or test/), with Images/ and Annotation/; or the one that holds CRAG/."""
    splits: Literal["official"] | dict[str, str] = "official"
    """official: by folder, 173 images in train and 40 in test; or {val: A.txt}, files with a name in each line, for
    some or all splits."""


SourceConfig = (
    FlairHubSource
    | UrurSource
    | SwissimageSource
    | FolderSource
    | InriaSource
    | DeepGlobeSource
    | IsicSource
    | CragSource
)
SOURCES: dict[str, type[SourceConfig]] = {
    "flair_hub": FlairHubSource,
    "urur": UrurSource,
    "swissimage": SwissimageSource,
    "folder": FolderSource,
    "inria": InriaSource,
    "deepglobe": DeepGlobeSource,
    "isic": IsicSource,
    "crag": CragSource,
}
"""Settings of each source by its name, the ``kind`` in ``source: {kind: ...}``."""


def attribute_text(value: Any) -> str:
    """Return a value of an attribute as it is compared, from a YAML or a vector file: 3, 3.0 and "3" are the same."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case float() if not math.isfinite(value):
            return "null"
        case float() if value.is_integer():
            return str(int(value))
    return str(value)


def _check_choice(name: str, value: object, choices: object) -> None:
    allowed = get_args(choices)
    check(value in allowed, f"{name} must be one of {', '.join(allowed)}, got {brief(value)}")
