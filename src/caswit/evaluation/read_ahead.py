"""Blocks of scenes with their pixels and labels, read in processes ahead of the network.

What is read does not depend on who reads it, and blocks come in the order in which they are asked for: with any number
of workers the network sees the same batches, and counts are the same to the pixel.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from caswit.config import ContextFactor
from caswit.data.dataset import Dataset
from caswit.data.loader import Loader, begin_worker
from caswit.data.reader import SceneReader, SceneReaders
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.inference.predictor import BlockPixels, read_block
from caswit.raster.reader import UInt8
from caswit.raster.windows import Block

_AHEAD = 2
"""Blocks that each worker may hold."""
Job = tuple[int, Block]
"""The number of a scene, and a block of it."""


class ReadBlock(NamedTuple):
    """A block and what was read for it."""

    scene: int
    block: Block
    pixels: BlockPixels | None
    """None where a file is missing or broken."""
    truth: UInt8 | None
    """(H, W) class indices of the native pixels that the block owns, IGNORE_INDEX without label or data."""
    error: str = ""


class LabelledBlocks(TorchDataset[ReadBlock]):
    """Reads blocks of labelled scenes.

    Args:
        dataset: Its class table and bands apply.
        scenes: The scenes; their place here is their number.
        context_factor: Of the network, or those of its contexts; 1 reads no context.
        workers: Processes that read ahead, each up to two blocks; 0 reads in this process when a block is asked for.
    """

    def __init__(
        self, dataset: Dataset, scenes: Sequence[Scene], context_factor: ContextFactor, workers: int = 0
    ) -> None:
        self.dataset, self.scenes, self.context_factor, self.workers = dataset, scenes, context_factor, workers
        self._opened = SceneReaders(dataset, scenes)

    def opened(self, scene: int) -> SceneReader:
        """Return the reader of a scene in this process."""
        return self._opened[scene]

    def __getitem__(self, job: Job) -> ReadBlock:
        """Read a block; an error is part of the answer, for it may concern one tile of many."""
        scene, block = job
        try:
            pixels = read_block(self._opened[scene], block, self.context_factor)
            return ReadBlock(scene, block, pixels, self._opened[scene].native_labels(pixels.native, pixels.valid))
        except DataError as error:
            return ReadBlock(scene, block, None, None, str(error))

    def read(self, jobs: Iterable[Job]) -> Iterator[ReadBlock]:
        """Read blocks in the order of ``jobs``, which are listed while blocks are read.

        Raises:
            DataError: A worker was killed, as where there is not enough memory.
        """
        loader: Loader[ReadBlock] = Loader(
            self,
            batch_size=None,
            sampler=cast(Sampler[Job], jobs),
            num_workers=self.workers,
            prefetch_factor=_AHEAD if self.workers else None,
            # Tensors lie in memory that processes share; arrays would be written through a pipe.
            collate_fn=_with_tensors if self.workers else _as_it_is,
            generator=torch.Generator(),  # else the loader draws from the global one, which trainings repeat from
            worker_init_fn=self._begin if self.workers else None,
        )
        for read in loader:
            yield _with_arrays(read) if self.workers else read

    def _begin(self, worker: int) -> None:
        self._opened.forget()  # files that this process was forked with are not its own
        begin_worker(worker)


def _as_it_is(read: Any) -> Any:
    return read


def _with_tensors(read: Any) -> Any:
    return _changed(read, lambda array: torch.from_numpy(np.require(array, requirements=["C", "W"])))


def _with_arrays(read: ReadBlock) -> ReadBlock:
    return _changed(read, lambda tensor: tensor.numpy())


def _changed(read: ReadBlock, change: Callable[[Any], Any]) -> ReadBlock:
    if read.pixels is None:
        return read
    region, native, valid = read.pixels
    region = region._replace(image=change(region.image), valid=change(region.valid))
    return read._replace(pixels=BlockPixels(region, native, change(valid)), truth=change(read.truth))
