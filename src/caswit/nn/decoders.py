"""Decoders: from the maps of the four stages to logits at a quarter of the image's resolution (paper section 3.3).

UPerNet is the decoder of the paper's first version, and what this text calls the paper; the SegFormer head is that of
its second version.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import Norm
from caswit.nn.conv import ConvNormReLU, conv3x3_of_upsampled, norm_layer

# Sides of the pooled maps: the usual ones of PSPNet's pooling, since the paper names none (docs/decisions/0004).
POOL_SCALES = (1, 2, 3, 6)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


class UPerNetHead(nn.Module):
    """UPerNet: pyramid pooling on the deepest map, and a feature pyramid over all four (Xiao et al. 2018).

    Args:
        in_channels: Channels of the stage maps, shallow to deep.
        channels: Width of the decoder.
        num_classes: Channels of the logits.
        norm: "batch" (the usual UPerNet) or "group".
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int, num_classes: int, norm: Norm = "batch") -> None:
        super().__init__()
        *shallow, deepest = in_channels
        # The pool of scale 1 leaves one pixel per tile: batch norm then needs two tiles in a training pass.
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(scale), ConvNormReLU(deepest, channels, 1, norm))
            for scale in POOL_SCALES
        )
        self.bottleneck = ConvNormReLU(deepest + len(POOL_SCALES) * channels, channels, 3, norm)
        self.laterals = nn.ModuleList(ConvNormReLU(c, channels, 1, norm) for c in shallow)
        self.smooths = nn.ModuleList(ConvNormReLU(channels, channels, 3, norm) for _ in shallow)
        self.fuse = ConvNormReLU(len(in_channels) * channels, channels, 3, norm)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn stage maps (B, C_s, H_s, W_s), shallow to deep, into logits (B, K, H_1, W_1)."""
        deepest = maps[-1]
        pooled = [_resize(pool(deepest), deepest) for pool in self.pools]
        top = self.bottleneck(torch.cat([deepest, *pooled], dim=1))
        levels = [top]  # deep to shallow
        for lateral, stage_map in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            here = lateral(stage_map)
            levels.append(here + _resize(levels[-1], here))
        pyramid = [smooth(x) for smooth, x in zip(self.smooths, reversed(levels[1:]), strict=True)]
        pyramid.append(top)
        # The usual way enlarges all levels to the first one's sides, concatenates and convolves, which for maps of
        # these sizes is most of the decoder's arithmetic.
        convolve, norm, relu = self.fuse
        assert isinstance(convolve, nn.Conv2d)
        return self.classify(relu(norm(conv3x3_of_upsampled(pyramid, convolve.weight))))


class SegformerHead(nn.Module):
    """SegFormer's head: project every map to one width, upsample, mix by 1x1 convolution (Xie et al. 2021).

    The usual way concatenates the upsampled maps and mixes those. Mixing channels and upsampling commute, so each
    map is mixed by its own part of that convolution where it is small, and the results are added.

    Args:
        in_channels: Channels of the stage maps, shallow to deep.
        channels: Width of the decoder.
        num_classes: Channels of the logits.
        norm: "batch" (the usual SegFormer) or "group".
        dropout: Share of values that is dropped before the classifier, in training only.
    """

    def __init__(
        self, in_channels: Sequence[int], *, channels: int, num_classes: int, norm: Norm = "batch", dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.fuse = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in in_channels)
        self.norm = norm_layer(norm, channels)
        self.dropout = nn.Dropout(dropout)
        self.classify = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Turn stage maps (B, C_s, H_s, W_s), shallow to deep, into logits (B, K, H_1, W_1)."""
        mixed = [fuse(project(x)) for fuse, project, x in zip(self.fuse, self.projections, maps, strict=True)]
        merged = sum((_resize(x, mixed[0]) for x in mixed[1:]), start=mixed[0])
        return self.classify(self.dropout(F.relu(self.norm(merged))))
