"""Scores of a model on the labelled scenes of a split (paper section 4.2)."""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from caswit import __version__
from caswit.config import IGNORE_INDEX, EvaluateConfig
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReader, open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import DataError, brief
from caswit.evaluation.boundary_errors import EdgeCounts, count_edges
from caswit.evaluation.metrics import Counts, boundary_band_px, count
from caswit.evaluation.protocols import Scored, scored_classes
from caswit.evaluation.report import Evaluation, Example
from caswit.evaluation.tile_pictures import tile_picture
from caswit.inference.confidence import Confidence
from caswit.inference.predictor import Predictor
from caswit.progress import Progress
from caswit.raster.reader import UInt8
from caswit.raster.windows import Block, Tile, area_blocks
from caswit.weights.model_folder import LoadedModel

log = logging.getLogger(__name__)
_BLOCK_PX = 2048


def evaluate_scenes(
    predictor: Predictor,
    loaded: LoadedModel,
    data: Dataset,
    scenes: Sequence[Scene],
    *,
    split: str,
    settings: EvaluateConfig,
) -> Evaluation:
    """Score a loaded model on scenes with the predictor made of it, and pick tiles to show."""
    began_s = time.perf_counter()
    tile_px = loaded.info.tile.tile_px
    band_px = band_width_px(tile_px, settings)
    classes = scored_classes(loaded.info.classes, data, settings.protocol)
    counts, edges, tiles = Counts.zeros(len(classes.classes)), EdgeCounts.zeros(), 0
    sure = Confidence.zeros(len(loaded.info.classes))
    # Only positions are kept; the few tiles that are shown are predicted again.
    candidates: list[tuple[float, int, Scene, Tile]] = []
    total_mpx = sum(_megapixels(data, scene) for scene in scenes)
    with Progress(f"evaluate {data.name} {split}", total_mpx, "Mpx") as progress:
        for scored in scored_tiles(predictor, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes):
            counts += scored.counts
            sure += scored.confidence
            edges += count_edges(scored.prediction, scored.truth, band_px)
            tiles += 1
            errors = 1 - np.trace(scored.counts.confusion) / max(1, scored.counts.confusion.sum())
            candidates.append((float(errors), tiles, scored.scene, scored.tile))
            progress.advance(scored.truth.size / 1e6)
    if not tiles:
        raise DataError(f"{data.path}: split {brief(split)} has no labelled pixel to score")
    masked = predictor.with_masked_context() if loaded.network.reads_context else None
    masked_counts = None
    if settings.masked_context and masked is not None:
        with Progress(f"evaluate {data.name} {split}, masked context", total_mpx, "Mpx") as progress:
            masked_counts = Counts.zeros(len(classes.classes))
            for scored in scored_tiles(masked, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes):
                masked_counts += scored.counts
                progress.advance(scored.truth.size / 1e6)
    return Evaluation(
        title=f"{loaded.name} on {data.name} ({split})",
        dataset=data.name,
        split=split,
        model=loaded.name,
        model_sha256=loaded.digest,
        protocol=settings.protocol,
        class_names=classes.classes.names,
        class_colours=classes.classes.colors,
        counts=counts,
        confidence=sure.values(loaded.info.classes.names),
        band_px=band_px,
        band_ratio=band_px / math.hypot(tile_px, tile_px) if settings.boundary_px else settings.boundary_ratio,
        tile_px=tile_px,
        context_factor=loaded.info.tile.context_factor if loaded.network.reads_context else None,
        scenes=len(scenes),
        tiles=tiles,
        elapsed_s=time.perf_counter() - began_s,
        software_version=__version__,
        examples=tuple(_examples(predictor, masked, data, candidates, settings.pictures, classes)),
        boundary_errors=edges,
        masked_context_counts=masked_counts,
    )


def band_width_px(tile_px: int, settings: EvaluateConfig) -> int:
    """Return the width in pixels of the boundary band of Boundary IoU in the tiles of a model."""
    return settings.boundary_px or boundary_band_px(tile_px, tile_px, settings.boundary_ratio)


