"""The demonstration: how much context helps where local texture cannot decide.

It draws landscapes from a seed, trains nano with and without context for the same number of steps, scores both on
landscapes that neither was trained on, maps one more, and writes a report for newcomers. The models of the zoo map
their sample images beside it.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caswit import __version__
from caswit.config import (
    AugmentConfig,
    DataConfig,
    DemoConfig,
    EvaluateConfig,
    ModelConfig,
    PredictConfig,
    Recipe,
    TileConfig,
    TrainConfig,
)
from caswit.data.dataset import Dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.synthetic import CLASSES, CONTEXT_CLASSES, GSD_M, SPLITS, write_landscapes
from caswit.errors import ConfigError
from caswit.evaluation.report import Panel, report_values
from caswit.evaluation.run import evaluate
from caswit.evaluation.tile_pictures import TilePicture, spread_tiles, tile_picture
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.mapping.run import predict
from caswit.raster.reader import Raster, UInt8
from caswit.raster.windows import Window
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train
from caswit.viz.pages import render
from caswit.viz.pictures import channels_last, colourise, data_uri, overlay, shrink
from caswit.weights.model_folder import load_model
from caswit.weights.zoo import ZooModel, zoo_models

TILE = TileConfig(tile_px=128, context_factor=2)
VARIANTS: Mapping[str, tuple[int, ...]] = {"tile-only": (), "with-context": (1, 2, 3, 4)}
"""Fusion stages of both networks."""
_SIDE_PX = 640
"""Longest side of a map in the report."""


class DemoResult(NamedTuple):
    """Report and scores of the demonstration; scores are fractions of 0..1."""

    report: Path
    context_miou: dict[str, float]
    """Mean IoU of the classes that only the context decides, by variant."""
    miou: dict[str, float]
    """Mean IoU of all classes, by variant."""


def demo(out: Path, settings: DemoConfig | None = None) -> DemoResult:
    """Run the demonstration, or continue one that was interrupted.

    Args:
        out: Folder to make; the page is ``out / "report.html"``, the map ``out / "map.tif"``.
        settings: Seed and length.

    Raises:
        CaswitError: ``out`` is a file, or holds a demonstration with other settings.
    """
    settings = settings or DemoConfig()
    began_s = time.perf_counter()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    dataset = write_landscapes(out / "data", settings.seed)
    reports, models = {}, {}
    for variant, stages in VARIANTS.items():
        wanted, run = recipe(dataset, stages, settings), RunFolder(out / "runs" / variant)
        # The two are compared, so neither may be a shorter run that was made longer.
        run.check(wanted, resume=True, longer=False)
        models[variant] = train(wanted, run.path, resume=True)
        scores = out / "scores" / variant
        evaluation = evaluate(models[variant], dataset.path, scores, split="test", settings=EvaluateConfig(batch=8))
        reports[variant] = report_values(evaluation)
    maps = {"tile-only": out / "map-tile-only.tif", "with-context": out / "map.tif"}
    for variant, file in maps.items():
        predict(out / "data" / "map.tif", file, models[variant], PredictConfig(batch=8))
    page = render(
        "demo.html.j2",
        reports=reports,
        groups=_groups(reports),
        map_panels=_map_panels(out / "data", maps, dataset),
        rows=_tile_rows(dataset, models),
        zoo=map_zoo_samples(out / "zoo"),
        settings=settings,
        scenes=SPLITS,
        tile=TILE,
        gsd_m=GSD_M,
        elapsed_s=time.perf_counter() - began_s,
        version=__version__,
    )
    atomic_write_bytes(out / "report.html", page.encode())
    means = {variant: _mean(report, CONTEXT_CLASSES) for variant, report in reports.items()}
    return DemoResult(out / "report.html", means, {v: float(r["miou"]) for v, r in reports.items()})


def recipe(dataset: Dataset, fusion_stages: tuple[int, ...], settings: DemoConfig) -> Recipe:
    """Return the recipe of a variant; the variants differ in their fusion stages only."""
    return Recipe(
        data=DataConfig(dataset=str(dataset.path), val_split=None, sampling="random"),
        model=ModelConfig(size="nano", fusion_stages=fusion_stages),
        tile=TILE,
        augment=AugmentConfig(spatial=True),
        train=TrainConfig(
            seed=settings.seed,
            batch=8,
            max_steps=settings.steps,
            lr=1e-3,
            min_lr=1e-5,
            warmup_steps=10,
            weight_decay=0.05,
            clip_norm=5.0,
            keep="last",
            save_every_s=30,
        ),
    )


def _mean(report: Mapping[str, Any], names: Sequence[str]) -> float:
    return float(np.mean([report["per_class"][name]["iou"] for name in names]))


def _groups(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, list[float]]]:
    """Return the mean IoU of each group of classes, in the order of the variants."""
    others = [name for _, name, _ in CLASSES if name not in CONTEXT_CLASSES]
    groups = {
        "classes that only the context decides": CONTEXT_CLASSES,
        "classes that their own texture decides": others,
        "all classes": [name for _, name, _ in CLASSES],
    }
    return [(title, [_mean(report, names) for report in reports.values()]) for title, names in groups.items()]


def _map_panels(folder: Path, maps: Mapping[str, Path], dataset: Dataset) -> list[Panel]:
    colors = dataset.classes.colors
    image = shrink(channels_last(_read_image(folder / "map.tif")), _SIDE_PX)
    truth = dataset.classes.indices(_read_classes(folder / "map_label.tif"), "map_label.tif")
    panels = [
        Panel("Image", "Aerial image of the landscape", data_uri(image, photo=True)),
        Panel("Truth", "True land cover", data_uri(colourise(shrink(truth, _SIDE_PX), colors))),
    ]
    captions = {"tile-only": "Map from tiles alone", "with-context": "Map with context"}
    for variant, file in maps.items():
        classes = dataset.classes.indices(_read_classes(file), file.name)
        caption = f"{captions[variant]} ({(classes == truth).mean():.1%} right)"
        panels.append(Panel(caption, caption, data_uri(colourise(shrink(classes, _SIDE_PX), colors))))
    return panels


def _tile_rows(dataset: Dataset, models: Mapping[str, Path]) -> list[tuple[str, list[Panel]]]:
    """Draw the three test tiles that context improves most, and the one that it improves least or makes worse."""
    compute = EvaluateConfig()
    both = [load_predictor(load_model(models[variant]), compute) for variant in VARIANTS]
    changes: list[tuple[float, TilePicture, TilePicture]] = []
    for scene, tile in spread_tiles(dataset, dataset.split("test"), TILE.tile_px, 64):
        with open_dataset_scene(dataset, scene) as opened:
            alone, with_context = (tile_picture(model, opened, tile, TILE.context_factor) for model in both)
        gain = (with_context.prediction == alone.truth).mean() - (alone.prediction == alone.truth).mean()
        changes.append((float(gain), alone, with_context))
    changes.sort(key=lambda change: -change[0])
    return [_tile_row(dataset, *change) for change in [*changes[:3], changes[-1]]]


def _tile_row(dataset: Dataset, gain: float, alone: TilePicture, with_context: TilePicture) -> tuple[str, list[Panel]]:
    """Return title and pictures of one tile, mapped by both networks."""
    context, tile, truth, prediction, _ = (x for _, x in with_context.panels(dataset, TILE.context_factor))
    from_tile = colourise(alone.prediction, dataset.classes.colors)
    panels = [
        Panel("Context, tile outlined", "Context of the tile", data_uri(context, photo=True)),
        Panel("Tile", "Aerial image of the tile", data_uri(tile, photo=True)),
        Panel("Truth", "True land cover of the tile", data_uri(truth)),
        Panel("From the tile alone", "Predicted map from the tile alone", data_uri(from_tile)),
        Panel("With context", "Predicted map with context", data_uri(prediction)),
    ]
    return f"{with_context.title}: {100 * gain:+.0f} points of overall accuracy", panels


class ZooSample(NamedTuple):
    """The map that a model of the zoo makes of its sample image."""

    model: ZooModel
    legend: list[tuple[str, str]]
    """Class names and colours."""
    panels: list[Panel]
    map: Path
    """GeoTIFF."""


def map_zoo_samples(folder: Path) -> list[ZooSample]:
    """Map the sample image of every model of the zoo into a folder, as ``caswit predict`` would.

    Raises:
        CaswitError: The folder cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_map_sample(model, folder / f"{model.name}.tif") for model in zoo_models()]


def _map_sample(model: ZooModel, out: Path) -> ZooSample:
    predict(model.sample, out, model.name, PredictConfig(gsd_m=model.sample_gsd_m))
    classes = load_model(model.name).info.classes
    ids = _read_classes(out)
    indices = shrink(classes.indices(ids, out.name, ids == 255), _SIDE_PX)
    image = shrink(channels_last(_read_image(model.sample)), _SIDE_PX)
    panels = [
        Panel("Image", f"Sample image of {model.name}", data_uri(image, photo=True)),
        Panel("Map", f"Land cover predicted by {model.name}", data_uri(colourise(indices, classes.colors))),
        Panel("Both", "The map over the image", data_uri(overlay(image, indices, classes.colors), photo=True)),
    ]
    return ZooSample(model, [(c.name, c.color) for c in classes.predicted], panels, out)


def _read_image(file: Path) -> UInt8:
    with Raster(file) as raster:
        return raster.read_image(Window(0, 0, raster.height, raster.width))[0]


def _read_classes(file: Path) -> UInt8:
    with Raster(file) as raster:
        ids: UInt8 = raster.read_band(Window(0, 0, raster.height, raster.width), fill=255).astype(np.uint8)
        return ids
