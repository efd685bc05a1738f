"""Draw seeded aerial landscapes with exact labels, in which only the context tells some classes apart.

A scene looks like a river valley at 0.2 m per pixel. Parallel rivers cut it into districts that are
settled and farmed in turn. Every district is a patchwork of plots along parallel lanes, and every
plot is green or bare. What a plot is *called* depends on its district only: a green one is lawn
where people live and meadow where they farm, a bare one is building site or plowed field.

Both names of a pair are painted by the same code from the same random numbers, so a plot's colour,
texture, shape and size say nothing about its name (`CONTEXT_CLASSES`). What says it stands beside
each lane: a row of houses with bright roofs in a settled district, a row of dark trees in a farmed
one. Rows are `LANE_GAP_PX` apart, so that many a 128 px tile fits between two of them, where the
name cannot be told better than by tossing a coin, while the 256 px context of nearly every tile
reaches a row. The other classes look like themselves.

The proof is `landscape(..., exchanged=True)`: the same scene, equally likely, with settled and
farmed districts exchanged. Whoever sees only pixels in which the two agree cannot tell them apart.

A pixel is made by arithmetic, square roots and rounding only. IEEE 754 defines these to the last
bit, unlike sines or powers, so a seed gives the same bytes on every machine.
"""

import itertools
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from numpy.typing import NDArray

from caswit.data.dataset import Dataset, load_dataset
from caswit.files import atomic_path, atomic_write_bytes
from caswit.raster.reader import write_raster

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]

CLASSES: tuple[tuple[int, str, str], ...] = (
    (0, "building", "#d7301f"),
    (1, "tree", "#1b5e3a"),
    (2, "road", "#7f7f86"),
    (3, "water", "#2b7bba"),
    (4, "lawn", "#a6d96a"),
    (5, "meadow", "#f2e35b"),
    (6, "building site", "#c77dba"),
    (7, "plowed field", "#8c5a2b"),
)
CONTEXT_CLASSES: tuple[str, ...] = ("lawn", "meadow", "building site", "plowed field")
BUILDING, TREE, ROAD, WATER = range(4)
PLOT_IDS = np.array([[5, 7], [4, 6]], np.uint8)
"""Class id of a plot by [settled, bare]."""

SCENE_PX, MAP_PX = 1024, 1536
GSD_M = 0.2
SPLITS = {"train": 8, "test": 4}
"""Landscapes of ``SCENE_PX`` in each split; one more of ``MAP_PX`` is for the map."""
CRS = "EPSG:2154"

LANE_GAP_PX = 280
"""From one row of houses or trees to the next."""
SLOT_PX = 66
"""From one house or pair of trees to the next in its row."""
STREET_PX, STREET_HALF_PX, TRACK_HALF_PX, RIVER_HALF_PX = 33, 9, 6, 30
"""From a row to the middle of its street; half the widths of streets, tracks and rivers."""
REACH_PX = 48
"""No house or tree, shadow included, reaches further from its place."""
SHADE = np.array((0.5, 0.54, 0.62), np.float32)
"""The share of red, green and blue that a shadow lets through."""


class Landscape(NamedTuple):
    """A picture and the truth about it."""

    image: Bytes
    """(3, height, width): red, green, blue."""
    label: Bytes
    """(height, width): class ids of `CLASSES`."""


class _Ground(NamedTuple):
    """The place of every pixel in a valley that runs from left to right.

    The valley is a stack of bands, each `LANE_GAP_PX` high and with one lane, all bent alike.
    """

    bend: Floats
    """(width + 2 * REACH_PX,): how far below its row each column lies in the stack."""
    band: Ints
    """(height, width), like the distances."""
    lane_px: Floats
    """From the band's row of houses or trees; negative above it."""
    river_px: Floats
    """From the middle of a river."""
    settled: Bools
    """By band."""


class _Canvas(NamedTuple):
    """The picture being painted, noise for leaves, and the (row, col) way from a top to its shadow."""

    image: Floats
    label: Bytes
    leaves: Floats
    shadow: tuple[float, float]


class _Place(NamedTuple):
    """Room for one house or two trees: its middle, the fall of its lane, its luck in [0, 1)."""

    row: float
    col: int
    fall: float
    luck: Floats


