"""Partition of a map into Swin's attention windows, as one gather.

Swin rolls the map (in every second block), pads it to whole windows, and reorders it window by window; afterwards it
undoes all three. Together these only move tokens, so where every token goes is computed once for each size of map and
kept as a table. ``partition`` and ``merge`` then are one selection each.

Shapes: B batch, N tokens of a map, C channels, n windows of A slots, which hold a token or padding.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn import functional

P = ParamSpec("P")
T = TypeVar("T")
Sides = tuple[int, int]
"""Rows and columns of a map."""
_FAR = -100.0
"""Swin's addend for the scores of two tokens that lie in one window only because the map was rolled."""
_CPU = torch.device("cpu")


class Windows(NamedTuple):
    """Tables of the partition of one size of map."""

    tokens: Tensor
    """(n * A,): the token in every slot; N in slots of padding."""
    slots: Tensor
    """(N,): the slot of every token."""
    mask: Tensor | None
    """(n, 1, A, A): 0 or ``_FAR``, added to attention scores; None where the map is not rolled."""


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """Keep the last 64 results of a function that makes constant tensors, so that each can be used anywhere later."""
    # Outside of inference mode, and of the tensors without memory that operations are counted with: kept, those could
    # not be used in training.
    ordinary = torch.inference_mode(False)(unset_fake_temporarily()(torch.no_grad()(make)))
    return cast("Callable[P, T]", lru_cache(maxsize=64)(ordinary))


@kept
def windows(sides: Sides, side: Sides, shift: Sides, device: torch.device = _CPU) -> Windows:
    """Return the tables for windows of ``side`` tokens in a map that is rolled by ``shift`` and then padded.

    The order is timm's. Other libraries pad first, which differs where windows do not divide the map
    (docs/decisions/0005).
    """
    height, width = sides
    rows, cols = height + -height % side[0], width + -width % side[1]
    tokens = torch.full((rows, cols), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(sides).roll((-shift[0], -shift[1]), (0, 1))
    index = _by_window(tokens, side)
    # All padding writes to one entry more than there are tokens, which is cut off.
    slots = torch.empty(height * width + 1, dtype=torch.long)
    slots[index.flatten()] = torch.arange(rows * cols)
    mask = None
    if any(shift):
        # Windows at the lower and right border hold tokens from opposite sides of the map, in up to nine regions;
        # tokens attend to those of their own region only.
        region = _by_window(3 * _regions(rows, side[0], shift[0])[:, None] + _regions(cols, side[1], shift[1]), side)
        apart = region[:, None, :, None] != region[:, None, None, :]
        mask = torch.where(apart, _FAR, 0.0).to(device)
    return Windows(index.flatten().to(device), slots[:-1].to(device), mask)


def _regions(length: int, side: int, shift: int) -> Tensor:
    """Number the places along an axis: 2 for what was rolled in from the other side, 1 for the rest of the last window,
    0 for the other windows."""
    at = torch.arange(length)
    return (at >= length - side).long() + (at >= length - shift).long()


def _by_window(values: Tensor, side: Sides) -> Tensor:
    """Reorder a map (rows, cols) of whole windows to (n, A)."""
    return values.unflatten(0, (-1, side[0])).unflatten(2, (-1, side[1])).transpose(1, 2).flatten(2).flatten(0, 1)


def partition(tokens: Tensor, padding: Tensor, how: Windows) -> Tensor:
    """Reorder tokens (B, N, C) to windows (B, n * A, C); slots without a token get ``padding`` (C,)."""
    found: Tensor = _Partition.apply(tokens, padding, how.tokens, how.slots)
    return found


def merge(slots: Tensor, how: Windows) -> Tensor:
    """Undo ``partition``: (B, n * A, C) -> (B, N, C)."""
    found: Tensor = _Merge.apply(slots, how.tokens, how.slots)
    return found


# A token lies in exactly one slot. The gradient of either selection is therefore the selection by the other table.
# torch cannot know that: its gradient of index_select adds values up one by one, as if tokens could be chosen twice.


class _Partition(torch.autograd.Function):
    """Select by ``tokens``, with a gradient that selects by ``slots``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, slots)
        if len(tokens) > len(slots):
            x = torch.cat([x, padding.to(x).expand(x.shape[0], 1, -1)], dim=1)
        return x.index_select(1, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,), (tokens, slots) = grads, ctx.saved_tensors
        of_padding = None
        if len(tokens) > len(slots):
            # Under autocast gradients are bf16, in which a sum over many slots would lose most of its digits.
            dtype = torch.promote_types(grad.dtype, torch.float32)
            of_padding = grad[:, tokens == len(slots)].sum((0, 1), dtype=dtype)
        return grad.index_select(1, slots), of_padding, None, None


class _Merge(torch.autograd.Function):
    """Select by ``slots``, with a gradient that selects by ``tokens`` and is 0 for padding."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, slots: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, slots)
        return x.index_select(1, slots)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (tokens, slots) = grads, ctx.saved_tensors
        if len(tokens) > len(slots):
            grad = functional.pad(grad, (0, 0, 0, 1))
        return grad.index_select(1, tokens), None, None
