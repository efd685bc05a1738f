"""Counting what a model gets right on labelled scenes; shared by evaluation and by validation in training."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from caswit.config import IGNORE_INDEX
from caswit.data.samples import open_dataset_scene
from caswit.data.scene import Dataset, Scene
from caswit.metrics import Counts, count
from caswit.predict import Classifier
from caswit.protocols import Scored, scored_classes
from caswit.raster.io import UInt8
from caswit.raster.windows import Tile, blocks

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
            for block in blocks(opened.height, opened.width, tile_px, 0, _BLOCK_PX):
                number += 1
                if number % part[1] != part[0]:
                    continue
                predicted = model.block(opened, block)
                native = opened.native(block.window)
                pixels, valid = opened.native_image(native)
                truth = opened.native_labels(native, valid)
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
                    yield ScoredTile(scene, tile, image, there, found, counts)


def count_scenes(
    model: Classifier,
    dataset: Dataset,
    scenes: Sequence[Scene],
    *,
    tile_px: int,
    band_px: int,
    part: tuple[int, int] = (0, 1),
) -> Counts:
    """The sum of the counts of ``scored_tiles``."""
    tiles = scored_tiles(model, dataset, scenes, tile_px=tile_px, band_px=band_px, part=part)
    return sum((t.counts for t in tiles), start=Counts.zeros(len(dataset.classes)))
