"""From the command to the map: caswit predict as a new process, with the models of the package.

python benchmarks/first_map.py [--side 1024] [--repeat 5] [--caswit .venv/bin/caswit]

The whole map is an upper bound of the time to the first tile, which is not seen from outside. The first run on a
machine also compiles Python's files and fills the disk's cache; it is printed apart.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import rasterio


def draw(folder: Path, side: int) -> dict[str, list[str]]:
    """A GeoTIFF and a JPEG of patches, and the words that map each."""
    rng = np.random.default_rng(0)
    patches = rng.integers(30, 226, (3, side // 16 + 1, side // 16 + 1), np.uint8)
    pixels = patches.repeat(16, 1).repeat(16, 2)[:, :side, :side]
    shape = {"count": 3, "height": side, "width": side, "dtype": "uint8"}
    place = {"crs": "EPSG:32645", "transform": rasterio.Affine(0.15, 0, 350_000, 0, -0.15, 3_060_000)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, options in (("ortho.tif", place), ("photo.jpg", {})):
            driver = "GTiff" if name.endswith("tif") else "JPEG"
            with rasterio.open(folder / name, "w", driver=driver, **shape, **options) as file:
                file.write(pixels)
    return {"ortho.tif": [], "photo.jpg": ["--gsd-m", "1"]}


def main() -> None:
    """Print the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--caswit", default=str(Path(sys.executable).with_name("caswit")))
    given = parser.parse_args()
    print(f"| image, {given.side} x {given.side} px | first run | median of the next {given.repeat} |\n|---|---:|---:|")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, words in draw(folder, given.side).items():
            times = []
            for _ in range(given.repeat + 1):
                out = folder / "map.tif"
                began = time.perf_counter()
                subprocess.run([given.caswit, "predict", folder / name, out, *words], check=True, capture_output=True)
                times.append(time.perf_counter() - began)
                out.unlink()
            print(f"| {name} | {times[0]:.1f} s | {statistics.median(times[1:]):.1f} s |")


if __name__ == "__main__":
    main()
