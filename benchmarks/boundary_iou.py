"""Boundary IoU of one tile: `caswit.evaluation.metrics.count` against the reference erosion with OpenCV.

    python benchmarks/boundary_iou.py [LABEL.tif]

The bands alone, then bands and counts; ours counts the confusion matrix too. The reference is what
bowenc0221/boundary-iou-api does, for every class, in truth and prediction: pad with zeros, erode by a 3 x 3 square
`band` times, subtract; once with OpenCV's `iterations`, which it turns into one large square, and once as a loop.
Prints medians of 15 alternating runs (large masks: one) of processor time on one thread, and checks that all three
count the same.
"""

import statistics
import sys
import time

import cv2
import numpy as np

from caswit.evaluation.metrics import boundary_band_px, class_band, count
from caswit.raster.reader import Raster
from caswit.raster.windows import Window

CASES = ((512, 15, (1, 3, 14)), (5120, 8, (145,)))
SQUARE = np.ones((3, 3), np.uint8)


def main() -> None:
    """Print a Markdown table."""
    cv2.setNumThreads(1)
    print(
        f"numpy {np.__version__}, OpenCV {cv2.__version__} on one thread, median processor time of alternating runs\n"
    )
    print("| | | | bands of all classes: | | | | | counted: | |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    names = ["mask", "classes", "band", "caswit", "erosion, one call", "erosion, loop", "ratio", "ratio to loop"]
    print("| " + " | ".join([*names, "caswit, with the confusion matrix", "loop's ratio, without it"]) + " |")
    for side, classes, bands in CASES:
        truth = drawn(side, classes)
        for band in bands:
            report(f"{side} px, drawn", truth, classes, band)
    for file in sys.argv[1:]:
        with Raster(file) as raster:  # its middle
            window = Window(raster.height // 2 - 256, raster.width // 2 - 256, 512, 512)
            truth = raster.read_band(window, fill=0).astype(np.uint8)
        side = truth.shape[0]
        for band in (1, 3, boundary_band_px(side, side)):
            report(f"{side} px of {file.split('/')[-1]}", truth, int(truth.max()) + 1, band)


def drawn(side: int, classes: int) -> np.ndarray:
    """(side, side) uint8: blobs of a few dozen pixels."""
    coarse = np.random.default_rng(0).integers(0, classes, (side // 32, side // 32)).astype(np.uint8)
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_NEAREST)


def report(name: str, truth: np.ndarray, classes: int, band: int) -> None:
    """One row: the prediction is the truth moved by five pixels."""
    prediction = np.roll(truth, 5, axis=1)
    pair = truth, prediction
    ways = [
        lambda: [class_band(each, band) for each in pair],
        lambda: [band_of(each == index, band, one_call) for each in pair for index in range(classes)],
        lambda: [band_of(each == index, band, loop) for each in pair for index in range(classes)],
        lambda: ours(prediction, truth, classes, band),
        lambda: by_erosion(prediction, truth, classes, band, loop),
    ]
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(15 if truth.size < 1_000_000 else 1):
        for way, seconds in zip(ways, times, strict=True):
            began = time.process_time()
            result = way()
            seconds.append(time.process_time() - began)
            del result
    counted = [by_erosion(prediction, truth, classes, band, way) for way in (one_call, loop)]
    assert counted[0] == counted[1] == ours(prediction, truth, classes, band)
    a, b, c, d, e = (1e3 * statistics.median(seconds) for seconds in times)
    cells = [
        name,
        f"{classes}",
        f"{band} px",
        f"{a:.2f} ms",
        f"{b:.1f} ms",
        f"{c:.1f} ms",
        f"{b / a:.1f}",
        f"{c / a:.1f}",
    ]
    print("| " + " | ".join([*cells, f"{d:.2f} ms", f"{e / d:.1f}"]) + " |")


def ours(prediction: np.ndarray, truth: np.ndarray, classes: int, band: int) -> list[list[int]]:
    """Intersections and unions by class."""
    counts = count(prediction, truth, num_classes=classes, band_px=band)
    return [counts.boundary_intersection.tolist(), counts.boundary_union.tolist()]


def by_erosion(prediction, truth, classes, band, erode) -> list[list[int]]:  # noqa: ANN001
    """The same, class by class."""
    intersections, unions = [], []
    for index in range(classes):
        there, found = (band_of(image == index, band, erode) for image in (truth, prediction))
        intersections.append(int(np.count_nonzero(there & found)))
        unions.append(int(np.count_nonzero(there | found)))
    return [intersections, unions]


def band_of(mask, band, erode) -> np.ndarray:  # noqa: ANN001
    """A mask without what is left of it after erosion; zeros around the image."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return mask.astype(np.uint8) - erode(padded, band)[1:-1, 1:-1]


def one_call(padded: np.ndarray, band: int) -> np.ndarray:
    """As the reference calls OpenCV."""
    return cv2.erode(padded, SQUARE, iterations=band)


def loop(padded: np.ndarray, band: int) -> np.ndarray:
    """Erosion after erosion."""
    for _ in range(band):
        padded = cv2.erode(padded, SQUARE, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return padded


if __name__ == "__main__":
    main()
