"""The Ray cluster that maps blocks: one that runs, or one on this machine for one run."""

import logging
import os
import signal
import socket
import threading
from typing import Any, NamedTuple

import psutil
import ray
from ray.exceptions import RayError

from caswit.config import MapRunConfig
from caswit.errors import ConfigError

_ANSWER_S = 5.0
"""Seconds that the address of a cluster may take to answer."""
_STORE_BYTES = 100 * 2**20
"""Size of Ray's shared memory: only the plan, windows and names go through it, no pixels."""


class WorkerAllocation(NamedTuple):
    """The share of a cluster that a run takes."""

    workers: int
    resources: dict[str, float]
    """Resources of each worker, as Ray calls them."""
    threads: int
    """Threads of torch in each worker."""


def connect(run: MapRunConfig) -> bool:
    """Connect this process to a cluster, or start one on this machine.

    Returns:
        Whether it was not connected before.

    Raises:
        ConfigError: There is none at the address.
    """
    if ray.is_initialized():
        return False
    address = run.address or os.environ.get("RAY_ADDRESS")
    place: dict[str, Any] = {"address": address} if address else _this_machine(run)
    if address:
        check_answers(address)
    main = threading.current_thread() is threading.main_thread()
    on_termination = signal.getsignal(signal.SIGTERM) if main else None
    try:
        ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, RayError, ValueError) as error:
        raise ConfigError(_no_cluster(address, " ".join(str(error).split())[:200])) from error
    except SystemExit as end:  # Ray ends its own process where something else than Ray answers
        if address is None:
            raise
        raise ConfigError(_no_cluster(address, "what answers there is not one")) from end
    finally:
        if main:
            signal.signal(signal.SIGTERM, on_termination)  # Ray sets its own
    return True


def _this_machine(run: MapRunConfig) -> dict[str, Any]:
    """Describe a cluster for this run alone, as large as this machine unless more workers are asked for."""
    process = psutil.Process()
    cores = len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else psutil.cpu_count()  # none on macOS
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    return {
        "address": "local",
        "num_cpus": max(cores, (run.workers or 1) * min(run.worker_cpus, cores)),
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        # Ray lets everything else on the machine go first, and ends workers when others take the memory.
        "_system_config": {"worker_niceness": 0, "memory_monitor_refresh_ms": 0},
    }


def check_answers(address: str) -> None:
    """Raise ConfigError unless something answers at HOST:PORT; Ray would try for two minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if address == "auto":
        return
    if not (colon and host and port.isdecimal()):
        raise ConfigError(f"address must be HOST:PORT of a Ray cluster, or auto, got {address}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(_no_cluster(address, str(error))) from error


def _no_cluster(address: str | None, why: str) -> str:
    if address is None:
        return f"Ray cannot start on this machine ({why})"
    return f"no Ray cluster at {address} ({why}); start one there with: ray start --head --port PORT"


def allocate_workers(run: MapRunConfig, device: str) -> WorkerAllocation:
    """Decide on the workers: one per GPU, or one per ``worker_cpus`` cores of a machine.

    Args:
        run: The number of workers that was asked for, and their cores.
        device: Device on which the network is to compute.

    Raises:
        ConfigError: The cluster is too small.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    cores, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
    each = max(1, min(run.worker_cpus, max(cores)))
    if sum(gpus) and device in ("auto", "cuda"):
        most, resources, what = sum(gpus), {"num_cpus": 1.0, "num_gpus": 1.0}, "a GPU"
    else:
        most, resources, what = sum(n // each for n in cores), {"num_cpus": float(each)}, f"{each} cores"
    if (run.workers or 1) > most:
        raise ConfigError(
            f"{run.workers or 1} workers with {what} each do not fit into the cluster ({len(nodes)} machines, "
            f"{sum(cores)} cores, {sum(gpus)} GPUs): {most} do; try fewer --workers or --worker-cpus"
        )
    return WorkerAllocation(run.workers or most, resources, each)
