"""UHRS, "Boosting the Dual-Stream Architecture in Ultra-High Resolution Segmentation with Resolution-Biased
Uncertainty Estimation" (CVPR 2025): only patches about which the low-resolution stream is unsure are read at full
resolution.

- Low-resolution stream: the image at a quarter through ResNet-18, dilated to 1/8 of its own sides, and DAPPM; logits.
- Estimator: the uncertainty v = (entropy of these logits + residual of high frequencies) / 2. The residual is the
  difference between the stream's first stage and its second one enlarged.
- Selector: the image is cut into 10 x 10 patches in training, 20 x 20 otherwise; those with the largest v are chosen.
- UHR stream: two stages of STDC1 on the chosen patches.
- Ensembler: (1 - v) * low + v * uhr, at 1/16 and at 1/8.
- Complementer: the cross-entropy is weighted by (1 + v)**6.

Our reading of what is not stated: half of the patches are chosen (the public configuration chooses all, so that its
selector has no effect). A patch is read by itself, as a small image. Its side is the smallest multiple of 64 px of
which 10 (20) cover the image: 256 px for the crops of 2560 and the images of 5120 px of URUR, and fewer patches for
small images. Where no patch was chosen the low-resolution stream is kept: v is 0 there in the ensembler. The entropy is
in nats, divided by 0.7 (that of two equally likely classes) and limited to 1, so that no weight is negative. The
weights of the loss are divided by their sum, and no gradient goes through them: being sure must not lower the loss. The
logits of the low-resolution stream are learned by a plain cross-entropy, and a head on its third stage with the weight
0.4, as in ISDNet.

Shapes: B batch, H/W rows and columns of the image, K classes, N chosen patches of an image, P side of a patch.
"""

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines.parts import (
    DAPPM,
    STDC1_DEPTHS,
    ConvBNReLU,
    DilatedResNet18,
    Head,
    STDCBackbone,
    labelled_pixels,
    mean_cross_entropy,
    resize,
    scaled,
)

PATCHES_TRAINING, PATCHES = 10, 20
"""Patches along each side of the image, in training and otherwise."""
PATCH_STRIDE_PX = 64
"""Of patches any smaller, most of what the stream sees at 1/16 would be padding."""
ENTROPY_SCALE = 0.7
LOSS_POWER = 6
AUXILIARY_WEIGHT = 0.4
PIXELS_AT_ONCE = 1 << 20
"""Pixels of an image that the UHR stream computes at once in evaluation: bounds its memory, changes nothing else."""


class UHRS(nn.Module):
    """UHRS.

    Args:
        num_classes: K, the number of predicted classes.
        width: Factor on all channels.
        pretrained: Start the low-resolution stream from ImageNet weights.
        chosen: Share of the patches that the UHR stream reads, above 0, at most 1; at least one patch.

    Raises:
        ConfigError: ``pretrained`` with another width than 1, or the weights cannot be downloaded.
    """

    reads_context: ClassVar[bool] = False
    stride_px: ClassVar[int] = 32
    phases: ClassVar[dict[str, tuple[str, ...]]] = {}
    phase: str | None = None

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False, chosen: float = 0.5) -> None:
        super().__init__()
        assert 0 < chosen <= 1
        self.chosen = chosen
        channels, narrow = scaled(128, width), scaled(64, width)
        self.low = DilatedResNet18(width, pretrained=pretrained)
        self.dappm = DAPPM(self.low.channels[-1], channels, channels)
        self.low_head = nn.Conv2d(channels, num_classes, 1)
        self.low_reduce = ConvBNReLU(channels, narrow, 1)
        self.residual = FrequencyResidual(*self.low.channels[:2])
        self.uhr = UHRStream(width, narrow)
        self.head = Head(narrow, scaled(32, width), num_classes)
        # Training only.
        self.auxiliary = Head(self.low.channels[2], narrow, num_classes)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of images.

        Args:
            image: (B, 3, H, W), normalised; sides are multiples of ``stride_px``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W). In training mode also what ``loss`` needs: smaller logits "low" and
            "auxiliary", and "uncertainty" v (B, 1, H / 16, W / 16), from 0 to 1.
        """
        stages = self.low(F.avg_pool2d(image, 4))
        deep = self.dappm(stages[-1])
        low = self.low_head(deep)
        entropy = resize(scaled_entropy(low), stages[0].shape[-2:])
        uncertainty = (torch.sigmoid(self.residual(stages[0], stages[1]).float()) + entropy) / 2
        patches = Patches(image.shape, PATCHES_TRAINING if self.training else PATCHES)
        chosen = patches.choose(uncertainty, self.chosen)
        uhr8, uhr16 = self.uhr(image, patches, chosen)
        fused = self.low_reduce(deep)
        for uhr in (uhr16, uhr8):
            size = uhr.shape[-2:]
            v = resize(uncertainty, size).to(uhr.dtype) * patches.mask(chosen, size)
            fused = (1 - v) * resize(fused, size) + v * uhr
        logits = resize(self.head(fused), image.shape[-2:])
        if not self.training:
            return logits
        return {"logits": logits, "low": low, "auxiliary": self.auxiliary(stages[2]), "uncertainty": uncertainty}

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return the weighted cross-entropy plus those of the low-resolution stream; 0 where nothing is labelled.

        Args:
            outputs: What ``forward`` gave in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        """
        weighted = weighted_cross_entropy(outputs["logits"], label, outputs["uncertainty"])
        low, auxiliary = (mean_cross_entropy(outputs[name], label) for name in ("low", "auxiliary"))
        return weighted + low + AUXILIARY_WEIGHT * auxiliary


