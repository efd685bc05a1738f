"""Folds of scenes for cross-validation: every scene is held out once, by the networks that did not learn from it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from caswit.data.scene import Scene
from caswit.errors import DataError

TRAIN, HELD_OUT = "train", "held_out"
"""Splits of a dataset that is one fold of another."""


def fold_scenes(scenes: Sequence[Scene], number: int, folds: int, where: str) -> tuple[Scene, ...]:
    """Return the scenes in splits ``train`` and, of this fold, ``held_out``.

    Images are dealt out in an order that depends on nothing but their number, so the folds of a dataset are always the
    same; their sizes differ by one image at most. An image that is listed twice, as in two splits, is in one fold.

    Args:
        scenes: In the order of the dataset.
        number: Of the fold, 1..folds.
        folds: Number of folds, at least 2.
        where: The file, for messages.

    Raises:
        DataError: There are fewer images than folds.
    """
    images = list(dict.fromkeys(scene.image for scene in scenes))
    if len(images) < folds:
        fewer = f"try {len(images)} folds" if len(images) > 1 else "label more scenes"
        raise DataError(f"{where}: {folds} folds need as many images with labels, got {len(images)}; {fewer}")
    held_out = {images[i] for i in np.random.default_rng(0).permutation(len(images))[number - 1 :: folds]}
    # An image that was in two splits is learned or scored once.
    kept: dict[tuple[object, ...], Scene] = {}
    for scene in scenes:
        kept.setdefault((scene.image, repr(scene.label), scene.areas), scene)
    return tuple(replace(scene, split=HELD_OUT if scene.image in held_out else TRAIN) for scene in kept.values())
