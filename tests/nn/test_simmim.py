"""Masked reconstruction: what reaches the network, and what the loss counts."""

import pytest
import torch

from caswit.config import ModelConfig
from caswit.errors import ModelError
from caswit.nn.caswit import CASWiT
from caswit.nn.simmim import STRIDE_PX, ReconstructionHead, SimMIM, masked_l1_sum, pixel_mask


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(**settings) -> SimMIM:
    model = SimMIM(CASWiT(num_classes=0, **{"size": "nano", **settings}), context_ratio=0.5).eval()
    for parameter in model.parameters():  # no token or gate is 0, so that none can be forgotten
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def photo(side: int = 64, batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8)


def some_mask(side: int = 64, batch: int = 2) -> torch.Tensor:
    cells = torch.rand(batch, side // 16, side // 16) < 0.6
    return cells.repeat_interleave(4, 1).repeat_interleave(4, 2)


@torch.no_grad()
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_no_pixel_of_a_masked_cell_or_of_the_masked_context_reaches_the_network(stem):
    """Nor through the convolutions of a stem, which reach from one token into the next."""
    model, hr, context, mask = network(stem=stem), photo(), photo(), some_mask()
    out = model(hr, context, mask)
    other_hr = torch.where(pixel_mask(mask, 64, 64), photo(), hr)
    other_context = context.clone()
    other_context[..., 16:48, 16:48] = photo(32)
    assert not torch.equal(other_hr, hr)
    assert torch.equal(model(other_hr, other_context, mask), out)


@torch.no_grad()
@pytest.mark.parametrize("place", [(0, 0), (15, 40), (48, 63), (63, 15)])
def test_every_other_pixel_does(place):
    """The counterpart: the test above would pass for a network that sees nothing."""
    model, hr, context, mask = network(), photo(), photo(), some_mask()
    out = model(hr, context, mask)
    row, col = place
    changed = context.clone()
    changed[:, :, row, col] += 128
    assert not torch.equal(model(hr, changed, mask), out)
    visible = (~pixel_mask(mask, 64, 64))[0, 0].nonzero()[0]
    changed = hr.clone()
    changed[0, :, visible[0], visible[1]] += 128
    assert not torch.equal(model(changed, context, mask)[0], out[0])


def test_visible_pixels_do_not_enter_the_loss():
    found, target, mask = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64), pixel_mask(some_mask(), 64, 64)
    loss = masked_l1_sum(found, target, mask)
    assert torch.equal(masked_l1_sum(torch.where(mask, found, torch.randn(2, 3, 64, 64)), target, mask), loss)
    assert not torch.equal(masked_l1_sum(torch.where(mask, torch.randn(2, 3, 64, 64), found), target, mask), loss)


def test_the_loss_is_the_papers_formula_one_pixel_at_a_time():
    found, target, tokens = torch.randn(2, 3, 10, 10), torch.randn(2, 3, 10, 10), torch.rand(2, 3, 3) < 0.5
    total, masked = 0.0, 0
    for image in range(2):
        for row in range(10):
            for col in range(10):
                if tokens[image, row // 4, col // 4]:
                    masked += 1
                    difference = found[image, :, row, col] - target[image, :, row, col]
                    total += sum(abs(x) for x in difference.tolist())
    pixels = pixel_mask(tokens, 10, 10)
    assert pixels.sum() == masked
    loss = masked_l1_sum(found, target, pixels) / (3 * pixels.sum())
    assert loss.item() == pytest.approx(total / (3 * masked), rel=1e-5)


def test_the_head_writes_each_tokens_pixels_under_it():
    head = ReconstructionHead(8)
    tokens = torch.randn(1, 8, 3, 2)
    whole = head(tokens)
    assert whole.shape == (1, 3, 3 * STRIDE_PX, 2 * STRIDE_PX)
    for row in range(3):
        for col in range(2):
            alone = head(tokens[..., row : row + 1, col : col + 1])
            rows, cols = (slice(i * STRIDE_PX, (i + 1) * STRIDE_PX) for i in (row, col))
            torch.testing.assert_close(whole[..., rows, cols], alone)


@torch.no_grad()
def test_sides_that_32_does_not_divide_come_out_as_they_went_in():
    model = network()
    mask = torch.zeros(1, 13, 13, dtype=torch.bool)
    assert model(photo(50, 1), photo(50, 1), mask).shape == (1, 3, 50, 50)


def test_every_weight_learns():
    """Also with the baseline, which has no context branch."""
    for stages in ((1, 2, 3, 4), (2,), ()):
        model = network(fusion_stages=stages, drop_path=0.0, gated=True).train()
        hr, mask = photo(), some_mask()
        found = model(hr, photo() if stages else None, mask)
        masked_l1_sum(found, model.network.normalise(hr), pixel_mask(mask, 64, 64)).backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_the_target_is_in_normalised_pixels():
    model = CASWiT(num_classes=0, size="nano", mean=(10.0, 20.0, 30.0), std=(2.0, 4.0, 5.0))
    hr = torch.tensor([12, 24, 35], dtype=torch.uint8).view(1, 3, 1, 1)
    assert model.normalise(hr).flatten().tolist() == [1.0, 1.0, 1.0]


def test_a_missing_context_is_named():
    with pytest.raises(ModelError, match="needs a context image"):
        network()(photo(), None, some_mask())


def test_names_of_encoders_and_fusion_are_those_of_a_trained_model():
    trained = CASWiT(num_classes=3, context_head=False, **ModelConfig(size="nano").of_caswit)
    bare = CASWiT(num_classes=0, **ModelConfig(size="nano").of_caswit)
    parts = {"hr_encoder", "context_encoder", "fusion"}
    assert {n for n in trained.state_dict() if n.split(".")[0] in parts} == set(bare.state_dict())
