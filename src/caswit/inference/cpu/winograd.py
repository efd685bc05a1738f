"""3x3 convolutions in 16 multiplications for 36, by Winograd's algorithm (Lavin and Gray 2016).

Four output pixels at a time, from 4 x 4 input pixels: sums and differences of pixels, a matrix product over channels
for each of 16 combinations, sums and differences of those. It pays where channels are many.

Shapes: H/W sides of the map, even; C channels in, O channels out.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from caswit.inference.cpu.ops import Affine, Ops, Value
from caswit.nn.window_partition import Sides

WIDE, LARGE = 256, 1024
"""Channels and pixels from which on the sums and differences cost less than what they save."""
_WEIGHTS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class Conv3x3:
    """A convolution of a map padded by zeros.

    Args:
        ops: Operations.
        weight: Gives (O, C, 3, 3), when it is known which of two arrangements is wanted.
        bias: (O,).
        channels: O and C.
    """

    def __init__(self, ops: Ops, weight: Callable[[], Tensor], bias: Tensor, channels: tuple[int, int]) -> None:
        self.ops, self.weight, self.bias, self.channels = ops, weight, bias, channels

    def __call__(self, tokens: Value, sides: Sides) -> Value:
        """(H * W, C) -> (H * W, O)."""
        odd = sides[0] % 2 or sides[1] % 2
        if odd or min(self.channels) < WIDE or sides[0] * sides[1] < LARGE:
            return self._direct(tokens, sides)
        return self._quick(tokens, sides)

    @cached_property
    def _plain(self) -> Affine:
        return Affine(self.ops.ready(self.weight()), self.ops.ready(self.bias))

    @cached_property
    def _combined(self) -> list[list[Affine]]:
        """4 x 4 matrices (O, C). The second of the second has the bias: it is in every output once."""
        weight = self.weight()
        each = torch.einsum("ia,ocab,jb->ijoc", _WEIGHTS.to(weight), weight, _WEIGHTS.to(weight))
        bias = self.ops.ready(self.bias)
        return [
            [Affine(self.ops.ready(each[i, j].contiguous()), bias if i == j == 1 else None) for j in range(4)]
            for i in range(4)
        ]

    def _direct(self, tokens: Value, sides: Sides) -> Value:
        ops = self.ops
        image = ops.permute(ops.reshape(tokens, (1, *sides, -1)), (0, 3, 1, 2))
        out = ops.permute(ops.conv(image, self._plain, 1, 1), (0, 2, 3, 1))
        return ops.reshape(out, (sides[0] * sides[1], -1))

    def _quick(self, tokens: Value, sides: Sides) -> Value:
        ops, (height, width) = self.ops, sides
        around = ops.table(_zero(self.channels[1]))
        padded = ops.take(ops.cat([tokens, around]), ops.table(_padded(sides)))
        lines = _combinations(ops, ops.reshape(padded, (height // 2 + 1, 2, width + 2, -1)), 0)
        products = []
        for line, matrices in zip(lines, self._combined, strict=True):
            places = _combinations(ops, ops.reshape(line, (height // 2, width // 2 + 1, 2, -1)), 1)
            flat = (ops.reshape(place, (height * width // 4, -1)) for place in places)
            products.append([ops.linear(x, matrix) for x, matrix in zip(flat, matrices, strict=True)])
        by_line = [_outputs(ops, *line) for line in products]  # 4 lines of (left, right)
        left, right = (_outputs(ops, *(line[side] for line in by_line)) for side in range(2))
        corners = [left[0], right[0], left[1], right[1]]
        return ops.take(ops.cat(corners), ops.table(_interleaved(sides)))


def _combinations(ops: Ops, x: Value, axis: int) -> list[Value]:
    """Pixels in pairs along an axis, one pair more than there are outputs -> the four that are multiplied."""
    pairs = x.shape[axis] if isinstance(x, Tensor) else x.output(0).shape[axis]
    first, second = (ops.part(x, axis + 1, i, i + 1) for i in range(2))
    a, c = ops.part(first, axis, 0, pairs - 1), ops.part(first, axis, 1, pairs)
    b, d = ops.part(second, axis, 0, pairs - 1), ops.part(second, axis, 1, pairs)
    return [ops.subtract(a, c), ops.add(b, c), ops.subtract(c, b), ops.subtract(b, d)]


def _outputs(ops: Ops, a: Value, b: Value, c: Value, d: Value) -> tuple[Value, Value]:
    """Four products -> the two outputs along an axis."""
    return ops.add(ops.add(a, b), c), ops.subtract(ops.subtract(b, c), d)


@lru_cache(maxsize=16)
def _zero(channels: int) -> Tensor:
    return torch.zeros(1, channels)


@lru_cache(maxsize=16)
def _padded(sides: Sides) -> Tensor:
    """((H + 2) * (W + 2),): the token at every place of the padded map, H * W around it."""
    places = torch.full((sides[0] + 2, sides[1] + 2), sides[0] * sides[1])
    places[1:-1, 1:-1] = torch.arange(sides[0] * sides[1]).view(sides)
    return places.flatten()


@lru_cache(maxsize=16)
def _interleaved(sides: Sides) -> Tensor:
    """(H * W,): where every token is, when tokens of even and odd rows and columns come one after the other."""
    order = torch.arange(sides[0] * sides[1]).view(2, 2, sides[0] // 2, sides[1] // 2)
    return order.permute(2, 0, 3, 1).flatten()
