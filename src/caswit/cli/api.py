"""The functions of ``import caswit``: those behind the commands, with paths, recipe files and keyword settings.

Settings have the names that the options of the command have, with underscores: ``--gsd-m 0.25`` is ``gsd_m=0.25``.
What a user can mend is raised as a ``caswit.errors.CaswitError``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from caswit.cli.recipe import merge, parse_recipe, read_recipe
from caswit.config import EvaluateConfig, MapRunConfig, OutputConfig, PredictConfig, Recipe
from caswit.config.keywords import check_names, keyword_groups, keyword_settings
from caswit.errors import ConfigError, naming_extras
from caswit.evaluation.report import Evaluation
from caswit.mapping.arrays import Model, load_model
from caswit.mapping.run import MapResult

__all__ = ["Model", "evaluate", "load_model", "predict", "train"]

Name = str | Path


@naming_extras("predict")
def predict(image: Name | Sequence[Name], out: Name, model: Name | Model | None = None, **settings: Any) -> MapResult:
    """Map a raster of any size, as ``caswit predict`` does.

    The map appears under its name when it is complete; after an interruption the same call goes on.

    Args:
        image: A raster, an address, a folder, a pattern, or several of them as one mosaic.
        out: GeoTIFF to write; its folder must exist.
        model: Model folder, name (``caswit models``), hf:owner/name, or what ``load_model`` returned. None chooses one
            of the zoo by the ground size of the image's pixels.
        settings: Options of ``caswit predict``: ``confidence="confidence.tif"``, ``vector="map.gpkg"``, ``tta=8``,
            ``aoi="town.gpkg"``, ``overwrite=True`` and others.

    Returns:
        The map's path, and the blocks that could not be read if ``on_error="skip"`` was given.

    Raises:
        CaswitError: The image, the model, a setting or the place to write to cannot be used.
    """
    from caswit.mapping.run import predict

    reading, outputs, run = keyword_groups("predict", settings, (PredictConfig, OutputConfig, MapRunConfig))
    name = model.source if isinstance(model, Model) else model
    return predict(image, Path(out), name, reading, outputs, run)


@naming_extras("train")
def train(recipe: Name | Mapping[str, Any] | Recipe, out: Name, *, resume: bool = False, **changes: Any) -> Path:
    """Train a model, as ``caswit train`` does.

    Args:
        recipe: YAML file, its content as a mapping, or a ``caswit.config.Recipe``.
        out: Run folder to make, or to continue.
        resume: Continue the run in ``out`` from its last checkpoint.
        changes: Sections of the recipe with fields to replace: ``train={"max_steps": 100}``.

    Returns:
        The finished model folder, ``out/model``, for ``load_model``.

    Raises:
        CaswitError: The recipe, the data or the folder cannot be used.
        Stopped: A signal or ``stop_minutes`` ended it early, and it is saved; ``resume=True`` goes on there.
    """
    from caswit.training.supervised import train

    return train(_recipe(recipe, changes), Path(out), resume=resume)


@naming_extras("evaluate")
def evaluate(
    model: Name | Model, dataset: Name, out: Name | None = None, *, split: str = "test", **settings: Any
) -> Evaluation:
    """Score a model on the labelled scenes of a split, as ``caswit evaluate`` does.

    Args:
        model: Model folder, name, hf:owner/name, or what ``load_model`` returned.
        dataset: dataset.yaml.
        out: Folder for report.html, report.md and report.json; None writes no report.
        split: Split whose scenes are scored.
        settings: Options of ``caswit evaluate``: ``tta=8``, ``masked_context=True`` and others.

    Returns:
        The evaluation; ``evaluation.scores.miou`` is the mean IoU in 0..1, ``evaluation.scores.iou`` (C,) that of
        the classes ``evaluation.class_names``.

    Raises:
        CaswitError: The model, the data or the folder cannot be used, or their classes differ.
    """
    from caswit.evaluation.run import evaluate

    config = keyword_settings("evaluate", settings, EvaluateConfig)
    name = model.source if isinstance(model, Model) else model
    return evaluate(Path(name), Path(dataset), None if out is None else Path(out), split=split, settings=config)


def _recipe(recipe: Name | Mapping[str, Any] | Recipe, changes: Mapping[str, Any]) -> Recipe:
    """Return the settings of a recipe, with some of its fields replaced."""
    if isinstance(recipe, Recipe):
        if changes:
            raise ConfigError(f"a Recipe holds its settings already; put {', '.join(changes)} into it")
        return recipe
    where = Path(recipe) if isinstance(recipe, str | Path) else None
    content = dict(recipe) if isinstance(recipe, Mapping) else read_recipe(Path(recipe))
    merged = merge(content, changes)
    sections: dict[str, Any] = {field.name: field.type for field in fields(Recipe)}
    check_names("the recipe", merged, [*sections, "row"])
    for name, values in merged.items():
        if isinstance(values, Mapping) and is_dataclass(sections.get(name)):
            check_names(f"{name} of the recipe", values, [field.name for field in fields(sections[name])])
    return parse_recipe(merged, where or Path("recipe"))
