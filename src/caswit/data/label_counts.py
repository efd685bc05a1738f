"""How much of each class the training tiles have, and what follows from it: weights of classes, draws of tiles.

Shapes: N tiles, K classes.
"""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.data.reader import SceneReaders
from caswit.errors import DataError
from caswit.progress import Progress
from caswit.raster.windows import Window

log = logging.getLogger(__name__)

TileCounts = NDArray[np.int64]
"""(N, K): labelled pixels of each class in each tile."""
_QUIET_BELOW = 500
"""Fewer tiles than this are counted without showing progress."""


def count_labels(opened: SceneReaders, tiles: Sequence[tuple[int, Window]]) -> TileCounts:
    """Count the pixels of each class in tiles: (N, K).

    Labels alone are read: pixels whose image is nodata count as labelled.

    Args:
        opened: Scenes with labels.
        tiles: Number of the scene among these, and a window in pixels that are read.

    Raises:
        DataError: A label is broken; with ``skip_broken`` its tiles count 0.
    """
    dataset = opened.dataset
    counts = np.zeros((len(tiles), len(dataset.classes)), np.int64)
    with Progress("count labels", len(tiles), "tile", quiet=len(tiles) < _QUIET_BELOW) as progress:
        for number, (scene, window) in enumerate(tiles):
            try:
                labels = opened[scene].labels(window, np.ones((window.height, window.width), bool))
            except DataError:
                if not dataset.skip_broken:
                    raise
                continue
            counts[number] = np.bincount(labels[labels != IGNORE_INDEX], minlength=counts.shape[1])
            progress.advance(1)
    return counts


def median_frequencies(counts: TileCounts) -> tuple[float, ...]:
    """Return class weights (K,) by median frequency balancing (Eigen and Fergus, arXiv 1411.4734, section 6.3.2).

    The frequency of a class is its share of the labelled pixels of the tiles that have it; its weight is the median of
    all frequencies over its own. A class without a pixel weighs 1: nothing is learned of it in any case.
    """
    pixels, present = counts.sum(1), counts > 0
    around = (present * pixels[:, None]).sum(0)
    frequencies = np.divide(counts.sum(0), around, out=np.zeros(len(around)), where=around > 0)
    found = frequencies > 0
    median = float(np.median(frequencies[found])) if found.any() else 1.0
    return tuple(np.divide(median, frequencies, out=np.ones(len(around)), where=found).tolist())


class ClassDraws:
    """Draws of tiles in which every class comes first as often: a class, then a tile that has it, by its pixels.

    Args:
        counts: (N, K), with at least one labelled pixel.
    """

    def __init__(self, counts: TileCounts) -> None:
        # Of each class that occurs: the tiles that have it, and the running sum of its pixels over them.
        self._tiles = [np.flatnonzero(column) for column in counts.T if column.any()]
        self._sums = [np.cumsum(column[column > 0]) for column in counts.T if column.any()]
        assert self._tiles, "no labelled pixel"

    def draw(self, rng: np.random.Generator) -> int:
        """Return the number of a tile."""
        which = int(rng.integers(len(self._tiles)))
        pixel = rng.integers(self._sums[which][-1])
        return int(self._tiles[which][np.searchsorted(self._sums[which], pixel, side="right")])
