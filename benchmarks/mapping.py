"""What mapping costs beside the network. Ratios of runs side by side; medians of several rounds.

python benchmarks/mapping.py path            # a network that costs nothing, against copying the raster
python benchmarks/mapping.py network         # nano on the CPU, against the bare network on tiles in memory
python benchmarks/mapping.py memory          # resident memory, from 10k x 10k to 200k x 200k sparse pixels
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch

from caswit.config import ModelConfig, PredictConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.mapping import blocks as mapping_blocks
from caswit.mapping.run import predict
from caswit.raster.reader import bounded_cache
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model

CLASSES = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#808080") for i in range(1, 6)))


def make_model(folder: Path, tile_px: int = 512) -> Path:
    """A nano model with random weights."""
    info = ModelInfo(model=ModelConfig(size="nano"), tile=TileConfig(tile_px=tile_px), classes=CLASSES)
    torch.manual_seed(0)
    save_model(build(info), info, folder / "model")
    return folder / "model"


def make_image(file: Path, side: int, *, sparse: bool = False) -> Path:
    """A picture that compresses about like an orthophoto; sparse: four filled places, holes elsewhere."""
    profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "tiled": True, "compress": "deflate", "nodata": 0}
    where = {"crs": "EPSG:2154", "transform": rasterio.Affine(0.2, 0, 700_000, 0, -0.2, 6_600_000)}
    rng = np.random.default_rng(0)
    step = 1024
    with rasterio.open(
        file, "w", width=side, height=side, **profile, **where, blockxsize=512, blockysize=512, sparse_ok=True,
        bigtiff="yes", num_threads="all_cpus",
    ) as dst:  # fmt: skip
        places = [(r, c) for r in range(0, side, step) for c in range(0, side, step)]
        for row, col in [places[i * (len(places) - 1) // 3] for i in range(4)] if sparse else places:
            height, width = min(step, side - row), min(step, side - col)
            rough = rng.integers(40, 200, (3, height // 16 + 1, width // 16 + 1)).repeat(16, 1).repeat(16, 2)
            noise = rng.integers(0, 24, (3, height, width))
            pixels = (rough[:, :height, :width] + noise).astype(np.uint8)
            dst.write(pixels, window=rasterio.windows.Window(col, row, width, height))
    return file


def copy(image: Path, out: Path, side: int) -> float:
    """Seconds that rasterio needs to copy the raster block by block to the same compression."""
    started_s = time.perf_counter()
    with bounded_cache(), rasterio.open(image) as src:
        profile = {**src.profile, "num_threads": "all_cpus"}
        with rasterio.open(out, "w", **profile) as dst:
            for row in range(0, src.height, side):
                for col in range(0, src.width, side):
                    window = rasterio.windows.Window(col, row, min(side, src.width - col), min(side, src.height - row))
                    dst.write(src.read(window=window), window=window)
    return time.perf_counter() - started_s


class Free(torch.nn.Module):
    """A network that costs nothing: always the first class."""

    reads_context = True

    def forward(self, tile: torch.Tensor, _context: torch.Tensor) -> torch.Tensor:
        """(B, K, T, T)."""
        best = torch.zeros(len(CLASSES))
        best[0] = 1
        return best.view(1, -1, 1, 1).expand(len(tile), -1, *tile.shape[2:])


def timed(*args: object) -> float:
    """Seconds of a map."""
    started_s = time.perf_counter()
    predict(*args)  # type: ignore[arg-type]
    return time.perf_counter() - started_s


def path(folder: Path, side: int, rounds: int) -> None:
    """The whole path around a network that costs nothing."""
    image, model = make_image(folder / "image.tif", side), make_model(folder)
    original = mapping_blocks.load_predictor

    def free(*args: object) -> object:
        found = original(*args)  # type: ignore[arg-type]
        found.network = Free()  # type: ignore[assignment]
        return found

    mapping_blocks.load_predictor = free  # type: ignore[assignment]
    for overlap_px in (128, 0):
        settings = PredictConfig(precision="fp32", overlap_px=overlap_px, block_px=2048)
        found = []
        for _ in range(rounds):
            copied_s = copy(image, folder / "copy.tif", 2048)
            mapped_s = timed(image, folder / "map.tif", model, settings)
            found.append((mapped_s / copied_s, copied_s, mapped_s))
        ratio, copied_s, mapped_s = map(statistics.median, zip(*found, strict=True))
        print(f"overlap {overlap_px}: copy {copied_s:.2f} s, map {mapped_s:.2f} s, ratio {ratio:.2f}")


def network(folder: Path, side: int, rounds: int) -> None:
    """Nano, around and bare."""
    image, model = make_image(folder / "image.tif", side), make_model(folder)
    loaded = load_model(model)
    tiles = (side // 512) ** 2
    hr = torch.randint(0, 256, (4, 3, 512, 512), dtype=torch.uint8)
    found = []
    for _ in range(rounds):
        started_s = time.perf_counter()
        with torch.inference_mode():
            for _ in range(tiles // 4):
                loaded.network(hr, hr)
        bare_s = time.perf_counter() - started_s
        settings = PredictConfig(precision="fp32", overlap_px=0, block_px=1024)
        mapped_s = timed(image, folder / "map.tif", model, settings)
        found.append((mapped_s / bare_s, bare_s, mapped_s))
    ratio, bare_s, mapped_s = map(statistics.median, zip(*found, strict=True))
    print(f"{tiles} tiles: bare {bare_s:.2f} s, map {mapped_s:.2f} s, ratio {ratio:.3f}")


MEASURED = """
import resource, sys, time
from pathlib import Path
from caswit.config import OutputConfig, PredictConfig
from caswit.mapping.run import predict
image, model, out = sys.argv[1:]
started_s = time.perf_counter()
predict(image, Path(out), Path(model), PredictConfig(), OutputConfig(confidence=out + ".c.tif", vector=out + ".gpkg"))
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
print(f"{time.perf_counter() - started_s:.0f} s, peak {peak_mb} MB")
"""


def memory(folder: Path, side: int, _rounds: int) -> None:
    """Peak resident memory of a process per size, with confidence and polygons."""
    model = make_model(folder)
    for length in (side, 5 * side, 20 * side):
        image = make_image(folder / f"{length}.tif", length, sparse=True)
        command = [sys.executable, "-c", MEASURED, str(image), str(model), str(folder / f"map{length}.tif")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(f"{length} x {length}: {done.stdout.strip()}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["path", "network", "memory"])
    parser.add_argument("--side", type=int, help="pixels; default 8192, network 2048, memory 10000")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    side = given.side or {"path": 8192, "network": 2048, "memory": 10_000}[given.what]
    work = Path(tempfile.mkdtemp())
    try:
        {"path": path, "network": network, "memory": memory}[given.what](work, side, given.rounds)
    finally:
        shutil.rmtree(work)
