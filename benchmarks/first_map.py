"""Print the seconds from the command to the map: caswit predict as a new process, with models that come with it.

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
from pathlib import Path

from common.drawn import orthophoto

IMAGES = {"ortho.tif": [], "photo.jpg": ["--gsd-m", "1"]}
"""Images that are drawn, and the words that map each."""


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
        for name, words in IMAGES.items():
            orthophoto(folder / name, given.side, gsd_m=0.15)
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
