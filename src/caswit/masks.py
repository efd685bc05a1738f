"""What pretraining hides from the network (paper section 3.5), in tokens of 4 px. Integers only.

Shapes: T side of the image in pixels, N = ceil(T / 4) its tokens along a side.
"""

import math

import numpy as np

from caswit.config.pretraining import TOKEN_PX
from caswit.raster.io import Bool


def random_cells(side_px: int, cell_px: int, ratio: float, rng: np.random.Generator) -> Bool:
    """(N, N): exactly ceil(ratio * cells) cells of a grid over the tile are True.

    Cells at the lower and right border are cut off where the side is no multiple of the cell, and count as whole.
    """
    cells = -(-side_px // cell_px)
    masked = np.zeros(cells * cells, bool)
    # Rounded first: 0.07 * 100 is more than 7 in floating point.
    masked[rng.permutation(masked.size)[: math.ceil(round(ratio * masked.size, 9))]] = True
    tokens = -(-side_px // TOKEN_PX)
    per_cell = cell_px // TOKEN_PX
    return masked.reshape(cells, cells).repeat(per_cell, 0).repeat(per_cell, 1)[:tokens, :tokens]


def middle(side_px: int, ratio: float) -> Bool:
    """(N, N): True for the tokens that the centred square with ``ratio`` of the side touches."""
    tokens = -(-side_px // TOKEN_PX)
    masked = np.zeros((tokens, tokens), bool)
    first, last = side_px * (1 - ratio) / 2, side_px * (1 + ratio) / 2
    if last > first:
        inner = slice(math.floor(round(first / TOKEN_PX, 9)), math.ceil(round(last / TOKEN_PX, 9)))
        masked[inner, inner] = True
    return masked
