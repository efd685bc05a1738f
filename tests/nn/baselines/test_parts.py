"""Parts that networks of table 2 share, beside other implementations and slow computations."""

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from caswit.errors import ConfigError
from caswit.nn.baselines.parts import (
    ASPP,
    DAPPM,
    AttentionRefinement,
    BatchNorm,
    DilatedResNet18,
    STDCBlock,
    laplacian_pyramid,
    mean_cross_entropy,
    rebuild_from_pyramid,
    scaled,
)
from nn.baselines.toy import noisy


def test_widths_are_multiples_of_8():
    assert [scaled(c, 1.0) for c in (32, 100)] == [32, 100]
    assert [scaled(c, 0.25) for c in (16, 64, 256, 100)] == [8, 16, 64, 24]


class TestBatchNorm:
    def test_it_is_torchs(self):
        x = torch.randn(4, 3, 5, 6)
        ours, theirs = BatchNorm(3).train(), nn.BatchNorm2d(3).train()
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=0)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)

    def test_one_value_per_channel_is_normalised_by_the_running_statistics(self):
        norm = noisy(BatchNorm(3)).train()
        before = norm.running_mean.clone()
        x = torch.randn(1, 3, 1, 1)
        out = norm(x)
        torch.testing.assert_close(norm.running_mean, before, rtol=0, atol=0)
        torch.testing.assert_close(out, norm.eval()(x))


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_an_stdc_block_concatenates_a_half_a_quarter_and_two_eighths(stride):
    block = noisy(STDCBlock(16, 32, stride)).eval()
    x = torch.randn(2, 16, 8, 10)
    out = block(x)
    assert out.shape == (2, 32, 8 // stride, 10 // stride)
    first = block.first(x)
    assert first.shape[1] == 16
    if stride == 1:
        torch.testing.assert_close(out[:, :16], first, rtol=0, atol=0)
    else:
        padded = F.pad(first, (1, 1, 1, 1))
        torch.testing.assert_close(out[:, :16, 1, 2], padded[:, :, 2:5, 4:7].sum((2, 3)) / 9)
    torch.testing.assert_close(out[:, 28:], block.convolutions[2](out[:, 24:28]))


@pytest.mark.equivalence
@torch.no_grad()
def test_aspp_is_torchvisions_but_for_the_projection():
    theirs = torchvision.models.segmentation.deeplabv3.ASPP(16, (2, 3), 8)
    theirs.project = nn.Sequential(
        nn.Conv2d(32, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Identity()
    )
    noisy(theirs).eval()
    ours = ASPP(16, 8, (1, 2, 3)).eval()
    # theirs: branches, pool, projection; a module of pooling comes first in its pool, as in ours
    for i, branch in enumerate(ours.branches):
        branch.load_state_dict(theirs.convs[i].state_dict())
    pooled = theirs.convs[3].state_dict()
    ours.pool[1].load_state_dict({f"{int(k[0]) - 1}{k[1:]}": v for k, v in pooled.items()})
    # ours concatenates the pooled branch first, theirs last
    weight = theirs.project[0].weight
    ours.project.load_state_dict(
        theirs.project.state_dict() | {"0.weight": torch.cat([weight[:, 24:], weight[:, :24]], 1)}
    )
    x = torch.randn(2, 16, 7, 9)
    torch.testing.assert_close(ours(x), theirs(x))


@torch.no_grad()
def test_dappm_step_by_step():
    torch.manual_seed(0)
    part = noisy(DAPPM(8, 4, 6)).eval()
    x = torch.randn(2, 8, 16, 24)
    pooled = [F.avg_pool2d(x, k, s, k // 2) for k, s in ((5, 2), (9, 4), (17, 8))] + [x.mean((2, 3), keepdim=True)]
    maps = [part.scales[0][1](x)]
    for i, small in enumerate(pooled):
        mixed = part.scales[i + 1][1](small)
        large = F.interpolate(mixed, size=(16, 24), mode="bilinear", align_corners=False)
        maps.append(part.process[i](large + maps[i]))
    torch.testing.assert_close(part(x), part.compress(torch.cat(maps, 1)) + part.shortcut(x))
    assert [tuple(p.shape[2:]) for p in pooled] == [(8, 12), (4, 6), (2, 3), (1, 1)]


@torch.no_grad()
def test_attention_refinement_gates_channels():
    part = noisy(AttentionRefinement(8, 8)).eval()
    x = torch.randn(2, 8, 6, 7)
    features = part.convolve(x)
    gate = part.gate[2](part.gate[1](features.mean((2, 3), keepdim=True))).sigmoid()
    torch.testing.assert_close(part(x), features * gate)


class TestPyramid:
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_it_gives_the_image_back(self, levels):
        image = torch.randn(2, 3, 32, 48, dtype=torch.float64)
        details, rest = laplacian_pyramid(image, levels)
        assert [tuple(d.shape[2:]) for d in details] == [(32 >> i, 48 >> i) for i in range(levels)]
        torch.testing.assert_close(rebuild_from_pyramid(details, rest), image, rtol=0, atol=1e-12)

    @pytest.mark.equivalence
    def test_what_remains_is_the_mean_and_a_plane_has_no_details(self):
        image = torch.arange(16.0).view(1, 1, 1, 16) + 2 * torch.arange(16.0).view(1, 1, 16, 1)
        details, rest = laplacian_pyramid(image, 2)
        means = image.numpy().reshape(4, 4, 4, 4).mean((1, 3))
        np.testing.assert_allclose(rest[0, 0].numpy(), means)
        assert details[0][..., 1:-1, 1:-1].abs().max() < 1e-5
        assert details[0].abs().max() > 0.1  # bilinear enlargement cannot continue it at the edge


class TestResNet:
    @pytest.mark.equivalence
    @torch.no_grad()
    def test_weights_of_timms_resnet18d_give_its_maps_dilated_to_an_eighth(self, monkeypatch):
        theirs = noisy(timm.create_model("resnet18d", features_only=True, output_stride=8, out_indices=(1, 2, 3, 4)))
        create = timm.create_model

        def download(*args, pretrained, **options):
            network = create(*args, **options)
            network.load_state_dict(theirs.state_dict())
            return network

        monkeypatch.setattr("timm.create_model", download)
        ours = DilatedResNet18(pretrained=True).eval()
        assert ours.channels == (64, 128, 256, 512)
        image = torch.randn(1, 3, 32, 64)
        maps = ours(image)
        assert [tuple(x.shape[2:]) for x in maps] == [(8, 16), (4, 8), (4, 8), (4, 8)]
        torch.testing.assert_close(maps, theirs.eval()(image))

    def test_narrow_stages(self):
        maps = DilatedResNet18(0.25)(torch.randn(1, 3, 32, 64))
        assert [x.shape[1] for x in maps] == [16, 32, 64, 128]

    def test_pretrained_weights_need_the_full_width(self):
        with pytest.raises(ConfigError, match=r"model\.width 0\.5 has no ImageNet weights; use width 1"):
            DilatedResNet18(0.5, pretrained=True)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def no_network(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr("timm.create_model", no_network)
        with pytest.raises(ConfigError, match=r"cannot be downloaded \(no route to host\); start from random"):
            DilatedResNet18(pretrained=True)


def test_cross_entropy_of_small_logits_is_that_of_enlarged_ones():
    logits, label = torch.randn(2, 3, 4, 4), torch.randint(3, (2, 16, 16))
    label[0, :4] = 255
    large = F.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(mean_cross_entropy(logits, label), F.cross_entropy(large, label, ignore_index=255))
