"""Windows, tiles and blocks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from caswit.raster.windows import (
    Block,
    Tile,
    Window,
    block_at,
    block_windows,
    count_blocks,
    overlapping_blocks,
    some_of,
    spread_starts,
    starts,
    tile_grid,
    whole_blocks,
)


@st.composite
def grids(draw):
    """height, width, tile_px, overlap_px: any raster, also smaller than a tile and one pixel wide."""
    tile_px = draw(st.integers(1, 48))
    return draw(st.integers(1, 90)), draw(st.integers(1, 90)), tile_px, draw(st.integers(0, tile_px - 1))


windows = st.builds(Window, *[st.integers(-40, 40)] * 2, *[st.integers(0, 50)] * 2)


def blocks(grid, block_px):
    height, width, tile_px, overlap_px = grid
    windows = block_windows(*grid, block_px)
    return [block_at(window, height, width, tile_px, overlap_px, halo=False) for window in windows]


@given(grids(), st.integers(1, 200))
def test_blocks_can_be_counted_without_making_them(grid, block_px):
    assert count_blocks(*grid, block_px) == len(list(block_windows(*grid, block_px)))


def hits(height, width, parts):
    """Return how many of the parts each pixel is in."""
    count = np.zeros((height, width), int)
    for part in parts:
        assert part == part.clipped(height, width)
        count[part.inside(Window(0, 0, height, width))] += 1
    return count


def pixels(window):
    """The (row, col) of every pixel."""
    rows, cols = range(window.row, window.row + window.height), range(window.col, window.col + window.width)
    return {(row, col) for row in rows for col in cols}


@given(grids())
def test_owned_parts_cover_every_pixel_exactly_once(grid):
    height, width, _, _ = grid
    assert (hits(height, width, [t.owned for t in tile_grid(*grid)]) == 1).all()


@given(grids())
def test_an_owned_part_is_not_empty_and_lies_in_its_tile(grid):
    for window, owned in tile_grid(*grid):
        assert owned.height > 0
        assert owned.width > 0
        owned.inside(window)


@given(grids())
def test_tiles_are_square_and_stay_inside_a_raster_that_is_larger(grid):
    height, width, tile_px, _ = grid
    for (row, col, *size), _ in tile_grid(*grid):
        assert size == [tile_px, tile_px]
        assert 0 <= row <= max(0, height - tile_px)
        assert 0 <= col <= max(0, width - tile_px)


@given(grids())
def test_each_neighbour_keeps_its_half_of_at_least_the_overlap(grid):
    height, _, tile_px, overlap_px = grid
    for window, owned in tile_grid(*grid):
        above, below = owned.row - window.row, window.row + tile_px - owned.row - owned.height
        assert owned.row == 0 or above >= overlap_px // 2
        assert owned.row + owned.height == height or below >= overlap_px // 2


@given(grids())
def test_no_tile_could_be_left_out(grid):
    length, _, tile_px, overlap_px = grid
    begins = starts(length, tile_px, overlap_px)
    assert begins == sorted(set(begins))
    assert len(begins) == max(1, -(-(length - overlap_px) // (tile_px - overlap_px)))


@given(grids(), st.integers(1, 200))
def test_blocks_regroup_exactly_the_tiles_of_the_grid(grid, block_px):
    some = blocks(grid, block_px)
    tiles = [tile for block in some for tile in block.tiles]
    assert sorted(tiles) == sorted(tile_grid(*grid))
    assert (hits(*grid[:2], [block.window for block in some]) == 1).all()


@given(grids(), st.integers(1, 200))
def test_a_block_is_what_its_tiles_own_and_reaches_as_far_as_they_do(grid, block_px):
    _, _, tile_px, _ = grid
    for block in blocks(grid, block_px):
        owned = [tile.owned for tile in block.tiles]
        assert sum(o.height * o.width for o in owned) == block.window.height * block.window.width
        for part in owned:
            part.inside(block.window)
        reach = block.reach
        ends = [(t.window.row + tile_px, t.window.col + tile_px) for t in block.tiles]
        assert reach[:2] == (min(t.window.row for t in block.tiles), min(t.window.col for t in block.tiles))
        assert (reach.row + reach.height, reach.col + reach.width) == (max(e[0] for e in ends), max(e[1] for e in ends))
        assert max(reach.height, reach.width) <= max(block_px, tile_px)


@given(grids(), st.integers(1, 200), st.data())
def test_with_a_halo_a_block_has_every_tile_that_reaches_into_it(grid, block_px, data):
    height, width, tile_px, overlap_px = grid
    window = data.draw(st.sampled_from(list(block_windows(*grid, block_px))))
    block = block_at(window, height, width, tile_px, overlap_px, halo=True)
    assert list(block.tiles) == [t for t in tile_grid(*grid) if all(t.window.common(window)[2:])]


def test_tiles_by_hand():
    """Ten rows, tiles of 4 that share 2: they start at 0, 2, 4, 6 and meet in the middle of what they share."""
    tiles = tile_grid(10, 4, 4, 2)
    assert [t.window.row for t in tiles] == [0, 2, 4, 6]
    assert [(t.owned.row, t.owned.height) for t in tiles] == [(0, 3), (3, 2), (5, 2), (7, 3)]


def test_the_last_tile_ends_at_the_end_and_owns_what_is_left():
    last = tile_grid(10, 4, 4, 0)[-1]
    assert (last.window, last.owned) == (Window(6, 0, 4, 4), Window(7, 0, 3, 4))


@given(windows, st.integers(1, 30), st.integers(1, 30))
def test_clipped_is_the_intersection_with_the_raster(window, height, width):
    part = window.clipped(height, width)
    assert pixels(part) == pixels(window) & pixels(Window(0, 0, height, width))
    assert min(part.height, part.width) >= 0
    assert part.clipped(height, width) == part
    part.inside(Window(0, 0, height, width))


@given(windows, st.integers(0, 9), st.integers(0, 9))
def test_growing_adds_up_and_shrinking_undoes_it(window, a, b):
    assert window.grown(a).grown(b) == window.grown(a + b)
    assert window.grown(a).grown(-a) == window
    assert window.clipped(30, 30).inside(window.clipped(30, 30).grown(a))[0].start == a


@given(windows, st.data())
def test_inside_cuts_the_window_out_of_the_array_of_another(outer, data):
    row, col = data.draw(st.integers(0, outer.height)), data.draw(st.integers(0, outer.width))
    height, width = data.draw(st.integers(0, outer.height - row)), data.draw(st.integers(0, outer.width - col))
    inner = Window(outer.row + row, outer.col + col, height, width)
    where = np.indices((outer.height, outer.width)) + np.reshape(outer[:2], (2, 1, 1))
    cut = where[(slice(None), *inner.inside(outer))]
    assert {tuple(x) for x in cut.reshape(2, -1).T.tolist()} == pixels(inner)


@pytest.mark.parametrize("inner", [Window(-1, 0, 2, 2), Window(0, -1, 2, 2), Window(9, 0, 2, 2), Window(0, 9, 2, 2)])
def test_inside_refuses_what_reaches_out(inner):
    with pytest.raises(AssertionError):
        inner.inside(Window(0, 0, 10, 10))


areas = st.lists(st.builds(Window, *[st.integers(-40, 40)] * 2, *[st.integers(1, 90)] * 2), min_size=1, max_size=2)


@given(areas, st.integers(2, 48), st.data(), st.integers(1, 120))
def test_overlapping_blocks_own_every_pixel_of_an_area_once_and_hold_all_tiles_that_see_it(areas, tile, data, block_px):
    overlap = data.draw(st.integers(0, tile - 1))
    for area in areas:
        hits, seen = np.zeros((2, area.height, area.width), int)
        everything = {t for block in overlapping_blocks([area], tile, overlap, 10_000) for t in block.tiles}
        for block in overlapping_blocks([area], tile, overlap, block_px):
            for each in block.own:
                hits[each.owned.inside(area)] += 1
                assert each.owned.common(each.window) == each.owned
            assert {t for t in everything if 0 not in t.window.common(block.window)[2:]} == set(block.tiles)
        for each in everything:
            seen[each.window.common(area).inside(area)] += 1
        assert (hits == 1).all()
        assert (seen >= 1).all()


@given(st.integers(1, 400), st.integers(2, 60), st.data())
def test_spread_tiles_are_as_few_as_overlap_enough(length, tile, data):
    overlap = data.draw(st.integers(0, tile - 1))
    begins = spread_starts(length, tile, overlap)
    assert begins[0] == 0
    if length > tile:
        assert begins[-1] == length - tile
        steps = np.diff(begins)
        assert steps.max() <= tile - overlap
        assert steps.max() - steps.min() <= 1
        assert (len(begins) - 2) * (tile - overlap) < length - tile  # one less would not do


def test_a_whole_area_is_one_tile_with_sides_that_fit():
    (block,) = whole_blocks([Window(5, 7, 90, 130)], 32)
    assert block == Block(Window(5, 7, 90, 130), (Tile(Window(5, 7, 96, 160), Window(5, 7, 90, 130)),))


@given(st.integers(0, 60), st.integers(1, 70), st.booleans())
def test_some_of_many_are_spread_evenly(many, count, ends):
    """Each once and in order, with gaps that differ by one at most; both ends, or as far from one as from the other."""
    some = some_of(range(many), count, ends=ends)
    assert len(some) == min(count, many)
    assert some == sorted(set(some)) or not ends  # without its ends a row may be too short for different ones
    gaps = np.diff(some)
    assert not gaps.size or gaps.max() - gaps.min() <= 1
    if ends and some:
        assert (some[0], some[-1]) == (0, many - 1 if count > 1 else 0)
    elif some:
        assert abs(some[0] - (many - 1 - some[-1])) <= 1
