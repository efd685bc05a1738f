"""Which windows of a grid have labels: for labels that are few and far between (``sampling: labelled``)."""

import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.data.reader import SceneReader, SceneReaders
from caswit.errors import DataError
from caswit.progress import Progress
from caswit.raster.windows import Window

log = logging.getLogger(__name__)
_PLACES = 8
"""Labelled pixels of a window that are remembered."""
_QUIET_BELOW = 1000
"""Fewer windows than this are read without showing progress."""


class LabelledWindows:
    """The windows of a grid that have a labelled pixel, and some of these pixels. All labels are read once.

    Args:
        opened: Readers of the scenes, with labels.
        grid: Scenes by number, and windows of them.
        split: Name of the split, for messages.

    Raises:
        DataError: No window has a label, or a file is broken.
    """

    def __init__(self, opened: SceneReaders, grid: Sequence[tuple[int, Window]], split: str) -> None:
        self.grid: list[tuple[int, Window]] = []
        places: list[NDArray[np.int64]] = []
        with Progress(f"labels of {split}", len(grid), "windows", quiet=len(grid) < _QUIET_BELOW) as progress:
            for scene, window in grid:
                try:
                    found = np.argwhere(_labelled(opened[scene], window))
                except DataError as error:
                    if not opened.dataset.skip_broken:
                        raise
                    log.warning("skipped: %s", error)
                    found = np.zeros((0, 2), np.int64)
                if len(found):
                    self.grid.append((scene, window))
                    chosen = found[np.linspace(0, len(found) - 1, _PLACES).astype(np.int64)]
                    places.append(chosen + np.array([window.row, window.col]))
                progress.advance(1)
        self.without = len(grid) - len(self.grid)
        """Windows that have no label."""
        if not self.grid:
            raise DataError(
                f"{opened.dataset.path}: no window of split {split} has a label that counts; "
                "look at them with caswit inspect"
            )
        self._places = np.stack(places)
        log.info("%d of %d windows of split %s have no label and are not drawn", self.without, len(grid), split)

    def draw(self, rng: np.random.Generator, bounds: Sequence[Window]) -> tuple[int, Window]:
        """Draw a window that holds a labelled pixel, anywhere around it: windows of the grid count alike.

        Args:
            rng: Draws.
            bounds: By scene, where windows may lie.
        """
        number = int(rng.integers(len(self.grid)))
        scene, tile = self.grid[number]
        pixel, whole = self._places[number, rng.integers(_PLACES)], bounds[scene]
        row, col = (
            int(np.clip(at - rng.integers(side), first, first + max(0, length - side)))
            for at, side, first, length in zip(pixel, tile[2:], whole[:2], whole[2:], strict=True)
        )
        return scene, Window(row, col, tile.height, tile.width)


def _labelled(scene: SceneReader, window: Window) -> NDArray[np.bool_]:
    """Return which pixels of a window have a label: (H, W)."""
    valid = np.ones((window.height, window.width), bool)
    labelled = scene.labels(window, valid) != IGNORE_INDEX
    # The image is read only where it can matter, which is where it has no data.
    return labelled & scene.region(window).valid if labelled.any() else labelled
