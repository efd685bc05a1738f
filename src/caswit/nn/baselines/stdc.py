"""STDC1 and STDC2: one light branch over the whole image (Fan et al. 2021, "Rethinking BiSeNet For Real-time
Semantic Segmentation", figure 4).

The backbone gives maps at 1/8, 1/16 and 1/32. A context path refines the two deeper ones by attention and brings them
to 1/8, where they are fused with the backbone's map. In training, detail aggregation (the same figure) has the map
at 1/8 learn where the boundaries of the label are, and two more heads label the context path.

Our reading of what the paper leaves open: the context path is enlarged by repeating pixels; pixels without a label, and
those outside the image, have no part in the boundary map; the least number of pixels of the OHEM loss is a sixteenth of
the labelled ones. The map of stride 4 has a weight of 0.1 in the boundary map, whose threshold is above 0.1: alone it
makes no boundary; so it is published.

Shapes: B batch, H/W rows and columns of the image, K classes.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError
from caswit.nn.baselines.parts import (
    STDC1_DEPTHS,
    STDC2_DEPTHS,
    AttentionRefinement,
    ConvBNReLU,
    Head,
    STDCBackbone,
    labelled_pixels,
    resize,
    scaled,
)

OHEM_THRESHOLD = 0.7
"""Pixels whose class has at most this probability are hard."""
OHEM_LEAST = 16
"""At least the labelled pixels divided by this are taken, the hardest."""
BOUNDARY_STRIDES = (1, 2, 4)
BOUNDARY_WEIGHTS = (6, 3, 1)
"""In tenths, so that the comparison with the threshold, one tenth, is exact."""


class STDC(nn.Module):
    """STDC segmentation network.

    Args:
        num_classes: K, the number of predicted classes.
        width: Factor on all channels.
        pretrained: Refused: neither timm nor torchvision has ImageNet weights of STDC.
        variant: 1 or 2: two blocks a stage, or 4, 5 and 3.

    Raises:
        ConfigError: ``pretrained`` is true.
    """

    reads_context: ClassVar[bool] = False
    stride_px: ClassVar[int] = 32
    phases: ClassVar[dict[str, tuple[str, ...]]] = {}
    phase: str | None = None

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False, variant: int = 1) -> None:
        super().__init__()
        if pretrained:
            raise ConfigError("STDC has no ImageNet weights in timm or torchvision; start from random weights")
        assert variant in (1, 2)
        self.backbone = STDCBackbone(STDC1_DEPTHS if variant == 1 else STDC2_DEPTHS, width)
        path, fused, narrow = (scaled(channels, width) for channels in (128, 256, 64))
        self.context = ContextPath(self.backbone.channels[1:], path)
        self.fusion = FeatureFusion(self.backbone.channels[0] + path, fused, narrow)
        self.head = Head(fused, fused, num_classes)
        # Training only.
        self.auxiliary = nn.ModuleList(Head(path, narrow, num_classes) for _ in range(2))
        self.detail = Head(self.backbone.channels[0], narrow, 1)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of images.

        Args:
            image: (B, 3, H, W), normalised; sides are multiples of ``stride_px``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W). In training mode also what ``loss`` needs: logits of the
            auxiliary heads "auxiliary8" and "auxiliary16", and "detail" (B, 1, H / 8, W / 8).
        """
        fine, *deeper = self.backbone(image)
        path8, path16 = self.context(*deeper)
        logits = resize(self.head(self.fusion(fine, path8)), image.shape[-2:])
        if not self.training:
            return logits
        return {
            "logits": logits,
            "auxiliary8": self.auxiliary[0](path8),
            "auxiliary16": self.auxiliary[1](path16),
            "detail": self.detail(fine),
        }

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return the OHEM losses of all three heads plus the detail loss; 0 where nothing is labelled.

        Args:
            outputs: What ``forward`` gave in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        """
        heads = [outputs[name] for name in ("logits", "auxiliary8", "auxiliary16")]
        hard = torch.stack([ohem_loss(logits, label) for logits in heads]).sum()
        return hard + detail_loss(outputs["detail"], label)


class ContextPath(nn.Module):
    """Attention refinement of the maps at 1/16 and 1/32, brought to 1/8 with the global average of the deepest."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        middle, deepest = in_channels
        self.average = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBNReLU(deepest, channels, 1))
        self.refine16 = AttentionRefinement(middle, channels)
        self.refine32 = AttentionRefinement(deepest, channels)
        self.smooth16 = ConvBNReLU(channels, channels)
        self.smooth8 = ConvBNReLU(channels, channels)

    def forward(self, middle: Tensor, deepest: Tensor) -> tuple[Tensor, Tensor]:
        """Maps at 1/16 and 1/32 -> maps (B, channels, ...) at 1/8 and 1/16."""
        deep = self.refine32(deepest) + self.average(deepest)
        path16 = self.smooth16(F.interpolate(deep, scale_factor=2, mode="nearest"))
        path8 = self.smooth8(F.interpolate(self.refine16(middle) + path16, scale_factor=2, mode="nearest"))
        return path8, path16


