"""ISIC 2018, task 1: outlines of skin lesions in dermoscopic pictures of many sizes, without a ground size."""

from pathlib import Path

from caswit.config import IsicSource
from caswit.data.sources.found import Found
from caswit.data.sources.public import Splits, in_order, joined, paired, unpacked

_FOLDERS = {"train": "Training", "val": "Validation", "test": "Test"}
_TENTHS = {"8": "val", "9": "test"}
"""Split by the last digit of the number: about the shares of 2077, 260 and 259 images that papers use.

Their own lists are not in a public repository. A rule by number holds for each image alone, whichever others are there.
"""


def find(source: IsicSource) -> Found:
    """Return one scene per image: of the training images, or of all three sets where the official split is asked for.

    Raises:
        DataError: The folders are not there, or a list of a split is wrong.
    """
    root = Path(source.root)
    wanted = _FOLDERS if source.splits == "official" else {"train": "Training"}
    splits = Splits(source.splits, _official if source.splits == "official" else _tenths)
    found = []
    for split, word in wanted.items():
        folders = f"ISIC2018_Task1-2_{word}_Input", f"ISIC2018_Task1_{word}_GroundTruth"
        home = unpacked(root, "ISIC2018", folders, f"ISIC 2018 task 1 with its {word.lower()} images")
        images, masks = in_order(home / folders[0], "*.jpg"), in_order(home / folders[1], "*_segmentation.png")
        found.append(paired(images, masks, splits, split, suffixes=("", "_segmentation"), label_values="ids"))
    return joined(root, found, splits)


def _official(_: str, folders: str) -> str:
    return folders


def _tenths(name: str, _: str) -> str:
    return _TENTHS.get(name[-1], "train")
