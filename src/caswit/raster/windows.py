"""Windows, tiles and blocks: integer arithmetic that needs no file.

Order is always (row, col) and (height, width). Windows are half-open and may reach outside their raster.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise, product
from typing import NamedTuple, TypeVar

import numpy as np

T = TypeVar("T")
_SAMPLES, _SAMPLE_PX = 16, 64
"""Of ``spread_windows``: windows along each side, and their own side."""


class Window(NamedTuple):
    """A rectangle of pixels. It may reach outside the raster it refers to."""

    row: int
    col: int
    height: int
    width: int

    def grown(self, margin_px: int) -> "Window":
        """Return the window with ``margin_px`` more pixels on each of its four sides."""
        row, col, height, width = self
        return Window(row - margin_px, col - margin_px, height + 2 * margin_px, width + 2 * margin_px)

    def widened(self, factor: int) -> "Window":
        """Return the window ``factor`` times the sides with the same centre: a tile's context (paper, section 3.2)."""
        # Margins that are multiples of the factor put the tile's edges on edges of averaged pixels: both branches then
        # see the same ground at the same place.
        down, across = self.height * (factor - 1) // 2, self.width * (factor - 1) // 2
        assert (2 * down, 2 * across) == (self.height * (factor - 1), self.width * (factor - 1)), (self, factor)
        assert down % factor == across % factor == 0, (self, factor)
        return Window(self.row - down, self.col - across, self.height * factor, self.width * factor)

    def clipped(self, height: int, width: int) -> "Window":
        """Return the part inside a raster of this size; its sides are 0 where nothing is inside."""
        top, left = min(max(self.row, 0), height), min(max(self.col, 0), width)
        bottom = min(max(self.row + self.height, top), height)
        right = min(max(self.col + self.width, left), width)
        return Window(top, left, bottom - top, right - left)

    def common(self, other: "Window") -> "Window":
        """Return the part that both cover; its sides are 0 where they share nothing."""
        top, left = max(self.row, other.row), max(self.col, other.col)
        bottom = max(top, min(self.row + self.height, other.row + other.height))
        right = max(left, min(self.col + self.width, other.col + other.width))
        return Window(top, left, bottom - top, right - left)

    def inside(self, outer: "Window") -> tuple[slice, slice]:
        """Return the row and column slices that cut this window out of an array covering ``outer``."""
        # A negative bound of a slice counts from the other end, and would cut out wrong pixels without an error.
        row, col = self.row - outer.row, self.col - outer.col
        assert 0 <= row <= row + self.height <= outer.height, (self, outer)
        assert 0 <= col <= col + self.width <= outer.width, (self, outer)
        return slice(row, row + self.height), slice(col, col + self.width)


def bounds(windows: Sequence[Window]) -> Window:
    """Return the smallest window that holds all of these."""
    top, left = min(w.row for w in windows), min(w.col for w in windows)
    bottom, right = max(w.row + w.height for w in windows), max(w.col + w.width for w in windows)
    return Window(top, left, bottom - top, right - left)


class Tile(NamedTuple):
    """A window that is predicted at once, and the part of it whose prediction is kept."""

    window: Window
    """tile_px on a side, or around all of an area; reaches outside a raster smaller than that."""
    owned: Window
    """The part whose prediction is kept, inside both the window and the raster."""


class Block(NamedTuple):
    """Tiles that are read, predicted and stored as one unit."""

    window: Window
    """The smallest window around the parts that its own tiles own."""
    tiles: tuple[Tile, ...]
    """Its tiles, row by row; with a halo, those of its neighbours that reach into it too."""

    @property
    def reach(self) -> Window:
        """The smallest window that holds all its tiles."""
        return bounds([t.window for t in self.tiles])

    @property
    def own(self) -> tuple[Tile, ...]:
        """Its tiles without those of its neighbours."""
        return tuple(t for t in self.tiles if t.owned.common(self.window) == t.owned)


