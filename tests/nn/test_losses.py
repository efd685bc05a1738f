import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.caswit import TrainingLogits
from caswit.nn.losses import CrossEntropy, cross_entropy_sum, loss_normalizer, supervised_loss

NUM_CLASSES = 4
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float)
weightings = pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(size=3, ignored=0.3):
    """Logits of both heads, which may differ in size, and their labels."""
    logits, labels = [], []
    for height, width in ((7, 9), (5, 6)):
        logits.append((2 * torch.randn(size, NUM_CLASSES, height, width)).requires_grad_())
        label = torch.randint(0, NUM_CLASSES, (size, height, width), dtype=torch.uint8)
        label[torch.rand(label.shape) < ignored] = IGNORE_INDEX
        labels.append(label)
    return TrainingLogits(*logits), tuple(labels)


def normalizers_of(labels, weights=None):
    return tuple(loss_normalizer(label, weights) for label in labels)


def mean_slowly(logits, label):
    """The paper's formula over labelled pixels: - 1 / n sum_p sum_k 1[Y_p = k] log softmax(Y'_p)_k."""
    total, pixels = 0.0, 0
    for b, row, col in (label != IGNORE_INDEX).nonzero().tolist():
        scores = logits[b, :, row, col].tolist()
        k = label[b, row, col].item()
        total -= math.log(math.exp(scores[k]) / sum(map(math.exp, scores)))
        pixels += 1
    return total / pixels


@pytest.mark.parametrize("ignored", [0, 0.4])
@pytest.mark.parametrize("alpha", [0, 0.5, 2])
def test_loss_is_the_papers_formula(alpha, ignored):
    logits, labels = batch(ignored=ignored)
    hr, context = (mean_slowly(x, y) for x, y in zip(logits[:2], labels, strict=True))
    loss = supervised_loss(logits, labels, normalizers_of(labels), alpha=alpha)
    assert loss.item() == pytest.approx(hr + alpha * context, rel=1e-6)


@weightings
def test_loss_is_torchs_mean_with_gradients(weights):
    logits, labels = batch()
    loss = supervised_loss(logits, labels, normalizers_of(labels, weights), alpha=0.5, loss=CrossEntropy(weights))
    hr, context = (
        F.cross_entropy(x, y.long(), weights, ignore_index=IGNORE_INDEX)
        for x, y in zip(logits[:2], labels, strict=True)
    )
    torch.testing.assert_close(loss, hr + 0.5 * context)
    ours, torchs = (torch.autograd.grad(x, logits[:2]) for x in (loss, hr + 0.5 * context))
    torch.testing.assert_close(ours, torchs)


@weightings
def test_normalizer_counts_labelled_pixels_or_their_weights(weights):
    label = torch.tensor([[[0, 2, 2], [IGNORE_INDEX, 3, IGNORE_INDEX]]], dtype=torch.uint8)
    assert loss_normalizer(label, weights).item() == pytest.approx(4 if weights is None else 0.2 + 3 + 3 + 0.7)


@weightings
def test_ignored_pixels_count_for_nothing(weights):
    logits, labels = batch()
    normalizers = normalizers_of(labels, weights)
    loss = supervised_loss(logits, labels, normalizers, alpha=0.5, loss=CrossEntropy(weights))
    loss.backward()
    for x, label in zip(logits[:2], labels, strict=True):
        moved = x.grad.abs().sum(1) > 0
        assert torch.equal(moved, label != IGNORE_INDEX)
    changed = [
        x + 9 * torch.randn_like(x) * (y == IGNORE_INDEX)[:, None] for x, y in zip(logits[:2], labels, strict=True)
    ]
    again = supervised_loss(TrainingLogits(*changed), labels, normalizers, alpha=0.5, loss=CrossEntropy(weights))
    assert torch.equal(again, loss)


@weightings
@settings(derandomize=True, deadline=None, max_examples=25)
@given(cut=st.integers(1, 5), ignored=st.floats(0, 1), alpha=st.sampled_from([0, 0.5, 1.5]))
def test_parts_of_a_batch_sum_to_the_loss_of_the_whole(weights, cut, ignored, alpha):
    """Whatever share of each part is labelled."""
    logits, labels = batch(size=6, ignored=ignored)
    labels[0][0] = IGNORE_INDEX
    normalizers = normalizers_of(labels, weights)
    whole = supervised_loss(logits, labels, normalizers, alpha=alpha, loss=CrossEntropy(weights))
    parts = [
        supervised_loss(
            TrainingLogits(*(x[part] for x in logits[:2])),
            tuple(y[part] for y in labels),
            normalizers,
            alpha=alpha,
            loss=CrossEntropy(weights),
        )
        for part in (slice(cut), slice(cut, None))
    ]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=1e-5, atol=1e-6)
    part_normalizers = [normalizers_of([y[part] for y in labels], weights) for part in (slice(cut), slice(cut, None))]
    torch.testing.assert_close([sum(m) for m in zip(*part_normalizers, strict=True)], list(normalizers))


@weightings
def test_a_batch_without_labels_has_loss_0_and_gradient_0(weights):
    logits, labels = batch(ignored=1.1)
    loss = supervised_loss(logits, labels, normalizers_of(labels, weights), alpha=0.5, loss=CrossEntropy(weights))
    assert loss.item() == 0
    loss.backward()
    for x in logits[:2]:
        assert torch.equal(x.grad, torch.zeros_like(x))


@weightings
def test_a_context_without_labels_leaves_the_loss_of_the_tile(weights):
    logits, labels = batch()
    labels[1].fill_(IGNORE_INDEX)
    normalizers = normalizers_of(labels, weights)
    loss = supervised_loss(logits, labels, normalizers, alpha=0.5, loss=CrossEntropy(weights))
    assert torch.equal(loss, supervised_loss(logits, labels, normalizers, alpha=0, loss=CrossEntropy(weights)))


def test_a_network_without_context_head_has_the_loss_of_the_tile():
    logits, labels = batch()
    normalizers = normalizers_of(labels)
    loss = supervised_loss(TrainingLogits(logits.hr, None), labels, normalizers, alpha=0.5)
    assert torch.equal(loss, supervised_loss(logits, labels, normalizers, alpha=0))


def test_sums_of_bfloat16_logits_are_taken_in_float32():
    logits = torch.randn(1, NUM_CLASSES, 60, 70).bfloat16()
    label = torch.randint(0, NUM_CLASSES, (1, 60, 70), dtype=torch.uint8)
    total = cross_entropy_sum(logits, label)
    assert total.dtype == torch.float32
    exact = F.cross_entropy(logits.double(), label.long(), reduction="sum")
    torch.testing.assert_close(total.double(), exact, rtol=1e-5, atol=0)
