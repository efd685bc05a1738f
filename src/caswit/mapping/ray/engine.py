"""Blocks on a Ray cluster: workers hold the open images and the model, the driver keeps the journal.

A worker writes a finished part into the folder of parts, which all machines share, under a name that means nothing; the
driver, which holds the lock of that folder, renames it. So a worker that outlives its run can do no harm. Ray restarts
nothing: a worker that dies gives its blocks back, and another is started in its place, wherever there is room.
"""

import logging
import signal
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError

from caswit import __version__
from caswit.errors import ConfigError
from caswit.mapping.journal import Journal
from caswit.mapping.local import Outcome
from caswit.mapping.plan import MapPlan, PlannedBlock
from caswit.mapping.ray.cluster import allocate_workers, connect
from caswit.mapping.worker import BlockResult, Worker, WorkerInfo, finish
from caswit.raster.reader import is_remote
from caswit.weights.model_folder import LoadedModel

log = logging.getLogger(__name__)

_AT_ONCE = 2
"""Blocks sent to a worker: while it computes one, it reads the next."""
_DEATHS = 4
"""Workers that may die over one block, or die in a row while they start."""
_PATIENCE_S = 60.0
"""Seconds to wait for a first worker before saying so."""


class RayEngine:
    """Maps blocks on workers: one per GPU, or one per ``worker_cpus`` cores. Begins with those that have started.

    Args:
        plan: The plan of the map; its ``run`` says which cluster, and how many workers.
        loaded: The plan's model, as the driver sees it.

    Raises:
        ConfigError: There is no cluster, it is too small, or a worker cannot use images or model.
    """

    def __init__(self, plan: MapPlan, loaded: LoadedModel) -> None:
        self._digest = loaded.digest + loaded.config_digest
        self.precision = ""  # what all workers compute in: that of the first to start
        self._starting: dict[Any, Any] = {}
        self._ready: dict[Any, WorkerInfo] = {}
        self._free: deque[Any] = deque()
        self._failed_starts = 0
        self._ours = connect(plan.run)
        try:
            allocation = allocate_workers(plan.run, plan.settings.device)
            # Ray itself would retry for ever a block that kills its worker, and wait for ever for a machine that is
            # gone: retrying is ours (docs/decisions/0007).
            limits = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": _AT_ONCE}
            self._new = ray.remote(**allocation.resources, **limits, scheduling_strategy="SPREAD")(Worker).remote
            self._arguments = ray.put(_anywhere(plan)), allocation.threads
            for _ in range(allocation.workers):
                self._start()
            # The first worker tells the precision, which the manifest has to state before the first block.
            while not self._ready:
                self._join(self._wait([*self._starting]))
        except BaseException:
            self._leave()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    @property
    def processes(self) -> list[int]:
        """The workers' process numbers, on their machines."""
        return [info.process for info in self._ready.values()]

    def run(self, todo: Iterable[PlannedBlock], journal: Journal) -> Iterator[Outcome]:
        """Map blocks; the driver finishes them as they come."""
        waiting, deaths = deque(todo), Counter[int]()
        sent: dict[Any, tuple[PlannedBlock, Any]] = {}
        while waiting or sent:
            while waiting and self._free:
                planned, worker = waiting.popleft(), self._free.popleft()
                task = worker.block.remote(planned.window, planned.number, journal.folder)
                sent[task] = planned, worker
            task = self._wait([*sent, *self._starting])
            if task in self._starting:
                self._join(task)
                continue
            planned, worker = sent.pop(task)
            try:
                result: BlockResult = ray.get(task)
            # Workers return expected errors. An exception is a bug of ours, which any other worker would hit too.
            except RayTaskError:
                raise
            except RayError as error:
                # The worker's other block, perhaps an innocent one, counts a death too: so the limit is above one.
                deaths[planned.number] += 1
                if deaths[planned.number] >= _DEATHS:
                    raise _deadly(error) from error
                self._replace(worker)
                waiting.appendleft(planned)
                continue
            # A worker may be lost although one of its results still came.
            if worker in self._ready:
                self._free.append(worker)
            info = self._ready.get(worker)
            yield finish(journal, planned, result, info.host if info else "a worker's machine")

    def _start(self) -> None:
        worker = self._new(*self._arguments)
        self._starting[worker.prepare.remote()] = worker

    def _join(self, task: Any) -> None:
        """Take a worker in that has started, or start another."""
        worker = self._starting.pop(task)
        try:
            info: WorkerInfo = ray.get(task)
        except RayError as error:
            self._failed_starts += 1
            if self._failed_starts >= _DEATHS:
                raise ConfigError(
                    f"workers of the cluster cannot start ({_last_line(error)}); ray status says what is free"
                ) from error
            self._start()
            return
        self._check(info)
        self._failed_starts, self.precision = 0, info.precision
        self._ready[worker] = info
        # Listed once for each block that it may hold.
        self._free.extend([worker] * _AT_ONCE)

    def _check(self, info: WorkerInfo) -> None:
        # A map has one source: a worker with other weights or another precision would make blocks that do not fit.
        if info.error is not None:
            raise ConfigError(
                f"on {info.host}: {info.error} (all machines must see images and model under the same names)"
            ) from info.error
        if info.version != __version__:
            raise ConfigError(f"{info.host} has caswit {info.version}, this machine {__version__}; install the same")
        if info.digest != self._digest:
            raise ConfigError(f"{info.host} has another model in the model folder than this machine; copy them there")
        if self.precision not in ("", info.precision):
            raise ConfigError(
                f"{info.host} computes in {info.precision}, others in {self.precision}; add --precision fp32"
            )

    def _replace(self, worker: Any) -> None:
        """Start another worker for one that died; its other block comes back by itself."""
        if worker in self._ready:
            log.warning("a worker on %s was lost; its blocks go to others", self._ready[worker].host)
            del self._ready[worker]
            self._free = deque(free for free in self._free if free is not worker)
            # It may live on where only the network broke; what it still writes is never adopted.
            ray.kill(worker)
            self._start()

    def _wait(self, tasks: list[Any]) -> Any:
        """Wait for the first of some tasks to end and return it."""
        try:
            ended, _ = ray.wait(tasks, timeout=None if self._ready else _PATIENCE_S)
            if not ended:
                log.warning("still waiting for a worker: it starts slowly, or all places in the cluster are taken")
                ended, _ = ray.wait(tasks)
        except SystemExit as end:  # what the command does on SIGTERM; Ray turns its status into 1
            raise SystemExit(128 + signal.SIGTERM) from end
        return ended[0]

    def _leave(self) -> None:
        if self._ours:
            ray.shutdown()
        else:
            for worker in [*self._ready, *self._starting.values()]:
                ray.kill(worker)


def _anywhere(plan: MapPlan) -> MapPlan:
    """Return the plan with names that do not depend on the folder in which a process works."""
    sources = tuple(s if is_remote(s.path) else s._replace(path=str(Path(s.path).absolute())) for s in plan.sources)
    model = str(Path(plan.model).absolute()) if Path(plan.model).exists() else plan.model  # or a name that all know
    return replace(plan, sources=sources, model=model)


def _deadly(error: RayError) -> ConfigError:
    return ConfigError(
        f"{_DEATHS} workers died over the same block ({_last_line(error)}); if memory ran out, "
        "try a smaller --block-px or --batch, or fewer --workers; the same call goes on from here"
    )


def _last_line(error: RayError) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
