"""Parts that several networks of the paper's table 2 share: convolutions, backbones, context modules, the pyramid.

Each part takes numbers of channels as they are; networks scale theirs once, by ``scaled``. Maps are (B, C, H, W), and
"1/8" is a map with an eighth of the image's sides.

Shapes: B batch, C channels, H/W rows and columns, K classes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError, one_line
from caswit.nn.losses import cross_entropy_sum

STDC1_DEPTHS = (2, 2, 2)
STDC2_DEPTHS = (4, 5, 3)


def scaled(channels: int, width: float) -> int:
    """Return ``channels * width``, rounded to a multiple of 8, and at least 8; a width of 1 changes nothing."""
    return channels if width == 1 else max(8, round(channels * width / 8) * 8)


def resize(x: Tensor, size: Sequence[int], mode: str = "bilinear") -> Tensor:
    """Enlarge or reduce maps to ``size``, (rows, columns), without aligned corners."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=False if mode == "bilinear" else None)


class BatchNorm(nn.BatchNorm2d):
    """Batch norm that can also train on one value per channel, by its running statistics.

    Global averages of a batch of one image leave one value per channel, whose variance is 0; torch raises an error.
    Large crops are trained one by one.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, H, W)."""
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return super().forward(x)


def maps_of(stages: nn.ModuleList, x: Tensor) -> list[Tensor]:
    """Return the map that each of some stages makes of the one before."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return maps


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch norm, ReLU; sides are kept, or divided by the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, *, stride: int = 1, dilation: int = 1
    ) -> None:
        padding = dilation * (kernel_size // 2)
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, bias=False),
            BatchNorm(out_channels),
            nn.ReLU(inplace=True),  # whole images: a copy of the largest maps less
        )


class BNReLUConv(nn.Sequential):
    """Batch norm, ReLU, convolution without bias, in DAPPM's order; sides are kept."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            BatchNorm(in_channels),
            nn.ReLU(),  # not in place: DAPPM reads its input six times
            nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False),
        )


class Head(nn.Sequential):
    """Logits from a map: 3x3 convolution, batch norm, ReLU, 1x1 convolution."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__(ConvBNReLU(in_channels, channels), nn.Conv2d(channels, num_classes, 1))


class STDCBlock(nn.Module):
    """Short-term dense concatenate block (Fan et al. 2021, "Rethinking BiSeNet", figure 3 b, c).

    Four convolutions in a row, the first 1x1, of 1/2, 1/4, 1/8 and 1/8 of the outputs; all four results are
    concatenated. With stride 2 a depthwise convolution follows the first, whose own result is averaged.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half, quarter, eighth = out_channels // 2, out_channels // 4, out_channels // 8
        self.first = ConvBNReLU(in_channels, half, 1)
        self.down: nn.Module = nn.Identity()
        self.pool: nn.Module = nn.Identity()
        if stride == 2:
            depthwise = nn.Conv2d(half, half, 3, stride=2, padding=1, groups=half, bias=False)
            self.down = nn.Sequential(depthwise, BatchNorm(half))
            self.pool = nn.AvgPool2d(3, stride=2, padding=1)
        self.convolutions = nn.ModuleList(
            [ConvBNReLU(half, quarter), ConvBNReLU(quarter, eighth), ConvBNReLU(eighth, eighth)]
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H / stride, W / stride)."""
        first = self.first(x)
        maps = [self.pool(first)]
        x = self.down(first)
        for convolve in self.convolutions:
            x = convolve(x)
            maps.append(x)
        return torch.cat(maps, dim=1)


class STDCBackbone(nn.Module):
    """STDC network (Fan et al. 2021, figure 3 a): two strided convolutions, then stages of blocks.

    Args:
        depths: Blocks of the stages at 1/8, 1/16, 1/32; two stages for the shallow branch of ISDNet.
        width: Factor on the channels.
        in_channels: Channels of the image.
    """

    def __init__(self, depths: Sequence[int], width: float = 1.0, in_channels: int = 3) -> None:
        super().__init__()
        stem = scaled(32, width), scaled(64, width)
        self.channels = tuple(scaled(channels, width) for channels in (256, 512, 1024)[: len(depths)])
        self.stem = nn.Sequential(ConvBNReLU(in_channels, stem[0], stride=2), ConvBNReLU(stem[0], stem[1], stride=2))
        self.stages = nn.ModuleList(
            nn.Sequential(STDCBlock(before, after, 2), *(STDCBlock(after, after, 1) for _ in range(depth - 1)))
            for before, after, depth in zip((stem[1], *self.channels), self.channels, depths, strict=False)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> one map per stage: 1/8, 1/16, 1/32."""
        return maps_of(self.stages, self.stem(image))


