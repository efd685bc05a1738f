"""FCtL: an FCN-8s on a patch that reads the patch's surroundings, twice and three times as wide, by attention.

Li et al., "From Contexts to Locality: Ultra-high Resolution Image Segmentation via Locality-aware Contextual
Correlation" (ICCV 2021, figures 2 and 3). Patch and contexts have equal sizes in pixels and go through a VGG16 each. At
pool5 every cell of the patch reads the cells of the 2x context, of the 3x context and of the patch itself: three
non-local attentions, each times a learned number that starts at 0. They are added to the patch's map with weights per
cell and channel, for which they compete.

It is trained in four steps: ``plain``, the FCN-8s alone; ``context2`` and ``context3``, in which it learns to read one
context, whose VGG16 learns too; ``all``, in which it reads both, whose VGG16s are fixed.

From the paper and its public code: FCN-8s with a padding of 100 px, 7x7 fc6 and fc7 of 4096 channels, fixed bilinear
enlargement, scores of pool4 and pool3 scaled by 0.01 and 0.0001; queries and keys with bias, values without, softmax
without scaling; the weights' eight 1x1 convolutions, sigmoid, then softmax over the three; focal loss, gamma 3.
Our reading: the authors train four networks one by one and put the last together from their weights. Here they are one
network: the contexts' VGG16s are copies of the patch's until their own step begins, and each step goes on with the
FCN-8s that the step before has left.

Shapes: B batch, C channels, H/W rows and columns, K classes, N cells of a map.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.errors import ConfigError
from caswit.nn.baselines.backbones import VGG16, imagenet_vgg16, init_for_relu
from caswit.nn.baselines.focal import focal_loss
from caswit.nn.baselines.parts import scaled


class FCtL(nn.Module):
    """FCN-8s with locality-aware contextual correlation.

    Args:
        num_classes: K.
        width: Factor on all channels.
        pretrained: Start the VGG16s, fc6 and fc7 from torchvision's ImageNet weights; only for ``width`` 1.

    Raises:
        ConfigError: ``pretrained`` with another width than 1, or the weights cannot be downloaded.
    """

    reads_context: ClassVar[bool] = True
    stride_px: ClassVar[int] = 1
    phases: ClassVar[dict[str, tuple[str, ...]]] = {
        "plain": ("vgg.", "head."),
        "context2": ("vgg.", "head.", "context2.", "read2."),
        "context3": ("vgg.", "head.", "context3.", "read3."),
        "all": ("vgg.", "head.", "read2.", "read3.", "read_patch.", "weigh."),
    }
    phase: str | None = None

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.vgg, self.context2, self.context3 = VGG16(width), VGG16(width), VGG16(width)
        channels = self.vgg.channels[-1]
        self.read2, self.read3, self.read_patch = (NonLocal(channels) for _ in range(3))
        self.weigh = AdaptiveWeights(channels)
        self.head = FCN8(self.vgg.channels, scaled(4096, width), num_classes)
        if pretrained:
            weights = imagenet_vgg16(width)
            self.vgg.features.load_state_dict(weights.features.state_dict())
            for fc, theirs in ((self.head.fc6, weights.classifier[0]), (self.head.fc7, weights.classifier[3])):
                fc.load_state_dict({"weight": theirs.weight.view_as(fc.weight), "bias": theirs.bias})
        self._copy_vgg(self.context2, self.context3)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of patches.

        Args:
            image: (B, 3, H, W), normalised, of any size.
            context: (B, 2, 3, H', W'): 2 and 3 times the patch's sides around its centre. May be None in phase
                ``plain``.

        Returns:
            In evaluation mode logits (B, K, H, W), in training mode a dict of them.

        Raises:
            ConfigError: There are not two contexts.
        """
        if self.training:
            self._prepare()
        *shallow, deep = self.vgg(image)
        if self.phase != "plain":
            deep = self._read(deep, _two(context))
        logits = self.head([*shallow, deep], image.shape[-2:])
        return {"logits": logits} if self.training else logits

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return the focal loss of the logits for labels (B, H, W), IGNORE_INDEX where unlabelled."""
        return focal_loss(outputs["logits"], label)

    def _read(self, patch: Tensor, contexts: tuple[Tensor, Tensor]) -> Tensor:
        if self.phase == "context2":
            return patch + self.read2(patch, self.context2(contexts[0])[-1])
        if self.phase == "context3":
            return patch + self.read3(patch, self.context3(contexts[1])[-1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.phase is None):
            wide, wider = self.context2(contexts[0])[-1], self.context3(contexts[1])[-1]
        read = [self.read2(patch, wide), self.read3(patch, wider), self.read_patch(patch, patch)]
        return patch + self.weigh(read)

    def _prepare(self) -> None:
        """Keep the VGG16s whose step has not begun equal to the patch's, from which they start."""
        if self.phase == "plain":
            self._copy_vgg(self.context2, self.context3)
        elif self.phase == "context2":
            self._copy_vgg(self.context3)

    @torch.no_grad()
    def _copy_vgg(self, *targets: nn.Module) -> None:
        for target in targets:
            for ours, theirs in zip(target.parameters(), self.vgg.parameters(), strict=True):
                ours.copy_(theirs)


