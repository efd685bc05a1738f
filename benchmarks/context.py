"""Milliseconds of processor time to read one training sample, by the width of its context; and a tile of `predict`.

python benchmarks/context.py DATASET [GSD_M SAMPLES]

Random windows of 256 px in the training scenes of a dataset.yaml, read at GSD_M metres (0.4; 0 reads native pixels),
labels included, by one thread: pixel by pixel, and out of levels (``caswit.data.levels``), which are made before. Both
take turns; the first round fills GDAL's cache and is not counted. ``scaled`` samples are read 1.2 times as coarse, as
``train.augment.scale`` does, and have no levels. $GDAL_CACHEMAX sets the cache, whose 256 MB hold small scenes whole.

Of `predict`: the tiles of a block, overlapping by a quarter, their contexts averaged one by one and together.
"""

import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReader, open_dataset_scene
from caswit.inference.predictor import read_block
from caswit.raster.windows import Window, block_at, block_windows

TILE_PX, ROUNDS, BLOCK_PX = 256, 5, 4096
Way = Callable[[], float]


def main(path: str, gsd_m: float = 0.4, samples: int = 8) -> None:
    """Print medians over rounds."""
    dataset = load_dataset(path).read_at(gsd_m or None)
    scenes = [scene for scene in dataset.scenes if scene.split != "val"]
    plain, kept = ([open_dataset_scene(dataset, scene) for scene in scenes] for _ in range(2))
    for scene in plain:
        scene.levels = None
    print("| factor | pixel by pixel, ms | out of levels, ms | times | samples a second | scaled, ms |")
    print("|---|---:|---:|---:|---:|---:|")
    for factor in (1, 2, 4, 8):
        make(kept, factor)
        coarser = [scene.scaled(1.2) for scene in plain]
        before, after, scaled = in_turn(*(samples_of(some, factor, samples) for some in (plain, kept, coarser)))
        speeds = f"{1e3 / before:.0f}, {1e3 / after:.0f}"
        print(f"| {factor} | {before:.1f} | {after:.1f} | {before / after:.1f} | {speeds} | {scaled:.1f} |", flush=True)
    print("\n| factor | contexts of a tile one by one, ms | together, ms | reading of its block, ms |")
    print("|---|---:|---:|---:|")
    for factor in (2, 4, 8):
        one, together, read = in_turn(*tiles_of(plain[0], factor))
        print(f"| {factor} | {one:.2f} | {together:.2f} | {read:.2f} |", flush=True)


def in_turn(*ways: Way) -> list[float]:
    """Return the median of each way over rounds but the first."""
    rounds = [[way() for way in ways] for _ in range(ROUNDS + 1)]
    return [statistics.median(times) for times in zip(*rounds[1:], strict=True)]


def make(scenes: list[SceneReader], factor: int) -> None:
    """Read until every scene has its level."""
    for scene in scenes:
        while factor > 1 and scene.levels is not None and factor not in scene.levels._made:
            scene.read(Window(scene.height // 2, scene.width // 2, TILE_PX, TILE_PX), factor)


def samples_of(scenes: list[SceneReader], factor: int, samples: int) -> Way:
    """Milliseconds of one sample."""
    rng = np.random.default_rng(0)

    def milliseconds() -> float:
        began = time.process_time()
        for _ in range(samples):
            scene = scenes[rng.integers(len(scenes))]
            row, col = (int(rng.integers(max(1, side - TILE_PX))) for side in (scene.height, scene.width))
            scene.read(Window(row, col, TILE_PX, TILE_PX), factor if factor > 1 else None)
        return (time.process_time() - began) / samples * 1e3

    return milliseconds


def tiles_of(scene: SceneReader, factor: int) -> tuple[Way, Way, Way]:
    """Milliseconds per tile of a block of a map."""
    grid = scene.height, scene.width, TILE_PX, TILE_PX // 4
    block = block_at(next(block_windows(*grid, BLOCK_PX)), *grid, halo=False)
    region = read_block(scene, block, factor).region
    tiles = [tile.window for tile in block.tiles]

    def timed(run: Callable[[], object]) -> Way:
        def milliseconds() -> float:
            began = time.process_time()
            run()
            return (time.process_time() - began) / len(tiles) * 1e3

        return milliseconds

    return (
        timed(lambda: [region.context(tile, factor) for tile in tiles]),
        timed(lambda: region.contexts(tiles, factor)),
        timed(lambda: read_block(scene, block, factor)),
    )


if __name__ == "__main__":
    main(sys.argv[1], *(kind(text) for kind, text in zip((float, int), sys.argv[2:], strict=False)))
