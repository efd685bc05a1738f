"""CRAG (MILD-Net): glands in pictures of colon tissue of about 1500 px; a mask numbers the glands from 1."""

from pathlib import Path

from caswit.config import CragSource
from caswit.data.sources.found import Found
from caswit.data.sources.public import Splits, in_order, joined, listing, paired, unpacked
from caswit.errors import DataError

_TESTS = "valid", "test"
"""The names that the folder of the 40 test images has; the images in it are called test_1.png and so on."""


def find(source: CragSource) -> Found:
    """Return one scene per image; every number but 0 is a gland.

    Raises:
        DataError: The folders are not there, or a list of a split is wrong.
    """
    root = Path(source.root)
    home = unpacked(root, "CRAG", ("train/Images",), "CRAG")
    splits = Splits(source.splits, lambda _, folders: folders)
    found = []
    for folder, split in (("train", "train"), *((name, "test") for name in _TESTS)):
        images = in_order(home / folder / "Images", "*.png")
        if not images:
            continue
        annotation = next((f for f in ("Annotation", "Annotations") if (home / folder / f).is_dir()), None)
        if annotation is None:
            raise DataError(f"{home / folder}: no folder Annotation beside Images; {listing(home / folder)}")
        masks = in_order(home / folder / annotation, "*.png")
        found.append(paired(images, masks, splits, split, label_values="binary"))
    return joined(root, found, splits)
