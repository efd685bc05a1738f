"""UPerNet and the SegFormer head, arranged for inference.

Norms over batches are folded into the convolutions before them, 1x1 convolutions are matrix products over tokens, and
3x3 convolutions of enlarged maps never enlarge them. Shapes: N tokens, C channels, H/W sides.
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
from caswit.nn.conv import ConvNormReLU, shifted
from caswit.nn.decoders import POOL_SCALES, SegformerHead, UPerNetHead
from caswit.nn.window_partition import Sides

Map = tuple[Value, Sides]
"""Tokens (H * W, C), and H, W."""


def as_map(ops: Ops, tokens: Value, sides: Sides) -> Value:
    """(H * W, C) -> (1, C, H, W)."""
    return ops.permute(ops.reshape(tokens, (1, *sides, -1)), (0, 3, 1, 2))


def as_tokens(ops: Ops, x: Value, sides: Sides) -> Value:
    """(1, C, H, W) -> (H * W, C)."""
    return ops.reshape(ops.permute(x, (0, 2, 3, 1)), (sides[0] * sides[1], -1))


class AfterConv:
    """The norm after a convolution: folded into its weights if it can be."""

    def __init__(self, norm: nn.Module, channels: int) -> None:
        self.group = norm if isinstance(norm, nn.GroupNorm) else None
        self.scale, self.shift = torch.ones(channels), torch.zeros(channels)
        if isinstance(norm, nn.BatchNorm2d):
            assert norm.running_var is not None
            assert norm.running_mean is not None
            self.scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            self.shift = norm.bias.detach() - norm.running_mean * self.scale

    @torch.no_grad()
    def folded(self, convolution: nn.Conv2d, channels: slice = slice(None)) -> Tensor:
        """(O, C, k, k): weights of some input channels."""
        weight = convolution.weight[:, channels]
        return weight * self.scale.to(weight)[:, None, None, None]

    def relu(self, ops: Ops, tokens: Value) -> Value:
        """What is left of the norm, then the rectifier: (N, C) -> (N, C)."""
        return ops.relu(tokens if self.group is None else ops.group_norm(tokens, self.group))


class Conv:
    """Convolution, norm and rectifier of maps; a 1x1 convolution is a matrix product over tokens."""

    def __init__(self, ops: Ops, layer: ConvNormReLU) -> None:
        convolution, norm, _ = layer
        assert isinstance(convolution, nn.Conv2d)
        self.norm = AfterConv(norm, convolution.out_channels)
        self.pointwise = convolution.kernel_size == (1, 1)
        self.stride, self.padding = convolution.stride[0], int(convolution.padding[0])
        self.same = None
        if self.stride == 1 and not self.pointwise:
            channels = convolution.out_channels, convolution.in_channels
            self.same = Conv3x3(ops, partial(self.norm.folded, convolution), self.norm.shift, channels)
        else:
            weight = self.norm.folded(convolution)
            self.affine = Affine(ops.ready(weight.flatten(1) if self.pointwise else weight), ops.ready(self.norm.shift))

    def __call__(self, ops: Ops, tokens: Value, sides: Sides) -> Value:
        """(N, C) -> (N, O); sides stay, or are divided by the stride."""
        if self.pointwise:
            return self.norm.relu(ops, ops.linear(tokens, self.affine))
        if self.same is not None:
            return self.norm.relu(ops, self.same(tokens, sides))
        return self.norm.relu(ops, self.of_map(ops, as_map(ops, tokens, sides), sides))

    def of_map(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """(1, C, H, W) -> (N, O), before the norm."""
        after = -(-sides[0] // self.stride), -(-sides[1] // self.stride)
        return as_tokens(ops, ops.conv(x, self.affine, self.stride, self.padding), after)


class ConvOfEnlarged:
    """A 3x3 ``ConvNormReLU`` of maps enlarged to the first one's sides and concatenated."""

    def __init__(self, ops: Ops, layer: ConvNormReLU, channels: Sequence[int]) -> None:
        convolution, norm, _ = layer
        assert isinstance(convolution, nn.Conv2d)
        self.norm = AfterConv(norm, convolution.out_channels)
        first, *others = (slice(end - c, end) for c, end in zip(channels, accumulate(channels), strict=True))
        width = convolution.out_channels, channels[0]
        self.first = Conv3x3(ops, partial(self.norm.folded, convolution, first), self.norm.shift, width)
        # For each vertical tap (3 * O, C): horizontal tap, output channel.
        self.others = [
            [Affine(ops.ready(part[:, :, tap].permute(2, 0, 1).flatten(0, 1))) for tap in range(3)]
            for part in (self.norm.folded(convolution, some) for some in others)
        ]

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Maps -> (N, O) at the sides of the first."""
        (tokens, sides), *others = maps
        out = self.first(tokens, sides)
        for (small, its), taps in zip(others, self.others, strict=True):
            out = ops.add(out, _enlarged(ops, small, its, taps, sides))
        return self.norm.relu(ops, out)


def _enlarged(ops: Ops, x: Value, sides: Sides, taps: Sequence[Affine], size: Sides) -> Value:
    rows, cols = ops.table(shifted(sides[0], size[0])), ops.table(_by_place(sides[1], size[1]))
    wide = [
        ops.reshape(ops.matmul(cols, ops.reshape(ops.linear(x, tap), (sides[0], 3 * sides[1], -1))), (sides[0], -1))
        for tap in taps
    ]
    return ops.reshape(ops.matmul(rows, ops.cat(wide)), (size[0] * size[1], -1))


class UPerNet:
    """``UPerNetHead``."""

    def __init__(self, ops: Ops, head: UPerNetHead) -> None:
        width = head.classify.in_channels
        wide = head.bottleneck[0]
        assert isinstance(wide, nn.Conv2d)
        deepest = wide.in_channels - len(POOL_SCALES) * width
        self.pools = [Conv(ops, pool[1]) for pool in head.pools]  # type: ignore[index]
        self.bottleneck = ConvOfEnlarged(ops, head.bottleneck, [deepest, *[width] * len(POOL_SCALES)])
        self.laterals = [Conv(ops, layer) for layer in head.laterals]  # type: ignore[arg-type]
        self.smooths = [Conv(ops, layer) for layer in head.smooths]  # type: ignore[arg-type]
        self.fuse = ConvOfEnlarged(ops, head.fuse, [width] * (len(self.smooths) + 1))
        self.classify = pointwise(ops, head.classify)

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Stage maps, shallow to deep -> logits (N, K) at the sides of the first."""
        deepest, sides = maps[-1]
        pooled = [
            (pool(ops, ops.matmul(ops.table(_pooling(sides, scale)), deepest), (scale, scale)), (scale, scale))
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
    """``SegformerHead``: its projection and its mixing of channels are one matrix."""

    def __init__(self, ops: Ops, head: SegformerHead) -> None:
        self.norm = AfterConv(head.norm, head.classify.in_channels)
        self.mixes: list[Affine] = []
        for project, fuse in zip(head.projections, head.fuse, strict=True):
            assert isinstance(project, nn.Conv2d)
            assert isinstance(fuse, nn.Conv2d)
            assert project.bias is not None
            mix = fuse.weight.detach().flatten(1) * self.norm.scale.to(fuse.weight)[:, None]
            bias = mix @ project.bias.detach() + (self.norm.shift.to(mix) if not self.mixes else 0)
            self.mixes.append(Affine(ops.ready(mix @ project.weight.detach().flatten(1)), ops.ready(bias)))
        self.classify = pointwise(ops, head.classify)

    def __call__(self, ops: Ops, maps: Sequence[Map]) -> Value:
        """Stage maps, shallow to deep -> logits (N, K) at the sides of the first."""
        first, *others = ((ops.linear(x, mix), sides) for mix, (x, sides) in zip(self.mixes, maps, strict=True))
        merged, size = first
        for x in others:
            merged = ops.add(merged, as_tokens(ops, ops.resize(as_map(ops, *x), size), size))
        return ops.linear(self.norm.relu(ops, merged), self.classify)


def pointwise(ops: Ops, convolution: nn.Conv2d) -> Affine:
    """A 1x1 convolution as a linear layer."""
    layer = nn.Linear(convolution.in_channels, convolution.out_channels, device="meta")
    layer.weight = nn.Parameter(convolution.weight.flatten(1))
    layer.bias = convolution.bias  # type: ignore[assignment]
    return linear(ops, layer)


@lru_cache(maxsize=64)
def _by_place(small: int, large: int) -> Tensor:
    """(large, small * 3): ``shifted`` in the order in which the taps of a place lie side by side."""
    return shifted(small, large).unflatten(1, (3, -1)).transpose(1, 2).flatten(1)


@lru_cache(maxsize=64)
def _pooling(sides: Sides, scale: int) -> Tensor:
    """(scale^2, H * W): adaptive average pooling."""
    each = torch.eye(sides[0] * sides[1]).unflatten(1, sides)[:, None]
    return F.adaptive_avg_pool2d(each, scale).flatten(1).T.contiguous()
