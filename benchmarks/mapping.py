"""Print what mapping costs beside the network: ratios of runs in alternation, medians of several rounds.

python benchmarks/mapping.py path            # a network that costs nothing, against copying the raster
python benchmarks/mapping.py network         # nano on the CPU, against the bare network on tiles in memory
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import rasterio
import torch

from caswit.config import PredictConfig
from caswit.mapping import blocks as mapping_blocks
from caswit.mapping.run import predict
from caswit.raster.reader import bounded_cache
from caswit.weights.model_folder import load_model
from common.drawn import orthophoto, random_model

CLASSES = 5


def copy(image: Path, out: Path, side: int) -> float:
    """Return the seconds that rasterio needs to copy the raster block by block to the same compression."""
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
        best = torch.zeros(CLASSES)
        best[0] = 1
        return best.view(1, -1, 1, 1).expand(len(tile), -1, *tile.shape[2:])


def timed(*args: object) -> float:
    """Return the seconds of a map."""
    started_s = time.perf_counter()
    predict(*args)  # type: ignore[arg-type]
    return time.perf_counter() - started_s


def path(folder: Path, side: int, rounds: int) -> None:
    """Compare the whole path around a network that costs nothing with a copy of the raster."""
    image, model = orthophoto(folder / "image.tif", side), random_model(folder)
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
    """Compare mapping with nano to the bare network."""
    image, model = orthophoto(folder / "image.tif", side), random_model(folder)
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


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["path", "network"])
    parser.add_argument("--side", type=int, help="pixels; default 8192, network 2048")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    side = given.side or {"path": 8192, "network": 2048}[given.what]
    with tempfile.TemporaryDirectory() as work:
        {"path": path, "network": network}[given.what](Path(work), side, given.rounds)
