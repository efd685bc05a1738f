"""WSDNet, a reading of the paper: no code is public (Ji et al. 2023, "Ultra-High Resolution Segmentation with
Ultra-Rich Context: A Novel Benchmark").

What the abstract and the figures say: a shallow and a deep branch as in ISDNet; before the deep branch a multi-level
discrete wavelet transform takes the place of down-sampling, and its inverse follows the branch, so that more of the
image's details survive; a wavelet smooth loss on the reconstruction of the image.

Everything else is our reading. The wavelet is Haar's. Two levels transform all bands, so that nothing is lost: 48
channels at a quarter of the sides, which go through ISDNet's deep branch. Two inverse transforms, each of four bands
made by a 1x1 convolution, bring the deep map to 1/16 and, after the first fusion, to 1/8, where ISDNet enlarges. The
shallow branch, relation-aware fusion and heads are ISDNet's, with the same weights. The reconstruction is a chain of
inverse transforms from the deep map to an image at 1/2. The wavelet smooth loss is the smooth L1 distance between the
bands of the reconstruction and those of the image at 1/2, over two levels, weighted 0.1 as ISDNet's reconstruction. The
paper's number of parameters is not known.

Shapes: B batch, H/W rows and columns of the image, K classes, C channels.
"""

from functools import partial
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines.isdnet import DILATIONS, RelationAwareFusion, head_losses, split, training_heads
from caswit.nn.baselines.parts import (
    ASPP,
    STDC1_DEPTHS,
    BatchNorm,
    DilatedResNet18,
    STDCBackbone,
    resize,
    scaled,
)

LEVELS = 2
"""Levels of the transform before the deep branch, and of the wavelet smooth loss."""
REBUILT_WEIGHT = 0.1


class WSDNet(nn.Module):
    """WSDNet.

    Args:
        num_classes: K, the number of predicted classes.
        width: Factor on all channels.
        pretrained: Start the deep branch from ImageNet weights; its first convolution reads the mean of 4 x 4 pixels at
            first, and learns to read the other bands.

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
        self.deep.replace_first(partial(_reading_bands, pretrained=pretrained))
        self.aspp = ASPP(self.deep.channels[-1], channels, DILATIONS)
        self.shallow = STDCBackbone(STDC1_DEPTHS[:2], width, in_channels=6)
        self.up16, self.up8 = (InverseWavelet(channels, channels, 1) for _ in range(2))
        self.fusion16 = RelationAwareFusion(channels, self.shallow.channels[1], channels)
        self.fusion8 = RelationAwareFusion(channels, self.shallow.channels[0], channels)
        self.classify = nn.Conv2d(channels, num_classes, 1)
        # Training only.
        self.heads = training_heads(channels, self.deep.channels[2], narrow, num_classes)
        widths = [channels, narrow, *(max(8, narrow // divisor) for divisor in (2, 4, 8))]
        self.rebuild = nn.Sequential(
            *(InverseWavelet(a, b, 3) for a, b in pairwise(widths)),
            nn.Conv2d(widths[-1], 3, 3, padding=1),
        )

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of images.

        Args:
            image: (B, 3, H, W), normalised; sides are multiples of ``stride_px``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W). In training mode also what ``loss`` needs: smaller logits of the
            other heads ("fused8", "fused16", "deep", "auxiliary"); "rebuilt" and its target "halved",
            (B, 3, H / 2, W / 2).
        """
        shallow8, shallow16 = self.shallow(split(image)[0])
        bands = image
        for _ in range(LEVELS):
            bands = haar(bands)
        stages = self.deep(bands)
        deep = self.aspp(stages[-1])
        fused16 = self.fusion16(self.up16(deep), shallow16)
        fused8 = self.fusion8(self.up8(fused16), shallow8)
        logits = resize(self.classify(fused8), image.shape[-2:])
        if not self.training:
            return logits
        return {
            "logits": logits,
            "fused8": self.heads["fused8"](fused8),
            "fused16": self.heads["fused16"](fused16),
            "deep": self.heads["deep"](deep),
            "auxiliary": self.heads["auxiliary"](stages[2]),
            "rebuilt": self.rebuild(deep),
            "halved": F.avg_pool2d(image, 2),
        }

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return ISDNet's cross-entropies plus the wavelet smooth loss; 0 where nothing is labelled.

        Args:
            outputs: What ``forward`` gave in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        """
        smooth = wavelet_smooth_loss(outputs["rebuilt"], outputs["halved"])
        # It needs no label, but a pass without one has no share in the step.
        return head_losses(outputs, label) + REBUILT_WEIGHT * smooth * (label != IGNORE_INDEX).any()


class InverseWavelet(nn.Sequential):
    """Twice the sides: a convolution makes four bands, the inverse Haar transform puts them together; then ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        bands = nn.Conv2d(in_channels, 4 * out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        # No ReLU before the inverse: details have both signs.
        super().__init__(bands, BatchNorm(4 * out_channels), _InverseHaar(), nn.ReLU(inplace=True))


class _InverseHaar(nn.Module):
    def forward(self, bands: Tensor) -> Tensor:
        return inverse_haar(bands)


def haar(x: Tensor) -> Tensor:
    """Transform maps by Haar's wavelet, one level, orthonormal: squares add up to the same.

    Args:
        x: (B, C, H, W), even sides.

    Returns:
        (B, 4 C, H / 2, W / 2): C approximations, then C details each between rows, between columns, and across both;
        PyWavelets' cA, cH, cV, cD.
    """
    (a, b), (c, d) = ((x[..., row::2, 0::2], x[..., row::2, 1::2]) for row in (0, 1))
    return torch.cat([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d], dim=1) / 2


def inverse_haar(bands: Tensor) -> Tensor:
    """Return the maps (B, C, H, W) of which ``haar`` gave these bands (B, 4 C, H / 2, W / 2)."""
    mean, rows, cols, both = bands.chunk(4, dim=1)
    upper, lower = mean + rows, mean - rows
    corners = [upper + (cols + both), upper - (cols + both), lower + (cols - both), lower - (cols - both)]
    return F.pixel_shuffle(torch.stack(corners, dim=2).flatten(1, 2), 2) / 2


def wavelet_smooth_loss(rebuilt: Tensor, image: Tensor) -> Tensor:
    """Mean smooth L1 distance of the Haar bands of two images, added up over the bands of each level.

    Args:
        rebuilt: (B, 3, H, W), sides multiples of 4.
        image: The same shape.
    """
    low, total = rebuilt.float() - image.float(), rebuilt.new_zeros((), dtype=torch.float32)  # the transform is linear
    for _ in range(LEVELS):
        bands = haar(low).chunk(4, dim=1)
        low = bands[0]
        total = total + torch.stack([F.smooth_l1_loss(band, torch.zeros_like(band)) for band in bands]).sum()
    return total


def _reading_bands(first: nn.Conv2d, *, pretrained: bool) -> nn.Conv2d:
    """Return the first convolution for all bands of ``LEVELS`` levels instead of three colours."""
    convolution = nn.Conv2d(3 * 4**LEVELS, first.out_channels, 3, stride=2, padding=1, bias=False)
    if pretrained:
        with torch.no_grad():
            convolution.weight.zero_()
            # The first three bands are the means of 4 x 4 pixels, times 2 for each level.
            convolution.weight[:, :3] = first.weight / 2**LEVELS
    return convolution