def landscape(seed: int, height_px: int, width_px: int, *, exchanged: bool = False) -> Landscape:
    """Paint a landscape; the same arguments give the same bytes on every machine.

    Args:
        seed: Seed of the random numbers behind it.
        height_px: Rows, at least 1.
        width_px: Columns, at least 1.
        exchanged: Settle the farmed districts, farm the settled ones and change nothing else.
            The exchanged landscape is exactly as likely as the landscape.
    """
    rng = np.random.default_rng(seed)
    turned = bool(rng.integers(2))
    ground = _ground(rng, (width_px, height_px) if turned else (height_px, width_px))
    settled = ground.settled ^ exchanged
    canvas = _paint_ground(rng, ground, settled)
    for place, band in _places(rng, ground, canvas.label):
        (_paint_house if settled[band] else _paint_trees)(canvas, place)
    image, label = _expose(rng, canvas.image), canvas.label
    if turned:
        image, label = image.transpose(0, 2, 1), label.transpose()
    return Landscape(np.ascontiguousarray(image), np.ascontiguousarray(label))


def _noise(rng: np.random.Generator, shape: tuple[int, ...], step_px: int) -> Floats:
    """Return smooth noise in [-1, 1] with features of about `step_px`; (height, width)."""
    (row, row_share), (col, col_share) = (_knots(length, step_px) for length in shape)
    knots = 2 * rng.random((row[-1] + 2, col[-1] + 2), np.float32) - 1
    lines = knots[:, col] + (knots[:, col + 1] - knots[:, col]) * col_share
    return np.asarray(lines[row] + (lines[row + 1] - lines[row]) * row_share[:, None])


def _knots(length: int, step_px: int) -> tuple[Ints, Floats]:
    """Return the knot before each pixel, and the smooth share of the knot after it; (length,)."""
    knot, rest_px = np.divmod(np.arange(length), step_px)
    share = (rest_px / step_px).astype(np.float32)
    return knot, share * share * (3 - 2 * share)


def _wave(at: Floats) -> Floats:
    """Return a triangle wave of period 1 in [-1, 1]."""
    return np.asarray(4 * np.abs(at - np.floor(at) - np.float32(0.5)) - 1)


def _rgb(red: float, green: float, blue: float) -> Floats:
    return np.array((red, green, blue), np.float32)


def _ground(rng: np.random.Generator, shape: tuple[int, int]) -> _Ground:
    height, width = shape
    bend = 26 * _noise(rng, (1, width + 2 * REACH_PX), 340)[0].astype(np.float64)
    bend += (0.4 * rng.random() - 0.2) * np.arange(bend.size)
    bend += LANE_GAP_PX * (1 + 4 * rng.random()) - bend.min()
    deep = np.arange(height)[:, None] + bend[REACH_PX:-REACH_PX]
    # A river wanders off its boundary, and with it the districts on its banks.
    bank = (deep + 18 * _noise(rng, shape, 240)) / LANE_GAP_PX
    band, boundary = np.floor(bank).astype(np.int64), np.rint(bank).astype(np.int64)
    bands = rng.integers(2, 4, int(band.max()) + 2)
    settled = np.repeat((np.arange(bands.size) + rng.integers(2)) % 2 == 1, bands)
    river = settled[boundary] != settled[boundary - 1]
    river_px = np.where(river, np.abs(bank - boundary), 1) * LANE_GAP_PX
    lane_px = deep - (band + 0.5) * LANE_GAP_PX
    return _Ground(bend, band, lane_px.astype(np.float32), river_px.astype(np.float32), settled)


def _plots(rng: np.random.Generator, ground: _Ground) -> tuple[Floats, Bools, Bools]:
    """Cut either side of every street into plots; their colour, whether bare, whether a track."""
    side = 2 * ground.band + (ground.lane_px > -STREET_PX)
    length, skew, start = rng.random((3, int(side.max()) + 1), np.float32)
    length_px, col = (110 + 110 * length)[side], np.arange(side.shape[1], dtype=np.float32)
    at = col + (300 + 300 * start)[side] + (0.8 * skew[side] - 0.4) * ground.lane_px
    plot = np.floor(at / length_px).astype(np.int64)
    left_px, here = at - plot * length_px, (side, plot)
    right_px = length_px - left_px
    luck = rng.random((7, int(side.max()) + 1, int(plot.max()) + 2), np.float32)
    bare, track_left = luck[0] < 0.45, luck[1] < 0.2
    track = (left_px < TRACK_HALF_PX) & track_left[here]
    track |= (right_px < TRACK_HALF_PX) & track_left[side, plot + 1]
    colour = np.where(bare[..., None], _rgb(164, 134, 103), _rgb(106, 132, 74))
    colour += 30 * luck[2, ..., None] - 15 + (luck[3, ..., None] - 0.5) * _rgb(26, 4, -14)
    # Mowing lines and furrows run along the lane or straight away from it, a little askew.
    spacing_px, askew = np.where(bare, 7, 11) + 5 * luck[4], 0.5 * luck[5] - 0.25
    by_col = (np.where(luck[6] < 0.5, askew, 1) / spacing_px).astype(np.float32)
    by_lane = (np.where(luck[6] < 0.5, 1, askew) / spacing_px).astype(np.float32)
    light = np.where(bare, np.float32(0.08), np.float32(0.045))[here]
    light = 1 + light * _wave(col * by_col[here] + ground.lane_px * by_lane[here])
    light[np.minimum(left_px, right_px) < 2] *= 0.84
    return colour[here] * light[..., None], bare[here], track