def scaled_entropy(logits: Tensor) -> Tensor:
    """Return the entropy of the classes by ``ENTROPY_SCALE``, at most 1: (B, K, h, w) -> (B, 1, h, w)."""
    logs = logits.float().log_softmax(1)
    entropy = -(logs.exp() * logs).sum(1, keepdim=True)
    return (entropy / ENTROPY_SCALE).clamp(max=1)


class FrequencyResidual(nn.Module):
    """How much the first stage knows that the second lost: |stage 1 - conv3x3(stage 2 enlarged)|, as one map."""

    def __init__(self, fine_channels: int, coarse_channels: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(coarse_channels, fine_channels, 3, padding=1)
        self.score = nn.Conv2d(2, 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """(B, C, h, w), (B, D, h / 2, w / 2) -> (B, 1, h, w), of any sign."""
        difference = (fine - self.predict(resize(coarse, fine.shape[-2:]))).abs()
        return self.score(torch.cat([difference.mean(1, keepdim=True), difference.amax(1, keepdim=True)], dim=1))


class Patches:
    """The grid of square patches over a batch of images.

    Args:
        shape: Of the images, (B, 3, H, W).
        along: How many patches are wanted along a side; the grid has at most as many.
    """

    def __init__(self, shape: torch.Size, along: int) -> None:
        self.image_sides = shape[-2:]
        self.side = max(math.ceil(side / along / PATCH_STRIDE_PX) * PATCH_STRIDE_PX for side in self.image_sides)
        self.rows, self.cols = (math.ceil(side / self.side) for side in self.image_sides)

    def covered(self, size: torch.Size) -> tuple[int, int]:
        """Sides, on a map of this size, of the area that the patches cover; the last may reach outside the image."""
        side = self.side * size[0] // self.image_sides[0]
        return self.rows * side, self.cols * side

    def choose(self, uncertainty: Tensor, share: float) -> Tensor:
        """Choose the patches of each image that have the largest mean uncertainty.

        Args:
            uncertainty: (B, 1, h, w) over the image.
            share: Of the patches; at least one is chosen.

        Returns:
            (B, N) numbers of patches, ascending; patches are counted row by row. Equally many for each image.
        """
        height, width = self.covered(uncertainty.shape[-2:])
        padding = 0, width - uncertainty.shape[-1], 0, height - uncertainty.shape[-2]
        kernel = height // self.rows
        # Means over the image's own pixels, so that a patch across its edge is not taken for sure.
        maps = uncertainty.detach(), torch.ones_like(uncertainty)
        sums, pixels = (F.avg_pool2d(F.pad(x, padding), kernel) for x in maps)
        scores = (sums / pixels).flatten(1)
        best = scores.topk(max(1, round(share * self.rows * self.cols)), dim=1).indices
        return best.sort(dim=1).values

    def mask(self, chosen: Tensor, size: torch.Size) -> Tensor:
        """Return a map (B, 1, *size) that is 1 in the chosen patches (B, N), otherwise 0."""
        ones = torch.ones(1, 1, 1, 1, 1, device=chosen.device).expand(*chosen.shape, 1, 1, 1)
        return resize(self._place(ones, chosen), self.covered(size), "nearest")[..., : size[0], : size[1]]

    def cut(self, image: Tensor, chosen: Tensor) -> Tensor:
        """Return the chosen patches (B, N, C, P, P) of (B, C, H, W); zeros outside of the image."""
        height, width = self.covered(image.shape[-2:])
        image = F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))
        grid = image.unflatten(3, (self.cols, self.side)).unflatten(2, (self.rows, self.side))
        # Numbers become rows and columns so that no more than the chosen patches is copied.
        rows, cols = chosen // self.cols, chosen % self.cols
        return grid.permute(0, 2, 4, 1, 3, 5)[_images(chosen), rows, cols]

    def join(self, patches: Tensor, chosen: Tensor) -> Tensor:
        """Put maps (B, N, C, p, p) of the chosen patches in their places: (B, C, h, w), zeros elsewhere."""
        height, width = (length * patches.shape[-1] // self.side for length in self.image_sides)
        return self._place(patches, chosen)[..., :height, :width]

    def _place(self, patches: Tensor, chosen: Tensor) -> Tensor:
        grid = patches.new_zeros(patches.shape[0], self.rows * self.cols, *patches.shape[2:])
        grid = grid.index_put((_images(chosen), chosen), patches).unflatten(1, (self.rows, self.cols))
        return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _images(chosen: Tensor) -> Tensor:
    """(B, 1) numbers of the images, to index with beside numbers of patches (B, N)."""
    return torch.arange(chosen.shape[0], device=chosen.device)[:, None]


class UHRStream(nn.Module):
    """Two stages of STDC1 on chosen patches, reduced to as many channels as the low-resolution stream's."""

    def __init__(self, width: float, channels: int) -> None:
        super().__init__()
        self.backbone = STDCBackbone(STDC1_DEPTHS[:2], width)
        self.reduce = nn.ModuleList(ConvBNReLU(before, channels, 1) for before in self.backbone.channels)

    def forward(self, image: Tensor, patches: Patches, chosen: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, channels, ...) at 1/8 and 1/16, 0 where no patch was chosen."""
        # Batch norm in training needs all patches; in evaluation each stands alone.
        size = chosen.shape[1] if self.training else max(1, PIXELS_AT_ONCE // patches.side**2)
        groups = [self._maps(patches.cut(image, some)) for some in chosen.split(size, dim=1)]
        return [patches.join(torch.cat(maps, dim=1), chosen) for maps in zip(*groups, strict=True)]

    def _maps(self, cut: Tensor) -> list[Tensor]:
        """(B, N, 3, P, P) -> (B, N, channels, ...) at 1/8 and 1/16."""
        maps = self.backbone(cut.flatten(0, 1))
        return [reduce(x).unflatten(0, cut.shape[:2]) for reduce, x in zip(self.reduce, maps, strict=True)]


def weighted_cross_entropy(logits: Tensor, label: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean cross-entropy over labelled pixels, weighted by (1 + v)**6; 0 where nothing is labelled.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        uncertainty: v, (B, 1, h, w), enlarged to the label.
    """
    losses = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
    v = resize(uncertainty.detach().float(), label.shape[-2:])[:, 0]
    weights = (1 + v) ** LOSS_POWER * (label != IGNORE_INDEX)
    # A sum of weights of at least 1 each is at least the number of labelled pixels.
    return (losses * weights).sum() / torch.maximum(weights.sum(), labelled_pixels(label).float())
