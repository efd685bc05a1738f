"""Boundary IoU of one map: how fast are the bands of all classes, and do they equal the reference erosion's?

    python benchmarks/boundary_iou.py [LABEL.tif ...] [--old metrics.py]

Ours (`caswit.evaluation.metrics.class_band`) takes all classes in one pass with OpenCV. The reference is what
bowenc0221/boundary-iou-api does, for every class, in truth and prediction: pad with zeros, erode by a 3 x 3 square
`band` times, subtract. `--old` names the module of an earlier version (git show COMMIT:src/caswit/metrics.py), whose
bands are measured beside ours. Prints medians of 31 alternating runs (large maps: three) of processor time on one
thread, and checks that all count the same.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable

import cv2
import numpy as np

from caswit.evaluation.metrics import class_band, count
from caswit.raster.reader import Raster
from caswit.raster.windows import Window

CASES = ((512, 6, (1, 3, 7, 14)), (512, 15, (1, 3, 7, 14)), (5120, 8, (14, 145)))
SQUARE = np.ones((3, 3), np.uint8)
Way = Callable[[np.ndarray, int, int], list]
"""Bands of a map, its number of classes and the width of the band."""


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", nargs="*", help="label rasters, of which the middle is taken")
    parser.add_argument("--old", help="metrics.py of an earlier version")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    ways: dict[str, Way] = {"caswit": lambda image, classes, band: [class_band(image, band)]}
    if given.old:
        spec = importlib.util.spec_from_file_location("old_metrics", given.old)
        old = importlib.util.module_from_spec(spec)
        sys.modules["old_metrics"] = old
        spec.loader.exec_module(old)
        ways["before"] = lambda image, classes, band: [old.class_band(image, band)]
    ways["reference"] = lambda image, classes, band: [band_of(image == index, band) for index in range(classes)]
    print(f"numpy {np.__version__}, OpenCV {cv2.__version__}, one thread, truth and prediction\n")
    print("| " + " | ".join(["map", "classes", "band", *ways, *(f"{name} / caswit" for name in [*ways][1:])]) + " |")
    print("|---|" + "---:|" * (2 * len(ways) + 1))
    for side, classes, bands in CASES:
        for band in bands:
            report(ways, f"{side} px, drawn", drawn(side, classes), classes, band)
    for file in given.labels:
        with Raster(file) as raster:  # its middle
            window = Window(raster.height // 2 - 256, raster.width // 2 - 256, 512, 512)
            truth = raster.read_band(window, fill=0).astype(np.uint8)
        for band in (1, 3, 7, 14):
            report(ways, f"512 px of {file.split('/')[-1]}", truth, int(truth.max()) + 1, band)


def drawn(side: int, classes: int) -> np.ndarray:
    """(side, side) uint8: blobs of a few dozen pixels."""
    coarse = np.random.default_rng(0).integers(0, classes, (side // 32, side // 32)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)


def report(ways: dict[str, Way], name: str, truth: np.ndarray, classes: int, band: int) -> None:
    """One row: the prediction is the truth moved by five pixels."""
    pair = truth, np.roll(truth, 5, axis=1)
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for bands in ways.values():
        found = [bands(image, classes, band) for image in pair]
        if len(found[0]) == 1:  # of all classes at once
            found = [[one & (image == i) for i in range(classes)] for (one,), image in zip(found, pair, strict=True)]
        check(*pair, found, band)
    for _ in range(31 if truth.size < 1_000_000 else 3):
        for way, bands in ways.items():
            bands(truth, classes, band)  # what ran before must not decide what is in the processor's cache
            began = time.process_time()
            for image in pair:
                bands(image, classes, band)
            seconds[way].append(time.process_time() - began)
    medians = [1e3 * statistics.median(each) for each in seconds.values()]
    cells = [f"{ms:.2f} ms" for ms in medians] + [f"{ms / medians[0]:.1f}" for ms in medians[1:]]
    print("| " + " | ".join([name, f"{classes}", f"{band} px", *cells]) + " |", flush=True)


def check(truth: np.ndarray, prediction: np.ndarray, bands: list[list], band: int) -> None:
    """Both sides of every class must count what `caswit.evaluation.metrics.count` counts."""
    counts = count(prediction, truth, num_classes=len(bands[0]), band_px=band)
    for index, (there, found) in enumerate(zip(*bands, strict=True)):
        assert np.count_nonzero(there & found) == counts.boundary_intersection[index]
        assert np.count_nonzero(there | found) == counts.boundary_union[index]


def band_of(mask: np.ndarray, band: int) -> np.ndarray:
    """A mask without what is left of it after erosion, as the reference does it; zeros around the image."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask.astype(np.uint8) - cv2.erode(padded, SQUARE, iterations=band)[1:-1, 1:-1]


if __name__ == "__main__":
    main()
