"""Two one-thread workers of a Ray cluster on this machine, beside one, beside the engine of this process.

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

import numpy as np
import rasterio
import torch

from caswit.config import MapRunConfig, ModelConfig, PredictConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.mapping.journal import Journal
from caswit.mapping.local import LocalEngine, Outcome
from caswit.mapping.plan import PlannedBlock
from caswit.mapping.ray.cluster import connect
from caswit.mapping.ray.engine import RayEngine
from caswit.mapping.run import predict
from caswit.weights.model_folder import ModelInfo, build, save_model

SETTINGS = PredictConfig(precision="fp32", device="cpu", block_px=512, overlap_px=0)
ONE, TWO = (MapRunConfig(engine="ray", workers=count, worker_cpus=1, restart=True) for count in (1, 2))
RUNS = {"this process": MapRunConfig(restart=True), "one worker": ONE, "two workers": TWO}


def make_model(folder: Path, size: str) -> Path:
    """A model with random weights."""
    classes = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#808080") for i in range(1, 6)))
    info = ModelInfo(model=ModelConfig(size=size), tile=TileConfig(tile_px=512), classes=classes)
    torch.manual_seed(0)
    save_model(build(info), info, folder / "model")
    return folder / "model"


def make_image(folder: Path, side: int) -> Path:
    """A picture that compresses about like an orthophoto."""
    rng = np.random.default_rng(0)
    rough = rng.integers(40, 200, (3, side // 16, side // 16)).repeat(16, 1).repeat(16, 2)
    pixels = (rough + rng.integers(0, 24, rough.shape)).astype(np.uint8)
    layout = {
        "tiled": True,
        "compress": "deflate",
        "crs": "EPSG:2154",
        "transform": rasterio.Affine(0.2, 0, 0, 0, -0.2, 0),
    }
    with rasterio.open(
        folder / "image.tif", "w", driver="GTiff", count=3, dtype="uint8", height=side, width=side, **layout
    ) as dst:
        dst.write(pixels)
    return folder / "image.tif"


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
        image, model = make_image(folder, options.side), make_model(folder, options.size)
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
