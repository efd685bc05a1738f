"""Seconds and megabytes: runs of several contestants in alternation, the peak of a process, the machine's name."""

import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

from caswit.inference.devices import resident_mb as peak_mb

__all__ = ["alternate", "peak_mb", "processor", "versions"]


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of every run. Contestants take turns, so that other work on the machine hits all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            began_s = clock()
            run()
            seconds[name].append(clock() - began_s)
    return seconds


def processor() -> str:
    """Return the name of the machine's processor."""
    found = Path("/proc/cpuinfo")
    if not found.is_file():
        return platform.processor()
    return next(x.split(":")[1].strip() for x in found.read_text().splitlines() if x.startswith("model name"))


def versions() -> str:
    """Return the versions of the libraries that ``speed.py`` compares."""
    names = ("torch", "openvino", "transformers", "timm", "segmentation-models-pytorch")
    return ", ".join(f"{name} {version(name)}" for name in names)