class AttentionRefinement(nn.Module):
    """3x3 convolution, times a sigmoid gate per channel made of its global average (BiSeNet, figure 2b)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolve = ConvBNReLU(in_channels, out_channels)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(out_channels, out_channels, 1, bias=False),
            BatchNorm(out_channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        x = self.convolve(x)
        return x * self.gate(x)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with a 3x3 projection (DeepLabv3 as mmsegmentation has it).

    torchvision's and smp's project by 1x1, and their pooled branch cannot train on a batch of one image.

    Args:
        in_channels: Channels of the map.
        channels: Channels of each branch and of the result.
        dilations: Of the branches; 1 stands for a 1x1 convolution.
    """

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvBNReLU(in_channels, channels, 1))
        self.branches = nn.ModuleList(
            ConvBNReLU(in_channels, channels, 1 if dilation == 1 else 3, dilation=dilation) for dilation in dilations
        )
        self.project = ConvBNReLU((len(dilations) + 1) * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W)."""
        pooled = self.pool(x).expand(-1, -1, *x.shape[-2:])
        return self.project(torch.cat([pooled, *(branch(x) for branch in self.branches)], dim=1))


class DAPPM(nn.Module):
    """Deep aggregation pyramid pooling (Hong et al. 2021, "Deep Dual-resolution Networks").

    Averages over windows of 5, 9, 17 pixels and over the whole map are enlarged and added up from narrow to wide, with
    a 3x3 convolution after each addition; all five scales are concatenated, mixed, and added to a shortcut.

    Args:
        in_channels: Channels of the map.
        branch_channels: Channels of each scale.
        out_channels: Channels of the result.
    """

    def __init__(self, in_channels: int, branch_channels: int, out_channels: int) -> None:
        super().__init__()
        # (kernel, stride): torch's average counts the zeros of the padding, as DDRNet's does.
        pools = [nn.AvgPool2d(k, s, k // 2) for k, s in ((5, 2), (9, 4), (17, 8))]
        self.scales = nn.ModuleList(
            nn.Sequential(pool, BNReLUConv(in_channels, branch_channels, 1))
            for pool in (nn.Identity(), *pools, nn.AdaptiveAvgPool2d(1))
        )
        self.process = nn.ModuleList(BNReLUConv(branch_channels, branch_channels, 3) for _ in range(4))
        self.compress = BNReLUConv(5 * branch_channels, out_channels, 1)
        self.shortcut = BNReLUConv(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, out_channels, H, W)."""
        maps = [self.scales[0](x)]
        for scale, process in zip(self.scales[1:], self.process, strict=True):
            maps.append(process(resize(scale(x), x.shape[-2:]) + maps[-1]))
        return self.compress(torch.cat(maps, dim=1)) + self.shortcut(x)


def downloaded(name: str, width: float, load: Callable[[], Any]) -> Any:
    """Return a network whose ImageNet weights ``load`` downloads.

    Raises:
        ConfigError: The width is not 1, or they cannot be downloaded.
    """
    if width != 1:
        raise ConfigError(f"model.width {width} has no ImageNet weights; use width 1, or start from random weights")
    try:
        return load()
    except Exception as error:
        why = one_line(error, 120)
        raise ConfigError(
            f"ImageNet weights of {name} cannot be downloaded ({why}); start from random weights instead"
        ) from error


class DilatedResNet18(nn.Module):
    """ResNet-18 with a stem of three 3x3 convolutions whose last two stages are dilated instead of strided.

    timm's ``resnet18d``. The networks name mmsegmentation's v1c, which differs by the average pooling in one shortcut
    and of which timm has no weights.

    Args:
        width: Factor on the channels.
        pretrained: Start from ImageNet weights.

    Raises:
        ConfigError: ``pretrained`` with another width than 1, or the weights cannot be downloaded.
    """

    def __init__(self, width: float = 1.0, *, pretrained: bool = False) -> None:
        super().__init__()
        import timm

        self.channels = tuple(scaled(channels, width) for channels in (64, 128, 256, 512))

        def make() -> Any:
            return timm.create_model(
                "resnet18d", pretrained=pretrained, output_stride=8, stem_width=self.channels[0] // 2,
                channels=self.channels, num_classes=0, global_pool="", norm_layer=BatchNorm,
            )  # fmt: skip

        network = downloaded("resnet18d", width, make) if pretrained else make()
        self.stem = nn.Sequential(network.conv1, network.bn1, network.act1, network.maxpool)
        self.stages = nn.ModuleList([network.layer1, network.layer2, network.layer3, network.layer4])

    def replace_first(self, make: Callable[[nn.Conv2d], nn.Conv2d]) -> None:
        """Replace the first convolution by one made from it, for images with other channels than three."""
        first = self.stem[0]
        assert isinstance(first, nn.Sequential)
        assert isinstance(first[0], nn.Conv2d)
        first[0] = make(first[0])

    def forward(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of the four stages: 1/4, 1/8, 1/8, 1/8."""
        return maps_of(self.stages, self.stem(image))


def laplacian_pyramid(image: Tensor, levels: int) -> tuple[list[Tensor], Tensor]:
    """Split an image into details, fine to coarse, and what remains (Burt and Adelson 1983).

    Each level halves the image by averaging 2 x 2 pixels; its details are the difference from the halved image enlarged
    again (bilinear). ``rebuild_from_pyramid`` gives the image back.

    Args:
        image: (B, C, H, W), sides multiples of ``2 ** levels``.
        levels: How many times the image is halved.

    Returns:
        Details (B, C, H / 2**i, W / 2**i) for i = 0 ... levels - 1, and the remainder (B, C, H / 2**levels, ...).
    """
    details = []
    for _ in range(levels):
        small = F.avg_pool2d(image, 2)
        details.append(image - resize(small, image.shape[-2:]))
        image = small
    return details, image


def rebuild_from_pyramid(details: Sequence[Tensor], remainder: Tensor) -> Tensor:
    """Return the image of which ``laplacian_pyramid`` gave these parts."""
    for detail in reversed(details):
        remainder = detail + resize(remainder, detail.shape[-2:])
    return remainder


def mean_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy averaged over labelled pixels; 0, with a graph, where none is labelled.

    Args:
        logits: (B, K, h, w), enlarged to the label if they are smaller.
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
    """
    # Floats before enlarging: under autocast logits are bf16, whose steps would show between pixels.
    return cross_entropy_sum(resize(logits.float(), label.shape[-2:]), label) / labelled_pixels(label)


def labelled_pixels(label: Tensor) -> Tensor:
    """Count the labelled pixels, at least 1: a divisor for means that are 0 where nothing is labelled."""
    return (label != IGNORE_INDEX).sum().clamp(min=1)
