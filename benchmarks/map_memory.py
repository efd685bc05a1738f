"""Print the peak memory of a process that maps rasters of 1, 5 and 20 times a side, with confidence and polygons.

python benchmarks/map_memory.py [--side 10000]

Four places of each raster are filled, the rest are holes, so that 200,000 x 200,000 px fit on a disk. Each map is made
by a process of its own, which this program starts with --map.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from caswit.config import OutputConfig, PredictConfig
from caswit.mapping.run import predict
from common.clock import peak_mb
from common.drawn import orthophoto, random_model


def map_once(image: Path, model: Path, out: Path) -> None:
    """Map, then print seconds and the peak of this process."""
    began_s = time.perf_counter()
    predict(image, out, model, PredictConfig(), OutputConfig(confidence=f"{out}.c.tif", vector=f"{out}.gpkg"))
    print(f"{time.perf_counter() - began_s:.0f} s, peak {peak_mb():.0f} MB")


def main(side: int) -> None:
    """Print a line for each size."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(folder)
        for length in (side, 5 * side, 20 * side):
            image = orthophoto(folder / f"{length}.tif", length, sparse=True)
            words = [sys.executable, __file__, "--map", image, model, folder / f"map{length}.tif"]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            print(f"{length} x {length}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=10_000, help="pixels of the smallest raster")
    parser.add_argument("--map", type=Path, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    map_once(*given.map) if given.map else main(given.side)
