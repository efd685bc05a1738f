"""A process of a cluster that maps blocks. It knows nothing of what calls it."""

import os
import socket
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from caswit import __version__
from caswit.errors import CaswitError, ConfigError, DataError
from caswit.mapping.blocks import BlockMapper, Job
from caswit.mapping.journal import write_loose
from caswit.raster.cog import encode_part
from caswit.raster.reader import bounded_cache
from caswit.raster.windows import Window
from caswit.weights.model_folder import load_model


class WorkerInfo(NamedTuple):
    """What a worker says of itself before its first block."""

    host: str
    process: int
    precision: str = ""
    digest: str = ""
    """Of its model's weights."""
    version: str = __version__
    error: CaswitError | None = None
    """Why it cannot work."""


class BlockResult(NamedTuple):
    """What a worker made of a block; empty where nothing is to be mapped."""

    written: str | None = None
    """Its part's file in the folder of parts."""
    unreadable: DataError | None = None
    failed: CaswitError | OSError | None = None


class Worker:
    """Lives in a process of the cluster; two threads call it.

    Args:
        job: What to map.
        threads: Of torch.
    """

    def __init__(self, job: Job, threads: int) -> None:
        torch.set_num_threads(threads)
        self._job = job
        self._reading, self._computing = threading.Lock(), threading.Lock()

    def prepare(self) -> WorkerInfo:
        """Open images and model."""
        host = socket.gethostname()
        try:
            loaded = load_model(self._job.model)
            self._mapper = BlockMapper(self._job, loaded)
        except CaswitError as error:
            return WorkerInfo(host, os.getpid(), error=error)
        return WorkerInfo(host, os.getpid(), self._mapper.precision, loaded.digest)

    def block(self, window: Window, number: int, folder: Path) -> BlockResult:
        """Map a block and write its part into the folder, for the driver to adopt."""
        block = self._mapper.block(window)
        with self._reading, bounded_cache():
            try:
                pixels = self._mapper.read(block)
            except DataError as error:
                return BlockResult(unreadable=error)
        if pixels is None:
            return BlockResult()
        with self._computing:
            values = self._mapper.compute(block, pixels)
        try:
            return BlockResult(write_loose(folder, number, encode_part(values)))
        except FileNotFoundError:
            return BlockResult(failed=not_shared(folder, f"is not on {socket.gethostname()}"))
        except (CaswitError, OSError) as error:
            return BlockResult(failed=error)


def not_shared(folder: Path, what: str) -> ConfigError:
    """The error of a folder of parts that not all machines see."""
    return ConfigError(
        f"{folder}: {what}; workers write finished blocks there, so OUT must lie in a folder that all machines share"
    )
