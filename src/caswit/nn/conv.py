"""Convolutions of the decoders and of the convolutional stem.

``conv3x3_of_upsampled`` is a 3x3 convolution over maps of several resolutions that are enlarged to the largest one and
concatenated, as at the end of UPerNet, which never computes the enlarged maps. Mixing channels and enlarging work on
different axes and commute. Each map is therefore mixed where it is small, once for each of the nine taps, and then
enlarged: bilinear enlargement of rows and columns, read one pixel to the left, in place or to the right by the taps of
the kernel, is one matrix for rows and one for columns. At half the resolution mixing costs a quarter.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import Norm
from caswit.nn.window_partition import kept


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, normalisation and ReLU; sides are kept, or divided by the stride."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: Norm, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False),
            norm_layer(norm, out_channels),
            nn.ReLU(),
        )


def norm_layer(norm: Norm, channels: int) -> nn.Module:
    """Return a layer that normalises (B, C, H, W) maps."""
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    # About 16 channels a group. Statistics of one image only: for batches of one, and for exact data parallelism.
    return nn.GroupNorm(math.gcd(max(1, channels // 16), channels), channels)


def conv3x3_of_upsampled(maps: list[Tensor], weight: Tensor) -> Tensor:
    """Convolve maps that are enlarged to the sides of the first one and concatenated, padded by zeros.

    Args:
        maps: (B, C_i, h_i, w_i).
        weight: (O, sum of C_i, 3, 3).

    Returns:
        (B, O, H, W).
    """
    first, *others = maps
    parts = weight.split([x.shape[1] for x in maps], dim=1)
    out = F.conv2d(first, parts[0], padding=1)
    for x, part in zip(others, parts[1:], strict=True):
        out = out + _mixed_and_upsampled(x, part, first.shape[-2:])
    return out


def _mixed_and_upsampled(x: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """Add up what one map contributes: (B, C, h, w), (O, C, 3, 3) -> (B, O, *size)."""
    batch, _, height, width = x.shape
    channels = weight.shape[0]
    rows, cols = (_upsampling_on(n, m, x.device, x.dtype) for n, m in zip((height, width), size, strict=True))
    # Channels stay last, so that the taps of a pixel lie side by side and nothing is moved between the products.
    cols = cols.unflatten(1, (3, width)).transpose(1, 2).flatten(1)  # (W, w * 3)
    pixels = x.permute(0, 2, 3, 1)
    wide = []
    for tap in range(3):
        mixed = F.linear(pixels, weight[:, :, tap].permute(2, 0, 1).flatten(0, 1))  # (B, h, w, 3 * O)
        wide.append((cols @ mixed.reshape(batch, height, 3 * width, channels)).flatten(2))  # (B, h, W * O)
    tall = rows @ torch.cat(wide, dim=1)
    return tall.view(batch, *size, channels).permute(0, 3, 1, 2)


@kept
def upsampling(small: int, large: int) -> Tensor:
    """Return the matrix (large, 3 * small) of bilinear enlargement along an axis for the three taps of a kernel.

    Its thirds give the enlarged values one pixel before, at and after each pixel; outside of the map they are 0.
    """
    each = torch.eye(small, dtype=torch.float64)[None]
    enlarge = F.interpolate(each, size=large, mode="linear", align_corners=False)[0].T
    before, after = F.pad(enlarge, (0, 0, 1, 0))[:-1], F.pad(enlarge, (0, 0, 0, 1))[1:]
    return torch.cat([before, enlarge, after], dim=1)


# A copy to a GPU in every pass would wait for all that is computed there, and could not be part of a CUDA graph.
@kept
def _upsampling_on(small: int, large: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return ``upsampling`` as a device multiplies by it."""
    return upsampling(small, large).to(device, dtype)
