"""A contestant of ``contestants.py`` in a process of its own, which says its seconds and its peak memory.

The process is this module: it prints a line when it is ready, and a measurement for every line that it reads.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common.clock import peak_mb
from common.contestants import inference, prepare, training


class Process:
    """A contestant in a process of its own.

    Args:
        name: One of ``INFERENCE``, or of ``TRAINING`` with ``train``, which takes training steps.
        size: Size of the network; ``batch`` tiles of ``side`` pixels make a run.
        models: Folder of the files that some contestants read; they are written first where they are missing.
    """

    def __init__(self, name: str, size: str, batch: int, *, side: int, models: Path, train: bool) -> None:
        what = {"name": name, "size": size, "batch": batch, "side": side, "models": str(models), "train": train}
        words = [sys.executable, "-m", "common.process", json.dumps(what)]
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        if not train:
            subprocess.run([*words, "prepare"], check=True, stderr=subprocess.DEVNULL, env=environment)
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(words, env=environment, **pipes)
        self.ready = self._line()
        self.rows: list[dict[str, float]] = []

    def run(self) -> None:
        """Measure once more."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.rows.append(self._line())

    def _line(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended early")
        return json.loads(line)  # type: ignore[no-any-return]

    def median(self, what: str) -> float:
        """Return the median of a measurement over the runs: ``wall``, ``cpu`` or ``peak``."""
        return statistics.median(row[what] for row in self.rows)

    def end(self) -> None:
        """Close its input, upon which it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def main(name: str, size: str, batch: int, side: int, models: str, train: bool) -> None:
    """Be the process: write what the contestant reads, or run it once for every line of the input."""
    before = peak_mb()
    if sys.argv[2:] == ["prepare"]:
        prepare(name, size, side, Path(models))
        return
    began = time.perf_counter()
    run = training(name, size, batch, side) if train else inference(name, size, batch, side, Path(models))
    run()
    first = time.perf_counter() - began
    print(json.dumps({"first": first, "before": before}), flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        row = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": peak_mb()}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
