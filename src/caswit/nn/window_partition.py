"""How Swin cuts a map into windows: where every token goes, computed once for every size.

Shapes: B batch, N tokens of a map, C channels, A tokens of a window, n windows.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Sides = tuple[int, int]
"""Rows and columns of a map."""
_FAR = -100.0
"""What Swin adds to scores of tokens that are neighbours only because the map was rolled."""

_CPU = torch.device("cpu")


class Windows(NamedTuple):
    """How a map is cut into windows."""

    tokens: Tensor
    """(n * A,): the token at every place of every window; N where there is none."""
    places: Tensor
    """(N,): the place of every token."""
    mask: Tensor | None
    """(n, 1, A, A): 0 or ``_FAR``; None without a shift."""


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a tensor made in inference mode could not be used in training later
def windows(sides: Sides, side: Sides, shift: Sides, device: torch.device = _CPU) -> Windows:
    """Windows of a map that is rolled, then padded at its end, as timm does it."""
    height, width = sides
    rows, cols = height + -height % side[0], width + -width % side[1]
    tokens = torch.full((rows, cols), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(sides).roll((-shift[0], -shift[1]), (0, 1))
    index = _cut(tokens, side)
    places = torch.empty(height * width + 1, dtype=torch.long)
    places[index.flatten()] = torch.arange(rows * cols)
    if not any(shift):
        return Windows(index.flatten().to(device), places[:-1].to(device), None)
    region = _cut(3 * _regions(rows, side[0], shift[0])[:, None] + _regions(cols, side[1], shift[1]), side)
    apart = region[:, None, :, None] != region[:, None, None, :]
    mask = torch.where(apart, _FAR, 0.0)
    return Windows(index.flatten().to(device), places[:-1].to(device), mask.to(device))


def _regions(length: int, side: int, shift: int) -> Tensor:
    """0, 1 or 2: the pieces that are neighbours after the roll only, and what lies before them."""
    at = torch.arange(length)
    return (at >= length - side).long() + (at >= length - shift).long()


def _cut(places: Tensor, side: Sides) -> Tensor:
    """(rows, cols) -> (n, A)."""
    rows, cols = places.shape
    return (
        places.view(rows // side[0], side[0], cols // side[1], side[1]).transpose(1, 2).reshape(-1, side[0] * side[1])
    )


def cut(tokens: Tensor, nowhere: Tensor, how: Windows) -> Tensor:
    """(B, N, C) -> (B, n * A, C); places without a token get ``nowhere`` (C,)."""
    cut_out: Tensor = _Cut.apply(tokens, nowhere, how.tokens, how.places)
    return cut_out


def joined(places: Tensor, how: Windows) -> Tensor:
    """(B, n * A, C) -> (B, N, C): what ``cut`` did, undone."""
    tokens: Tensor = _Joined.apply(places, how.tokens, how.places)
    return tokens


class _Cut(torch.autograd.Function):
    """A selection whose gradient is a selection too; torch would add up, one by one, what never meets."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, nowhere: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, places)
        if len(tokens) > len(places):
            x = torch.cat([x, nowhere.to(x).expand(x.shape[0], 1, -1)], dim=1)
        return x.index_select(1, tokens)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        (grad,), (tokens, places) = grads, ctx.saved_tensors
        of_nowhere = None
        if len(tokens) > len(places):
            dtype = torch.promote_types(grad.dtype, torch.float32)
            of_nowhere = grad[:, tokens == len(places)].sum((0, 1), dtype=dtype)
        return grad.index_select(1, places), of_nowhere, None, None


class _Joined(torch.autograd.Function):
    """Likewise."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, places)
        return x.index_select(1, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,), (tokens, places) = grads, ctx.saved_tensors
        if len(tokens) > len(places):
            grad = functional.pad(grad, (0, 0, 0, 1))
        return grad.index_select(1, tokens), None, None
