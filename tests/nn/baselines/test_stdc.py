"""STDC: parameters, shapes, OHEM, the boundary map, and that it learns."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError
from caswit.nn.baselines.stdc import STDC, boundary_map, detail_loss, ohem_loss
from nn.baselines.toy import (
    NUM_CLASSES,
    check_batch,
    check_gradients,
    check_loss,
    check_only_trains,
    check_shapes,
    learned,
    parameters,
)

TRAINING_ONLY = ("auxiliary", "detail")


def narrow(**options):
    torch.manual_seed(0)
    return STDC(num_classes=NUM_CLASSES, width=0.125, **options)


@pytest.mark.parametrize(("variant", "millions"), [(1, 8.3), (2, 12.3)])
def test_it_has_the_known_parameters_without_the_heads_that_only_train(variant, millions):
    with torch.device("meta"):
        network = STDC(num_classes=8, variant=variant)
    assert parameters(network, TRAINING_ONLY) / 1e6 == pytest.approx(millions, rel=0.02)


def test_maps_have_an_eighth_to_a_32nd_of_the_sides_and_the_papers_channels():
    backbone = narrow(variant=2).backbone
    assert [tuple(x.shape) for x in backbone(torch.randn(2, 3, 64, 96))] == [
        (2, 32, 8, 12),
        (2, 64, 4, 6),
        (2, 128, 2, 3),
    ]
    assert STDC(num_classes=2).backbone.channels == (256, 512, 1024)


def test_interface():
    check_shapes(narrow(), [(32, 32), (64, 96), (160, 32)])
    check_gradients(narrow(variant=2))
    check_loss(narrow())
    check_batch(narrow())


def test_heads_that_only_train_are_not_computed_in_evaluation():
    check_only_trains(narrow(), TRAINING_ONLY)


def test_it_has_no_pretrained_weights():
    with pytest.raises(ConfigError, match="no ImageNet weights"):
        STDC(num_classes=2, pretrained=True)


@pytest.mark.equivalence
@pytest.mark.parametrize("scale", [0.1, 3, 20])  # all pixels hard, some, too few
def test_ohem_is_sorting(scale):
    torch.manual_seed(0)
    label = torch.randint(NUM_CLASSES, (2, 16, 24))
    logits = scale * (F.one_hot(label, NUM_CLASSES).permute(0, 3, 1, 2) + 0.3 * torch.randn(2, NUM_CLASSES, 16, 24))
    label[0, :5] = IGNORE_INDEX
    losses = []
    for scores, truth in zip(logits.permute(0, 2, 3, 1).reshape(-1, NUM_CLASSES), label.flatten(), strict=True):
        if truth != IGNORE_INDEX:
            losses.append(-scores.double().log_softmax(0)[truth].item())
    losses = np.sort(losses)[::-1]
    hard = int((losses >= -np.log(0.7)).sum())
    expected = losses[: max(hard, len(losses) // 16)].mean()
    assert ohem_loss(logits, label).item() == pytest.approx(expected, rel=1e-5)


def slow_boundary(label):
    """Pixel by pixel."""
    height, width = label.shape

    def laplacian(row, col):
        if label[row, col] == IGNORE_INDEX:
            return 0
        rows, cols = range(max(row - 1, 0), min(row + 2, height)), range(max(col - 1, 0), min(col + 2, width))
        return sum(int(label[row, col]) - int(label[r, c]) for r in rows for c in cols if label[r, c] != IGNORE_INDEX)

    out = np.zeros_like(label)
    for row in range(height):
        for col in range(width):
            edges = [laplacian(row // s * s, col // s * s) > 0 for s in (1, 2, 4)]
            out[row, col] = 6 * edges[0] + 3 * edges[1] + edges[2] > 1
    return out


@pytest.mark.equivalence
@pytest.mark.parametrize("unlabelled", [False, True])
def test_the_boundary_map_is_that_of_slow_loops(unlabelled):
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, (2, 4, 5)).repeat(8, axis=1).repeat(8, axis=2)
    label[:, 3:9, 11:14] = 2
    if unlabelled:
        label[0, 10:20, :9] = IGNORE_INDEX
    ours = boundary_map(torch.from_numpy(label)).numpy()
    np.testing.assert_array_equal(ours, [slow_boundary(each) for each in label])
    assert 0.05 < ours.mean() < 0.6


def test_neither_an_edge_of_the_image_nor_an_unlabelled_area_is_a_boundary():
    label = torch.full((1, 32, 32), 3)
    label[:, 10:20, 10:20] = IGNORE_INDEX
    assert not boundary_map(label).any()


def test_the_detail_loss_falls_to_nothing_at_the_truth():
    label = torch.zeros(1, 32, 32, dtype=torch.long)
    label[:, 8:24, 8:24] = 1
    truth = boundary_map(label)[:, None]
    assert detail_loss(40 * truth - 20, label) < 1e-3
    assert detail_loss(20 - 40 * truth, label) > 10


def test_it_learns():
    assert learned(narrow()) > 0.95
