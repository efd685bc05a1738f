"""Scores from counts, and counts that add up over tiles, ranks and scenes.

Count every tile with `count`, add the counts, and call `score` once: a mean of per-tile scores is
a different, meaningless number. Boundary IoU follows Cheng et al., "Boundary IoU" (CVPR 2021) and
its reference code (bowenc0221/boundary-iou-api), accumulated per class over the whole split.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.errors import DataError

Mask = NDArray[np.bool_]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_PIECE = 16_384
"""Pixels that are counted at a time."""


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
        """Return counts of 0: the start of a sum."""
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
    them; the `_present` means leave absent classes out, `miou_truth` also those that are only predicted.
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

    @property
    def miou_truth(self) -> float:
        """Mean IoU of the classes that truth has; 0 without any."""
        return _mean(self.iou[self.support > 0])

    def without_truth(self, names: Sequence[str]) -> list[str]:
        """Return those of C names whose classes no truth pixel has: their IoU is 0, whatever is predicted."""
        return [name for name, pixels in zip(names, self.support, strict=True) if not pixels]


def boundary_band_px(height: int, width: int, ratio: float = 0.02) -> int:
    """Return the width of the boundary band in pixels: `ratio` of the image diagonal, at least 1."""
    return max(1, round(ratio * math.hypot(height, width)))


def boundary_band(mask: Mask, band_px: int) -> Mask:
    """Return the pixels of a mask within `band_px` (Chebyshev distance) of the outside of the mask.

    Beyond the image is outside too, so the image border is boundary. This is the mask minus its erosion by `band_px`
    rounds of a 3 x 3 square, which equals one erosion by a square of side 2 band_px + 1.

    Args:
        mask: (H, W), or (C, H, W) for several masks at once.
        band_px: width of the band, at least 1.
    """
    if mask.ndim == 3:
        return np.array([boundary_band(each, band_px) for each in mask]).reshape(mask.shape)
    return mask & class_band(mask, band_px)


def count(
    prediction: NDArray[Any], truth: NDArray[Any], *, num_classes: int, band_px: int, ignore_index: int = IGNORE_INDEX
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
    bands = class_band(truth, band_px), class_band(prediction, band_px)
    # torchmetrics' confusion matrix alone takes twice as long as all of this (7 times with its argument checks) and
    # would load torch; tests/evaluation/test_metrics.py holds the two together.
    pixels = _joint_histogram(((bands[0], 2), (bands[1], 2), (truth, bins), (prediction, bins)))
    # Axes: in the truth's band or not, in the prediction's or not, truth, prediction.
    pixels = pixels[..., :-1, :-1]
    intersection = pixels[1, 1].diagonal()
    in_truth, in_prediction = pixels[1].sum(axis=(0, 2)), pixels[:, 1].sum(axis=(0, 1))
    return Counts(
        confusion=pixels.sum(axis=(0, 1)),
        boundary_intersection=intersection.copy(),
        boundary_union=in_truth + in_prediction - intersection,
    )


def score(counts: Counts) -> Scores:
    """Return every score of the counted pixels; 0 wherever there is nothing to divide by."""
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
    """Return (H, W) indices in the smallest integer type, ignored pixels as class C."""
    if classes.shape != ignored.shape:
        raise DataError(f"{name} is {classes.shape} but truth is {ignored.shape}: sizes must match")
    known = classes.copy()
    np.copyto(known, 0, where=ignored)
    if known.size and (known.min() < 0 or known.max() >= num_classes):
        raise DataError(
            f"{name} must be in 0..{num_classes - 1} where truth is labelled, got "
            f"{known[(known < 0) | (known >= num_classes)][0]}; map label ids to class indices first"
        )
    dtype = np.min_scalar_type(num_classes)
    mapped = known.astype(dtype, copy=False)
    np.copyto(mapped, dtype.type(num_classes), where=ignored)
    return mapped


def _joint_histogram(maps: Sequence[tuple[NDArray[Any], int]]) -> IntArray:
    """Count each combination of values in maps of one shape, given with their numbers of values."""
    sizes = tuple(size for _, size in maps)
    # Pieces stay in the processor's cache; whole images spend most of their time on fresh memory.
    flat = [image.reshape(-1) for image, _ in maps]
    total = np.zeros(math.prod(sizes), np.int64)
    dtype = np.uint16 if total.size <= 1 << 16 else np.uint32
    for start in range(0, flat[0].size, _PIECE):
        pieces = [image[start : start + _PIECE] for image in flat]
        cell: NDArray[Any] = pieces[0].astype(dtype)
        for piece, size in zip(pieces[1:], sizes[1:], strict=True):
            cell *= dtype(size)
            cell += piece
        total += np.bincount(cell, minlength=total.size)
    return total.reshape(sizes)


def class_band(classes: NDArray[Any], band_px: int) -> Mask:
    """Return where a pixel is in the boundary band of its own class: all classes in one pass.

    Args:
        classes: (H, W) unsigned integers below the largest of their type, or bool.
        band_px: Width of the band in pixels, at least 1.
    """
    if band_px < 1:
        raise DataError(f"band_px must be at least 1, got {band_px}")
    values = classes.view(np.uint8) if classes.dtype == np.bool_ else classes
    # The reference erodes one mask per class and pads it with 0, so that the image border is boundary. A pixel
    # survives that erosion if the square around it holds its class alone; padding with a value that is no class says
    # the same for all classes at once. Of a square with two values, some 3 x 3 neighbourhood inside it holds two:
    # finding those first and growing them costs half as much as comparing the extremes of the large squares.
    beyond, constant = float(np.iinfo(values.dtype).max), cv2.BORDER_CONSTANT
    edges = cv2.morphologyEx(values, cv2.MORPH_GRADIENT, _square(1), borderType=constant, borderValue=beyond)
    return cv2.dilate(edges, _square(band_px - 1)) > 0


def _square(reach_px: int) -> NDArray[np.uint8]:
    """Return the square of the pixels at most ``reach_px`` away in rows and in columns."""
    return np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)


def _ratio(part: Any, whole: Any) -> FloatArray:
    """Return part / whole, 0 where whole is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole)), where=np.asarray(whole) > 0)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else 0.0
