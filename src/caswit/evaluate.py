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
from caswit.errors import ConfigError, DataError
from caswit.metrics import Counts, boundary_band_px
from caswit.pictures import tile_picture
from caswit.predict import Classifier, classifier
from caswit.progress import Progress
from caswit.protocols import Scored, scored_classes
from caswit.raster.windows import Tile
from caswit.report import Evaluation, Example, write_report
from caswit.scoring import scored_tiles
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
    data = load_dataset(dataset).read_at(loaded.info.tile.gsd_m)
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
    model = classifier(loaded, settings)
    classes = scored_classes(loaded.info.classes, data, settings.protocol)
    counts, tiles = Counts.zeros(len(classes.classes)), 0
    candidates: list[tuple[float, int, Scene, Tile]] = []
    total_mpx = sum(_megapixels(data, scene) for scene in scenes)
    with Progress(f"evaluate {data.name} {split}", total_mpx, "Mpx") as progress:
        for scored in scored_tiles(model, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes):
            counts += scored.counts
            tiles += 1
            errors = 1 - np.trace(scored.counts.confusion) / max(1, scored.counts.confusion.sum())
            candidates.append((float(errors), tiles, scored.scene, scored.tile))
            progress.advance(scored.truth.size / 1e6)
    if not tiles:
        raise DataError(f"{data.path}: split {split!r} has no labelled pixel to score")
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
        examples=tuple(_examples(model, data, candidates, settings.pictures, classes)),
    )


def band_width_px(tile_px: int, settings: EvaluateConfig) -> int:
    """Width of the boundary band in the tiles of a model."""
    return settings.boundary_px or boundary_band_px(tile_px, tile_px, settings.boundary_ratio)


def _examples(
    model: Classifier, data: Dataset, candidates: list[tuple[float, int, Scene, Tile]], count: int, scored: Scored
) -> Iterator[Example]:
    """Tiles from the best to the worst, evenly spread over the ranking, predicted once more."""
    ranked = sorted(candidates, key=lambda c: c[:2])
    picks = np.unique(np.linspace(0, len(ranked) - 1, num=min(count, len(ranked))).round().astype(int))
    for _, _, scene, tile in (ranked[i] for i in picks):
        with open_dataset_scene(data, scene) as opened:
            picture = tile_picture(model, opened, tile, model.context_factor)
        truth, prediction = scored.pair(picture.truth, picture.prediction)
        yield Example(
            title=picture.title,
            image=np.ascontiguousarray(np.moveaxis(picture.tile, 0, -1)),
            truth=truth,
            prediction=prediction,
        )


def _megapixels(data: Dataset, scene: Scene) -> float:
    with open_dataset_scene(data, scene) as opened:
        return opened.image.height * opened.image.width / 1e6