def _paint_ground(rng: np.random.Generator, ground: _Ground, settled: Bools) -> _Canvas:
    """Paint everything but houses and trees."""
    colour, bare, track = _plots(rng, ground)
    label = PLOT_IDS[settled[ground.band].astype(int), bare.astype(int)]
    patches, clumps, leaves = (_noise(rng, label.shape, step_px) for step_px in (70, 17, 4))
    light = 1 + 0.07 * patches + 0.05 * clumps + 0.05 * leaves
    image = colour * light[..., None] + patches[..., None] * _rgb(7, 1, -4)
    street_px = np.abs(ground.lane_px + STREET_PX)
    street, river = street_px < STREET_HALF_PX, ground.river_px < RIVER_HALF_PX
    dash = (street_px < 0.9) & (np.arange(label.shape[1]) % 36 < 16)
    # Reeds belong to the plot behind them. Deep water is dark.
    reeds = ground.river_px < RIVER_HALF_PX + 5 + 3 * clumps
    depth = np.clip(1.2 - ground.river_px / RIVER_HALF_PX, 0, 1)
    grit = 1 + 0.04 * clumps + 0.04 * leaves
    for mask, rgb, shade in (
        (track, _rgb(192, 187, 174), grit),
        (street, _rgb(136, 136, 139), grit),
        (dash, _rgb(225, 225, 220), grit),
        (reeds, _rgb(84, 98, 62), 1 + 0.2 * leaves),
        (river, _rgb(54, 84, 96), 1.2 - 0.3 * depth + 0.03 * leaves + 0.04 * patches),
    ):
        image[mask] = rgb * shade[mask, None]
    label[track | street] = ROAD
    label[river] = WATER
    return _Canvas(image, label, leaves, (-7, 6 * rng.random() - 3))


