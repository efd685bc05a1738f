"""DeepGlobe land cover: satellite images of 2448 px at 0.5 m beside masks in the colours of seven classes.

The 803 images of its folder ``land-train`` (``train`` elsewhere) have labels; those of its validation and test folders
were never published, so papers divide the 803.
"""

from collections.abc import Iterator
from pathlib import Path

from caswit.config import DeepGlobeSource
from caswit.data.sources.found import Found
from caswit.data.sources.public import Splits, in_order, joined, listing, paired
from caswit.data.sources.published_splits import DEEPGLOBE
from caswit.errors import DataError


def find(source: DeepGlobeSource) -> Found:
    """Return one scene per image; those of folders without masks are unlabelled.

    Raises:
        DataError: There is no image and mask, or a list of a split is wrong.
    """
    root = Path(source.root)
    splits = Splits(source.splits, _papers)
    found, unlabelled = [], []
    for images, masks in _folders(root):
        if masks:
            # Masks are meant to be read with a threshold at 128: some values are not pure 0 or 255.
            suffixes = "_sat", "_mask"
            found.append(paired(images, masks, splits, "train", suffixes=suffixes, label_values="near_colors"))
        else:
            unlabelled += images
    if not found:
        raise DataError(
            f"{root}: does not look like DeepGlobe land cover, which has NUMBER_sat.jpg and NUMBER_mask.png in "
            f"land-train/, train/ or here; {listing(root)}"
        )
    return joined(root, found, splits, unlabelled=unlabelled)


def _folders(root: Path) -> Iterator[tuple[list[Path], list[Path]]]:
    """Yield images and masks of the root and of each of its folders; the archive unpacks to land-train/land-train."""
    for folder in (root, *sorted(f for pattern in ("*", "*/*") for f in root.glob(pattern) if f.is_dir())):
        images, masks = in_order(folder, "*_sat.jpg"), in_order(folder, "*_mask.png")
        if images or masks:
            yield images, masks


def _papers(name: str, _: str) -> str:
    return DEEPGLOBE.get(name, "train")
