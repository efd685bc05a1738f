"""Print what docs/scaling.md calculates with: seconds of a core per tile and per pixel, and bytes of parts.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py IMAGE MAP [CONFIDENCE] [--sizes nano base] [--rounds 3]

IMAGE is any image of at least 2048 x 2048 px, MAP what caswit predict made of a real one, CONFIDENCE beside it. One
thread; seconds of a core (processor time), since those hold on a busy machine too; medians. Prints a table.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import rasterio.shutil
import torch
from rasterio.errors import NotGeoreferencedWarning

from caswit.config import ModelConfig
from caswit.inference.devices import autocast
from caswit.nn.caswit import CASWiT
from caswit.raster.cog import PlacedPart, assemble, encode_part
from caswit.raster.georef import Grid
from caswit.raster.reader import Raster, UInt8, bounded_cache
from caswit.raster.vrt import Band
from caswit.raster.windows import Window

BLOCK_PX = 4096
FORMATS = {
    "GeoTIFF, uncompressed": {"driver": "GTiff", "tiled": True},
    "GeoTIFF, deflate": {"driver": "GTiff", "tiled": True, "compress": "deflate", "predictor": 2},
    "GeoTIFF, JPEG 90": dict(driver="GTiff", tiled=True, compress="jpeg", photometric="ycbcr", jpeg_quality=90),  # noqa: C408
    "JPEG 2000, lossy": {"driver": "JP2OpenJPEG", "quality": 20},
}


def core_s(work: Callable[[], object], rounds: int) -> float:
    """Return the median seconds of a core."""
    taken_s = []
    for _ in range(rounds):
        started_s = time.process_time()
        work()
        taken_s.append(time.process_time() - started_s)
    return statistics.median(taken_s)


def tiles(sizes: list[str], rounds: int) -> None:
    """Print the seconds of the bare network on one tile of 512 px and its context, 15 classes."""
    hr, context = (torch.randint(0, 256, (1, 3, 512, 512), dtype=torch.uint8) for _ in range(2))
    for size in sizes:
        network = CASWiT(num_classes=15, size=ModelConfig(size=size).size).eval()  # type: ignore[arg-type]
        for name, bf16 in (("fp32", False), ("bf16", True)):
            with torch.inference_mode(), autocast(torch.device("cpu"), bf16):
                network(hr, context)
                print(
                    f"| {size}, one tile, {name} | {core_s(lambda n=network: n(hr, context), rounds):.3f} s |",
                    flush=True,
                )


def reading(image: Path, folder: Path, rounds: int) -> None:
    """Print the megapixels (three bands) that a core reads in a second, in windows of 2048 px."""
    with rasterio.open(image) as src:
        pixels = src.read([1, 2, 3], window=rasterio.windows.Window(0, 0, 2048, 2048))
    for name, options in FORMATS.items():
        file = folder / ("image.jp2" if "JP2" in options["driver"] else "image.tif")
        with rasterio.MemoryFile() as memory:
            with memory.open(driver="GTiff", count=3, dtype="uint8", height=2048, width=2048) as dst:
                dst.write(pixels)
            rasterio.shutil.copy(memory.name, file, **options)

        def read(file: Path = file) -> None:
            with bounded_cache(), Raster(file) as raster:
                raster.read_image(Window(0, 0, 2048, 2048))

        rate = 2048**2 / 1e6 / core_s(read, rounds)
        print(f"| reading, {name}, {file.stat().st_size / 2048**2:.2f} byte per pixel | {rate:.1f} Mpx/s |", flush=True)


def writing(values: UInt8, valid: int, name: str, folder: Path, rounds: int) -> None:
    """Print what parts of a map of (H, W) values, repeated to 4 x 4 blocks, and the file made from them cost."""
    repeats = [-(-BLOCK_PX // n) for n in values.shape]
    block = np.tile(values, repeats)[None, :BLOCK_PX, :BLOCK_PX]
    share = valid / values.size
    print(f"| {name}: part | {len(encode_part(block)) / block.size / share:.3f} byte per pixel with data |")
    print(f"| {name}: encoding a part | {block.size / 1e6 / core_s(lambda: encode_part(block), rounds):.0f} Mpx/s |")
    (folder / "part.tif").write_bytes(encode_part(block))
    side = 4 * BLOCK_PX
    grid = Grid(side, side, None, rasterio.Affine.identity(), ([], None))
    places = [
        Window(row, col, BLOCK_PX, BLOCK_PX) for row in range(0, side, BLOCK_PX) for col in range(0, side, BLOCK_PX)
    ]
    parts = [PlacedPart(window, folder / "part.tif") for window in places]
    band = Band(source=1, name=name, palette={1: (0, 0, 0)} if name == "map" else {})
    out = folder / "whole.tif"
    assembly_s = core_s(lambda: assemble(out, folder, grid, parts, [band], {}), 1)
    print(f"| {name}: putting {side} x {side} px together | {side**2 / 1e6 / assembly_s:.1f} Mpx/s |")
    print(f"| {name}: file | {out.stat().st_size / side**2 / share:.3f} byte per pixel with data |", flush=True)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", type=Path)
    parser.add_argument("map", type=Path)
    parser.add_argument("confidence", type=Path, nargs="?")
    parser.add_argument("--sizes", nargs="*", default=["nano", "base"])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    print("| what | of one core |\n|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, file in (("map", options.map), ("confidence", options.confidence)):
            if file is not None:
                with rasterio.open(file) as src:
                    values = src.read(1)
                writing(values, int((values != 255).sum()), kind, folder, options.rounds)
        reading(options.image, folder, options.rounds)
    tiles(options.sizes, options.rounds)


if __name__ == "__main__":
    main()
