"""Scores from counts, and counts that add up over tiles, ranks and scenes.

Count every tile with `count`, add the counts, and call `score` once: a mean of per-tile scores is
a different, meaningless number. Boundary IoU follows Cheng et al., "Boundary IoU" (CVPR 2021) and
its reference code (bowenc0221/boundary-iou-api), accumulated per class over the whole split.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.errors import DataError

Mask = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Pixel counts of one tile or of many; `+` and `sum(..., start=Counts.zeros(C))` join them."""

    confusion: IntArray
    """(C, C) pixels; rows are truth, columns are prediction."""
    boundary_intersection: IntArray
    """(C,) pixels of the class in the boundary bands of both truth and prediction."""
    boundary_union: IntArray
    """(C,) pixels of the class in the boundary band of truth, of prediction, or of both."""

    @classmethod
    def zeros(cls, num_classes: int) -> "Counts":
        """Nothing counted yet: the start of a sum."""
        return cls(
            confusion=np.zeros((num_classes, num_classes), np.int64),
            boundary_intersection=np.zeros(num_classes, np.int64),
            boundary_union=np.zeros(num_classes, np.int64),
        )

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            confusion=self.confusion + other.confusion,
            boundary_intersection=self.boundary_intersection + other.boundary_intersection,
            boundary_union=self.boundary_union + other.boundary_union,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Fractions in 0..1. A class that is in neither truth nor prediction scores 0.

    The plain means run over all C classes, absent ones included, as FLAIR-HUB and GLNet report
    them; the `_present` means leave absent classes out.
    """

    miou: float
    miou_present: float
    mf1: float
    mf1_present: float
    mbiou: float
    mbiou_present: float
    overall_accuracy: float
    """Share of the labelled pixels whose class is right."""
    iou: FloatArray
    """(C,) intersection over union: TP / (TP + FP + FN)."""
    f1: FloatArray
    """(C,) 2 TP / (2 TP + FP + FN)."""
    biou: FloatArray
    """(C,) IoU of the boundary bands."""
    precision: FloatArray
    """(C,) TP / (TP + FP)."""
    recall: FloatArray
    """(C,) TP / (TP + FN)."""
    support: IntArray
    """(C,) truth pixels."""
    present: Mask
    """(C,) True where the class is in truth or prediction."""


def boundary_band_px(height: int, width: int, ratio: float = 0.02) -> int:
    """Width of the boundary band in pixels: `ratio` of the image diagonal, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_band(mask: Mask, band_px: int) -> Mask:
    """The pixels of a mask within `band_px` (Chebyshev distance) of the outside of the mask.

    Beyond the image is outside too, so the image border is boundary. This is the mask minus its
    erosion by `band_px` rounds of a 3 x 3 square, which equals one erosion by a square of side
    2 band_px + 1.

    Args:
        mask: (H, W), or (C, H, W) for several masks at once.
        band_px: width of the band, at least 1.
    """
    if mask.ndim == 3:  # one at a time stays in the processor's cache, which is 6 times faster
        return np.array([boundary_band(each, band_px) for each in mask]).reshape(mask.shape)
    band = mask.copy()
    if inside := _interior(mask.shape, band_px):
        band[inside] &= ~_fold_squares(np.logical_and, mask, 2 * band_px + 1)
    return band


def count(
    prediction: NDArray[Any],
    truth: NDArray[Any],
    *,
    num_classes: int,
    band_px: int,
    ignore_index: int = IGNORE_INDEX,
) -> Counts:
    """Count one tile. Pixels whose truth is `ignore_index` count as outside the image.

    So they are in no band, and a class that ends at ignored ground ends there in truth and in
    prediction alike: a perfect prediction scores 1 whatever is ignored.

    Args:
        prediction: (H, W) class indices 0..C-1; anything where truth is ignored.
        truth: (H, W) class indices 0..C-1, or `ignore_index`.
        num_classes: C.
        band_px: width of the boundary band, see `boundary_band_px`.
        ignore_index: the truth value of pixels that do not count.
    """
    ignored = truth == ignore_index
    truth = _class_map(truth, ignored, num_classes, "truth")
    prediction = _class_map(prediction, ignored, num_classes, "prediction")
    bins = num_classes + 1  # the last one takes the ignored pixels
    cell = 2 * _class_band(truth, band_px).astype(np.intp) + _class_band(prediction, band_px)
    cell = (cell * bins + truth) * bins + prediction
    # torchmetrics' confusion matrix alone takes twice as long as all of this (7 times with its
    # argument checks) and would load torch; tests/unit/test_metrics.py holds the two together.
    pixels = np.bincount(cell.ravel(), minlength=4 * bins * bins).astype(np.int64)
    # Axes: in the truth's band or not, in the prediction's or not, truth, prediction.
    pixels = pixels.reshape(2, 2, bins, bins)[..., :-1, :-1]
    intersection = pixels[1, 1].diagonal()
    in_truth, in_prediction = pixels[1].sum(axis=(0, 2)), pixels[:, 1].sum(axis=(0, 1))
    return Counts(
        confusion=pixels.sum(axis=(0, 1)),
        boundary_intersection=intersection.copy(),
        boundary_union=in_truth + in_prediction - intersection,
    )


