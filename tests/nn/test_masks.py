"""Masks of pretraining."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caswit.config import TOKEN_PX, MaskConfig, TileConfig
from caswit.errors import ConfigError
from caswit.nn.simmim import centre_square, random_cells
from caswit.nn.swin import PATCH_PX


def test_tokens_are_those_of_the_encoder():
    assert TOKEN_PX == PATCH_PX


@given(st.integers(1, 300), st.integers(1, 12), st.integers(1, 100), st.integers(0, 99))
def test_exactly_the_asked_share_of_cells_is_masked_whatever_the_size(side_px, tokens_per_cell, percent, seed):
    """Counted cell by cell; cells at the far borders may be cut off, and no cell is masked in part."""
    cell_px = TOKEN_PX * tokens_per_cell
    mask = random_cells(side_px, cell_px, percent / 100, np.random.default_rng(seed))
    tokens = math.ceil(side_px / TOKEN_PX)
    assert mask.shape == (tokens, tokens)
    cells = math.ceil(side_px / cell_px)
    blocks = [
        mask[i : i + tokens_per_cell, j : j + tokens_per_cell]
        for i in range(0, tokens, tokens_per_cell)
        for j in range(0, tokens, tokens_per_cell)
    ]
    assert len(blocks) == cells**2
    assert all(b.all() or not b.any() for b in blocks)
    assert sum(b.any() for b in blocks) == -(-percent * cells**2 // 100)


def test_the_papers_512_px_have_192_of_256_cells():
    mask = random_cells(512, 32, 0.75, np.random.default_rng(0))
    assert mask.shape == (128, 128)
    assert mask.sum() == 192 * 64


def test_every_cell_is_as_likely_as_any_other():
    hits = sum(random_cells(128, 32, 0.75, np.random.default_rng(seed))[::8, ::8].astype(int) for seed in range(400))
    assert hits.shape == (4, 4)
    assert hits.min() > 250
    assert hits.max() < 350


@pytest.mark.parametrize(("tile_px", "factor"), [(512, 2), (256, 2), (256, 4), (384, 3), (64, 1), (36, 3), (120, 4)])
def test_what_is_masked_of_the_context_is_exactly_what_the_tile_covers(tile_px, factor):
    tile = TileConfig(tile_px=tile_px, context_factor=factor) if tile_px % (2 * factor) == 0 else None
    assert tile is not None
    # Pixels of the context image that show ground of the tile.
    first = (tile.context_px - tile.tile_px) // 2 // factor
    covered = np.zeros((tile_px, tile_px), bool)
    covered[first : first + tile_px // factor, first : first + tile_px // factor] = True
    touched = np.zeros((math.ceil(tile_px / 4), math.ceil(tile_px / 4)), bool)
    for row, col in np.argwhere(covered):
        touched[row // 4, col // 4] = True
    assert np.array_equal(centre_square(tile_px, 1 / factor), touched)
    if first % 4 == 0 and (tile_px // factor) % 4 == 0:
        assert centre_square(tile_px, 1 / factor).sum() * 16 == covered.sum()


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 64), (1.0, 256)])
def test_the_masked_middle_has_the_asked_share_of_the_side(ratio, count):
    assert centre_square(64, ratio).sum() == count


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ratio": 0}, "ratio must be above 0"),
        ({"mask_cell_px": 30}, "multiple of 4, got 30; try 32"),
        ({"context_ratio": 1.5}, r"context_ratio must be in \[0, 1\]"),
    ],
)
def test_masks_that_cannot_be_are_refused(settings, says):
    with pytest.raises(ConfigError, match=says):
        MaskConfig(**settings)
