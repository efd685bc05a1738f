"""Supervised training (paper sections 3.4 and 4.3): the objective that the loop of ``caswit.training.loop`` learns."""

import dataclasses
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from caswit import __version__
from caswit.config import Recipe, TrainConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import check_scenes, ground_size_m
from caswit.data.sampler import TrainingSamples
from caswit.errors import ConfigError
from caswit.evaluation.evaluate import count_scenes
from caswit.evaluation.metrics import Counts, Scores, boundary_band_px, score
from caswit.evaluation.tile_pictures import sheet, spread_tiles
from caswit.files import atomic_write_bytes
from caswit.inference.devices import uses_bf16
from caswit.inference.predictor import Predictor
from caswit.nn.baselines.smp import Network
from caswit.nn.caswit import CASWiT
from caswit.nn.losses import label_mass, supervised_loss
from caswit.progress import Progress
from caswit.training import averaging
from caswit.training.fabric import all_sum, is_first_process, repeatable
from caswit.training.loop import Batch, Loop, launched
from caswit.training.run_folder import RunFolder
from caswit.viz.pictures import png_bytes
from caswit.weights.initialize import start_from
from caswit.weights.model_folder import ModelInfo, build, save_model, torch_load


def train(recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    """Train a model.

    Args:
        recipe: Every setting.
        out: Run folder to make, or to continue.
        resume: Continue the run in ``out`` where its last checkpoint is.

    Returns:
        The finished model folder, ``out / "model"``.

    Raises:
        CaswitError: The recipe, the data or the folder cannot be used.
    """
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken).read_at(recipe.tile.read_gsd_m)
    if is_first_process():
        dataset.list_broken()
    _check(recipe, dataset)
    folder = RunFolder(out)
    fabric = launched(recipe, folder, resume=resume)
    with repeatable(recipe.train, fabric.device):
        objective = _Labels(fabric, recipe, dataset, folder)
        Loop(fabric, recipe, recipe.train, folder, objective).fit()
    return folder.model


class _Labels:
    """Learn the labels of tiles and, with a context head, of their surroundings."""

    label = "train"

    def __init__(self, fabric: Fabric, recipe: Recipe, dataset: Dataset, folder: RunFolder) -> None:
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        settings = self.settings = recipe.train
        with_context = recipe.model.reads_context
        self.samples = TrainingSamples(
            dataset, recipe.data, recipe.tile, recipe.augment, seed=settings.seed, context=with_context
        )
        self.validator = Validator(fabric, recipe, dataset)
        self.info = _info(recipe, dataset)
        torch.manual_seed(settings.seed)
        self.network = build(self.info, context_head=settings.alpha > 0)
        self.network.checkpoint_gradients(settings.checkpoint_gradients)
        weights = settings.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=fabric.device)
        self.memory: dict[str, Any] = {"best_miou": -1.0}
        if settings.ema_decay is not None:
            self.memory["average"] = {}

    def begin(self) -> None:
        """Start from the weights that the recipe names, if any."""
        recipe = self.recipe
        if recipe.model.encoder_weights is not None:
            self.network.load_state_dict(build(self.info, pretrained=True).state_dict())
        if recipe.start is not None:
            assert isinstance(self.network, CASWiT), recipe.model.arch  # the recipe refuses others
            start_from(self.network, recipe.start, recipe.model.size, recipe.tile.tile_px)
        if self.settings.ema_decay is not None:
            self.memory["average"] = averaging.copied(self.network)

    def masses(self, batch: Batch) -> Tensor:
        """Labelled pixels in tile and context labels."""
        return torch.stack([label_mass(batch[name], self.class_weights) for name in ("label", "context_label")])

    def loss(self, model: nn.Module, batch: Batch, masses: Tensor) -> Tensor:
        """Cross-entropy of both heads."""
        logits = model(batch["tile"], batch["context"] if batch["context"].numel() else None)
        hr, context = masses.unbind()
        labels = batch["label"], batch["context_label"]
        return supervised_loss(logits, labels, (hr, context), alpha=self.settings.alpha, weights=self.class_weights)

    def stepped(self, step: int) -> None:
        """Move the mean of the weights."""
        if self.settings.ema_decay is not None:
            averaging.advance(self.memory["average"], self.network, keep=self.settings.ema_decay, step=step)

    def judged(self) -> AbstractContextManager[None]:
        """While this lasts the network has the weights that would become the model."""
        return averaging.loaded(self.memory["average"], self.network) if self.settings.ema_decay else nullcontext()

    def look_every(self, steps_per_epoch: int) -> int:
        """Validate once an epoch unless told otherwise."""
        return self.settings.val_every_steps or steps_per_epoch

    def look(self, step: int, progress: Progress) -> dict[str, float]:
        """Score the validation split, draw some of its tiles, keep the best weights."""
        if not self.validator.scenes:
            return {}
        with self.judged():
            return self._look(step, progress)

    def _look(self, step: int, progress: Progress) -> dict[str, float]:
        scores = self.validator.scores(self.network)
        if self.fabric.is_global_zero:
            progress.say(f"step {step}: val mIoU {scores.miou:.4f}, mF1 {scores.mf1:.4f}")
            self.validator.write_picture(self.network, self.folder.pictures / f"step_{step:07}.png")
        if scores.miou > self.memory["best_miou"]:
            self.memory["best_miou"] = scores.miou
            if self.fabric.is_global_zero:
                best = {"model": self.network.state_dict(), "step": step, "val_miou": scores.miou}
                self.folder.save(self.folder.best, best)
        return {
            "val_miou": scores.miou,
            "val_mf1": scores.mf1,
            "val_mbiou": scores.mbiou,
            "val_accuracy": scores.overall_accuracy,
        }

    def finish(self, step: int) -> None:
        """Write the model folder."""
        with self.judged():
            self._finish(step)

    def _finish(self, step: int) -> None:
        if self.settings.keep == "best" and self.folder.best.exists():
            best = torch_load(self.folder.best)
            self.network.load_state_dict(best["model"])
            step = best["step"]
        provenance = {
            "dataset": self.validator.dataset.name,
            "step": step,
            "best_val_miou": self.memory["best_miou"] if self.validator.scenes else None,
            "recipe": dataclasses.asdict(self.recipe),
            "versions": {"caswit": __version__, "torch": torch.__version__},
        }
        save_model(self.network, dataclasses.replace(self.info, provenance=provenance), self.folder.model)


