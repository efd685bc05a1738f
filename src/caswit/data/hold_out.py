"""Keep back a part of the training scenes for validation, where a dataset has no split for it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from caswit.data.dataset import Dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import DataError, brief
from caswit.raster.windows import Window

T = TypeVar("T")


def hold_out(dataset: Dataset, share: float, *, train_split: str, val_split: str) -> Dataset:
    """Return the dataset with about a share of its training scenes, in 0..1, as the validation split.

    Where there are enough scenes, every n-th becomes one of validation; else every n-th area of a scene that has as
    many (such as a mosaic of patches), or the end of its longer side, so that both parts are as wide as can be.

    Raises:
        DataError: The dataset has the validation split already, or no training scenes with labels.
    """
    if any(scene.split == val_split for scene in dataset.scenes):
        raise DataError(
            f"{dataset.path}: has a split {brief(val_split)}; leave out data.hold_out, or name another data.val_split"
        )
    train = dataset.split(train_split)
    every = round(1 / share)
    if len(train) >= every:
        kept = {id(scene) for scene in _every(train, every)}
        scenes = tuple(replace(s, split=val_split) if id(s) in kept else s for s in dataset.scenes)
        return replace(dataset, scenes=scenes)
    others = tuple(scene for scene in dataset.scenes if scene.split != train_split)
    parts = [part for scene in train for part in _cut(dataset, scene, share, val_split)]
    return replace(dataset, scenes=(*parts, *others))


def _cut(dataset: Dataset, scene: Scene, share: float, val_split: str) -> tuple[Scene, Scene]:
    """Return the training part and the validation part of a scene."""
    areas, every = scene.areas or (), round(1 / share)
    if len(areas) >= every:
        kept = _every(areas, every)
        rest = tuple(area for area in areas if area not in kept)
        return replace(scene, areas=rest), replace(scene, areas=tuple(kept), split=val_split)
    if areas:
        cuts = [_halved(area, share) for area in areas]
    else:
        with open_dataset_scene(dataset.read_at(None), scene) as opened:
            cuts = [_halved(opened.raster, share)]
    first, last = zip(*cuts, strict=True)
    return replace(scene, areas=tuple(first)), replace(scene, areas=tuple(last), split=val_split)


def _halved(area: Window, share: float) -> tuple[Window, Window]:
    """Return the beginning of a rectangle along its longer side, and a share of it at the end."""
    row, col, height, width = area
    if height >= width:
        end = max(1, round(share * height))
        return Window(row, col, height - end, width), Window(row + height - end, col, end, width)
    end = max(1, round(share * width))
    return Window(row, col, height, width - end), Window(row, col + width - end, height, end)


def _every(items: Sequence[T], every: int) -> Sequence[T]:
    """Return every n-th, beginning in the middle of the first n: neighbours in a list are often so on the ground."""
    return items[every // 2 :: every]
