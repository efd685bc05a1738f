"""The operations that the arranged network is written in, and torch's implementation of them.

The arrangement is written once over ``Ops``. ``TorchOps`` computes at once; ``OpenVinoOps`` (``openvino``) adds nodes
to a graph, which OpenVINO compiles. There are no more operations than the network needs, so that either is short.

Shapes: N tokens, C channels, h heads, D = C / h, H/W rows and columns. Tokens are (N, C) of one image; a map is the
same memory as (1, C, H, W), channels last.
"""

# ruff: noqa: D102  Every method is described once, in Ops.

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.inference.cpu.kernels import Kernels, usual

Value = Any
"""A tensor, or a node of a graph that is being built."""


class Affine(NamedTuple):
    """Weights of a linear layer (O, C) or a convolution (O, C, k, k), ready for the operations that use them."""

    weight: Any
    bias: Any = None


class Ops(Protocol):
    """Operations on the tokens and maps of one image; layouts are those of torch."""

    kernels: Kernels
    """Which of several ways of computing the same are taken."""

    def ready(self, x: Tensor) -> Any:
        """Prepare a weight for the operations that use it. Called once for each weight."""

    def table(self, x: Tensor) -> Any:
        """Prepare a constant that depends on the sides of the image; the same tensor is prepared once."""

    def linear(self, x: Value, affine: Affine) -> Value:
        """Apply a linear layer: (..., C) -> (..., O)."""

    def layer_norm(self, x: Value, affine: Affine, eps: float) -> Value:
        """Normalise over the last axis."""

    def group_norm(self, x: Value, norm: nn.GroupNorm) -> Value:
        """Normalise groups of channels over all tokens: (N, C) -> (N, C)."""

    def relu(self, x: Value) -> Value:
        """Rectify; may overwrite ``x``."""

    def gelu(self, x: Value) -> Value:
        """Apply the exact GELU, not the one approximated by tanh."""

    def add(self, x: Value, y: Value) -> Value:
        """Add, with broadcasting."""

    def subtract(self, x: Value, y: Value) -> Value:
        """Subtract values of the same shape."""

    def multiply(self, x: Value, y: Value) -> Value:
        """Multiply by elements, with broadcasting."""

    def matmul(self, x: Value, y: Value) -> Value:
        """Multiply matrices, batched over the axes before the last two."""

    def mix(self, matrix: Tensor, x: Value) -> Value:
        """Multiply by a constant matrix from the left: (M, N), (..., N, C) -> (..., M, C)."""

    def take(self, x: Value, index: Any) -> Value:
        """Select along the first axis by a table of indices."""

    def part(self, x: Value, axis: int, first: int, last: int) -> Value:
        """Return the slice ``first:last`` along an axis."""

    def cat(self, values: Sequence[Value]) -> Value:
        """Concatenate along the first axis."""

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        """Reshape as torch does, with at most one -1."""

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        """Permute the axes as torch does."""

    def unbind(self, x: Value) -> list[Value]:
        """Split along the first axis, which disappears."""

    def softmax(self, x: Value) -> Value:
        """Apply the softmax over the last axis."""

    def attention(self, q: Value, kv: Value, heads: int) -> Value:
        """Return softmax(q k' / sqrt(D)) v of each head, without storing the scores.

        Queries are (N, h * D), keys and values together (M, 2 * h * D); the result is (N, h * D).
        """

    def conv(self, x: Value, affine: Affine, stride: int, padding: int) -> Value:
        """Convolve a map, padded by zeros: (1, C, H, W) -> (1, O, H', W')."""

    def resize(self, x: Value, size: tuple[int, int]) -> Value:
        """Resize a map by bilinear interpolation: (1, C, H, W) -> (1, C, *size)."""


def attention(q: Tensor, kv: Tensor, heads: int) -> Tensor:
    """Compute ``Ops.attention`` with torch's kernel."""
    q = q.unflatten(1, (heads, -1)).transpose(0, 1)
    k, v = kv.unflatten(1, (2, heads, -1)).permute(1, 2, 0, 3)
    # The kernel goes through the keys part by part, so the scores of all are never in memory.
    return F.scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1).flatten(1)


class TorchOps:
    """Computes with torch, at once.

    Args:
        device: Device of the network.
        dtype: Type of all weights and values. Unlike under autocast nothing is widened to fp32 in between; torch's
            norms, softmax and products accumulate in fp32 by themselves.
        kernels: Ways of computing; None: what is usual for the processor.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, kernels: Kernels | None = None) -> None:
        self.device, self.dtype = device, dtype
        self.kernels = kernels or usual(openvino=False)
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def ready(self, x: Tensor) -> Tensor:
        # Kernels for convolutions read weights channels last, and would reorder others at every call.
        x = x.detach().to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        return x.contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.contiguous_format)

    def table(self, x: Tensor) -> Tensor:
        # The tensor is held together with the result, so that no other can get its id.
        if id(x) not in self._tables:
            self._tables[id(x)] = x, self.ready(x)
        return self._tables[id(x)][1]

    def linear(self, x: Tensor, affine: Affine) -> Tensor:
        return F.linear(x, *affine)

    def layer_norm(self, x: Tensor, affine: Affine, eps: float) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], *affine, eps)

    def group_norm(self, x: Tensor, norm: nn.GroupNorm) -> Tensor:
        # Tokens (N, C) are a view of one image (1, C, N), so nothing is moved.
        weight, bias = norm.weight.to(x), norm.bias.to(x)
        return F.group_norm(x.T[None], norm.num_groups, weight, bias, norm.eps)[0].T

    def relu(self, x: Tensor) -> Tensor:
        # Safe in place: the input is always a fresh result that nothing else reads.
        return F.relu(x, inplace=True)

    def gelu(self, x: Tensor) -> Tensor:
        return F.gelu(x)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y

    def subtract(self, x: Tensor, y: Tensor) -> Tensor:
        return x - y

    def multiply(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y

    def mix(self, matrix: Tensor, x: Tensor) -> Tensor:
        return self.table(matrix) @ x

    def take(self, x: Tensor, index: Tensor) -> Tensor:
        return x.index_select(0, index)

    def part(self, x: Tensor, axis: int, first: int, last: int) -> Tensor:
        return x.narrow(axis, first, last - first)

    def cat(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        return x.reshape(tuple(shape))

    def permute(self, x: Tensor, order: Sequence[int]) -> Tensor:
        return x.permute(tuple(order))

    def unbind(self, x: Tensor) -> list[Tensor]:
        return list(x.unbind())

    def softmax(self, x: Tensor) -> Tensor:
        return x.softmax(-1)

    def attention(self, q: Tensor, kv: Tensor, heads: int) -> Tensor:
        return attention(q, kv, heads)

    def conv(self, x: Tensor, affine: Affine, stride: int, padding: int) -> Tensor:
        return F.conv2d(x, *affine, stride=stride, padding=padding)

    def resize(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        # The same convention as half_pixel in ``OpenVinoOps``.
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
