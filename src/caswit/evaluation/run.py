"""caswit evaluate: load a model and a dataset, score the one on the other, write the report."""

import logging
from dataclasses import replace
from pathlib import Path

from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.errors import ConfigError
from caswit.evaluation.evaluate import check_tiling, evaluate_scenes
from caswit.evaluation.protocols import scored_classes
from caswit.evaluation.report import Evaluation, write_report
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.weights.model_folder import LoadedModel, build, load_model

log = logging.getLogger(__name__)


def evaluate(
    model: Path, dataset: Path, out: Path | None, *, split: str = "test", settings: EvaluateConfig | None = None
) -> Evaluation:
    """Score a model on a split and write report.json, report.md and report.html.

    Tiles do not overlap unless the settings say so, every labelled pixel counts once, and scores come from one
    confusion matrix over the whole split.

    Args:
        model: Model folder.
        dataset: dataset.yaml.
        out: Folder of the report; None writes none.
        split: Split whose scenes are scored.
        settings: How to compute.

    Returns:
        The counts and how they came about; ``evaluation.scores`` are the scores.

    Raises:
        CaswitError: The model, the data or the folder cannot be used, or their classes differ.
    """
    settings = settings or EvaluateConfig()
    loaded = load_model(model)
    data = load_dataset(dataset, skip_broken=settings.skip_broken).for_model(
        loaded.info.model, loaded.info.bands, loaded.info.tile.read_gsd_m
    )
    data.list_broken()
    scenes = data.split(split)
    scored_classes(loaded.info.classes, data, settings.protocol)  # refuse before anything is written
    check_tiling(loaded, settings)
    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{out}: is a file, or lies in one; give a folder for the report") from error
    predictor = load_predictor(loaded, settings)
    alone = _alone(loaded, settings) if settings.context_report else None
    if settings.context_report and not loaded.network.reads_context:
        log.info("%s: the model reads no context: there is nothing to report of it", loaded.name)
    evaluation = evaluate_scenes(predictor, loaded, data, scenes, split=split, settings=settings, alone=alone)
    if out is not None:
        write_report(evaluation, out)
    return evaluation


def _alone(loaded: LoadedModel, settings: EvaluateConfig) -> Predictor | None:
    """Return the predictor of the same network without its context branch, with random weights, to be timed."""
    if loaded.info.model.kind != "caswit" or not loaded.network.reads_context:
        return None
    info = replace(loaded.info, model=replace(loaded.info.model, fusion_stages=()))
    return load_predictor(loaded._replace(network=build(info).eval(), info=info, weights=None), settings)
