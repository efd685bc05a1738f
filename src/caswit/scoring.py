"""Counting what a model gets right on labelled scenes; shared by evaluation and by validation in training."""

import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from caswit.config import IGNORE_INDEX
from caswit.data.samples import OpenScene, open_dataset_scene
from caswit.data.scene import Dataset, Scene
from caswit.errors import DataError
from caswit.metrics import Counts, count
from caswit.predict import Classifier
from caswit.protocols import Scored, scored_classes
from caswit.raster.io import UInt8
from caswit.raster.windows import Block, Tile, area_blocks

log = logging.getLogger(__name__)
_BLOCK_PX = 2048


class ScoredTile(NamedTuple):
    """One tile, predicted and compared."""

    scene: Scene
    tile: Tile
    image: UInt8
    """(3, H, W) native pixels of the owned part."""
    truth: UInt8
    """(H, W) indices of the scored classes, of the owned part."""
    prediction: UInt8
    """(H, W) indices of the scored classes, of the owned part."""
    counts: Counts


def scored_tiles(
    model: Classifier,
    dataset: Dataset,
    scenes: Sequence[Scene],
    *,
    tile_px: int,
    band_px: int,
    part: tuple[int, int] = (0, 1),
    scored: Scored | None = None,
) -> Iterator[ScoredTile]:
    """Predict and compare the non-overlapping tiles of scenes; every labelled native pixel is counted once.

    Args:
        model: Predicts.
        dataset: Its class table and bands apply.
        scenes: Labelled scenes of it.
        tile_px: Side of the tiles. The last tile of a row ends at the raster's end and owns what is left.
        band_px: Width of the boundary band within each owned part.
        part: (which, of how many): blocks are dealt out to that many processes.
        scored: Which classes count; None: those of the dataset, which are the model's.
    """
    scored = scored or scored_classes(dataset.classes, dataset, None)
    number = 0
    for scene in scenes:
        with open_dataset_scene(dataset, scene) as opened:
            for block in area_blocks(opened.areas, tile_px, _BLOCK_PX):
                number += 1
                if number % part[1] == part[0]:
                    yield from _scored_block(model, dataset, opened, block, band_px, scored)


def _scored_block(
    model: Classifier, dataset: Dataset, opened: OpenScene, block: Block, band_px: int, scored: Scored
) -> list[ScoredTile]:
    """The tiles of a block that have labels; without the broken ones if the dataset says to go on."""
    try:
        predicted = model.block(opened, block)
        native = opened.native(block.window)
        pixels, valid = opened.native_image(native)
        truth = opened.native_labels(native, valid)
    except DataError as error:
        if not dataset.skip_broken:
            raise
        if len(block.tiles) == 1:
            log.warning("skipped: %s", error)
            return []
        alone = (Block(tile.owned, (tile,)) for tile in block.tiles)
        return [tile for each in alone for tile in _scored_block(model, dataset, opened, each, band_px, scored)]
    tiles = []
    for tile in block.tiles:
        where = opened.native(tile.owned).inside(native)
        there, found = scored.pair(truth[where], predicted[where])
        if (there == IGNORE_INDEX).all():
            continue
        counts = count(
            found,
            there,
            num_classes=len(scored.classes),
            band_px=band_px,
            ignore_index=IGNORE_INDEX,
        )
        image = pixels[:, where[0], where[1]]
        tiles.append(ScoredTile(opened.scene, tile, image, there, found, counts))
    return tiles


def count_scenes(
    model: Classifier,
    dataset: Dataset,
    scenes: Sequence[Scene],
    *,
    tile_px: int,
    band_px: int,
    part: tuple[int, int] = (0, 1),
    scored: Scored | None = None,
) -> Counts:
    """The sum of the counts of ``scored_tiles``."""
    scored = scored or scored_classes(dataset.classes, dataset, None)
    tiles = scored_tiles(model, dataset, scenes, tile_px=tile_px, band_px=band_px, part=part, scored=scored)
    return sum((t.counts for t in tiles), start=Counts.zeros(len(scored.classes)))