def _examples(
    predictor: Predictor,
    masked: Predictor | None,
    data: Dataset,
    candidates: list[tuple[float, int, Scene, Tile]],
    count: int,
    scored: Scored,
) -> Iterator[Example]:
    """Predict the worst tiles, then the best, once more: with their context and, where it matters, with it masked."""
    # Ties are broken by the order of tiles, so that a report is reproducible.
    ranked = sorted(candidates, key=lambda c: (-c[0], c[1]))
    worst = ranked[: min(count - count // 2, len(ranked))]
    best = ranked[len(worst) :][-(count // 2) :] if count // 2 else []
    groups = [("Worst tiles", worst), ("Best tiles", best[::-1])]
    for group, (_, _, scene, tile) in ((name, each) for name, some in groups for each in some):
        with open_dataset_scene(data, scene) as opened:
            picture = tile_picture(predictor, opened, tile, predictor.context_factor)
            without = None if masked is None else masked.tile(opened, tile.window)
        truth, prediction = scored.pair(picture.truth, picture.prediction)
        yield Example(
            title=picture.title,
            group=group,
            image=np.ascontiguousarray(np.moveaxis(picture.tile, 0, -1)),
            truth=truth,
            prediction=prediction,
            masked_context=None if without is None else scored.pair(picture.truth, without)[1],
        )


def _megapixels(data: Dataset, scene: Scene) -> float:
    if scene.areas is not None:
        return sum(a.height * a.width for a in scene.areas) / 1e6
    with open_dataset_scene(data, scene) as opened:
        return opened.image.height * opened.image.width / 1e6


class ScoredTile(NamedTuple):
    """One tile, its truth and its prediction, and what was counted."""

    scene: Scene
    tile: Tile
    truth: UInt8
    """(H, W) indices of the scored classes, of the owned part."""
    prediction: UInt8
    """(H, W) indices of the scored classes, of the owned part."""
    counts: Counts
    confidence: Confidence
    """Of the classes of the model, over all pixels of the owned part with data."""


def scored_tiles(
    predictor: Predictor,
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
        predictor: Of the model that is scored.
        dataset: Its class table and bands apply.
        scenes: Labelled scenes of the dataset.
        tile_px: Side of the tiles. The last tile of a row ends at the raster's end and owns what is left.
        band_px: Width of the boundary band within each owned part.
        part: (index, count): take every ``count``-th block, to share the work among that many processes.
        scored: Classes that count; None: those of the dataset, which are the model's.
    """
    scored = scored or scored_classes(dataset.classes, dataset, None)
    number = 0
    for scene in scenes:
        with open_dataset_scene(dataset, scene) as opened:
            # Tiles do not overlap, as in section 4.2, although those of a map do.
            for block in area_blocks(opened.areas, tile_px, _BLOCK_PX):
                number += 1
                # Blocks are dealt out in turn, so that every process gets a share of every scene.
                if number % part[1] == part[0]:
                    yield from _scored_block(predictor, dataset, opened, block, band_px, scored)


def scored_sample(
    predictor: Predictor,
    dataset: Dataset,
    tiles: Sequence[tuple[Scene, Tile]],
    *,
    band_px: int,
    part: tuple[int, int] = (0, 1),
) -> Iterator[ScoredTile]:
    """Predict and compare some tiles of the grid, one by one; otherwise as ``scored_tiles``."""
    scored = scored_classes(dataset.classes, dataset, None)
    for scene, tile in tiles[part[0] :: part[1]]:
        with open_dataset_scene(dataset, scene) as opened:
            yield from _scored_block(predictor, dataset, opened, Block(tile.owned, (tile,)), band_px, scored)


def _scored_block(
    predictor: Predictor, dataset: Dataset, opened: SceneReader, block: Block, band_px: int, scored: Scored
) -> list[ScoredTile]:
    """Predict and compare the tiles of a block that have labels; broken ones are left out where the dataset allows."""
    try:
        predicted, percent = predictor.sure_classes(opened, block)
        native = opened.native(block.window)
        # Scores count native pixels, so that models of different ground sizes are compared on the same labels.
        _, valid = opened.native_image(native)
        classes = predictor.network.num_classes
        truth = opened.native_labels(native, valid)
    except DataError as error:
        if not dataset.skip_broken:
            raise
        if len(block.tiles) == 1:
            log.warning("skipped: %s", error)
            return []
        # One broken file of a mosaic makes the whole block unreadable: try its tiles one by one.
        alone = (Block(tile.owned, (tile,)) for tile in block.tiles)
        return [tile for each in alone for tile in _scored_block(predictor, dataset, opened, each, band_px, scored)]
    tiles = []
    for tile in block.tiles:
        where = opened.native(tile.owned).inside(native)
        there, found = scored.pair(truth[where], predicted[where])
        # Nothing to count, and it would be listed among the worst tiles, with no pixel right.
        if (there == IGNORE_INDEX).all():
            continue
        counts = count(found, there, num_classes=len(scored.classes), band_px=band_px, ignore_index=IGNORE_INDEX)
        sure = Confidence.count(predicted[where], percent[where], valid[where], classes)
        tiles.append(ScoredTile(opened.scene, tile, there, found, counts, sure))
    return tiles


def count_scenes(
    predictor: Predictor,
    dataset: Dataset,
    scenes: Sequence[Scene],
    *,
    tile_px: int,
    band_px: int,
    part: tuple[int, int] = (0, 1),
    scored: Scored | None = None,
) -> Counts:
    """Return the sum of the counts of ``scored_tiles``, which takes the same arguments."""
    scored = scored or scored_classes(dataset.classes, dataset, None)
    tiles = scored_tiles(predictor, dataset, scenes, tile_px=tile_px, band_px=band_px, part=part, scored=scored)
    return sum((t.counts for t in tiles), start=Counts.zeros(len(scored.classes)))