def _two(context: Tensor | None) -> tuple[Tensor, Tensor]:
    if context is None or context.ndim != 5 or context.shape[1] != 2:
        got = "no context" if context is None else "one" if context.ndim == 4 else f"{context.shape[1]}"
        raise ConfigError(f"fctl reads contexts of 2 and 3 times the tile, got {got}; use tile.context_factor [2, 3]")
    return context[:, 0], context[:, 1]


class NonLocal(nn.Module):
    """What each cell of a map reads in another one (Wang et al. 2018), times a learned number that starts at 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1)
        self.key = nn.Conv2d(channels, channels, 1)
        self.value = nn.Conv2d(channels, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(1))
        _init_small(self)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        """(B, C, H, W), (B, C, H', W') -> (B, C, H, W)."""
        query, key, value = (
            layer(maps).flatten(2).transpose(1, 2)[:, None]  # (B, 1, N, C): ONNX knows attention of heads only
            for layer, maps in ((self.query, x), (self.key, other), (self.value, other))
        )
        read = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return self.gamma * read.transpose(2, 3).reshape(x.shape)


class AdaptiveWeights(nn.Module):
    """The sum of three maps with weights per cell and channel, made of all three (figure 3)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.before = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        self.mix = nn.Conv2d(3 * channels, 3 * channels, 1)
        self.after = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(3))
        _init_small(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Three maps (B, C, H, W) -> (B, C, H, W)."""
        mixed = self.mix(torch.cat([layer(x) for layer, x in zip(self.before, maps, strict=True)], dim=1))
        scores = [torch.sigmoid(layer(x)) for layer, x in zip(self.after, mixed.chunk(3, dim=1), strict=True)]
        weights = torch.stack(scores).softmax(dim=0)
        return (weights * torch.stack(maps)).sum(dim=0)


class FCN8(nn.Module):
    """The head of FCN-8s (Shelhamer et al. 2017): scores of three poolings, enlarged and added up.

    Args:
        channels: Of pool3, pool4 and pool5.
        hidden: Channels of fc6 and fc7.
        num_classes: K.
    """

    def __init__(self, channels: tuple[int, ...], hidden: int, num_classes: int) -> None:
        super().__init__()
        self.fc6 = nn.Conv2d(channels[2], hidden, 7)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.score = nn.Conv2d(hidden, num_classes, 1)
        self.score4 = nn.Conv2d(channels[1], num_classes, 1)
        self.score3 = nn.Conv2d(channels[0], num_classes, 1)
        self.dropout = nn.Dropout(0.5)
        for layer in (self.fc6, self.fc7):
            init_for_relu(layer)

    def forward(self, pools: list[Tensor], size: tuple[int, ...]) -> Tensor:
        """Return logits (B, K, *size) of pool3, pool4 and pool5 of an image of that size."""
        x = self.dropout(F.relu(self.fc6(pools[2])))
        x = self.dropout(F.relu(self.fc7(x)))
        # The offsets are FCN's: where cells of a pooling lie behind the padding of 100 px and the 7x7 convolution.
        x = enlarged(self.score(x), 2)
        x = enlarged(x + _window(self.score4(0.01 * pools[1]), 5, x.shape[-2:]), 2)
        x = enlarged(x + _window(self.score3(0.0001 * pools[0]), 9, x.shape[-2:]), 8)
        return _window(x, 31, size)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Enlarge maps (B, K, H, W) by a transposed convolution with a fixed bilinear kernel, to (side + 1) * factor."""
    offsets = (torch.arange(2 * factor, device=x.device) + 0.5) / factor - 1
    line = (1 - offsets.abs()).to(x.dtype)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, -1, -1)
    return F.conv_transpose2d(x, kernel, stride=factor, groups=x.shape[1])


def _window(x: Tensor, start: int, size: tuple[int, ...]) -> Tensor:
    return x[:, :, start : start + size[0], start : start + size[1]]


def _init_small(module: nn.Module) -> None:
    """Draw 1x1 convolutions from a narrow normal distribution, as non-local blocks are."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
