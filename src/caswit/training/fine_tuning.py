"""Write the recipe of a fine-tuning: a model that exists, trained further on the labels of a dataset."""

import json
from pathlib import Path
from textwrap import wrap
from typing import NamedTuple

from caswit.config import ModelConfig
from caswit.data.classes import plain_name
from caswit.data.dataset import Dataset, load_dataset
from caswit.errors import ConfigError
from caswit.training.finetune_data import source_gsd_m
from caswit.viz.pages import numbers
from caswit.weights.initialize import folder_of_start
from caswit.weights.model_folder import ModelInfo, PretrainedInfo, read_info


class Usual(NamedTuple):
    """Settings that fit a size of network, where its decoder is trained already."""

    tile_px: int
    batch: int
    accumulate: int
    max_steps: int
    lr: float
    min_lr: float
    warmup_steps: int
    weight_decay: float


SMALL = Usual(256, 8, 1, 300, 3e-4, 1e-5, 20, 0.05)
"""Pico and nano, on two CPU cores."""
LARGE = Usual(512, 16, 4, 2000, 3e-5, 1e-6, 100, 0.01)
"""Swin's own sizes, on one GPU."""
_COARSE = 2
"""Times the model's ground size from which on images are much coarser than what it knows."""
UNTRAINED = 3
"""Times the learning rate where the decoder starts at random."""


def fine_tuning_recipe(model: str, dataset: str) -> str:
    """Return a recipe, as commented YAML, that fine-tunes a model on the split ``train`` of a dataset.

    What it leaves out follows from the model, or is a training's default.

    Args:
        model: Model or run folder, trained or pretrained, hf:owner/name, or a name of the zoo.
        dataset: A dataset.yaml with labels.

    Raises:
        CaswitError: The model or the dataset cannot be used.
    """
    info = model_to_tune(model)
    data = load_dataset(dataset)
    usual = SMALL if info.model.size in ("pico", "nano") else LARGE
    trained = isinstance(info, ModelInfo)
    lr = usual.lr if trained else UNTRAINED * usual.lr
    validates = any(s.split == "val" and s.label is not None for s in data.scenes)
    source = source_gsd_m(data, info.bands)
    step_px = info.tile.step_px
    about, tile = _about(info, data), [f"  tile_px: {min(usual.tile_px, info.tile.tile_px) // step_px * step_px}"]
    read_gsd_m = info.tile.read_gsd_m
    if read_gsd_m is not None and source is None:
        tile.append("  read_gsd_m: null   # the images do not say how large their pixels are: read as they are")
    elif read_gsd_m is not None and source is not None and source > _COARSE * read_gsd_m:
        about.append(
            f"Pixels of the images are {source:.2g} m, much coarser than the model's: they are enlarged. "
            "tile.read_gsd_m says otherwise."
        )
    return "\n".join(
        (
            f"# Fine-tuning of {Path(model).name} on {data.name}. As it stands: caswit train THIS_FILE --out runs/NAME",
            *(f"# {line}" for paragraph in about for line in wrap(paragraph, 110)),
            "data:",
            f"  dataset: {json.dumps(dataset)}",
            f"  val_split: {'val' if validates else 'null   # no split val with labels: the last weights are kept'}",
            "  sampling: random",
            "tile:",
            *tile,
            "augment:",
            "  spatial: true",
            "  brightness: 0.1",
            "  contrast: 0.2",
            "  gamma: 0.2",
            "train:",
            f"  batch: {usual.batch}",
            *([f"  accumulate: {usual.accumulate}"] if usual.accumulate > 1 else []),
            f"  max_steps: {usual.max_steps}",
            *([f"  val_every_steps: {usual.max_steps // 3}"] if validates else []),
            f"  lr: {lr:.1e}",
            f"  min_lr: {usual.min_lr:.1e}",
            f"  warmup_steps: {usual.warmup_steps}",
            f"  weight_decay: {usual.weight_decay:g}",
            "  clip_norm: 5.0",
            f"  keep: {'best' if validates else 'last'}",
            "init:",
            f"  path: {json.dumps(model)}",
            *(["  decoder: true"] if trained else []),
            "",
        )
    )


def model_to_tune(model: str) -> ModelInfo | PretrainedInfo:
    """Return what is known of a model that a fine-tuning is to start from.

    Raises:
        CaswitError: It cannot be used.
    """
    info = read_info(folder_of_start(model))
    if info.model.arch != "caswit":
        raise ConfigError(f"{model}: fine-tuning is for networks of arch caswit, got {info.model.arch}; train it anew")
    return info


def _about(info: ModelInfo | PretrainedInfo, data: Dataset) -> list[str]:
    """Return lines that say what the recipe takes over."""
    ground = info.tile.read_gsd_m
    pixels = "as they are" if ground is None else f"of {ground:g} m"
    lines = [
        f"The network is the model's and need not be repeated here: {described(info.model)}; "
        f"context factor {numbers(info.tile.context_factors)}, pixels {pixels}, "
        f"bands {list(data.bands if data.names_bands else info.bands)}."
    ]
    if not isinstance(info, ModelInfo):
        return [*lines, "The decoder starts at random: the model was pretrained without labels."]
    theirs, ours = info.classes.names, data.classes.names
    if [*map(plain_name, theirs)] == [*map(plain_name, ours)]:
        return [*lines, f"Classes are the same: {', '.join(ours)}."]
    return [*lines, f"Classes were {', '.join(theirs)} and become {', '.join(ours)}; their last layer is learned anew."]


def described(model: ModelConfig) -> str:
    """Describe a network of ours in a few words."""
    stages = list(model.fusion_stages) or "none"
    return f"size {model.size}, stem {model.stem}, fusion stages {stages}{', gated' if model.gated else ''}"
