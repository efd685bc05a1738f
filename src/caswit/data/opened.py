"""Scenes that stay open between samples: a mosaic of a region is parsed once for all that is read of it meanwhile."""

from collections import OrderedDict
from collections.abc import Sequence

from caswit.data.samples import OpenScene
from caswit.data.scene import Dataset, Scene

MAX_OPEN = 64
"""Scenes that a worker keeps open. Of a mosaic's files GDAL holds a bounded number itself."""


class OpenScenes:
    """Scenes by number, those read last kept open. For one process: a forked one must begin with ``forget``.

    Args:
        dataset: How they are read.
        scenes: Which ones.
        labels: Read their labels too.
    """

    def __init__(self, dataset: Dataset, scenes: Sequence[Scene], *, labels: bool = True) -> None:
        self.dataset, self.scenes = dataset, scenes
        self.classes = dataset.classes if labels else None
        self._open: OrderedDict[int, OpenScene] = OrderedDict()

    def __getitem__(self, number: int) -> OpenScene:
        """The scene, open until ``MAX_OPEN`` others were read.

        Raises:
            DataError: As ``OpenScene``.
        """
        if number not in self._open:
            if len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            opened = OpenScene(self.scenes[number], self.classes, self.dataset.bands, self.dataset.gsd_m)
            self._open[number] = opened
        self._open.move_to_end(number)
        return self._open[number]

    def forget(self) -> None:
        """Let go of open files without closing them: they may belong to the process that this one was forked from."""
        self._open = OrderedDict()
