"""Inria Aerial Image Labeling: buildings in images of 5000 px at 0.3 m, of five cities; five others without labels."""

import re
from pathlib import Path

from caswit.config import InriaSource
from caswit.data.sources.found import Found
from caswit.data.sources.public import Splits, in_order, joined, paired, unpacked
from caswit.data.sources.published_splits import INRIA

_OFFICIAL_VAL = 5
"""The dataset's authors suggest the first five images of each city for validation."""


def find(source: InriaSource) -> Found:
    """Return one scene per image; those of ``test/images`` are unlabelled.

    Raises:
        DataError: The folders are not there, or a list of a split is wrong.
    """
    root = Path(source.root)
    home = unpacked(root, "AerialImageDataset", ("train/images", "train/gt"), "Inria Aerial Image Labeling")
    splits = Splits(source.splits, _official if source.splits == "official" else _papers)
    images, masks = (in_order(home / "train" / kind, "*.tif") for kind in ("images", "gt"))
    found = paired(images, masks, splits, "train", label_values="ids")
    return joined(root, [found], splits, unlabelled=in_order(home / "test" / "images", "*.tif"))


def _papers(name: str, _: str) -> str:
    return INRIA.get(name, "train")


def _official(name: str, _: str) -> str:
    number = re.search(r"\d+$", name)
    return "val" if number and int(number[0]) <= _OFFICIAL_VAL else "train"