def _check(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse what would fail only after a while."""
    _check_weights(recipe.train, dataset)
    for split in (recipe.data.train_split, recipe.data.val_split):
        check_scenes(dataset, dataset.split(split) if split else ())
    per_pass = recipe.train.batch // (recipe.train.devices * recipe.train.accumulate)
    if per_pass == 1 and recipe.model.decoder_norm == "batch":
        raise ConfigError(
            "one tile per pass and device is too few for batch norm; raise batch, lower accumulate, "
            "or set model.decoder_norm=group"
        )


def _check_weights(settings: TrainConfig, dataset: Dataset) -> None:
    weights = settings.class_weights
    if weights is not None and len(weights) != len(dataset.classes):
        raise ConfigError(
            f"class_weights must have one weight for each of the {len(dataset.classes)} classes "
            f"({', '.join(dataset.classes.names)}), got {len(weights)}"
        )


def _info(recipe: Recipe, dataset: Dataset) -> ModelInfo:
    """What the model folder says."""
    trained_gsd_m = ground_size_m(dataset, dataset.split(recipe.data.train_split)[0])
    return ModelInfo(
        model=recipe.model, tile=recipe.tile, classes=dataset.classes, bands=dataset.bands, trained_gsd_m=trained_gsd_m
    )


class Validator:
    """Scores a network on the validation split, shared out over the devices of a run.

    Args:
        fabric: Launched.
        recipe: Of the run.
        dataset: Holds the validation split.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, dataset: Dataset) -> None:
        self.fabric, self.recipe, self.dataset = fabric, recipe, dataset
        self.scenes = dataset.split(recipe.data.val_split) if recipe.data.val_split else ()

    def scores(self, network: Network) -> Scores:
        """Scores over the split; every device gets the same."""
        tile_px = self.recipe.tile.tile_px
        counts = count_scenes(
            self._predictor(network),
            self.dataset,
            self.scenes,
            tile_px=tile_px,
            band_px=boundary_band_px(tile_px, tile_px),
            part=(self.fabric.global_rank, self.fabric.world_size),
        )
        network.train()
        return score(_sum_over_devices(self.fabric, counts))

    def write_picture(self, network: Network, file: Path) -> None:
        """Draw a few tiles spread over the split: context, tile, truth, prediction, errors."""
        tile = self.recipe.tile
        tiles = spread_tiles(self.dataset, self.scenes, tile.tile_px, self.recipe.train.pictures)
        if tiles:
            picture = sheet(self._predictor(network), self.dataset, tiles, tile.context_factor)
            atomic_write_bytes(file, png_bytes(picture))
        network.train()

    def _predictor(self, network: Network) -> Predictor:
        settings, device = self.recipe.train, self.fabric.device
        return Predictor(
            network.eval(),
            context_factor=self.recipe.tile.context_factor,
            batch=settings.batch // (settings.accumulate * settings.devices),
            device=device,
            bf16=uses_bf16(settings.precision, device),
        )


def _sum_over_devices(fabric: Fabric, counts: Counts) -> Counts:
    parts = (counts.confusion, counts.boundary_intersection, counts.boundary_union)
    confusion, intersection, union = (all_sum(fabric, torch.from_numpy(p)).cpu().numpy() for p in parts)
    return Counts(confusion=confusion, boundary_intersection=intersection, boundary_union=union)
