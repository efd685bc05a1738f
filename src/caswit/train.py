"""Supervised training (paper sections 3.4 and 4.3).

The loop is ours and short; Lightning Fabric supplies devices, precision and data parallelism. What a step does
is a function of (recipe, step, weights): samples and random numbers come from (seed, step), so a checkpoint of
weights, optimiser and step is all there is to resume from.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from caswit.checkpoint import ModelInfo, build, save_model, torch_load
from caswit.config import Recipe, TrainConfig
from caswit.data.loader import TrainingSamples, training_loader
from caswit.data.samples import open_dataset_scene
from caswit.data.scene import Dataset, load_dataset
from caswit.errors import ConfigError, DataError
from caswit.launch import all_sum, is_first_process, make_fabric, repeatable
from caswit.losses import label_mass, supervised_loss
from caswit.optim import adamw, learning_rate
from caswit.progress import Progress
from caswit.runfolder import RunFolder
from caswit.validation import Validator
from caswit.version import __version__

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]


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
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken).read_at(recipe.tile.gsd_m)
    if is_first_process():
        dataset.list_broken()
    _check(recipe, dataset)
    folder = RunFolder(out)
    fabric = make_fabric(recipe.train)
    # Launching starts this program again on the other devices: check once, before that.
    if is_first_process():
        folder.check(recipe, resume=resume)
        if resume and not folder.last.exists():
            log.info("%s: nothing to resume yet, starting from step 0", out)
    fabric.launch()
    with repeatable(recipe.train, fabric.device):
        run = _Run(fabric, recipe, dataset, folder)
        if run.step < run.max_steps or not folder.model.is_dir():
            run.fit()
    return folder.model


class _Run:
    """A training run in memory: what a checkpoint holds, and what advances it."""

    def __init__(self, fabric: Fabric, recipe: Recipe, dataset: Dataset, folder: RunFolder) -> None:
        self.fabric, self.recipe, self.folder = fabric, recipe, folder
        settings = self.settings = recipe.train
        with_context = bool(recipe.model.fusion_stages)
        self.samples = TrainingSamples(
            dataset, recipe.data, recipe.tile, recipe.augment, seed=settings.seed, context=with_context
        )
        self.validator = Validator(fabric, recipe, dataset)
        self.info = _info(recipe, dataset)
        self.steps_per_epoch = max(1, math.ceil(self.samples.tiles_per_epoch / settings.batch))
        self.max_steps = settings.max_steps or max(1, math.ceil(settings.epochs * self.steps_per_epoch))
        torch.manual_seed(settings.seed)
        self.network = build(self.info, context_head=settings.alpha > 0)
        self.network.checkpoint_gradients(settings.checkpoint_gradients)
        optimizer = adamw(self.network, settings)
        checkpoint = fabric.broadcast(folder.begin(recipe) if fabric.is_global_zero else None)
        self.step, self.elapsed_s, self.best_miou = 0, 0.0, -1.0
        if checkpoint is not None:
            self.network.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            self.step, self.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
            self.best_miou = checkpoint["best_miou"]
        self.model, self.optimizer = fabric.setup(self.network, optimizer)
        weights = settings.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, device=fabric.device)
        self.started_s = time.perf_counter() - self.elapsed_s

    def fit(self) -> None:
        """Run the steps that are left, validating and saving on the way, then write the model."""
        first = self.fabric.is_global_zero
        writer = SummaryWriter(str(self.folder.path), purge_step=self.step + 1) if first else None
        with Progress("train", self.max_steps, "step", done=self.step, quiet=not first) as progress:
            self._steps(progress, writer)
        if writer is not None:
            writer.close()
            self._write_model()
        self.fabric.barrier()

    def _steps(self, progress: Progress, writer: SummaryWriter | None) -> None:
        every = self.settings.val_every_steps or self.steps_per_epoch
        passes_of_steps = self._passes()
        saved_s = time.perf_counter()
        while self.step < self.max_steps and not self._out_of_time():
            began_s = time.perf_counter()
            row = self._step(next(passes_of_steps))
            self.step += 1
            row["tiles_per_s"] = self.settings.batch / (time.perf_counter() - began_s)
            done = self.step == self.max_steps or self._out_of_time()
            if self.validator.scenes and (self.step % every == 0 or done):
                row |= self._validate(progress)
            if writer is not None:
                self._log(row, writer)
            progress.advance(1, f"loss {row['loss']:.3f}, {row['tiles_per_s']:.1f} tiles/s")
            if done or time.perf_counter() - saved_s >= self.settings.save_every_s:
                self._save()
                saved_s = time.perf_counter()

    def _passes(self) -> Iterator[list[Batch]]:
        """What this device sees in each of the steps that are left."""
        settings, fabric = self.settings, self.fabric
        loader = iter(
            training_loader(
                self.samples,
                steps=(self.step, self.max_steps),
                batch=settings.batch,
                passes=settings.accumulate,
                device=(fabric.global_rank, fabric.world_size),
                workers=self.recipe.data.workers,
            )
        )
        while True:
            yield [
                {name: x.to(fabric.device, non_blocking=True) for name, x in next(loader).items()}
                for _ in range(settings.accumulate)
            ]

    def _step(self, passes: list[Batch]) -> dict[str, float]:
        """One optimiser step on the passes of this device; loss of the whole batch, and learning rate."""
        settings, fabric = self.settings, self.fabric
        # A function of (seed, step, device): what stochastic depth drops does not depend on the past.
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * 1009 + fabric.global_rank)
        lr = learning_rate(settings, self.step, self._progress())
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        masses = self._masses(passes)
        total = torch.zeros((), device=fabric.device)
        for number, batch in enumerate(passes, 1):
            with fabric.no_backward_sync(self.model, enabled=number < len(passes)):
                logits = self.model(batch["tile"], batch["context"] if batch["context"].numel() else None)
                labels = batch["label"], batch["context_label"]
                loss = supervised_loss(logits, labels, masses, alpha=settings.alpha, weights=self.class_weights)
                # Data parallelism averages gradients over devices; this loss is a share of the whole already.
                fabric.backward(loss * fabric.world_size)
            total += loss.detach()
        if settings.clip_norm is not None:
            fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip_norm)
        self.optimizer.step()
        return {"loss": self._finite(float(all_sum(fabric, total))), "lr": lr}

    def _masses(self, passes: list[Batch]) -> tuple[Tensor, Tensor]:
        """Labelled pixels of the whole batch, over passes and devices, in tile and context labels."""
        weights = self.class_weights
        here = [torch.stack([label_mass(b["label"], weights), label_mass(b["context_label"], weights)]) for b in passes]
        hr, context = all_sum(self.fabric, torch.stack(here).sum(0)).unbind()
        return hr, context

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} at step {self.step + 1}; try a lower lr than {self.settings.lr}, "
                "warmup_steps=100, or clip_norm=5"
            )
        return loss

    def _validate(self, progress: Progress) -> dict[str, float]:
        scores = self.validator.scores(self.network)
        if self.fabric.is_global_zero:
            progress.say(f"step {self.step}: val mIoU {scores.miou:.4f}, mF1 {scores.mf1:.4f}")
            self.validator.write_picture(self.network, self.folder.pictures / f"step_{self.step:07}.png")
        if scores.miou > self.best_miou:
            self.best_miou = scores.miou
            if self.fabric.is_global_zero:
                best = {"model": self.network.state_dict(), "step": self.step, "val_miou": scores.miou}
                self.folder.save(self.folder.best, best)
        return {
            "val_miou": scores.miou,
            "val_mf1": scores.mf1,
            "val_mbiou": scores.mbiou,
            "val_accuracy": scores.overall_accuracy,
        }

    def _log(self, row: dict[str, float], writer: SummaryWriter) -> None:
        numbers = {name: f"{value:.6g}" for name, value in row.items()}
        numbers |= {"epoch": f"{self.step / self.steps_per_epoch:.4f}", "elapsed_s": f"{self._elapsed_s():.1f}"}
        self.folder.write_log({"step": self.step, **numbers})
        for name, value in row.items():
            tag = f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}"
            writer.add_scalar(tag, value, self.step)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            checkpoint = {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_s": self._elapsed_s(),
                "best_miou": self.best_miou,
            }
            self.folder.save(self.folder.last, checkpoint)

    def _write_model(self) -> None:
        step = self.step
        if self.settings.keep == "best" and self.folder.best.exists():
            best = torch_load(self.folder.best)
            self.network.load_state_dict(best["model"])
            step = best["step"]
        provenance = {
            "dataset": self.validator.dataset.name,
            "step": step,
            "best_val_miou": self.best_miou if self.validator.scenes else None,
            "recipe": dataclasses.asdict(self.recipe),
            "versions": {"caswit": __version__, "torch": torch.__version__},
        }
        save_model(self.network, dataclasses.replace(self.info, provenance=provenance), self.folder.model)

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self.started_s

    def _progress(self) -> float:
        """How far the run is, 0..1: in steps, or by the clock where that is further."""
        by_steps = self.step / self.max_steps
        if self.settings.max_minutes is None:
            return by_steps
        by_clock = min(1.0, self._elapsed_s() / (60 * self.settings.max_minutes))
        return float(self.fabric.broadcast(max(by_steps, by_clock)))

    def _out_of_time(self) -> bool:
        minutes = self.settings.max_minutes
        return minutes is not None and bool(self.fabric.broadcast(self._elapsed_s() >= 60 * minutes))


def _check(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse what would fail only after a while."""
    _check_weights(recipe.train, dataset)
    for split in (recipe.data.train_split, recipe.data.val_split):
        for scene in dataset.split(split) if split else ():
            if scene.checked and dataset.gsd_m is None:
                continue
            with open_dataset_scene(dataset, scene) as opened:
                if dataset.gsd_m is not None and opened.image.grid.gsd_m is None:
                    raise DataError(
                        f"{scene.image}: ground size of a pixel unknown, so it cannot be read at "
                        f"tile.gsd_m={dataset.gsd_m}; give an image with a CRS, or set tile.gsd_m to null"
                    )
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
    """What the model folder says; a ground size that the recipe leaves open is that of the first training scene."""
    gsd_m = recipe.tile.gsd_m
    if gsd_m is None:
        with open_dataset_scene(dataset, dataset.split(recipe.data.train_split)[0]) as scene:
            gsd_m = scene.image.grid.gsd_m
    return ModelInfo(model=recipe.model, tile=recipe.tile, classes=dataset.classes, bands=dataset.bands, gsd_m=gsd_m)
