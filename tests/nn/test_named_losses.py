"""The losses that a recipe can name: means over pixels or tiles, the same however a batch is shared out."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segmentation_models_pytorch.losses import DiceLoss, LovaszLoss
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import CaswitError
from caswit.nn.caswit import TrainingLogits
from caswit.nn.losses import Adjusted, CrossEntropy, Dice, Focal, Lovasz, Ohem, named_losses, supervised_loss

NUM_CLASSES = 4
OFFSETS = torch.tensor([0.0, -5.0, 1.5, 0.3])
WEIGHTS = torch.tensor([0.2, 1.0, 3.0, 0.7])
LOSSES = {
    "cross_entropy": CrossEntropy(),
    "smoothed": CrossEntropy(WEIGHTS, 0.1),
    "focal": Focal(2.0),
    "weighted focal": Focal(0.5, WEIGHTS),
    "ohem": Ohem(0.3),
    "weighted ohem": Ohem(0.3, WEIGHTS, 0.1),
    "dice": Dice(),
    "lovasz": Lovasz(),
    "adjusted": Adjusted(CrossEntropy(WEIGHTS), OFFSETS),
    "adjusted dice": Adjusted(Dice(), OFFSETS),
}
all_losses = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(size=3, ignored=0.3, classes=NUM_CLASSES):
    logits = (2 * torch.randn(size, NUM_CLASSES, 7, 9)).requires_grad_()
    label = torch.randint(0, classes, (size, 7, 9), dtype=torch.uint8)
    label[torch.rand(label.shape) < ignored] = IGNORE_INDEX
    return logits, label


def mean(loss, logits, label):
    return loss.total(logits, label) / loss.divisor(label)


# What they are


def test_label_smoothing_and_weights_are_torchs_mean():
    logits, label = batch()
    expected = F.cross_entropy(logits, label.long(), WEIGHTS, ignore_index=IGNORE_INDEX, label_smoothing=0.1)
    torch.testing.assert_close(mean(CrossEntropy(WEIGHTS, 0.1), logits, label), expected)


def test_with_offsets_the_best_constant_has_the_shares_of_the_world_and_not_of_the_labels():
    """Labels of a tenth, a fifth and seven tenths; elsewhere the classes are as frequent as each other."""
    shares, elsewhere = torch.tensor([0.1, 0.2, 0.7]), torch.full((3,), 1 / 3)
    label = torch.repeat_interleave(torch.arange(3), (10 * shares).round().int()).view(1, 2, 5)
    logits = elsewhere.log().view(1, 3, 1, 1).clone().requires_grad_()
    for offsets, is_best in (((shares / elsewhere).log(), True), (torch.zeros(3), False)):
        ((_, loss),) = named_losses({"cross_entropy": 1.0}, offsets=offsets)
        (slope,) = torch.autograd.grad(mean(loss, logits.expand(1, 3, 2, 5), label), logits)
        assert (slope.abs().max() < 1e-6) == is_best


def test_focal_is_that_of_smp_on_labelled_pixels():
    logits, label = batch()
    known = label != IGNORE_INDEX
    expected = softmax_focal_loss_with_logits(logits.movedim(1, -1)[known], label[known].long(), gamma=2.0)
    torch.testing.assert_close(mean(Focal(2.0), logits, label), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["equal", "weighted"])
def test_focal_of_gamma_0_and_ohem_of_all_pixels_are_the_cross_entropy(weights):
    logits, label = batch()
    expected = mean(CrossEntropy(weights), logits, label)
    torch.testing.assert_close(mean(Focal(0.0, weights), logits, label), expected)
    torch.testing.assert_close(mean(Ohem(1.0, weights), logits, label), expected)


def test_ohem_is_the_mean_over_the_hardest_pixels_of_each_tile():
    logits, label = batch()
    kept = []
    for scores, truth in zip(logits.tolist(), label.tolist(), strict=True):
        losses = []
        for row, col in ((r, c) for r in range(7) for c in range(9)):
            k = truth[row][col]
            if k != IGNORE_INDEX:
                exponents = [math.exp(scores[i][row][col]) for i in range(NUM_CLASSES)]
                losses.append(-math.log(exponents[k] / sum(exponents)))
        kept += sorted(losses, reverse=True)[: math.ceil(0.3 * len(losses))]
    assert mean(Ohem(0.3), logits, label).item() == pytest.approx(sum(kept) / len(kept), rel=1e-5)


def test_dice_is_the_formula_over_the_classes_of_each_tile():
    logits, label = batch(classes=3)  # the fourth class is nowhere
    label[0] = label[0].where(label[0] != 1, IGNORE_INDEX)
    probabilities, tiles = logits.softmax(1), []
    for p, truth in zip(probabilities, label, strict=True):
        known, scores = truth != IGNORE_INDEX, []
        for k in sorted(set(truth[known].tolist())):
            is_k = (truth == k)[known].float()
            scores.append(1 - 2 * (p[k][known] * is_k).sum() / (p[k][known].sum() + is_k.sum()))
        tiles.append(torch.stack(scores).mean())
    torch.testing.assert_close(mean(Dice(), logits, label), torch.stack(tiles).mean())


def lovasz_slowly(probabilities, truth):
    """Sum of sorted errors times the growth of the Jaccard loss as pixels become wrong one by one."""
    losses = []
    for k in sorted(set(truth)):
        errors = [(abs((t == k) - p[k]), t == k) for p, t in zip(probabilities, truth, strict=True)]
        errors.sort(key=lambda pair: pair[0], reverse=True)
        positives, total, before = sum(is_k for _, is_k in errors), 0.0, 0.0
        missed = added = 0
        for error, is_k in errors:
            missed, added = missed + is_k, added + (not is_k)
            jaccard = 1 - (positives - missed) / (positives + added)
            total, before = total + error * (jaccard - before), jaccard
        losses.append(total)
    return sum(losses) / len(losses)


def test_lovasz_is_the_slow_sum_for_each_tile():
    logits, label = batch(classes=3)
    tiles = []
    for p, truth in zip(logits.softmax(1).movedim(1, -1), label, strict=True):
        known = truth != IGNORE_INDEX
        tiles.append(lovasz_slowly(p[known].tolist(), truth[known].tolist()))
    assert mean(Lovasz(), logits, label).item() == pytest.approx(sum(tiles) / len(tiles), rel=1e-4)


@pytest.mark.parametrize(("loss", "smps"), [(Dice(), DiceLoss), (Lovasz(), LovaszLoss)], ids=["dice", "lovasz"])
def test_of_one_tile_with_all_classes_dice_and_lovasz_are_those_of_smp(loss, smps):
    logits, label = batch(size=1)
    assert len(label.unique()) == NUM_CLASSES + 1
    expected = smps("multiclass", ignore_index=IGNORE_INDEX)(logits, label.long())
    torch.testing.assert_close(mean(loss, logits, label), expected)


# What holds for all


@all_losses
@settings(derandomize=True, deadline=None, max_examples=10)
@given(cuts=st.sets(st.integers(1, 3)), ignored=st.floats(0, 1))
def test_parts_of_a_batch_sum_to_the_loss_of_the_whole_with_its_gradient(loss, cuts, ignored):
    """Four tiles at once, one by one, two by two: whatever share of each is labelled."""
    torch.manual_seed(1)
    logits, label = batch(size=4, ignored=ignored)
    label[0] = IGNORE_INDEX
    edges = [0, *sorted(cuts), 4]
    parts = [slice(*pair) for pair in pairwise(edges)]
    divisor = loss.divisor(label).clamp(min=1e-30)
    torch.testing.assert_close(sum(loss.divisor(label[part]) for part in parts), loss.divisor(label))
    whole = loss.total(logits, label) / divisor
    shared = sum(loss.total(logits[part], label[part]) / divisor for part in parts)
    torch.testing.assert_close(shared, whole, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(x, logits)[0] for x in (whole, shared)]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-7)


@all_losses
def test_ignored_pixels_count_for_nothing(loss):
    logits, label = batch()
    mean(loss, logits, label).backward()
    assert not (logits.grad.abs().sum(1) * (label == IGNORE_INDEX)).any()
    changed = logits + 9 * torch.randn_like(logits) * (label == IGNORE_INDEX)[:, None]
    torch.testing.assert_close(mean(loss, changed, label), mean(loss, logits, label))


@all_losses
def test_a_batch_without_labels_has_loss_0_and_gradient_0(loss):
    logits, label = batch(ignored=1.1)
    total = loss.total(logits, label)
    assert (total.item(), loss.divisor(label).item()) == (0, 0)
    total.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@all_losses
@pytest.mark.parametrize("sure", [1e2, 1e4])
def test_pixels_that_are_surely_right_or_wrong_give_finite_numbers(loss, sure):
    logits, label = batch()
    extreme = (sure * logits.detach().sign()).bfloat16().requires_grad_()
    total = mean(loss, extreme, label)
    total.backward()
    assert total.dtype == torch.float32
    assert torch.isfinite(total)
    assert torch.isfinite(extreme.grad).all()


@all_losses
def test_the_right_answer_has_the_least_loss(loss):
    logits, label = batch()
    right = 20.0 * F.one_hot(label.long().where(label != IGNORE_INDEX, 0), NUM_CLASSES).movedim(-1, 1)
    assert mean(loss, right, label) < mean(loss, logits, label) < mean(loss, -right, label)


def test_both_heads_learn_by_the_loss_that_is_named():
    logits, label = batch()
    around, around_label = batch()
    dice = Dice()
    divisors = dice.divisor(label), dice.divisor(around_label)
    found = supervised_loss(TrainingLogits(logits, around), (label, around_label), divisors, alpha=0.5, loss=dice)
    expected = mean(dice, logits, label) + 0.5 * mean(dice, around, around_label)
    torch.testing.assert_close(found, expected)


def test_losses_by_name():
    found = named_losses(
        {"cross_entropy": 1.0, "focal": 0.5, "ohem": 2.0, "dice": 1.0, "lovasz": 3.0},
        weights=WEIGHTS,
        label_smoothing=0.2,
        focal_gamma=3.0,
        ohem_share=0.1,
    )
    assert [share for share, _ in found] == [1, 0.5, 2, 1, 3]
    entropy, focal, ohem, dice, lovasz = (loss for _, loss in found)
    assert (entropy.label_smoothing, focal.gamma, ohem.share, ohem.label_smoothing) == (0.2, 3.0, 0.1, 0.2)
    assert entropy.weights is focal.weights is ohem.weights is WEIGHTS
    assert (type(dice), type(lovasz)) == (Dice, Lovasz)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "segmentation_models_pytorch", None)
    with pytest.raises(CaswitError, match=r"train\.loss: dice needs segmentation_models_pytorch.*extra baselines"):
        named_losses({"dice": 1.0})
    named_losses({"cross_entropy": 1.0, "focal": 1.0, "ohem": 1.0})


@pytest.mark.parametrize("name", ["cross_entropy", "focal", "ohem", "dice", "lovasz"])
def test_on_a_gpu_the_numbers_are_those_of_the_cpu(name):
    gpu = pytest.importorskip("pretend_gpu")
    logits, label = batch()

    def found(device):
        ((_, loss),) = named_losses({name: 1.0}, weights=WEIGHTS.to(device))
        there = logits.detach().to(device).requires_grad_()
        total = mean(loss, there, label.to(device))
        return total.detach().cpu(), torch.autograd.grad(total, there)[0].cpu()

    with gpu.pretend_gpu() as device:
        on_gpu = found(device)
    torch.testing.assert_close(on_gpu, found("cpu"))