class Span(NamedTuple):
    """A tile along one axis: where it starts, and the half-open part it owns."""

    start: int
    own_from: int
    own_to: int


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where tiles begin along one axis so that they cover [0, length); the last one ends at its end."""
    # The last tile is moved back rather than padded, so it may overlap by more than was asked for.
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


@lru_cache(maxsize=8)
def spans(length: int, tile: int, overlap: int) -> tuple[Span, ...]:
    """Return the tiles along one axis; neighbours meet in the middle of their overlap."""
    return _meeting(starts(length, tile, overlap), length, tile)


def _meeting(begins: Sequence[int], length: int, tile: int) -> tuple[Span, ...]:
    # Both sides of the overlap are equally far from a tile's edge, where predictions are worst, if they meet halfway.
    meets = [(left + tile + right + 1) // 2 for left, right in pairwise(begins)]
    edges = [0, *meets, length]
    return tuple(Span(begin, *owned) for begin, owned in zip(begins, pairwise(edges), strict=True))


def tile_grid(height: int, width: int, tile_px: int, overlap_px: int) -> list[Tile]:
    """Return the tiles of a raster, row by row. Their owned parts cover every pixel exactly once."""
    assert 0 <= overlap_px < tile_px, (overlap_px, tile_px)
    rows, cols = spans(height, tile_px, overlap_px), spans(width, tile_px, overlap_px)
    return [_tile(r, c, tile_px) for r in rows for c in cols]


def owner(height: int, width: int, tile_px: int, overlap_px: int, row: int, col: int) -> Tile:
    """Return the tile of ``tile_grid`` that owns a pixel of the raster."""
    assert 0 <= row < height, (row, height)
    assert 0 <= col < width, (col, width)
    rows, cols = spans(height, tile_px, overlap_px), spans(width, tile_px, overlap_px)
    return _tile(_owning(rows, row), _owning(cols, col), tile_px)


def block_windows(height: int, width: int, tile_px: int, overlap_px: int, block_px: int) -> Iterator[Window]:
    """Yield windows of about ``block_px`` on a side, row by row; some tiles of ``tile_grid`` own each together.

    Blocks are made of whole tiles, so their size changes what is in memory and never the result.
    """
    # Together, n tiles are n * (tile_px - overlap_px) + overlap_px wide, which must not exceed block_px.
    count = max(1, (block_px - overlap_px) // (tile_px - overlap_px))
    rows, cols = spans(height, tile_px, overlap_px), spans(width, tile_px, overlap_px)
    for some_rows in _chunks(rows, count):
        for some_cols in _chunks(cols, count):
            yield _union(some_rows, some_cols)


def count_blocks(height: int, width: int, tile_px: int, overlap_px: int, block_px: int) -> int:
    """Return how many windows ``block_windows`` yields, without making them."""
    step = tile_px - overlap_px
    in_block = max(1, (block_px - overlap_px) // step)
    # One tile, and another for each step that it leaves uncovered.
    rows, cols = (1 + max(0, -(-(length - tile_px) // step)) for length in (height, width))
    return -(-rows // in_block) * -(-cols // in_block)


def block_at(window: Window, height: int, width: int, tile_px: int, overlap_px: int, *, halo: bool) -> Block:
    """Return the block of one of ``block_windows``; with a halo, with every tile that has a pixel in the window."""
    rows = _spans_in(window.row, window.row + window.height, height, tile_px, overlap_px, halo)
    cols = _spans_in(window.col, window.col + window.width, width, tile_px, overlap_px, halo)
    return Block(window, tuple(_tile(r, c, tile_px) for r in rows for c in cols))


def _spans_in(first: int, end: int, length: int, tile_px: int, overlap_px: int, halo: bool) -> list[Span]:
    along = spans(length, tile_px, overlap_px)
    if halo:
        return [s for s in along if s.start < end and s.start + tile_px > first]
    return [s for s in along if first <= s.own_from < end]


def _union(rows: Sequence[Span], cols: Sequence[Span]) -> Window:
    top, left = rows[0].own_from, cols[0].own_from
    return Window(top, left, rows[-1].own_to - top, cols[-1].own_to - left)


def _owning(along: Sequence[Span], at: int) -> Span:
    return next(span for span in along if span.own_from <= at < span.own_to)


def area_tiles(areas: Sequence[Window], tile_px: int) -> list[Tile]:
    """Cut each rectangle into tiles without overlap, which own pixels of that rectangle only."""
    tiles = []
    for area in areas:
        for tile in tile_grid(area.height, area.width, tile_px, 0):
            tiles.append(Tile(*(_moved(w, area) for w in tile)))
    return tiles


def area_blocks(areas: Sequence[Window], tile_px: int, block_px: int) -> Iterator[Block]:
    """Yield the tiles of ``area_tiles`` in blocks: those within a square of ``block_px`` together.

    A block's window may hold pixels that none of its tiles owns.
    """
    # Grouped by where a tile begins, since rectangles such as patches need not lie on a grid of blocks.
    groups: dict[tuple[int, int], list[Tile]] = {}
    for tile in area_tiles(areas, tile_px):
        groups.setdefault((tile.owned.row // block_px, tile.owned.col // block_px), []).append(tile)
    for _, tiles in sorted(groups.items()):
        yield Block(bounds([t.owned for t in tiles]), tuple(tiles))


def spread_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Return where the fewest tiles begin that cover [0, length) and overlap at least so much, evenly spread."""
    if length <= tile:
        return [0]
    gaps = -(-(length - tile) // (tile - overlap))
    return [round(gap * (length - tile) / gaps) for gap in range(gaps + 1)]


def overlapping_blocks(areas: Sequence[Window], tile_px: int, overlap_px: int, block_px: int) -> Iterator[Block]:
    """Yield each rectangle in blocks of evenly spread tiles, each with all tiles that have a pixel in its window.

    What tiles own covers every pixel of a rectangle exactly once. Blocks have about ``block_px`` on a side.
    """
    count = max(1, block_px // (tile_px - overlap_px))

    def along(length: int) -> tuple[Span, ...]:
        return _meeting(spread_starts(length, tile_px, overlap_px), length, tile_px)

    for area in areas:
        rows, cols = along(area.height), along(area.width)
        for own_rows, own_cols in product([*_chunks(rows, count)], [*_chunks(cols, count)]):
            reaching = product(_reaching(rows, own_rows, tile_px), _reaching(cols, own_cols, tile_px))
            tiles = (_tile(row, col, tile_px) for row, col in reaching)
            window = _moved(_union(own_rows, own_cols), area)
            yield Block(window, tuple(Tile(*(_moved(w, area) for w in tile)) for tile in tiles))


def whole_blocks(areas: Sequence[Window], multiple_px: int) -> Iterator[Block]:
    """Yield a block of one tile for each rectangle: all of it, its sides rounded up to multiples of ``multiple_px``."""
    for area in areas:
        height, width = (-(-length // multiple_px) * multiple_px for length in (area.height, area.width))
        yield Block(area, (Tile(Window(area.row, area.col, height, width), area),))


def _reaching(along: Sequence[Span], some: Sequence[Span], tile_px: int) -> list[Span]:
    """Return the tiles that have a pixel where ``some`` of them own theirs."""
    return [s for s in along if s.start < some[-1].own_to and s.start + tile_px > some[0].own_from]


def _moved(window: Window, area: Window) -> Window:
    return window._replace(row=window.row + area.row, col=window.col + area.col)


def _tile(row: Span, col: Span, tile_px: int) -> Tile:
    owned = Window(row.own_from, col.own_from, row.own_to - row.own_from, col.own_to - col.own_from)
    return Tile(Window(row.start, col.start, tile_px, tile_px), owned)


def _chunks(items: Sequence[Span], count: int) -> Iterator[Sequence[Span]]:
    for first in range(0, len(items), count):
        yield items[first : first + count]


def slice_middle(length: int, factor: int) -> slice:
    """Return where the tile lies along one side of its averaged context."""
    # Exact for the tiles that ``TileConfig`` allows: their sides are multiples of twice the factor.
    inner = length // factor
    first = (length - inner) // 2
    return slice(first, first + inner)


def some_of(items: Sequence[T], count: int, *, ends: bool = True) -> list[T]:
    """Return at most ``count`` items, evenly spread and in their order; the first and last among them, if ``ends``."""
    count = min(count, len(items))
    picks = np.linspace(0, len(items) - 1, count if ends else count + 2)
    return [items[round(at)] for at in (picks if ends else picks[1:-1])]


def spread_windows(height: int, width: int) -> list[Window]:
    """Return small windows spread evenly over a raster, a million pixels of a large one, all of a small one."""
    rows, cols = (_spread(length) for length in (height, width))
    return [Window(row, col, h, w) for row, h in rows for col, w in cols]


def _spread(length: int) -> list[tuple[int, int]]:
    """Return beginnings and lengths of pieces along one side, the first and the last at its ends."""
    if length <= _SAMPLES * _SAMPLE_PX:
        return [(0, length)]
    return [(round(i * (length - _SAMPLE_PX) / (_SAMPLES - 1)), _SAMPLE_PX) for i in range(_SAMPLES)]