class FeatureFusion(nn.Module):
    """Mix concatenated maps, then x * gate + x with a gate per channel made of the global average."""

    def __init__(self, in_channels: int, channels: int, gate_channels: int) -> None:
        super().__init__()
        self.mix = ConvBNReLU(in_channels, channels, 1)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, gate_channels, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(gate_channels, channels, 1, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, fine: Tensor, path: Tensor) -> Tensor:
        """Two maps of the same sides -> (B, channels, H, W)."""
        x = self.mix(torch.cat([fine, path], dim=1))
        return x * self.gate(x) + x


def ohem_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy averaged over hard pixels only (online hard example mining).

    Hard are the labelled pixels whose class has a probability of at most ``OHEM_THRESHOLD``; if they are less than a
    sixteenth of the labelled ones, the hardest sixteenth.

    Args:
        logits: (B, K, h, w), enlarged to the label if they are smaller.
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
    """
    logits = resize(logits.float(), label.shape[-2:])
    losses = F.cross_entropy(logits, label.long(), ignore_index=IGNORE_INDEX, reduction="none")[label != IGNORE_INDEX]
    hard = losses[losses >= -math.log(OHEM_THRESHOLD)]
    least = max(1, losses.numel() // OHEM_LEAST)
    if hard.numel() < least:
        hard = losses.topk(min(least, losses.numel())).values
    return hard.sum() / max(1, hard.numel())


def boundary_map(label: Tensor) -> Tensor:
    """Mark pixels along the boundaries between classes (detail aggregation, figure 4).

    A Laplacian of the label at strides 1, 2 and 4 is compared with 0.1 and enlarged; the three maps are mixed 0.6,
    0.3, 0.1 and compared with 0.1 again. The Laplacian is positive on the side of the higher class index.

    Args:
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.

    Returns:
        (B, H, W), 1 on boundaries, otherwise 0.
    """
    known = (label != IGNORE_INDEX)[:, None].float()
    index = label[:, None].float() * known
    ones = torch.ones(1, 1, 3, 3, device=label.device)
    mixed = torch.zeros_like(index)
    for stride, weight in zip(BOUNDARY_STRIDES, BOUNDARY_WEIGHTS, strict=True):
        # 8 times the pixel minus its neighbours, of those that are labelled: the centre cancels itself.
        sums, counts = (F.conv2d(x, ones, stride=stride, padding=1) for x in (index, known))
        laplacian = index[..., ::stride, ::stride] * counts - sums
        edge = (laplacian * known[..., ::stride, ::stride] > 0.1).float()
        mixed += weight * resize(edge, index.shape[-2:], mode="nearest")
    return (mixed > 1).float()[:, 0]


def detail_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Binary cross-entropy plus Dice loss of predicted boundaries, over labelled pixels.

    Args:
        logits: (B, 1, h, w), enlarged to the label.
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
    """
    logits = resize(logits.float(), label.shape[-2:])[:, 0]
    truth, known = boundary_map(label), (label != IGNORE_INDEX).float()
    entropy = F.binary_cross_entropy_with_logits(logits, truth, known, reduction="sum") / labelled_pixels(label)
    probability, truth = logits.sigmoid() * known, truth * known
    overlap = (probability * truth).sum((1, 2))
    # The 1 keeps an image without boundaries defined; without a label both sums are 0, and so is the loss.
    dice = 1 - (2 * overlap + 1) / (probability.sum((1, 2)) + truth.sum((1, 2)) + 1)
    return entropy + dice.mean()
