import subprocess
import sys

import cv2
import numpy as np
import pytest
import sklearn.metrics
import torch
import torchmetrics.functional.classification as tm
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from caswit.config import IGNORE_INDEX
from caswit.errors import DataError
from caswit.evaluation import metrics
from caswit.evaluation.metrics import Counts
from caswit.raster.reader import Raster
from caswit.raster.windows import Window

exact = settings(derandomize=True, deadline=None, max_examples=60)
masks = arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))
widths = st.integers(1, 13)


def band_slowly(mask, band_px):
    """One pixel at a time: in the mask, and something in reach is not."""
    height, width = mask.shape
    band = np.zeros_like(mask)
    for row, col in np.argwhere(mask):
        for r in range(row - band_px, row + band_px + 1):
            for c in range(col - band_px, col + band_px + 1):
                outside = not (0 <= r < height and 0 <= c < width)
                band[row, col] |= outside or not mask[r, c]
    return band


def reference_band(mask, band_px):
    """`mask_to_boundary` of bowenc0221/boundary-iou-api, for a band in pixels."""
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=band_px)[1:-1, 1:-1]
    return (mask.astype(np.uint8) - eroded).astype(bool)


def random_pair(seed, num_classes=6, shape=(70, 90), absent=()):
    """Blocky truth with ignored ground, and a prediction that is shifted and a little noisy."""
    rng = np.random.default_rng(seed)
    rows, cols = (np.arange(side) // 11 for side in shape)
    truth = rng.integers(0, num_classes, (10, 10))[np.ix_(rows, cols)].astype(np.uint8)
    noise = rng.integers(0, num_classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.02, noise, np.roll(truth, 4, axis=1))
    for index in absent:
        truth[truth == index] = 0
        prediction[prediction == index] = 0
    truth[rng.random(shape) < 0.01] = IGNORE_INDEX
    truth[-9:, -20:] = IGNORE_INDEX
    return prediction, truth


@exact
@given(masks, widths)
def test_boundary_band_equals_slow_loops(mask, band_px):
    assert np.array_equal(metrics.boundary_band(mask, band_px), band_slowly(mask, band_px))


@exact
@given(st.integers(1, 60), st.integers(1, 60), widths, st.integers(0, 99))
def test_boundary_band_equals_the_reference_code(height, width, band_px, seed):
    rng = np.random.default_rng(seed)
    mask = cv2.blur(rng.random((height, width)), (9, 9)) > 0.48  # segments wider than the band
    assert np.array_equal(metrics.boundary_band(mask, band_px), reference_band(mask, band_px))


def test_boundary_band_of_several_masks_is_the_band_of_each():
    several = np.random.default_rng(0).random((4, 40, 33)) < 0.97
    expected = np.stack([reference_band(mask, 2) for mask in several])
    assert np.array_equal(metrics.boundary_band(several, 2), expected)
    assert expected.any()
    assert not np.array_equal(expected, several)


@pytest.mark.parametrize("view", [np.s_[::2, ::-1], np.s_[3:, 5:]])
def test_boundary_band_reads_views(view):
    whole = np.random.default_rng(1).random((40, 60)) < 0.98
    for mask in (whole[view], whole[view].T):
        expected = reference_band(np.ascontiguousarray(mask), 2)
        assert np.array_equal(metrics.boundary_band(mask, 2), expected)


@pytest.mark.parametrize(("side", "band_px"), [(512, 14), (5120, 145), (10, 1)])
def test_boundary_band_px_is_the_reference_width(side, band_px):
    assert metrics.boundary_band_px(side, side) == band_px


@pytest.mark.parametrize("band_px", [1, 3, 14])
@pytest.mark.parametrize("seed", range(3))
def test_boundary_counts_equal_the_reference_class_by_class(seed, band_px):
    prediction, truth = random_pair(seed)
    counts = metrics.count(prediction, truth, num_classes=6, band_px=band_px)
    for index in range(6):
        labelled = truth != IGNORE_INDEX
        in_truth = reference_band((truth == index) & labelled, band_px)
        in_prediction = reference_band((prediction == index) & labelled, band_px)
        assert counts.boundary_intersection[index] == (in_truth & in_prediction).sum()
        assert counts.boundary_union[index] == (in_truth | in_prediction).sum()
    assert counts.boundary_intersection.any()


@pytest.mark.data
@pytest.mark.parametrize("band_px", [1, 3, 14, 40])
def test_boundary_counts_of_real_masks_equal_the_reference(real_data, band_px):
    """Hand-drawn labels of Dubai; the prediction is the same, moved by a few pixels."""
    with Raster(real_data / "dubai" / "tile4_label.tif") as raster:
        truth = raster.read_band(Window(200, 300, 512, 512), fill=0)
    ids = np.unique(truth)
    assert ids.size >= 4
    truth = np.where(truth == 0, IGNORE_INDEX, truth - 1).astype(np.uint8)  # id 0 is unlabelled
    prediction = np.roll(np.where(truth == IGNORE_INDEX, 0, truth), (3, -4), axis=(0, 1))
    counts = metrics.count(prediction, truth, num_classes=5, band_px=band_px)
    labelled = truth != IGNORE_INDEX
    for index in range(5):
        in_truth = reference_band((truth == index) & labelled, band_px)
        in_prediction = reference_band((prediction == index) & labelled, band_px)
        assert counts.boundary_intersection[index] == (in_truth & in_prediction).sum()
        assert counts.boundary_union[index] == (in_truth | in_prediction).sum()
    assert (counts.boundary_intersection > 0).sum() >= 3


@pytest.mark.parametrize("absent", [(), (3,), (2, 5)])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_scores_equal_scikit_learn(absent, dtype):
    prediction, truth = random_pair(7, absent=absent)
    counts = metrics.count(prediction.astype(dtype), truth.astype(dtype), num_classes=6, band_px=2)
    scores = metrics.score(counts)
    kept = truth != IGNORE_INDEX
    pair, labels = (truth[kept], prediction[kept]), range(6)
    assert np.array_equal(counts.confusion, sklearn.metrics.confusion_matrix(*pair, labels=labels))
    each = {"labels": labels, "average": None, "zero_division": 0}
    np.testing.assert_allclose(scores.iou, sklearn.metrics.jaccard_score(*pair, **each))
    np.testing.assert_allclose(scores.f1, sklearn.metrics.f1_score(*pair, **each))
    np.testing.assert_allclose(scores.precision, sklearn.metrics.precision_score(*pair, **each))
    np.testing.assert_allclose(scores.recall, sklearn.metrics.recall_score(*pair, **each))
    macro = each | {"average": "macro"}
    assert scores.miou == pytest.approx(sklearn.metrics.jaccard_score(*pair, **macro))
    assert scores.mf1 == pytest.approx(sklearn.metrics.f1_score(*pair, **macro))
    assert scores.overall_accuracy == pytest.approx(sklearn.metrics.accuracy_score(*pair))
    assert np.array_equal(scores.present, [index not in absent for index in labels])
    assert scores.support.sum() == kept.sum()


@pytest.mark.parametrize("absent", [(), (3,), (2, 5)])
def test_scores_equal_torchmetrics(absent):
    prediction, truth = random_pair(8, absent=absent)
    counts = metrics.count(prediction, truth, num_classes=6, band_px=2)
    scores = metrics.score(counts)
    pair = torch.from_numpy(prediction).long(), torch.from_numpy(truth).long()
    kept = {"num_classes": 6, "ignore_index": IGNORE_INDEX}
    confusion = tm.multiclass_confusion_matrix(*pair, **kept)
    assert np.array_equal(counts.confusion, confusion.numpy())
    # torchmetrics' macro average leaves absent classes out: it is our mean over present ones.
    iou = tm.multiclass_jaccard_index(*pair, average="macro", **kept)
    assert scores.miou_present == pytest.approx(iou.item())
    assert (scores.miou_present > scores.miou) == bool(absent)
    f1 = tm.multiclass_f1_score(*pair, average="none", **kept)
    np.testing.assert_allclose(scores.f1, f1.numpy(), rtol=1e-6)
    accuracy = tm.multiclass_accuracy(*pair, average="micro", **kept)
    assert scores.overall_accuracy == pytest.approx(accuracy.item())


def test_rows_are_truth_and_columns_are_prediction():
    prediction, truth = np.array([[0, 1, 1]]), np.array([[0, 0, 1]])
    counts = metrics.count(prediction, truth, num_classes=2, band_px=1)
    assert counts.confusion.tolist() == [[1, 1], [0, 1]]


def test_absent_class_counts_zero_in_the_mean_and_not_in_the_present_mean():
    # Class 0: TP 2, FN 1. Class 1: TP 1, FP 1. Class 2: nowhere. One pixel is ignored.
    truth = np.array([[0, 0, 0, 1, IGNORE_INDEX]])
    prediction = np.array([[0, 0, 1, 1, 2]])
    scores = metrics.score(metrics.count(prediction, truth, num_classes=3, band_px=1))
    assert scores.iou.tolist() == [2 / 3, 1 / 2, 0]
    assert scores.f1.tolist() == pytest.approx([4 / 5, 2 / 3, 0])
    assert scores.miou == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.miou_present == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert scores.mf1_present == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert scores.mbiou_present == pytest.approx(1.5 * scores.mbiou)
    assert scores.precision.tolist() == [1, 1 / 2, 0]
    assert scores.recall.tolist() == pytest.approx([2 / 3, 1, 0])
    assert scores.overall_accuracy == 3 / 4
    assert scores.support.tolist() == [3, 1, 0]
    assert scores.present.tolist() == [True, True, False]


def test_class_that_is_only_predicted_is_present():
    prediction, truth = np.array([[0, 1]]), np.array([[0, 0]])
    scores = metrics.score(metrics.count(prediction, truth, num_classes=2, band_px=1))
    assert scores.present.all()
    assert scores.miou_present == scores.miou == 1 / 4


def test_counts_of_parts_add_up_to_the_whole():
    prediction, truth = random_pair(3)
    parts = [
        metrics.count(prediction[rows], truth[rows], num_classes=6, band_px=2)
        for rows in (slice(0, 30), slice(30, 31), slice(31, None))
    ]
    total = sum(parts, start=Counts.zeros(6))
    whole = metrics.count(prediction, truth, num_classes=6, band_px=2)
    assert np.array_equal(total.confusion, whole.confusion)
    # The edge of a part is boundary too, so bands add up over tiles but not over cuts of a tile.
    assert (total.boundary_union >= whole.boundary_union).all()
    expected = sum(part.boundary_intersection for part in parts)
    assert np.array_equal(total.boundary_intersection, expected)


def test_perfect_prediction_scores_one_whatever_is_ignored_or_predicted_there():
    _, truth = random_pair(4)
    for elsewhere in (0, 200, IGNORE_INDEX):
        prediction = np.where(truth == IGNORE_INDEX, elsewhere, truth)
        scores = metrics.score(metrics.count(prediction, truth, num_classes=6, band_px=3))
        assert scores.miou == scores.mf1 == scores.mbiou == scores.overall_accuracy == 1


def test_another_class_can_be_the_ignored_one():
    prediction, truth = random_pair(5)
    as_255 = np.where(truth == 2, IGNORE_INDEX, truth)
    labelled = truth != IGNORE_INDEX
    prediction, truth, as_255 = (each[labelled][None] for each in (prediction, truth, as_255))
    expected = metrics.count(prediction, as_255, num_classes=6, band_px=1)
    got = metrics.count(prediction, truth, num_classes=6, band_px=1, ignore_index=2)
    assert np.array_equal(got.confusion, expected.confusion)


def test_nothing_labelled_scores_zero_without_warning():
    truth = np.full((4, 5), IGNORE_INDEX)
    scores = metrics.score(metrics.count(np.zeros((4, 5)), truth, num_classes=2, band_px=1))
    assert scores.miou == scores.miou_present == scores.overall_accuracy == 0


@pytest.mark.parametrize(
    ("prediction", "truth", "band_px", "message"),
    [
        ([[0, 2]], [[0, 1]], 1, r"prediction must be in 0\.\.1 where truth is labelled, got 2"),
        ([[0, 1]], [[0, 7]], 1, r"truth must be in 0\.\.1 where truth is labelled, got 7"),
        ([[0, -1]], [[0, 1]], 1, r"got -1"),
        ([[0, 1, 1]], [[0, 1]], 1, r"prediction is \(1, 3\) but truth is \(1, 2\)"),
        ([[0, 1]], [[0, 1]], 0, "band_px must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_named(prediction, truth, band_px, message):
    with pytest.raises(DataError, match=message):
        metrics.count(np.array(prediction), np.array(truth), num_classes=2, band_px=band_px)


def test_importing_metrics_does_not_import_torch():
    code = "import sys, caswit.evaluation.metrics; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
