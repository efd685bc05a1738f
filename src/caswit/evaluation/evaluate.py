"""Scores of a model on the labelled scenes of a split (paper section 4.2)."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np

from caswit import __version__
from caswit.config import IGNORE_INDEX, EvaluateConfig, ScoreConfig, TilingConfig, check
from caswit.config.checks import nearest_multiple
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReader, open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError, brief
from caswit.evaluation.boundary_errors import EdgeCounts, count_edges
from caswit.evaluation.context_report import ContextReport, cost_of_context, swapping
from caswit.evaluation.metrics import Counts, boundary_band_px, count
from caswit.evaluation.protocols import Scored, scored_classes
from caswit.evaluation.read_ahead import Job, LabelledBlocks, ReadBlock
from caswit.evaluation.report import Evaluation, Example
from caswit.evaluation.tile_pictures import tile_picture
from caswit.inference.confidence import Confidence
from caswit.inference.predictor import Predictor
from caswit.nn.caswit import CASWiT
from caswit.nn.network import stride_px
from caswit.progress import Progress
from caswit.raster.reader import UInt8
from caswit.raster.windows import Block, Tile, Window, area_blocks, overlapping_blocks, whole_blocks
from caswit.viz.pictures import channels_last
from caswit.weights.model_folder import LoadedModel

log = logging.getLogger(__name__)
_BLOCK_PX = 2048
_OVERLAPPED_PX = 6144
"""Side of a block whose tiles overlap: those at its edges are computed for its neighbours too."""


def evaluate_scenes(
    predictor: Predictor,
    loaded: LoadedModel,
    data: Dataset,
    scenes: Sequence[Scene],
    *,
    split: str,
    settings: EvaluateConfig,
    alone: Predictor | None = None,
) -> Evaluation:
    """Score a loaded model on scenes with the predictor made of it, and pick tiles to show.

    ``alone`` is the same network without its context branch, timed where the settings ask what the context costs.

    Raises:
        DataError: There is no labelled pixel.
    """
    began_s = time.perf_counter()
    own_px = loaded.info.tile.tile_px
    tile_px = own_px if settings.tile_px is None else settings.tile_px
    # The band stays that of the model's own tiles, so that Boundary IoU compares however scenes are cut.
    band_px = band_width_px(own_px, settings)
    classes = scored_classes(loaded.info.classes, data, settings.protocol)
    counts, edges, tiles = Counts.zeros(len(classes.classes)), EdgeCounts.zeros(), 0
    sure = Confidence.zeros(len(loaded.info.classes))
    # Only positions are kept; the few tiles that are shown are predicted again.
    candidates: list[tuple[float, int, Scene, Tile]] = []
    tiles_of = partial(
        scored_tiles,
        dataset=data,
        scenes=scenes,
        tile_px=tile_px,
        overlap_px=settings.overlap_px,
        band_px=band_px,
        scored=classes,
        workers=settings.workers,
    )
    total_mpx = sum(_megapixels(data, scene) for scene in scenes)
    with Progress(f"evaluate {data.name} {split}", total_mpx, "Mpx") as progress:
        for scored in tiles_of(predictor):
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

    def counted(other: Predictor, how: str) -> Counts:
        with Progress(f"evaluate {data.name} {split}, {how} context", total_mpx, "Mpx") as progress:
            found = Counts.zeros(len(classes.classes))
            for scored in tiles_of(other):
                found += scored.counts
                progress.advance(scored.truth.size / 1e6)
        return found

    masked_counts = context = None
    if masked is not None and (settings.masked_context or settings.context_report):
        masked_counts = counted(masked, "masked")
    if masked is not None and settings.context_report:
        assert isinstance(tile_px, int)  # the settings refuse whole images
        context = ContextReport(
            swapped=counted(swapping(predictor, data, scenes, tile_px, tiles), "swapped"),
            gates=loaded.network.gates if isinstance(loaded.network, CASWiT) else {},
            cost=cost_of_context(predictor, alone, data, scenes, tile_px),
        )
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
        band_ratio=band_px / math.hypot(own_px, own_px) if settings.boundary_px else settings.boundary_ratio,
        tile_px=tile_px,
        overlap_px=settings.overlap_px,
        context_factor=loaded.info.tile.context_factor if loaded.network.reads_context else None,
        scenes=len(scenes),
        tiles=tiles,
        elapsed_s=time.perf_counter() - began_s,
        software_version=__version__,
        examples=tuple(_examples(predictor, masked, data, candidates, settings.pictures, classes)),
        boundary_errors=edges,
        masked_context_counts=masked_counts,
        context=context,
    )


def check_tiling(loaded: LoadedModel, tiling: TilingConfig) -> None:
    """Raise ConfigError unless the network of a model can take the tiles that are asked for."""
    info = loaded.info
    side = info.tile.tile_px if tiling.tile_px in (None, "whole") else tiling.tile_px
    assert isinstance(side, int)
    check(
        tiling.overlap_px < side,
        f"overlap_px must be below the side of the tiles, {side}, got {tiling.overlap_px}; try {side // 8}",
    )
    if side == info.tile.tile_px:
        return
    try:
        replace(info.tile, tile_px=side)
    except ConfigError as error:
        raise ConfigError(f"{error} (context_factor is the model's)") from error
    stride = stride_px(loaded.network)
    check(
        info.model.arch == "caswit" or side % stride == 0,
        f"arch {info.model.arch} needs tile_px in multiples of {stride}, got {side}; "
        f"try {nearest_multiple(side, stride)}",
    )


def band_width_px(tile_px: int, settings: ScoreConfig) -> int:
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
            image=np.ascontiguousarray(channels_last(picture.tile, data.band_names)),
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
    tile_px: int | Literal["whole"],
    band_px: int,
    overlap_px: int = 0,
    part: tuple[int, int] = (0, 1),
    scored: Scored | None = None,
    workers: int = 0,
) -> Iterator[ScoredTile]:
    """Predict and compare the tiles of scenes; every labelled native pixel is counted once.

    Args:
        predictor: Of the model that is scored.
        dataset: Its class table and bands apply.
        scenes: Labelled scenes of the dataset.
        tile_px: Side of the tiles. The last tile of a row ends at the raster's end and owns what is left. ``whole``:
            one tile for each area, filled up at its lower and right side to what the network takes.
        overlap_px: Tiles overlap by at least this and are evenly spread. The mean of the logits of all tiles that see
            a pixel decides, as in GLNet and FCtL, which cut images so; a tile owns the half of the overlap beside it.
        band_px: Width of the boundary band within each owned part.
        part: (index, count): take every ``count``-th block, to share the work among that many processes.
        scored: Classes that count; None: those of the dataset, which are the model's.
        workers: Processes that read ahead.
    """

    blocks = LabelledBlocks(dataset, scenes, predictor.context_factor, workers)

    def jobs() -> Iterator[Job]:
        for number in range(len(scenes)):
            for block in _blocks(predictor, blocks.opened(number).areas, tile_px, overlap_px):
                yield number, block

    # Blocks are dealt out in turn, so that every process gets a share of every scene.
    share = islice(jobs(), part[0], None, part[1])
    yield from _scored_blocks(predictor, blocks, share, band_px, scored, mean=overlap_px > 0)


def _blocks(
    predictor: Predictor, areas: Sequence[Window], tile_px: int | Literal["whole"], overlap_px: int
) -> Iterator[Block]:
    if tile_px == "whole":
        return whole_blocks(areas, predictor.step_px)
    if overlap_px:
        return overlapping_blocks(areas, tile_px, overlap_px, _OVERLAPPED_PX)
    # Tiles do not overlap, as in section 4.2, although those of a map do.
    return area_blocks(areas, tile_px, _BLOCK_PX)


def scored_sample(
    predictor: Predictor,
    dataset: Dataset,
    tiles: Sequence[tuple[Scene, Tile]],
    *,
    band_px: int,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[ScoredTile]:
    """Predict and compare some tiles of the grid, one by one; otherwise as ``scored_tiles``."""
    some = tiles[part[0] :: part[1]]
    scenes = {id(scene): scene for scene, _ in some}
    numbers = {scene: number for number, scene in enumerate(scenes)}
    jobs = ((numbers[id(scene)], Block(tile.owned, (tile,))) for scene, tile in some)
    blocks = LabelledBlocks(dataset, [*scenes.values()], predictor.context_factor, workers)
    yield from _scored_blocks(predictor, blocks, jobs, band_px, None)


def _scored_blocks(
    predictor: Predictor,
    blocks: LabelledBlocks,
    jobs: Iterable[Job],
    band_px: int,
    scored: Scored | None,
    *,
    mean: bool = False,
) -> Iterator[ScoredTile]:
    """Predict and compare the tiles that have labels; broken ones are left out where the dataset allows."""
    scored = scored or scored_classes(blocks.dataset.classes, blocks.dataset, None)
    for read in blocks.read(jobs):
        for each in _readable(blocks, read):
            yield from _scored_block(predictor, blocks.opened(each.scene), each, band_px, scored, mean=mean)


def _readable(blocks: LabelledBlocks, read: ReadBlock) -> Iterator[ReadBlock]:
    """Yield a block, or those of its tiles that can be read; raise DataError unless the dataset leaves others out."""
    if not read.error:
        yield read
    elif not blocks.dataset.skip_broken:
        raise DataError(read.error)
    elif len(read.block.tiles) == 1:
        log.warning("skipped: %s", read.error)
    else:
        # One broken file of a mosaic makes the whole block unreadable: try its tiles one by one.
        for tile in read.block.own:
            yield from _readable(blocks, blocks[read.scene, Block(tile.owned, (tile,))])


def _scored_block(
    predictor: Predictor, opened: SceneReader, read: ReadBlock, band_px: int, scored: Scored, *, mean: bool
) -> Iterator[ScoredTile]:
    """Predict and compare the tiles of a block that have labels."""
    assert read.pixels is not None
    assert read.truth is not None
    predicted, percent = predictor.sure_classes(opened, read.block, read.pixels, mean=mean)
    for tile in read.block.own:
        # Scores count native pixels, so that models of different ground sizes are compared on the same labels.
        where = opened.native(tile.owned).inside(read.pixels.native)
        there, found = scored.pair(read.truth[where], predicted[where])
        # Nothing to count, and it would be listed among the worst tiles, with no pixel right.
        if (there == IGNORE_INDEX).all():
            continue
        counts = count(found, there, num_classes=len(scored.classes), band_px=band_px, ignore_index=IGNORE_INDEX)
        sure = Confidence.count(
            predicted[where], percent[where], read.pixels.valid[where], predictor.network.num_classes
        )
        yield ScoredTile(opened.scene, tile, there, found, counts, sure)
