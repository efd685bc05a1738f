"""UPerNet and the SegFormer head, arranged for inference.

Batch norms are folded into the weights of the convolutions before them. 1x1 convolutions and pooling are matrix
products over tokens, without reordering a map. 3x3 convolutions of enlarged maps never enlarge them
(``caswit.nn.conv``); others use Winograd's algorithm where channels are many. The two matrices of the SegFormer head
are multiplied into one.

Shapes: N tokens, C channels in, O channels out, K classes, H/W sides of a map.
"""

from collections.abc import Sequence
from functools import lru_cache, partial
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.inference.cpu.encoder import linear
from caswit.inference.cpu.ops import Affine, Ops, Value
from caswit.inference.cpu.winograd import Conv3x3
from caswit.nn.conv import ConvNormReLU, upsampling
from caswit.nn.decoders import POOL_SCALES, SegformerHead, UPerNetHead
from caswit.nn.window_partition import Sides

Map = tuple[Value, Sides]
"""Tokens (H * W, C) and the sides (H, W)."""


def as_map(ops: Ops, tokens: Value, sides: Sides) -> Value:
    """View tokens as a map: (H * W, C) -> (1, C, H, W)."""
    return ops.permute(ops.reshape(tokens, (1, *sides, -1)), (0, 3, 1, 2))


def as_tokens(ops: Ops, x: Value, sides: Sides) -> Value:
    """View a map as tokens: (1, C, H, W) -> (H * W, C)."""
    return ops.reshape(ops.permute(x, (0, 2, 3, 1)), (sides[0] * sides[1], -1))


class AfterConv:
    """Norm and ReLU after a convolution.

    At inference a batch norm is a scale and a shift of each channel, which are folded into the convolution's weights
    and bias. A group norm depends on the image and stays.
    """

    def __init__(self, norm: nn.Module, channels: int) -> None:
        self.group = norm if isinstance(norm, nn.GroupNorm) else None
        self.scale, self.shift = torch.ones(channels), torch.zeros(channels)
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            # (x - mean) / sqrt(var + eps) * weight + bias, written as scale * x + shift.
            self.scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            self.shift = norm.bias.detach() - norm.running_mean * self.scale

    @torch.no_grad()
    def folded(self, convolution: nn.Conv2d, channels: slice = slice(None)) -> Tensor:
        """Return the scaled weights (O, C, k, k) of some input channels."""
        weight = convolution.weight[:, channels]
        return weight * self.scale.to(weight)[:, None, None, None]

    def relu(self, ops: Ops, tokens: Value) -> Value:
        """Apply the norm if it was not folded, then ReLU: (N, C) -> (N, C)."""
        return ops.relu(tokens if self.group is None else ops.group_norm(tokens, self.group))


