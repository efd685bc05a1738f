"""Milliseconds of processor time to read one training sample, by the width of its context.

python benchmarks/context.py DATASET [GSD_M SAMPLES]

Random windows of 256 px in the training scenes of a dataset.yaml, read at GSD_M metres (0.4), labels included, by one
thread; the first round fills GDAL's cache and is not counted. ``scaled`` samples are read 1.2 times as coarse, as
``train.augment.scale`` does.
"""

import statistics
import sys
import time

import numpy as np

from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReader, open_dataset_scene
from caswit.raster.windows import Window

TILE_PX, ROUNDS = 256, 5


def main(path: str, gsd_m: float = 0.4, samples: int = 8) -> None:
    """Print the median over rounds."""
    dataset = load_dataset(path).read_at(gsd_m)
    scenes = [open_dataset_scene(dataset, scene) for scene in dataset.scenes if scene.split != "val"]
    for name, scale in (("plain", 1.0), ("scaled", 1.2)):
        for factor in (None, 2, 4, 8):
            rng = np.random.default_rng(0)
            each = [
                milliseconds([scene.scaled(scale) for scene in scenes], factor, samples, rng) for _ in range(ROUNDS + 1)
            ]
            print(f"{name:6} factor {factor or 1}: {statistics.median(each[1:]):7.1f} ms")


def milliseconds(scenes: list[SceneReader], factor: int | None, samples: int, rng: np.random.Generator) -> float:
    """Return the time of one sample."""
    began = time.process_time()
    for _ in range(samples):
        scene = scenes[rng.integers(len(scenes))]
        row, col = (int(rng.integers(max(1, side - TILE_PX))) for side in (scene.height, scene.width))
        scene.read(Window(row, col, TILE_PX, TILE_PX), factor)
    return (time.process_time() - began) / samples * 1e3


if __name__ == "__main__":
    main(sys.argv[1], *(kind(text) for kind, text in zip((float, int), sys.argv[2:], strict=False)))
