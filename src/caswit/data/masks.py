"""Find masks of 0 and 255 among the label rasters of a dataset whose class table has another id than 255."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from caswit.data.classes import ClassTable
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.raster.reader import Raster
from caswit.raster.windows import Window, area_tiles, some_of

log = logging.getLogger(__name__)
_FILES = 32
_BLOCK_PX = 2048
_ENOUGH_PX = 1 << 28
"""Pixels after which no further file is looked at: those of a mask of 16,384 x 16,384, two seconds."""


def with_masks(classes: ClassTable, scenes: Sequence[Scene]) -> tuple[Scene, ...]:
    """Return the scenes, those whose masks hold 0 and 255 with ``label_values`` mask255.

    255 may stand for unknown too. It is taken for the class only where this is safe: there are two classes, one of id 0
    and none ignored, and the labels hold 255 and never the other class's own id, which would be a dataset in which
    nothing can be learned. A label that holds it all the same is refused when it is read.
    """
    scenes = tuple(scenes)
    names = [c for c in classes.predicted if 0 not in c.ids]
    if len(classes.classes) != 2 or len(classes) != 2 or len(names) != 1 or 255 in names[0].ids:
        return scenes
    # Of sources with a layout of their own it is known what masks hold.
    labels = dict.fromkeys(s.label for s in scenes if isinstance(s.label, Path) and _may_be_mask(s))
    if not labels or not _hold_0_and_255(list(labels)):
        return scenes
    log.info(
        "labels hold 0 and 255, never %s: 255 is read as %s (label_values: mask255; ids if it is something else)",
        " or ".join(map(str, names[0].ids)),
        names[0].name,
    )
    return tuple(replace(s, label_values="mask255") if _may_be_mask(s) else s for s in scenes)


def _may_be_mask(scene: Scene) -> bool:
    return isinstance(scene.label, Path) and scene.label_values == "auto" and not scene.checked


def _hold_0_and_255(files: Sequence[Path]) -> bool:
    """Return whether files, looked at one after another, hold 255 and no other value than it and 0."""
    looked_at, found = 0, False
    for file in some_of(files, _FILES):
        try:
            with Raster(file) as raster:
                if raster.count != 1:
                    continue
                for tile in area_tiles([Window(0, 0, raster.height, raster.width)], _BLOCK_PX):
                    values, known = raster.read_ids(tile.owned)
                    set_ = values[known & (values != 0)]
                    if (set_ != 255).any():
                        return False
                    found |= bool(set_.size)
                looked_at += raster.height * raster.width
        except DataError:
            continue  # it is named where it is read
        if looked_at >= _ENOUGH_PX:
            break
    return found
