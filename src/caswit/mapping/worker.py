"""A process that maps blocks for another, on a cluster or on this machine. It imports nothing of Ray."""

import os
import socket
import threading
from pathlib import Path
from typing import NamedTuple

import torch

from caswit import __version__
from caswit.errors import CaswitError, ConfigError, DataError
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.journal import Journal, write_loose
from caswit.mapping.local import Outcome
from caswit.mapping.plan import MapPlan, PlannedBlock
from caswit.raster.cog import encode_part
from caswit.raster.windows import Window
from caswit.weights.model_folder import load_model


class WorkerInfo(NamedTuple):
    """The report of a worker on itself before its first block."""

    host: str
    process: int
    precision: str = ""
    digest: str = ""
    """Digests of its model: weights and config."""
    version: str = __version__
    error: CaswitError | None = None
    """Reason why the worker cannot work; None where it can."""


class BlockResult(NamedTuple):
    """The outcome of a block on a worker; all None where nothing is to be mapped."""

    written: str | None = None
    """Name of its part's file in the folder of parts."""
    unreadable: DataError | None = None
    """Error of reading the images of the block."""
    failed: CaswitError | OSError | None = None
    """Error of computing the block or of writing its part."""


class Worker:
    """Maps blocks in a process of its own; two or three threads call it.

    Args:
        plan: The plan of the map.
        threads: Threads that torch may use.
    """

    def __init__(self, plan: MapPlan, threads: int) -> None:
        torch.set_num_threads(threads)
        self._plan = plan
        # Several blocks at a time: one is read while another is computed, and a third fetched and written.
        self._reading, self._computing = threading.Lock(), threading.Lock()

    def prepare(self) -> WorkerInfo:
        """Open images and model."""
        host = socket.gethostname()
        try:
            loaded = load_model(self._plan.model)
            self._mapper = BlockMapper(self._plan, loaded)
        except CaswitError as error:
            return WorkerInfo(host, os.getpid(), error=error)
        return WorkerInfo(host, os.getpid(), self._mapper.precision, loaded.digest + loaded.config_digest)

    def block(self, window: Window, number: int, folder: Path) -> BlockResult:
        """Map a block and write its part into the folder, for the driver to adopt."""
        block = self._mapper.block(window)
        with self._reading:
            try:
                pixels = self._mapper.read(block)
            except DataError as error:
                return BlockResult(unreadable=error)
        if pixels is None:
            return BlockResult()
        try:
            with self._computing:
                begun = self._mapper.begin(block, pixels)
            mapped = begun()
            return BlockResult(write_loose(folder, number, encode_part(mapped.values, mapped.tags)))
        except FileNotFoundError:
            return BlockResult(failed=_not_shared(folder, f"is not on {socket.gethostname()}"))
        except (CaswitError, OSError) as error:
            return BlockResult(failed=error)


def finish(journal: Journal, planned: PlannedBlock, result: BlockResult, host: str = "this machine") -> Outcome:
    """Finish a block in the journal, in the process that holds it.

    Args:
        journal: The map's.
        planned: The block.
        result: What the worker made of it.
        host: The worker's machine, for messages.

    Raises:
        CaswitError: The worker could not compute the block, or wrote it where the journal is not.
        OSError: The worker could not write.
    """
    if result.failed is not None:
        raise result.failed
    if result.unreadable is not None:
        return Outcome(planned, result.unreadable)
    if result.written is None:
        journal.finish(planned.number, None)
        return Outcome(planned)
    try:
        journal.adopt(planned.number, result.written)
    except FileNotFoundError as error:
        raise _not_shared(journal.folder, f"is another folder on {host}") from error
    return Outcome(planned)


def _not_shared(folder: Path, what: str) -> ConfigError:
    """Return the error of a folder of parts that not all machines see."""
    return ConfigError(
        f"{folder}: {what}; workers write finished blocks there, so OUT must lie in a folder that all machines share"
    )