def score(counts: Counts) -> Scores:
    """Every score of the counted pixels; 0 wherever there is nothing to divide by."""
    right = counts.confusion.diagonal()
    truth = counts.confusion.sum(axis=1)
    predicted = counts.confusion.sum(axis=0)
    union = truth + predicted - right
    present = union > 0
    iou = _ratio(right, union)
    f1 = _ratio(2 * right, truth + predicted)
    biou = _ratio(counts.boundary_intersection, counts.boundary_union)
    return Scores(
        miou=_mean(iou),
        miou_present=_mean(iou[present]),
        mf1=_mean(f1),
        mf1_present=_mean(f1[present]),
        mbiou=_mean(biou),
        mbiou_present=_mean(biou[present]),
        overall_accuracy=float(_ratio(right.sum(), truth.sum())),
        iou=iou,
        f1=f1,
        biou=biou,
        precision=_ratio(right, predicted),
        recall=_ratio(right, truth),
        support=truth,
        present=present,
    )


def _class_map(classes: NDArray[Any], ignored: Mask, num_classes: int, name: str) -> NDArray[np.unsignedinteger[Any]]:
    """(H, W) indices in the smallest integer type, ignored pixels as class C."""
    if classes.shape != ignored.shape:
        raise DataError(f"{name} is {classes.shape} but truth is {ignored.shape}: sizes must match")
    wrong = ((classes < 0) | (classes >= num_classes)) & ~ignored
    if wrong.any():
        raise DataError(
            f"{name} must be in 0..{num_classes - 1} where truth is labelled, got "
            f"{classes[wrong][0]}; map label ids to class indices first"
        )
    dtype = np.min_scalar_type(num_classes)
    return np.where(ignored, dtype.type(num_classes), classes.astype(dtype))


def _class_band(classes: NDArray[Any], band_px: int) -> Mask:
    """True where a pixel is in the boundary band of its own class: all classes in two passes.

    A pixel is *not* in the band if the square around it lies in the image and holds one class,
    that is if the smallest class in the square is also the largest.
    """
    band = np.ones(classes.shape, dtype=np.bool_)
    if inside := _interior(classes.shape, band_px):
        size = 2 * band_px + 1
        smallest = _fold_squares(np.minimum, classes, size)
        band[inside] = smallest != _fold_squares(np.maximum, classes, size)
    return band


def _interior(shape: tuple[int, ...], band_px: int) -> tuple[slice, slice] | None:
    """The index of the pixels farther than `band_px` from the image border, if there are any."""
    if band_px < 1:
        raise DataError(f"band_px must be at least 1, got {band_px}")
    rows, columns = (slice(band_px, side - band_px) for side in shape)
    return (rows, columns) if min(shape) > 2 * band_px else None


def _fold_squares(fold: Callable[..., NDArray[Any]], image: NDArray[Any], size: int) -> NDArray[Any]:
    """`fold` over every `size` x `size` square inside (H, W): (H-size+1, W-size+1).

    The span of a fold doubles with each step, so it takes log2(size) steps per axis, each one
    vectorised over flat memory. A fold that runs over the end of a row reads the next one; those
    results lie in the last size - 1 columns and rows, which are cut off.
    """
    height, width = image.shape
    flat = image.reshape(-1)
    for stride in (width, 1):
        span = 1
        while span < size:
            step = min(span, size - span)
            flat = fold(flat[: flat.size - step * stride], flat[step * stride :])
            span += step
    padded = np.zeros(image.size, dtype=image.dtype)
    padded[: flat.size] = flat
    return padded.reshape(image.shape)[: height - size + 1, : width - size + 1]


def _ratio(part: Any, whole: Any) -> FloatArray:
    """Part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else 0.0
