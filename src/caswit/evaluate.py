"""Scores of a model on the labelled scenes of a split (paper section 4.2)."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from caswit.checkpoint import LoadedModel, load_model
from caswit.config import EvaluateConfig
from caswit.data.samples import open_dataset_scene
from caswit.data.scene import Dataset, Scene, load_dataset
from caswit.edges import EdgeCounts, count_edges
from caswit.errors import ConfigError, DataError
from caswit.metrics import Counts, boundary_band_px
from caswit.pictures import tile_picture
from caswit.predict import Classifier, classifier
from caswit.progress import Progress
from caswit.protocols import Scored, scored_classes
from caswit.raster.windows import Tile
from caswit.report import Evaluation, Example, write_report
from caswit.scoring import count_scenes, scored_tiles
from caswit.surroundings import without_surroundings
from caswit.turns import averaged
from caswit.version import __version__


def evaluate(
    model: Path, dataset: Path, out: Path, *, split: str = "test", settings: EvaluateConfig | None = None
) -> Evaluation:
    """Score a model on a split and write report.json, report.md and report.html.

    Tiles do not overlap, every labelled pixel counts once, and scores come from one confusion matrix
    over the whole split.

    Args:
        model: Model folder.
        dataset: dataset.yaml.
        out: Folder of the report.
        split: Split whose scenes are scored.
        settings: How to compute.

    Returns:
        What was counted; ``caswit.metrics.score(evaluation.counts)`` are the scores.

    Raises:
        CaswitError: The model, the data or the folder cannot be used, or their classes differ.
    """
    settings = settings or EvaluateConfig()
    loaded = load_model(model)
    data = load_dataset(dataset, skip_broken=settings.skip_broken).read_at(loaded.info.tile.gsd_m)
    data.list_broken()
    scenes = data.split(split)
    scored_classes(loaded.info.classes, data, settings.protocol)  # refuse before anything is written
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{out}: is a file, or lies in one; give a folder for the report") from error
    evaluation = evaluate_scenes(loaded, data, scenes, split=split, settings=settings)
    write_report(evaluation, out)
    return evaluation


def evaluate_scenes(
    loaded: LoadedModel, data: Dataset, scenes: Sequence[Scene], *, split: str, settings: EvaluateConfig
) -> Evaluation:
    """Score a loaded model on scenes, and pick tiles to show."""
    began_s = time.perf_counter()
    tile_px = loaded.info.tile.tile_px
    band_px = band_width_px(tile_px, settings)
    model = averaged(classifier(loaded, settings), settings.turns)
    classes = scored_classes(loaded.info.classes, data, settings.protocol)
    counts, edges, tiles = Counts.zeros(len(classes.classes)), EdgeCounts.zeros(), 0
    candidates: list[tuple[float, int, Scene, Tile]] = []
    total_mpx = sum(_megapixels(data, scene) for scene in scenes)
    with Progress(f"evaluate {data.name} {split}", total_mpx, "Mpx") as progress:
        for scored in scored_tiles(model, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes):
            counts += scored.counts
            edges += count_edges(scored.prediction, scored.truth, band_px)
            tiles += 1
            errors = 1 - np.trace(scored.counts.confusion) / max(1, scored.counts.confusion.sum())
            candidates.append((float(errors), tiles, scored.scene, scored.tile))
            progress.advance(scored.truth.size / 1e6)
    if not tiles:
        raise DataError(f"{data.path}: split {split!r} has no labelled pixel to score")
    blind = None
    if loaded.network.reads_context:
        blind = averaged(classifier(without_surroundings(loaded), settings), settings.turns)
    counts_without = None
    if settings.without_context and blind is not None:
        counts_without = count_scenes(blind, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes)
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
        band_px=band_px,
        band_ratio=band_px / math.hypot(tile_px, tile_px) if settings.boundary_px else settings.boundary_ratio,
        tile_px=tile_px,
        context_factor=loaded.info.tile.context_factor if loaded.network.reads_context else None,
        scenes=len(scenes),
        tiles=tiles,
        elapsed_s=time.perf_counter() - began_s,
        software_version=__version__,
        examples=tuple(_examples(model, blind, data, candidates, settings.pictures, classes)),
        edges=edges,
        counts_without=counts_without,
    )


def band_width_px(tile_px: int, settings: EvaluateConfig) -> int:
    """Width of the boundary band in the tiles of a model."""
    return settings.boundary_px or boundary_band_px(tile_px, tile_px, settings.boundary_ratio)


def _examples(
    model: Classifier,
    blind: Classifier | None,
    data: Dataset,
    candidates: list[tuple[float, int, Scene, Tile]],
    count: int,
    scored: Scored,
) -> Iterator[Example]:
    """The worst tiles, then the best, predicted once more, with and without their surroundings."""
    ranked = sorted(candidates, key=lambda c: (-c[0], c[1]))
    worst = ranked[: min(count - count // 2, len(ranked))]
    best = ranked[len(worst) :][-(count // 2) :] if count // 2 else []
    groups = [("Worst tiles", worst), ("Best tiles", best[::-1])]
    for group, (_, _, scene, tile) in ((name, each) for name, some in groups for each in some):
        with open_dataset_scene(data, scene) as opened:
            picture = tile_picture(model, opened, tile, model.context_factor)
            alone = None if blind is None else tile_picture(blind, opened, tile, model.context_factor).prediction
        truth, prediction = scored.pair(picture.truth, picture.prediction)
        without = None if alone is None else scored.pair(picture.truth, alone)[1]
        yield Example(
            title=picture.title,
            group=group,
            image=np.ascontiguousarray(np.moveaxis(picture.tile, 0, -1)),
            truth=truth,
            prediction=prediction,
            without_surroundings=without,
        )


def _megapixels(data: Dataset, scene: Scene) -> float:
    if scene.areas is not None:
        return sum(a.height * a.width for a in scene.areas) / 1e6
    with open_dataset_scene(data, scene) as opened:
        return opened.image.height * opened.image.width / 1e6