class Conv:
    """``ConvNormReLU``: a matrix product over tokens if its kernel is 1x1, ``Conv3x3`` if it keeps the sides."""

    def __init__(self, ops: Ops, layer: ConvNormReLU) -> None:
        convolution, norm, _ = layer
        assert isinstance(convolution, nn.Conv2d)
        self.norm = AfterConv(norm, convolution.out_channels)
        self.pointwise = convolution.kernel_size == (1, 1)
        self.stride, self.padding = convolution.stride[0], int(convolution.padding[0])
        self.same = None
        if self.stride == 1 and not self.pointwise:
            channels = convolution.out_channels, convolution.in_channels
            # The weights are passed as a function: their layout depends on the sides of the first map.
            self.same = Conv3x3(ops, partial(self.norm.folded, convolution), self.norm.shift, channels)
        else:
            weight = self.norm.folded(convolution)
            self.affine = Affine(ops.ready(weight.flatten(1) if self.pointwise else weight), ops.ready(self.norm.shift))

    def __call__(self, ops: Ops, tokens: Value, sides: Sides) -> Value:
        """Convolve a map (N, C) to (N, O), whose sides are kept or divided by the stride."""
        if self.pointwise:
            return self.norm.relu(ops, ops.linear(tokens, self.affine))
        if self.same is not None:
            return self.norm.relu(ops, self.same(tokens, sides))
        return self.norm.relu(ops, self.of_map(ops, as_map(ops, tokens, sides), sides))

    def of_map(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """Convolve a map (1, C, H, W) to (N, O), without norm and ReLU."""
        after = -(-sides[0] // self.stride), -(-sides[1] // self.stride)
        return as_tokens(ops, ops.conv(x, self.affine, self.stride, self.padding), after)


class UpsampledConv:
    """3x3 ``ConvNormReLU`` of maps that are enlarged to the first one's sides and concatenated.

    The arithmetic is that of ``caswit.nn.conv.conv3x3_of_upsampled``.
    """

    def __init__(self, ops: Ops, layer: ConvNormReLU, channels: Sequence[int]) -> None:
        convolution, norm, _ = layer
        assert isinstance(convolution, nn.Conv2d)
        self.norm = AfterConv(norm, convolution.out_channels)
        first, *others = (slice(end - c, end) for c, end in zip(channels, accumulate(channels), strict=True))
        width = convolution.out_channels, channels[0]
        # The shift belongs to the sum over all maps: the first adds it.
        self.first = Conv3x3(ops, partial(self.norm.folded, convolution, first), self.norm.shift, width)
        # For each of the other maps, one matrix (3 * O, C) for each row of the kernel.
        self.others = [
            [Affine(ops.ready(part[:, :, tap].permute(2, 0, 1).flatten(0, 1))) for tap in range(3)]
            for part in (self.norm.folded(convolution, some) for some in others)
        ]

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Convolve maps to (N, O), at the sides of the first."""
        (tokens, sides), *others = maps
        out = self.first(tokens, sides)
        for (small, its), taps in zip(others, self.others, strict=True):
            out = ops.add(out, _mixed_and_upsampled(ops, small, its, taps, sides))
        return self.norm.relu(ops, out)


def _mixed_and_upsampled(ops: Ops, x: Value, sides: Sides, taps: Sequence[Affine], size: Sides) -> Value:
    """Add up what one map contributes: mix its channels for each tap, enlarge columns, then rows."""
    rows, cols = upsampling(sides[0], size[0]), _taps_together(sides[1], size[1])
    # Mixing gives (h, w, 3 taps, O). Viewed as (h, 3 w, O), that is what the matrix for columns multiplies.
    wide = [
        ops.reshape(ops.mix(cols, ops.reshape(ops.linear(x, tap), (sides[0], 3 * sides[1], -1))), (sides[0], -1))
        for tap in taps
    ]
    return ops.reshape(ops.mix(rows, ops.cat(wide)), (size[0] * size[1], -1))


class UPerNet:
    """``UPerNetHead``: pooled maps are not enlarged, and neither are the levels of the pyramid at its end."""

    def __init__(self, ops: Ops, head: UPerNetHead) -> None:
        width = head.classify.in_channels
        wide = head.bottleneck[0]
        assert isinstance(wide, nn.Conv2d)
        deepest = wide.in_channels - len(POOL_SCALES) * width
        self.pools = [Conv(ops, pool[1]) for pool in head.pools]  # type: ignore[index]
        self.bottleneck = UpsampledConv(ops, head.bottleneck, [deepest, *[width] * len(POOL_SCALES)])
        self.laterals = [Conv(ops, layer) for layer in head.laterals]  # type: ignore[arg-type]
        self.smooths = [Conv(ops, layer) for layer in head.smooths]  # type: ignore[arg-type]
        self.fuse = UpsampledConv(ops, head.fuse, [width] * (len(self.smooths) + 1))
        self.classify = pointwise(ops, head.classify)

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Turn stage maps, shallow to deep, into logits (N, K) at the sides of the first."""
        deepest, sides = maps[-1]
        pooled = [
            (pool(ops, ops.mix(_pooling(sides, scale), deepest), (scale, scale)), (scale, scale))
            for pool, scale in zip(self.pools, POOL_SCALES, strict=True)
        ]
        top = self.bottleneck(ops, [maps[-1], *pooled])
        levels: list[Map] = [(top, sides)]  # deep to shallow
        for lateral, (tokens, here) in zip(reversed(self.laterals), reversed(maps[:-1]), strict=True):
            above = as_tokens(ops, ops.resize(as_map(ops, *levels[-1]), here), here)
            levels.append((ops.add(lateral(ops, tokens, here), above), here))
        pyramid = [(smooth(ops, *x), x[1]) for smooth, x in zip(self.smooths, reversed(levels[1:]), strict=True)]
        return ops.linear(self.fuse(ops, [*pyramid, levels[0]]), self.classify)


class Segformer:
    """``SegformerHead``, with the projection of each map and the mixing after it as one matrix."""

    def __init__(self, ops: Ops, head: SegformerHead) -> None:
        self.norm = AfterConv(head.norm, head.classify.in_channels)
        self.mixes: list[Affine] = []
        for project, fuse in zip(head.projections, head.fuse, strict=True):
            assert isinstance(project, nn.Conv2d)
            assert isinstance(fuse, nn.Conv2d)
            assert project.bias is not None
            # The shift of the norm is added once to the sum over all maps: by the first.
            # F (P x + b) = (F P) x + F b, with the scale of the norm in F.
            mix = fuse.weight.detach().flatten(1) * self.norm.scale.to(fuse.weight)[:, None]
            bias = mix @ project.bias.detach() + (self.norm.shift.to(mix) if not self.mixes else 0)
            self.mixes.append(Affine(ops.ready(mix @ project.weight.detach().flatten(1)), ops.ready(bias)))
        self.classify = pointwise(ops, head.classify)

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Turn stage maps, shallow to deep, into logits (N, K) at the sides of the first."""
        first, *others = ((ops.linear(x, mix), sides) for mix, (x, sides) in zip(self.mixes, maps, strict=True))
        merged, size = first
        for x in others:
            merged = ops.add(merged, as_tokens(ops, ops.resize(as_map(ops, *x), size), size))
        return ops.linear(self.norm.relu(ops, merged), self.classify)


def pointwise(ops: Ops, convolution: nn.Conv2d) -> Affine:
    """Return the weights of a 1x1 convolution, ready for ``Ops.linear``."""
    layer = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    layer.weight = nn.Parameter(convolution.weight.flatten(1))
    layer.bias = convolution.bias  # type: ignore[assignment]
    return linear(ops, layer)


@lru_cache(maxsize=64)
def _taps_together(small: int, large: int) -> Tensor:
    """Return ``upsampling`` as (large, small * 3): the three taps of a pixel side by side, as products leave them."""
    return upsampling(small, large).unflatten(1, (3, -1)).transpose(1, 2).flatten(1)


@lru_cache(maxsize=64)
def _pooling(sides: Sides, scale: int) -> Tensor:
    """Return adaptive average pooling of a map to ``scale`` x ``scale`` as a matrix (scale^2, H * W)."""
    # Column i is what torch makes of a map in which only token i is 1. Only the deepest map, a small one, is pooled.
    each = torch.eye(sides[0] * sides[1]).unflatten(1, sides)[:, None]
    return F.adaptive_avg_pool2d(each, scale).flatten(1).T.contiguous()
