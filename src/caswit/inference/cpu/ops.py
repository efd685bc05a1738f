"""The operations that the fast network is written in, and torch's way to do them.

Shapes: N tokens, C channels, h heads, D = C / h, H/W rows and columns. Tokens are (N, C) of one image; a map is the
same memory as (1, C, H, W).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Value = Any
"""A tensor, or a node of a graph that is being built."""


class Affine(NamedTuple):
    """Weights of a linear layer (O, C) or a convolution (O, C, k, k), ready for the operations that use them."""

    weight: Any
    bias: Any = None


class Ops(Protocol):
    """One image at a time; layouts are those of torch."""

    def ready(self, x: Tensor) -> Any:
        """Turn weights into what the operations take; done once."""

    def table(self, x: Tensor) -> Any:
        """The same for what depends on the sides of an image; the same tensor is turned once."""

    def linear(self, x: Value, affine: Affine) -> Value:
        """(..., C) -> (..., O)."""

    def layer_norm(self, x: Value, affine: Affine, eps: float) -> Value:
        """Over the last axis."""

    def group_norm(self, x: Value, norm: nn.GroupNorm) -> Value:
        """(N, C) -> (N, C)."""

    def relu(self, x: Value) -> Value:
        """Rectify."""

    def gelu(self, x: Value) -> Value:
        """The exact one."""

    def add(self, x: Value, y: Value) -> Value:
        """Sum, or with a table that broadcasts."""

    def subtract(self, x: Value, y: Value) -> Value:
        """Difference."""

    def multiply(self, x: Value, y: Value) -> Value:
        """Product, or with a table that broadcasts."""

    def matmul(self, x: Value, y: Value) -> Value:
        """Product of matrices, batched over leading axes."""

    def take(self, x: Value, index: Any) -> Value:
        """Rows (the first axis) at an index."""

    def part(self, x: Value, axis: int, first: int, last: int) -> Value:
        """What lies from ``first`` to before ``last`` along an axis."""

    def cat(self, values: Sequence[Value]) -> Value:
        """Along the first axis."""

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """As torch."""

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """As torch."""

    def unbind(self, x: Value) -> list[Value]:
        """Along the first axis."""

    def softmax(self, x: Value) -> Value:
        """Over the last axis; may overwrite ``x``."""

    def attention(self, q: Value, k: Value, v: Value) -> Value:
        """softmax(q k' / sqrt(D)) v without storing the scores: (1, h, N, D), twice (1, h, M, D) -> (1, h, N, D)."""

    def conv(self, x: Value, affine: Affine, stride: int, padding: int) -> Value:
        """(1, C, H, W) -> (1, O, H', W')."""

    def resize(self, x: Value, size: tuple[int, int]) -> Value:
        """(1, C, H, W) -> (1, C, *size), bilinear."""


class TorchOps:
    """Computes at once, in one type throughout; reductions accumulate in fp32.

    Args:
        device: Where the network is.
        dtype: Of weights and values.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def ready(self, x: Tensor) -> Tensor:
        """Cast, and lay out as the kernels read it."""
        x = x.detach().to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)

    def table(self, x: Tensor) -> Tensor:
        """Like ``ready``, once; holds the tensor, so that no other can have its id."""
        if id(x) not in self._tables:
            self._tables[id(x)] = x, self.ready(x)
        return self._tables[id(x)][1]

    def linear(self, x: Tensor, affine: Affine) -> Tensor:
        """(..., C) -> (..., O)."""
        return F.linear(x, *affine)

    def layer_norm(self, x: Tensor, affine: Affine, eps: float) -> Tensor:
        """Over the last axis."""
        return F.layer_norm(x, x.shape[-1:], *affine, eps)

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        """(N, C) -> (N, C)."""
        weight, bias = norm.weight.to(x), norm.bias.to(x)
        return F.group_norm(x.T[None], norm.num_groups, weight, bias, norm.eps)[0].T

    def relu(self, x: Tensor) -> Tensor:
        """Rectify."""
        return F.relu(x, inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        """The exact one."""
        return F.gelu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum, or with a table that broadcasts."""
        return x + y

    def subtract(self, x: Tensor, y: Tensor) -> Tensor:
        """Difference."""
        return x - y

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        """Product, or with a table that broadcasts."""
        return x * y

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Product of matrices, batched over leading axes."""
        return x @ y

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        """Rows (the first axis) at an index."""
        return x.index_select(0, index)

    def part(self, x: Tensor, axis: int, first: int, last: int) -> Tensor:
        """What lies from ``first`` to before ``last`` along an axis."""
        return x.narrow(axis, first, last - first)

    def cat(self, values: Sequence[Tensor]) -> Tensor:
        """Along the first axis."""
        return torch.cat(list(values))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """As torch."""
        return x.reshape(tuple(shape))

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        """As torch."""
        return x.permute(tuple(order))

    def unbind(self, x: Tensor) -> list[Tensor]:
        """Along the first axis."""
        return list(x.unbind())

    def softmax(self, x: Tensor) -> Tensor:
        """Over the last axis."""
        return x.softmax(-1)

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """softmax(q k' / sqrt(D)) v without storing the scores: (1, h, N, D), twice (1, h, M, D) -> (1, h, N, D)."""
        return F.scaled_dot_product_attention(q, k, v)

    def conv(self, x: Tensor, affine: Affine, stride: int, padding: int) -> Tensor:
        """(1, C, H, W) -> (1, O, H', W')."""
        return F.conv2d(x, *affine, stride=stride, padding=padding)

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(1, C, H, W) -> (1, C, *size), bilinear."""
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
