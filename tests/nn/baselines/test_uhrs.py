"""UHRS: its selector, estimator, ensembler and loss, shapes, and that it learns."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines import uhrs
from caswit.nn.baselines.uhrs import UHRS, FrequencyResidual, Patches, scaled_entropy, weighted_cross_entropy
from nn.baselines.toy import (
    NUM_CLASSES,
    check_batch,
    check_gradients,
    check_loss,
    check_shapes,
    learned,
    noisy,
    parameters,
)


def narrow(**options):
    torch.manual_seed(0)
    return UHRS(num_classes=NUM_CLASSES, width=0.125, **options)


def test_it_has_the_known_parameters_without_the_head_that_only_trains():
    assert parameters(UHRS(num_classes=8), ("auxiliary",)) / 1e6 == pytest.approx(13.6, rel=0.02)


def test_interface():
    check_shapes(narrow(), [(32, 32), (64, 96), (160, 64)])
    check_gradients(narrow(), side=128)
    check_loss(narrow())
    check_batch(narrow(), side=128)


def test_the_head_that_only_trains_is_not_computed_in_evaluation():
    network = narrow().eval()
    for module in network.auxiliary.modules():
        module.register_forward_hook(lambda *_: pytest.fail("computed in evaluation mode"))
    network(torch.randn(1, 3, 32, 32))


class TestPatches:
    @pytest.mark.parametrize(
        ("height", "width", "along", "side", "grid"),
        [
            (2560, 2560, 10, 256, (10, 10)),
            (5120, 5120, 20, 256, (20, 20)),
            (512, 512, 10, 64, (8, 8)),
            (1024, 3072, 10, 320, (4, 10)),
            (96, 64, 20, 64, (2, 1)),
        ],
    )
    def test_the_grid(self, height, width, along, side, grid):
        patches = Patches(torch.Size((1, 3, height, width)), along)
        assert patches.side == side
        assert (patches.rows, patches.cols) == grid

    def test_the_most_uncertain_are_chosen_by_their_mean_over_the_image(self):
        uncertainty = torch.rand(2, 1, 10, 12)  # of an image of 160 x 192 px: 3 x 3 patches, the last row 2 high
        patches = Patches(torch.Size((2, 3, 160, 192)), 3)
        chosen = patches.choose(uncertainty, 0.4)
        for image, marks in zip(uncertainty[:, 0].numpy(), chosen, strict=True):
            means = [[image[4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean() for c in range(3)] for r in range(3)]
            best = np.argsort(means, axis=None)[::-1][:4]
            assert marks.tolist() == sorted(best.tolist())

    def test_at_least_one_is_chosen(self):
        patches = Patches(torch.Size((1, 3, 128, 128)), 20)
        assert patches.choose(torch.rand(1, 1, 8, 8), 0.01).shape == (1, 1)

    def test_what_is_cut_and_joined_is_the_image_where_it_was_chosen(self):
        image = torch.randn(2, 3, 160, 192)
        patches = Patches(image.shape, 3)
        chosen = torch.tensor([[0, 4, 8], [1, 2, 6]])
        cut = patches.cut(image, chosen)
        assert cut.shape == (2, 3, 3, 64, 64)
        mask = patches.mask(chosen, image.shape[-2:])
        assert mask.mean() == (64 * 64 * 4 + 64 * 32 * 2) / (2 * 160 * 192)
        torch.testing.assert_close(patches.join(cut, chosen), image * mask, rtol=0, atol=0)
        for b, i in np.ndindex(2, 3):
            row, col = divmod(int(chosen[b, i]), 3)
            own = image[b, :, 64 * row : 64 * row + 64, 64 * col : 64 * col + 64]
            torch.testing.assert_close(cut[b, i, :, : own.shape[1]], own, rtol=0, atol=0)
            assert not cut[b, i, :, own.shape[1] :].any()


class TestSelector:
    @torch.no_grad()
    def test_patches_that_were_not_chosen_are_not_computed_by_the_uhr_stream(self):
        network = noisy(narrow(chosen=0.3)).eval()
        seen = []
        network.uhr.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        image = torch.randn(2, 3, 256, 256)
        network(image)
        (patches,) = seen
        assert len(patches) == 2 * round(0.3 * 16)
        # Each is a patch of the image, and none twice.
        of_image = image.unflatten(3, (4, 64)).unflatten(2, (4, 64)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
        places = [int((patch == of_image).flatten(1).all(1).nonzero()) for patch in patches]
        assert len(set(places)) == len(places)

    @torch.no_grad()
    def test_where_nothing_was_chosen_the_low_stream_is_kept(self, monkeypatch):
        network = noisy(narrow()).eval()
        image = torch.randn(1, 3, 128, 256)
        none, left = torch.zeros(1, 0, dtype=torch.long), torch.tensor([[0, 1, 4, 5]])  # of 2 x 4 patches
        monkeypatch.setattr(Patches, "choose", lambda *_: none)
        network.uhr.forward = lambda *_: [torch.zeros(1, 8, 16, 32), torch.zeros(1, 8, 8, 16)]
        low_only = network(image)
        deep = network.low_reduce(network.dappm(network.low(F.avg_pool2d(image, 4))[-1]))
        for size in ((8, 16), (16, 32)):
            deep = F.interpolate(deep, size=size, mode="bilinear", align_corners=False)
        expected = F.interpolate(network.head(deep), size=(128, 256), mode="bilinear", align_corners=False)
        torch.testing.assert_close(low_only, expected)
        del network.uhr.forward
        monkeypatch.setattr(Patches, "choose", lambda *_: left)
        with_left = network(image)
        torch.testing.assert_close(with_left[..., 192:], low_only[..., 192:])
        assert not torch.allclose(with_left[..., :64], low_only[..., :64])

    @torch.no_grad()
    @pytest.mark.parametrize("training", [False, True])
    def test_with_all_patches_chosen_it_is_the_network_without_a_selector(self, training):
        network = noisy(narrow(chosen=1.0)).train(training)
        image = torch.randn(2, 3, 128, 192)
        logits = network(image)["logits"] if training else network(image)
        stages = network.low(F.avg_pool2d(image, 4))
        deep = network.dappm(stages[-1])
        entropy = F.interpolate(scaled_entropy(network.low_head(deep)), size=(8, 12), mode="bilinear")
        v = (network.residual(stages[0], stages[1]).sigmoid() + entropy) / 2
        patches = torch.cat([image[:, :, r : r + 64, c : c + 64] for r in (0, 64) for c in (0, 64, 128)])
        fused = network.low_reduce(deep)
        maps = [f(x) for f, x in zip(network.uhr.reduce, network.uhr.backbone(patches), strict=True)]
        for side, small in ((4, maps[1]), (8, maps[0])):
            uhr = torch.zeros(2, small.shape[1], 2 * side, 3 * side)
            for i, (r, c) in enumerate((r, c) for r in range(2) for c in range(3)):
                uhr[:, :, side * r : side * (r + 1), side * c : side * (c + 1)] = small[2 * i : 2 * i + 2]
            weight, fused = (F.interpolate(x, size=uhr.shape[2:], mode="bilinear") for x in (v, fused))
            fused = (1 - weight) * fused + weight * uhr
        expected = F.interpolate(network.head(fused), size=(128, 192), mode="bilinear")
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)

    @torch.no_grad()
    def test_groups_of_patches_change_nothing(self, monkeypatch):
        network = noisy(narrow()).eval()
        image = torch.randn(2, 3, 192, 192)
        whole = network(image)
        monkeypatch.setattr(uhrs, "PIXELS_AT_ONCE", 2 * 64**2)
        torch.testing.assert_close(network(image), whole)


@pytest.mark.equivalence
def test_the_entropy_is_in_nats_and_limited():
    logits = torch.randn(2, 4, 5, 6)
    probability = logits.double().softmax(1).numpy()
    expected = np.minimum(-(probability * np.log(probability)).sum(1) / 0.7, 1)
    np.testing.assert_allclose(scaled_entropy(logits)[:, 0].numpy(), expected, rtol=1e-5)
    assert scaled_entropy(torch.tensor([300.0, -300.0]).view(1, 2, 1, 1)) == 0  # no NaN from 0 * log 0
    assert scaled_entropy(torch.zeros(1, 2, 1, 1)).item() == pytest.approx(np.log(2) / 0.7)


@torch.no_grad()
def test_the_residual_is_what_the_second_stage_does_not_tell_of_the_first():
    part = noisy(FrequencyResidual(4, 6))
    coarse = torch.randn(1, 6, 5, 7)
    predicted = part.predict(F.interpolate(coarse, scale_factor=2, mode="bilinear"))
    torch.testing.assert_close(part(predicted, coarse), part.score.bias.view(1, 1, 1, 1).expand(1, 1, 10, 14))
    fine = torch.randn(1, 4, 10, 14)
    d = (fine - predicted).abs()
    mean, most = part.score.weight.flatten()
    torch.testing.assert_close(part(fine, coarse), mean * d.mean(1, True) + most * d.amax(1, True) + part.score.bias)


@pytest.mark.equivalence
def test_the_weighted_cross_entropy_is_that_of_a_slow_loop():
    logits, label, v = torch.randn(2, 3, 4, 6), torch.randint(3, (2, 4, 6)), torch.rand(2, 1, 4, 6)
    label[0, 1] = IGNORE_INDEX
    total = weights = 0.0
    for b, row, col in np.ndindex(2, 4, 6):
        if label[b, row, col] != IGNORE_INDEX:
            weight = (1 + float(v[b, 0, row, col])) ** 6
            weights += weight
            total += weight * -float(logits[b, :, row, col].log_softmax(0)[label[b, row, col]])
    assert weighted_cross_entropy(logits, label, v).item() == pytest.approx(total / weights, rel=1e-5)
    torch.testing.assert_close(
        weighted_cross_entropy(logits, label, torch.zeros(2, 1, 4, 6)),
        F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX),
    )


def test_it_learns_with_half_of_the_patches():
    torch.manual_seed(0)
    assert learned(UHRS(num_classes=NUM_CLASSES, width=0.25), side=128, steps=50) > 0.95
