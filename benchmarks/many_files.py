"""Memory and seconds of opening a mosaic of as many files as SWISSIMAGE has, cut into sheets and as one list of files.

python benchmarks/many_files.py FOLDER [WINDOWS]

FOLDER gets 42,025 GeoTIFFs of one kilometre, links to one that has a header and no pixels, if they are not there. Each
line is a process of its own, which opens the mosaic and reads random windows of 2048 px. GDAL's cache is kept at 16 MB,
so that what grows is the mosaic.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import rasterio

from caswit.raster import vrt
from caswit.raster.reader import Raster
from caswit.raster.windows import Window

SIDE, KM_PX = 205, 10_000
WINDOW_PX = 2048


def main(folder: Path, windows: int) -> None:
    """Write both mosaics, then read each in a new process."""
    files = make_files(folder / "files")
    parts = [vrt.Part(str(file), Window(row * KM_PX, col * KM_PX, KM_PX, KM_PX)) for (row, col), file in files.items()]
    size, where = (SIDE * KM_PX, SIDE * KM_PX), {"transform": (0.1, 0, 2.5e6, 0, -0.1, 1.2e6), "crs": "EPSG:2056"}
    for name, per_side in (("list", SIDE), ("sheets", vrt.SHEET_PARTS)):
        began_s = time.perf_counter()
        vrt.SHEET_PARTS = per_side
        written = vrt.mosaic_files(name, parts, size, bands=3, **where)
        for file, xml in written.items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(xml)
        print(f"{name}: {len(written)} files, written in {time.perf_counter() - began_s:.1f} s", flush=True)
        command = [sys.executable, __file__, str(folder / f"{name}.vrt"), str(windows), "read"]
        subprocess.run(command, check=True, env={**os.environ, "GDAL_CACHEMAX": "16"})


def make_files(folder: Path) -> dict[tuple[int, int], Path]:
    """Make the kilometres, by row and column."""
    one = folder / "one.tif"
    if not one.exists():
        folder.mkdir(parents=True)
        blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
        shape = {"count": 3, "height": KM_PX, "width": KM_PX, "dtype": "uint8"}
        where = {"crs": "EPSG:2056", "transform": rasterio.Affine(0.1, 0, 2.5e6, 0, -0.1, 1.2e6)}
        rasterio.open(one, "w", driver="GTiff", **shape, **where, **blocks).close()
    files = {(row, col): folder / f"{row}-{col}.tif" for row in range(SIDE) for col in range(SIDE)}
    for file in files.values():
        if not file.is_symlink():
            file.symlink_to(one.name)
    return files


def read(path: str, windows: int) -> None:
    """Open a mosaic, read random windows, and print seconds and memory."""
    before = resident_mb()
    began_s = time.perf_counter()
    with Raster(path) as raster:
        opened_s, opened = time.perf_counter() - began_s, resident_mb()
        rng, times = np.random.default_rng(0), []
        for _ in range(windows):
            row, col = (int(at) for at in rng.integers(0, SIDE * KM_PX - WINDOW_PX, 2))
            began_s = time.process_time()
            raster.read_image(Window(row, col, WINDOW_PX, WINDOW_PX))
            times.append(time.process_time() - began_s)
        after = resident_mb()
    print(
        f"  opened in {opened_s:.2f} s and {opened - before:.0f} MB; after {windows} windows {after - before:.0f} MB; "
        f"a window takes {1000 * float(np.median(times)):.1f} ms of a core"
    )


def resident_mb() -> float:
    """Return the memory that this process holds (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    if sys.argv[3:] == ["read"]:
        read(sys.argv[1], int(sys.argv[2]))
    else:
        main(Path(sys.argv[1]), int((sys.argv[2:] or ["500"])[0]))
