"""3x3 convolutions with 16 multiplications instead of 36, by Winograd's algorithm F(2x2, 3x3) (Lavin and Gray 2016).

Along one axis, two outputs of a kernel of three weights g over four inputs d take four products instead of six:

    m = [(d0 - d2) g0, (d1 + d2) (g0 + g1 + g2) / 2, (d2 - d1) (g0 - g1 + g2) / 2, (d1 - d3) g2]
    outputs = [m0 + m1 + m2, m1 - m2 - m3]

Applied to rows and columns, a square of 2 x 2 outputs takes 4 x 4 products of combined inputs and combined weights.
Weights are combined once. With C channels in and O out, each of the 16 products is a matrix product over channels for
all squares at a time, and what is added are sums and differences of maps: it pays where channels are many.

Shapes: H/W sides of the map, even; C channels in, O channels out.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from caswit.inference.cpu.ops import Affine, Ops, Value
from caswit.nn.window_partition import Sides

WIDE, LARGE = 256, 1024
"""Channels and pixels from which on the sums and differences cost less than they save."""
# Rows: the four combinations of weights above.
_WEIGHTS = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


class Conv3x3:
    """3x3 convolution of a map padded by zeros, by Winograd's algorithm where that is asked for and channels are many.

    Args:
        ops: Operations to compute with.
        weight: Called for the weights (O, C, 3, 3) once it is known which arrangement of them is needed, since the
            combined ones take 16 / 9 of the memory.
        bias: (O,).
        channels: O and C.
    """

    def __init__(self, ops: Ops, weight: Callable[[], Tensor], bias: Tensor, channels: tuple[int, int]) -> None:
        self.ops, self.weight, self.bias, self.channels = ops, weight, bias, channels

    def __call__(self, tokens: Value, sides: Sides) -> Value:
        """Convolve a map (H * W, C) to (H * W, O)."""
        # Outputs come in squares of 2 x 2. Decided here, since the number of pixels is not known before.
        odd = sides[0] % 2 or sides[1] % 2
        if not self.ops.kernels.winograd or odd or min(self.channels) < WIDE or sides[0] * sides[1] < LARGE:
            return self._direct(tokens, sides)
        return self._winograd(tokens, sides)

    @cached_property
    def _plain(self) -> Affine:
        return Affine(self.ops.ready(self.weight()), self.ops.ready(self.bias))

    @cached_property
    def _combined(self) -> list[list[Affine]]:
        """Combine the weights to 4 x 4 matrices (O, C)."""
        weight = self.weight()
        each = torch.einsum("ia,ocab,jb->ijoc", _WEIGHTS.to(weight), weight, _WEIGHTS.to(weight))
        # m1 enters both outputs of an axis, each with a plus: the bias of the product m1 of m1 is in all four once.
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

    def _winograd(self, tokens: Value, sides: Sides) -> Value:
        ops, (height, width) = self.ops, sides
        zero = ops.table(_zero(self.channels[1]))
        padded = ops.take(ops.cat([tokens, zero]), ops.table(_padded(sides)))
        # Rows are combined first, then the columns of each combination, so that every sum runs over whole maps.
        lines = _combinations(ops, ops.reshape(padded, (height // 2 + 1, 2, width + 2, -1)), 0)
        products = []
        for line, matrices in zip(lines, self._combined, strict=True):
            places = _combinations(ops, ops.reshape(line, (height // 2, width // 2 + 1, 2, -1)), 1)
            flat = (ops.reshape(place, (height * width // 4, -1)) for place in places)
            products.append([ops.linear(x, matrix) for x, matrix in zip(flat, matrices, strict=True)])
        by_line = [_outputs(ops, *line) for line in products]  # for each of 4 lines: left and right outputs
        left, right = (_outputs(ops, *(line[side] for line in by_line)) for side in range(2))
        # One map for each corner of the squares, with a quarter of the outputs each; one selection interleaves them.
        corners = [left[0], right[0], left[1], right[1]]
        return ops.take(ops.cat(corners), ops.table(_interleaved(sides)))


def _combinations(ops: Ops, x: Value, axis: int) -> list[Value]:
    """Return the four combinations of inputs along an axis.

    The axis holds pairs of pixels, one pair more than there are pairs of outputs, and the next axis the two of a pair:
    the inputs d0 and d1 of a square are a pair, d2 and d3 the one after it.
    """
    pairs = x.shape[axis] if isinstance(x, Tensor) else x.output(0).shape[axis]
    first, second = (ops.part(x, axis + 1, i, i + 1) for i in range(2))
    d0, d2 = ops.part(first, axis, 0, pairs - 1), ops.part(first, axis, 1, pairs)
    d1, d3 = ops.part(second, axis, 0, pairs - 1), ops.part(second, axis, 1, pairs)
    return [ops.subtract(d0, d2), ops.add(d1, d2), ops.subtract(d2, d1), ops.subtract(d1, d3)]


def _outputs(ops: Ops, m0: Value, m1: Value, m2: Value, m3: Value) -> tuple[Value, Value]:
    """Add up the four products along an axis to its two outputs."""
    return ops.add(ops.add(m0, m1), m2), ops.subtract(ops.subtract(m1, m2), m3)


@lru_cache(maxsize=16)
def _zero(channels: int) -> Tensor:
    return torch.zeros(1, channels)


@lru_cache(maxsize=16)
def _padded(sides: Sides) -> Tensor:
    """Return the token at every place of the map padded by one, ((H + 2) * (W + 2),); H * W stands for padding."""
    places = torch.full((sides[0] + 2, sides[1] + 2), sides[0] * sides[1])
    places[1:-1, 1:-1] = torch.arange(sides[0] * sides[1]).view(sides)
    return places.flatten()


@lru_cache(maxsize=16)
def _interleaved(sides: Sides) -> Tensor:
    """Return where every token of a map (H * W,) lies among the outputs, which are ordered by their corner."""
    order = torch.arange(sides[0] * sides[1]).view(2, 2, sides[0] // 2, sides[1] // 2)
    return order.permute(2, 0, 3, 1).flatten()
