"""ISDNet: a deep branch on the image at a quarter, a shallow one on the details of the whole image (Guo et al. 2022,
"ISDNet: Integrating Shallow and Deep Networks for Efficient Ultra-high Resolution Segmentation").

A Laplacian pyramid of two levels splits the image. What remains, at a quarter of the sides, goes through ResNet-18,
dilated to 1/8 of its own sides (1/32 of the image's), and ASPP. The details of both levels, six channels at full size,
go through the stem and two stages of STDC1. Relation-aware fusion joins the deep map with the shallow one
at 1/16, and the result with the one at 1/8, from which the classes are read.

In training, five heads are learned, and a decoder rebuilds the details of the image from the deep map
(super-resolution); the deep map is to follow the decoder's similarities between positions (structure distillation).

Our reading of what the paper leaves open: the deep branch sees the remainder of the pyramid, which is the mean of 4 x 4
pixels; the decoder doubles the deep map four times, to half of the image's sides, by bilinear enlargement and 3x3
convolution, and its target is the sum of both details; similarities are cosines between the positions of the deep map
and between those of the decoder's map at 1/8, on at most 32 x 32 positions.

Shapes: B batch, H/W rows and columns of the image, K classes, C channels.
"""

from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines.parts import (
    ASPP,
    STDC1_DEPTHS,
    ConvBNReLU,
    DilatedResNet18,
    Head,
    STDCBackbone,
    laplacian_pyramid,
    mean_cross_entropy,
    resize,
    scaled,
)

HEAD_WEIGHTS = {"logits": 1.0, "fused8": 1.0, "fused16": 1.0, "deep": 1.0, "auxiliary": 0.4}
"""Weights of the cross-entropies; "deep" reads the deep branch, "auxiliary" its third stage."""
REBUILT_WEIGHT = 0.1
SIMILARITY_WEIGHT = 1.0
SIMILARITY_SIDE = 32
"""Similarities are compared on at most this many rows and columns: their number grows with the fourth power."""
DILATIONS = (1, 12, 24, 36)


class ISDNet(nn.Module):
    """ISDNet.

    Args:
        num_classes: K, the number of predicted classes.
        width: Factor on all channels.
        pretrained: Start the deep branch from ImageNet weights.

    Raises:
        ConfigError: ``pretrained`` with another width than 1, or the weights cannot be downloaded.
    """

    reads_context: ClassVar[bool] = False
    stride_px: ClassVar[int] = 32
    phases: ClassVar[dict[str, tuple[str, ...]]] = {}
    phase: str | None = None

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False) -> None:
        super().__init__()
        channels, narrow = scaled(128, width), scaled(64, width)
        self.deep = DilatedResNet18(width, pretrained=pretrained)
        self.aspp = ASPP(self.deep.channels[-1], channels, DILATIONS)
        self.shallow = STDCBackbone(STDC1_DEPTHS[:2], width, in_channels=6)
        self.fusion16 = RelationAwareFusion(channels, self.shallow.channels[1], channels)
        self.fusion8 = RelationAwareFusion(channels, self.shallow.channels[0], channels)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        # Training only.
        self.heads = training_heads(channels, self.deep.channels[2], narrow, num_classes)
        self.rebuild = SuperResolution(channels, narrow)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of images.

        Args:
            image: (B, 3, H, W), normalised; sides are multiples of ``stride_px``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W). In training mode also what ``loss`` needs: smaller logits of the
            other heads ("fused8", "fused16", "deep", "auxiliary"); "rebuilt" and its target "details",
            (B, 3, H / 2, W / 2); "deep_map" and "rebuilt_map", whose similarities are compared.
        """
        details, small = split(image)
        shallow8, shallow16 = self.shallow(details)
        stages = self.deep(small)
        deep = self.aspp(stages[-1])
        fused16 = self.fusion16(deep, shallow16)
        fused8 = self.fusion8(fused16, shallow8)
        logits = resize(self.classify(fused8), image.shape[-2:])
        if not self.training:
            return logits
        rebuilt, rebuilt_map = self.rebuild(deep)
        return {
            "logits": logits,
            "fused8": self.heads["fused8"](fused8),
            "fused16": self.heads["fused16"](fused16),
            "deep": self.heads["deep"](deep),
            "auxiliary": self.heads["auxiliary"](stages[2]),
            "rebuilt": rebuilt,
            "details": F.avg_pool2d(details[:, :3] + details[:, 3:], 2),
            "deep_map": deep,
            "rebuilt_map": rebuilt_map,
        }

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return the weighted sum of cross-entropies, reconstruction and similarity loss; 0 where nothing is labelled.

        Args:
            outputs: What ``forward`` gave in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        """
        rebuilt = F.mse_loss(outputs["rebuilt"].float(), outputs["details"].float())
        similarity = similarity_loss(outputs["deep_map"], outputs["rebuilt_map"])
        # These two need no label, but a pass without one has no share in the step.
        unlabelled = (REBUILT_WEIGHT * rebuilt + SIMILARITY_WEIGHT * similarity) * (label != IGNORE_INDEX).any()
        return head_losses(outputs, label) + unlabelled


