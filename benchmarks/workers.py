"""Print how much faster two one-thread workers of a Ray cluster map than one, and than the engine without Ray.

    OMP_NUM_THREADS=1 python benchmarks/workers.py [--side 3072] [--rounds 5] [--size nano]

A network with random weights maps a drawn image, in fp32, in blocks of 512 px. Measured is the time over the blocks:
without starting the cluster and its workers, which takes seconds whatever the image, and without putting the map
together. Runs of the three alternate, so that what else the machine does hits all; the median of each counts. Prints a
table. Needs two free cores: on one, two workers are no faster than one.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from caswit.config import MapRunConfig, PredictConfig
from caswit.mapping.journal import Journal
from caswit.mapping.local import LocalEngine, Outcome
from caswit.mapping.plan import PlannedBlock
from caswit.mapping.ray.cluster import connect
from caswit.mapping.ray.engine import RayEngine
from caswit.mapping.run import predict
from common.drawn import orthophoto, random_model

SETTINGS = PredictConfig(precision="fp32", device="cpu", block_px=512, overlap_px=0)
ONE, TWO = (MapRunConfig(engine="ray", workers=count, worker_cpus=1, restart=True) for count in (1, 2))
RUNS = {"this process": MapRunConfig(restart=True), "one worker": ONE, "two workers": TWO}


def clocked(engine: type[LocalEngine] | type[RayEngine], taken_s: list[float]) -> None:
    """Let an engine note how long it is at its blocks, once every worker has started."""
    original = engine.run

    def run(self: LocalEngine | RayEngine, todo: Iterable[PlannedBlock], journal: Journal) -> Iterator[Outcome]:
        while isinstance(self, RayEngine) and self._starting:
            self._join(self._wait([*self._starting]))
        started_s = time.perf_counter()
        yield from original(self, todo, journal)  # type: ignore[arg-type]
        taken_s.append(time.perf_counter() - started_s)

    engine.run = run  # type: ignore[assignment]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=3072, help="pixels, a multiple of 512")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", default="nano")
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # Ray's own code
    torch.set_num_threads(1)
    taken_s: list[float] = []
    clocked(LocalEngine, taken_s)
    clocked(RayEngine, taken_s)
    connect(TWO)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        image, model = orthophoto(folder / "image.tif", options.side), random_model(folder, size=options.size)
        for _ in range(options.rounds):
            for run in RUNS.values():
                predict(image, folder / "map.tif", model, SETTINGS, run=run)
    medians = {label: statistics.median(taken_s[number :: len(RUNS)]) for number, label in enumerate(RUNS)}
    blocks = (options.side // 512) ** 2
    print(f"\n{options.size}, {blocks} blocks of 512 px, medians of {options.rounds} rounds\n")
    print("| who | seconds | Mpx/s | times one worker | fastest-slowest |\n|---|---:|---:|---:|---|")
    for number, (label, median_s) in enumerate(medians.items()):
        rounds = taken_s[number :: len(RUNS)]
        rate, ratio = options.side**2 / 1e6 / median_s, medians["one worker"] / median_s
        print(f"| {label} | {median_s:.2f} | {rate:.3f} | **{ratio:.2f}** | {min(rounds):.2f}-{max(rounds):.2f} s |")


if __name__ == "__main__":
    main()