def _places(rng: np.random.Generator, ground: _Ground, label: Bytes) -> list[tuple[_Place, int]]:
    """Return the places of every row, with their bands. One that a track crosses stays empty."""
    bands = range(int(ground.band.min()), int(ground.band.max()) + 1)
    places = []
    for band, slot in itertools.product(bands, range(label.shape[1] // SLOT_PX + 2)):
        luck = rng.random(8)
        # A place has a whole column from -20 on, because that is where the bend is known.
        col = int((slot + 0.2 * luck[0]) * SLOT_PX) - 20
        if col >= label.shape[1] + 20:
            continue
        row = (band + 0.5) * LANE_GAP_PX - ground.bend[col + REACH_PX] + 4 * luck[1] - 2
        fall = (ground.bend[col + REACH_PX - 20] - ground.bend[col + REACH_PX + 20]) / 40
        place = _Place(float(row), col, float(fall), luck[2:])
        if not _crossed(place, label):
            places.append((place, band))
    return places


def _crossed(place: _Place, label: Bytes) -> bool:
    """Return whether a road lies within a house's length of a place, as far as the image shows."""
    ahead = np.arange(-30, 31, 6)
    row, col = np.floor(place.row + place.fall * ahead).astype(int), place.col + ahead
    seen = (row >= 0) & (row < label.shape[0]) & (col >= 0) & (col < label.shape[1])
    return bool((label[row[seen], col[seen]] == ROAD).any())


def _near(canvas: _Canvas, place: _Place) -> tuple[_Canvas, Floats, Floats]:
    """Return the part of the canvas within reach of a place, and its rows and columns from there."""
    top, left = (max(0, int(at) - REACH_PX) for at in place[:2])
    box = np.s_[top : max(0, int(place.row) + REACH_PX), left : place.col + REACH_PX]
    image, label, leaves = canvas.image[box], canvas.label[box], canvas.leaves[box]
    rows, cols = np.ogrid[top : top + label.shape[0], left : left + label.shape[1]]
    return _Canvas(image, label, leaves, canvas.shadow), rows - place.row, cols - place.col


def _paint_house(canvas: _Canvas, place: _Place) -> None:
    (image, label, leaves, shadow), row, col = _near(canvas, place)
    half_long, half_deep = 18 + 6 * place.luck[0], 13 + 3 * place.luck[1]
    span = math.sqrt(1 + place.fall * place.fall)
    shaded = np.zeros_like(label, bool)
    for share in (1, 0.75, 0.5, 0.25, 0):  # from the end of the shadow to the roof
        down, right = row - share * shadow[0], col - share * shadow[1]
        long, deep = (right + down * place.fall) / span, (down - right * place.fall) / span
        roof = (np.abs(long) < half_long) & (np.abs(deep) < half_deep)
        shaded |= roof
    image[shaded] *= SHADE
    light = np.where(deep > 0, 1.06, 0.78) + 0.04 * _wave(deep / 4) + 0.03 * leaves
    light[np.abs(deep) < 1.2] = 1.2  # the ridge
    light[(np.abs(long - 9) < 2.5) & (np.abs(deep - 5) < 2.5)] = 0.55  # the chimney
    rgb = _rgb(222, 96, 52) + (place.luck[2] - 0.5) * _rgb(20, 44, 26)
    image[roof] = rgb * light[roof, None]
    label[roof] = BUILDING


def _paint_trees(canvas: _Canvas, place: _Place) -> None:
    (image, label, leaves, shadow), row, col = _near(canvas, place)
    for ahead, luck in ((-15, place.luck[:3]), (15, place.luck[3:])):
        radius = 11 + 4 * luck[0]
        down = row - ahead * place.fall + 4 * luck[1] - 2
        right = col - ahead + 4 * luck[2] - 2
        down_shadow, right_shadow = down - shadow[0], right - shadow[1]
        shaded = down_shadow * down_shadow + right_shadow * right_shadow < radius * radius
        image[shaded] *= SHADE
        off = (down * down + right * right) / (radius * radius) + 0.35 * leaves
        crown = off < 1
        sunny = -(down * shadow[0] + right * shadow[1]) / (9 * radius)
        light = 0.62 + 0.4 * np.sqrt(np.clip(1 - off, 0, 1)) + 0.25 * sunny + 0.25 * leaves
        image[crown] = _rgb(46, 80, 42) * light[crown, None]
        label[crown] = TREE


def _expose(rng: np.random.Generator, image: Floats) -> Bytes:
    """Return (3, height, width) bytes as a camera sees the scene: slightly soft, slightly noisy."""
    soft = np.pad(image, ((1, 1), (1, 1), (0, 0)), "edge")
    soft = soft[:-2] + 2 * soft[1:-1] + soft[2:]
    soft = (soft[:, :-2] + 2 * soft[:, 1:-1] + soft[:, 2:]) / 16
    soft += 9 * rng.random((*image.shape[:2], 1), np.float32) - 4.5
    return np.clip(np.rint(soft), 0, 255).astype(np.uint8).transpose(2, 0, 1)


def write_landscapes(folder: Path, seed: int) -> Dataset:
    """Write landscapes, labels and a dataset.yaml; landscapes of different seeds never coincide."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for split, count in SPLITS.items():
        for number in range(count):
            name = f"{split}{number}"
            _write_scene(folder, name, (seed, len(rows)), SCENE_PX)
            rows.append({"image": f"{name}.tif", "label": f"{name}_label.tif", "split": split})
    _write_scene(folder, "map", (seed, len(rows)), MAP_PX)
    rows.append({"image": "map.tif", "label": "map_label.tif", "split": "map"})
    content = {
        "name": "synthetic landscapes",
        "note": "Drawn by caswit; the georeference is fictitious.",
        "classes": [{"id": i, "name": name, "color": color} for i, name, color in CLASSES],
        "scenes": rows,
    }
    file = folder / "dataset.yaml"
    atomic_write_bytes(file, yaml.safe_dump(content, sort_keys=False).encode())
    return load_dataset(file)


def _write_scene(folder: Path, name: str, seed: tuple[int, int], side_px: int) -> None:
    drawn = landscape(1000 * seed[0] + seed[1], side_px, side_px)
    for file, pixels in ((f"{name}.tif", drawn.image), (f"{name}_label.tif", drawn.label[None])):
        with atomic_path(folder / file) as partial:
            write_raster(partial, pixels, crs=CRS, gsd_m=GSD_M)