def split(image: Tensor) -> tuple[Tensor, Tensor]:
    """Split (B, 3, H, W) into details of two levels (B, 6, H, W) and the remainder (B, 3, H / 4, W / 4)."""
    (fine, coarse), small = laplacian_pyramid(image, 2)
    return torch.cat([fine, resize(coarse, fine.shape[-2:])], dim=1), small


def training_heads(channels: int, stage_channels: int, narrow: int, num_classes: int) -> nn.ModuleDict:
    """Make the heads that only train: on both fused maps, the deep map, and the third stage of the deep branch."""
    return nn.ModuleDict(
        {
            "fused8": Head(channels, narrow, num_classes),
            "fused16": Head(channels, narrow, num_classes),
            "deep": nn.Conv2d(channels, num_classes, 1),
            "auxiliary": Head(stage_channels, narrow, num_classes),
        }
    )


def head_losses(outputs: dict[str, Tensor], label: Tensor) -> Tensor:
    """Add up the cross-entropies of all heads, by ``HEAD_WEIGHTS``; 0 where nothing is labelled."""
    losses = [weight * mean_cross_entropy(outputs[name], label) for name, weight in HEAD_WEIGHTS.items()]
    return torch.stack(losses).sum()


class RelationAwareFusion(nn.Module):
    """Fuse a deep and a shallow map, each gated by channel attention that knows of the other.

    The attention vectors of both sides, made of global averages, are cut into pieces of 8; the products of all pieces
    of one side with all of the other, (C / 8)**2 values, say how the channels relate. An MLP of each side turns them
    into an offset of its attention, with a strength that starts at 0.

    Args:
        deep_channels: Channels of the deep map.
        shallow_channels: Channels of the shallow map.
        channels: C, channels of the result, a multiple of 8.
    """

    def __init__(self, deep_channels: int, shallow_channels: int, channels: int) -> None:
        super().__init__()
        self.project = nn.ModuleList(ConvBNReLU(before, channels) for before in (deep_channels, shallow_channels))
        self.attention = nn.ModuleList(nn.Linear(channels, channels) for _ in range(2))
        relations = (channels // 8) ** 2
        self.relation = nn.ModuleList(
            nn.Sequential(nn.Linear(relations, channels), nn.ReLU(), nn.Linear(channels, channels)) for _ in range(2)
        )
        self.strength = nn.Parameter(torch.zeros(2))
        self.smooth = nn.ModuleList(ConvBNReLU(channels, channels) for _ in range(2))
        self.mix = ConvBNReLU(channels, channels)

    def forward(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """(B, deep_channels, h, w) and (B, shallow_channels, H, W) -> (B, C, H, W)."""
        maps = [project(x) for project, x in zip(self.project, (deep, shallow), strict=True)]
        attention = [attend(x.mean((2, 3))) for attend, x in zip(self.attention, maps, strict=True)]
        pieces = [a.unflatten(1, (-1, 8)) for a in attention]  # (B, C / 8, 8)
        relations = (pieces[0] @ pieces[1].transpose(1, 2)).flatten(1)
        gated = []
        for x, a, relation, strength in zip(maps, attention, self.relation, self.strength, strict=True):
            gate = torch.sigmoid(a + strength * relation(relations))
            gated.append(x * gate[:, :, None, None])
        smooth_deep, smooth_shallow = self.smooth
        return self.mix(smooth_deep(resize(gated[0], shallow.shape[-2:])) + smooth_shallow(gated[1]))


class SuperResolution(nn.Module):
    """Decoder from the deep map, 1/32, to an image at 1/2: enlarged and convolved four times; training only."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        widths = [in_channels, channels, channels, max(8, channels // 2), max(8, channels // 4)]
        self.steps = nn.ModuleList(ConvBNReLU(a, b) for a, b in pairwise(widths))
        self.image = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, deep: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) -> image (B, 3, 16 h, 16 w), and the map of the second step, (B, channels, 4 h, 4 w)."""
        maps = [deep]
        for step in self.steps:
            x = maps[-1]
            maps.append(step(resize(x, (2 * x.shape[-2], 2 * x.shape[-1]))))
        return self.image(maps[-1]), maps[2]


def similarity_loss(first: Tensor, second: Tensor) -> Tensor:
    """Compare which positions of two maps resemble one another: L1 of the matrices of cosines.

    Args:
        first: (B, C, h, w); says how many positions are compared, at most ``SIMILARITY_SIDE`` rows and columns.
        second: (B, D, H, W), averaged to as many.
    """
    rows, cols = (min(side, SIMILARITY_SIDE) for side in first.shape[-2:])
    matrices = []
    for x in (first, second):
        vectors = F.normalize(F.adaptive_avg_pool2d(x.float(), (rows, cols)).flatten(2), dim=1)
        matrices.append(vectors.transpose(1, 2) @ vectors)
    return F.l1_loss(matrices[0].float(), matrices[1].float())
