"""A folder of images and masks, paired by name."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from caswit.config import FolderSource
from caswit.data.scene import Scene
from caswit.data.sources.found import Found
from caswit.errors import DataError

_RASTERS = (".tif", ".tiff", ".jpg", ".jpeg", ".png")
_IMAGES = ("images", "image", "imgs", "img")
_LABELS = ("labels", "label", "masks", "mask", "gt")
UNLABELLED = "unlabelled"


class _Pair(NamedTuple):
    """A folder of images, the folder of their masks, and the split of both."""

    images: Path
    labels: Path
    split: str


def find(source: FolderSource) -> Found:
    """Return one scene per image; those without a mask are unlabelled.

    Raises:
        DataError: There are no images, or two masks have one image.
    """
    root = Path(source.root)
    scenes, broken = [], []
    for pair in _pairs(source, root):
        together = pair.images == pair.labels
        masks: dict[str, Path] = {}
        for mask in _rasters(pair.labels):
            if together and not _is_mask(mask, source):
                continue
            name = mask.stem.removesuffix(source.label_suffix)
            if name in masks:
                raise DataError(f"{mask}: has the same name as {masks[name].name}; which one is the mask of {name}?")
            masks[name] = mask
        images = [i for i in _rasters(pair.images) if not (together and _is_mask(i, source))]
        for image in (i for i in images if i.stem.endswith(source.image_suffix)):
            label = masks.pop(image.stem.removesuffix(source.image_suffix), None)
            split = pair.split if label else UNLABELLED
            scenes.append(Scene(image=image, label=label, split=split, label_values=source.label_values))
        broken += [
            f"{mask}: no such image {pair.images / name}{source.image_suffix}.*, this is its mask"
            for name, mask in masks.items()
        ]
    if not scenes and source.image_suffix and broken:
        raise DataError(f"{root}: no image has a name that ends in image_suffix: {source.image_suffix}; {broken[0]}")
    if not scenes:
        raise DataError(
            f"{root}: no images; put {', '.join(_RASTERS)} into {root}/images and their masks into {root}/labels, "
            "or name the folders: source: {..., images: A, labels: B}"
        )
    return Found(tuple(scenes), tuple(broken))


def _is_mask(file: Path, source: FolderSource) -> bool:
    """Return whether a file that lies among images and masks is a mask, by the suffixes."""
    if source.label_suffix:
        return file.stem.endswith(source.label_suffix)
    return not file.stem.endswith(source.image_suffix)


def _pairs(source: FolderSource, root: Path) -> Iterator[_Pair]:
    image_names = (source.images,) if source.images else _IMAGES
    label_names = (source.labels,) if source.labels else _LABELS
    images, labels = _first(root, image_names), _first(root, label_names)
    suffixes = source.image_suffix or source.label_suffix  # without any, masks cannot lie beside their images
    folders = sorted(f for f in root.iterdir() if f.is_dir())
    if suffixes and images is None and any(_rasters(f) for f in (root, *folders)):
        yield from _beside(source, root)
        return
    if images is not None:
        splits = sorted(folder.name for folder in images.iterdir() if folder.is_dir())
        beside = labels or (images if suffixes else root / label_names[0])
        for split in splits:
            yield _Pair(images / split, beside / split, split)
        if not splits or any(_rasters(images)):
            yield _Pair(images, beside, source.split)
        return
    for folder in folders:
        inner = _first(folder, image_names)
        if inner is not None:
            labels = _first(folder, label_names) or (inner if suffixes else folder / label_names[0])
            yield _Pair(inner, labels, folder.name)


def _beside(source: FolderSource, root: Path) -> Iterator[_Pair]:
    """Yield folders in which masks lie beside their images: the root, or one folder for each split."""
    for folder in sorted(f for f in root.iterdir() if f.is_dir()):
        yield _Pair(folder, folder, folder.name)
    yield _Pair(root, root, source.split)


def _first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _rasters(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in _RASTERS) if folder.is_dir() else []
