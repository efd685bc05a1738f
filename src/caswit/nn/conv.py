"""The convolution that decoders and convolutional stems are made of."""

import math

from torch import nn

from caswit.config import Norm


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, normalisation, ReLU; the sides stay as they are, or are divided by the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: Norm, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            norm_layer(norm, out_channels),
            nn.ReLU(),
        )


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Normalisation of (B, C, H, W) maps."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # About 16 channels a group. Statistics of one image only: for batches of one, and for exact data parallelism.
    return nn.GroupNorm(math.gcd(max(1, channels // 16), channels), channels)
