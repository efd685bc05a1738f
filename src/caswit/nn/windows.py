"""How Swin cuts a map into windows: where every token goes, computed once for every size.

Shapes: N tokens of a map, A tokens of a window, n windows.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

Sides = tuple[int, int]
"""Rows and columns of a map."""
_FAR = -100.0
"""What Swin adds to scores of tokens that are neighbours only because the map was rolled."""


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
def windows(sides: Sides, side: Sides, shift: Sides) -> Windows:
    """Windows of a map that is rolled, then padded at its end, as timm does it."""
    height, width = sides
    rows, cols = height + -height % side[0], width + -width % side[1]
    tokens = torch.full((rows, cols), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(sides).roll((-shift[0], -shift[1]), (0, 1))
    index = _cut(tokens, side)
    places = torch.empty(height * width + 1, dtype=torch.long)
    places[index.flatten()] = torch.arange(rows * cols)
    if not any(shift):
        return Windows(index.flatten(), places[:-1].clone(), None)
    region = _cut(3 * _regions(rows, side[0], shift[0])[:, None] + _regions(cols, side[1], shift[1]), side)
    apart = region[:, None, :, None] != region[:, None, None, :]
    return Windows(index.flatten(), places[:-1].clone(), torch.where(apart, _FAR, 0.0))


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
