"""The focal loss and labels at the size of small logits, by their definitions."""

import pytest
import torch
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines.focal import GAMMA, focal_loss, label_at


@pytest.mark.equivalence
@pytest.mark.parametrize("gamma", [0, 2, GAMMA])
def test_it_is_the_formula_averaged_over_labelled_pixels(gamma):
    torch.manual_seed(0)
    logits, label = 3 * torch.randn(2, 4, 5, 6), torch.randint(4, (2, 5, 6))
    label[0, :2] = IGNORE_INDEX
    terms = []
    for b, row, col in (label != IGNORE_INDEX).nonzero().tolist():
        p = logits[b, :, row, col].double().softmax(0)[label[b, row, col]]
        terms.append(-((1 - p) ** gamma) * p.log())
    assert focal_loss(logits, label, gamma).item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


def test_without_gamma_it_is_the_cross_entropy():
    logits, label = torch.randn(2, 4, 5, 6), torch.randint(4, (2, 5, 6))
    torch.testing.assert_close(focal_loss(logits, label, 0), F.cross_entropy(logits, label))


@pytest.mark.parametrize("scale", [0, 1, 1e4])
def test_gradients_are_finite_however_sure_the_network_is(scale):
    logits = (scale * torch.randn(1, 3, 4, 4)).requires_grad_()
    label = logits.argmax(1)
    label[0, 0] = IGNORE_INDEX
    focal_loss(logits, label).backward()
    assert logits.grad.isfinite().all()
    assert not logits.grad[:, :, 0].any()


def test_without_labels_it_is_0_with_a_graph():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = focal_loss(logits, torch.full((1, 4, 4), IGNORE_INDEX))
    assert loss.item() == 0
    loss.backward()
    assert not logits.grad.any()


@pytest.mark.equivalence
@pytest.mark.parametrize("size", [(4, 6), (16, 24), (5, 9), (127, 3)])
def test_small_labels_are_those_at_the_centres(size):
    label = torch.randint(250, (2, 16, 24))
    expected = F.interpolate(label[:, None].float(), size=size, mode="nearest-exact")[:, 0].long()
    assert torch.equal(label_at(label, size), expected)
