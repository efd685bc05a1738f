"""Blocks on several devices of this machine, one process for each (``--devices 0,1``).

As on a cluster, a process writes a finished part under a name that means nothing, and this process, which holds the
lock of the folder of parts, renames it. A process whose pipe closes ends: none outlives the run for long, and what it
still writes is litter.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Self

import torch

from caswit.errors import ConfigError
from caswit.mapping.journal import Journal
from caswit.mapping.local import Outcome
from caswit.mapping.plan import MapPlan, PlannedBlock
from caswit.mapping.worker import BlockResult, Worker, WorkerInfo, finish
from caswit.raster.windows import Window
from caswit.weights.model_folder import LoadedModel

log = logging.getLogger(__name__)
_AT_ONCE = 3
"""Blocks that a process holds: one is read, one is computed, one is written."""
_ENDS_S = 5.0
"""Seconds that a process has to end by itself."""


@dataclass(eq=False)
class _Mapper:
    """A process, and what it is at."""

    device: str
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    blocks: dict[int, PlannedBlock] = field(default_factory=dict)


class ProcessEngine:
    """Maps blocks in one process for each device; begins with those that have started.

    Args:
        plan: The plan of the map; ``run.devices`` names the devices.
        loaded: The plan's model, as this process sees it.

    Raises:
        ConfigError: A device cannot be used, or a process cannot use images or model.
    """

    def __init__(self, plan: MapPlan, loaded: LoadedModel) -> None:
        self._digest = loaded.digest + loaded.config_digest
        self.precision = ""
        devices = plan.run.device_names
        _check_there(devices)
        threads = max(1, _cores() // len(devices))
        self._mappers = [_start(plan, device, threads) for device in devices]
        try:
            # The first process tells the precision, which the manifest has to state before the first block.
            while not self.precision:
                self._receive()
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    @property
    def processes(self) -> list[int]:
        """The numbers of the processes."""
        return [mapper.process.pid for mapper in self._mappers if mapper.process.pid is not None]

    def run(self, todo: Iterable[PlannedBlock], journal: Journal) -> Iterator[Outcome]:
        """Map blocks; this process finishes them as they come."""
        waiting = deque(todo)
        while waiting or any(mapper.blocks for mapper in self._mappers):
            # One to each in turn, so that few blocks are shared out too.
            for held in range(_AT_ONCE):
                for mapper in self._mappers:
                    if waiting and mapper.ready and len(mapper.blocks) == held:
                        self._send(mapper, waiting.popleft(), journal.folder)
            results, lost = self._receive()
            waiting.extendleft(reversed(lost))
            for planned, result in results:
                yield finish(journal, planned, result)

    def _send(self, mapper: _Mapper, planned: PlannedBlock, folder: Path) -> None:
        mapper.blocks[planned.number] = planned
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended: ``_receive`` takes the block back
            mapper.pipe.send((planned.window, planned.number, folder))

    def _receive(self) -> tuple[list[tuple[PlannedBlock, BlockResult]], list[PlannedBlock]]:
        """Wait for processes; return the results of blocks, and the blocks of processes that ended."""
        results: list[tuple[PlannedBlock, BlockResult]] = []
        lost: list[PlannedBlock] = []
        by_pipe = {mapper.pipe: mapper for mapper in self._mappers}
        for pipe in wait([*by_pipe]):
            mapper = by_pipe[pipe]  # type: ignore[index]
            try:
                said = mapper.pipe.recv()
            except (EOFError, ConnectionResetError):
                lost += mapper.blocks.values()
                self._lose(mapper)
                continue
            if isinstance(said, WorkerInfo):
                self._check(mapper, said)
                mapper.ready, self.precision = True, said.precision
            elif isinstance(said, Exception):
                raise said
            else:
                number, result = said
                results.append((mapper.blocks.pop(number), result))
        return results, lost

    def _check(self, mapper: _Mapper, info: WorkerInfo) -> None:
        # A map has one source: a process with other weights or another precision would make blocks that do not fit.
        if info.error is not None:
            raise ConfigError(f"the process on {mapper.device} cannot work: {info.error}") from info.error
        if info.digest != self._digest:
            raise ConfigError("the model was written over while processes started; repeat the same call")
        if self.precision not in ("", info.precision):
            raise ConfigError(
                f"{mapper.device} computes in {info.precision}, other devices in {self.precision}; add --precision fp32"
            )

    def _lose(self, mapper: _Mapper) -> None:
        """Go on without a process that ended.

        Raises:
            ConfigError: It was the last one.
        """
        mapper.process.join()
        status = mapper.process.exitcode
        self._mappers.remove(mapper)
        mapper.pipe.close()
        if not self._mappers:
            raise ConfigError(
                f"the last of the processes of --devices, on {mapper.device}, was ended (status {status}); if memory "
                "ran out, try a smaller --block-px or --batch, or fewer --devices; the same call goes on from here"
            )
        log.warning("the process on %s was ended (status %s); its blocks go to others", mapper.device, status)

    def _end(self) -> None:
        for mapper in self._mappers:
            mapper.pipe.close()
            mapper.process.terminate()
        for mapper in self._mappers:
            mapper.process.join(_ENDS_S)
            if mapper.process.is_alive():
                mapper.process.kill()
                mapper.process.join()


def _check_there(devices: Sequence[str]) -> None:
    """Raise ConfigError if a GPU is not there, before processes start, which takes seconds."""
    count = torch.cuda.device_count()  # which takes no memory of a GPU
    for name in devices:
        kind, _, number = name.partition(":")
        if kind == "cuda" and int(number or 0) >= count:
            raise ConfigError(
                f"devices: there is no GPU {number or 0}, torch finds {count}; name others, or leave --devices out"
            )


def _cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(plan: MapPlan, device: str, threads: int) -> _Mapper:
    # Spawned, not forked: a process that used CUDA, or has threads, cannot be forked.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    here = replace(plan, settings=replace(plan.settings, device=device))
    process = context.Process(target=_work, args=(here, threads, theirs), name=f"caswit on {device}", daemon=True)
    process.start()
    theirs.close()  # or nobody would notice that the process ended
    return _Mapper(device, process, ours)


def _work(plan: MapPlan, threads: int, pipe: Connection) -> None:
    """Map blocks until the pipe closes; what a process of ``ProcessEngine`` does."""
    # Ctrl-C reaches every process of a terminal: the first one decides, and ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker(plan, threads)
    info = worker.prepare()
    pipe.send(info)
    if info.error is not None:
        return

    sending = threading.Lock()

    def block(window: Window, number: int, folder: Path) -> None:
        try:
            said: object = number, worker.block(window, number, folder)
        except Exception as error:  # a bug of ours, which any other process would hit too
            said = error
        with sending, suppress(OSError):  # nobody is there any more
            pipe.send(said)

    with ThreadPoolExecutor(_AT_ONCE) as threads_of_blocks:
        while True:
            try:
                job = pipe.recv()
            except (EOFError, ConnectionResetError):
                # The run ended, perhaps by a kill: what is computed here has no reader.
                os._exit(0)
            threads_of_blocks.submit(block, *job)
