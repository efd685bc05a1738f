"""The loop of every training: steps, schedule, EMA, checkpoints, log, resuming. What is learned is a ``Task``.

The loop is ours and short; Lightning Fabric supplies devices, precision and data parallelism. What a step does
is a function of (recipe, step, weights): samples and random numbers come from (seed, step), so a checkpoint of
weights, optimiser and step is all there is to resume from.
"""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import islice
from signal import SIGINT
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from caswit import __version__
from caswit.config import DataConfig, LearningConfig, ModelConfig, PretrainConfig, PretrainRecipe, TrainConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.hold_out import hold_out
from caswit.data.sampler import Samples, training_loader
from caswit.data.scene import Scene
from caswit.data.statistics import measure, reads_usual_bands, with_statistics
from caswit.errors import ConfigError, DataError, Stopped
from caswit.files import checked
from caswit.progress import Progress
from caswit.training.fabric import all_sum, is_first_process, stop_signal
from caswit.training.loggers import Loggers
from caswit.training.optim import EMA, SCALE, StartAverage, learning_rate, load_state, make_optimizer, set_learning_rate
from caswit.training.phases import Phases, check_steps
from caswit.training.run_folder import AnyRecipe, Best, RunFolder, Start, checkpoint_errors
from caswit.weights.model_folder import ModelInfo, PretrainedInfo, is_complete, torch_load

log = logging.getLogger(__name__)

Batch = dict[str, Tensor]
_LARGE = 50_000_000
"""Weights above which a network is large: its checkpoint, with the optimiser's state, takes most of a gigabyte."""
_SAVE_S, _SAVE_LARGE_S = 120.0, 900.0
"""Seconds between checkpoints unless the recipe says otherwise."""


class Task(Protocol):
    """A training task: the samples and the loss to learn by, the scores, and the model that is written in the end.

    The loop owns the network and hands it over where it is needed: in a step wrapped for devices and precision,
    for validation and saving plain, with its EMA weights where there are any.
    """

    @property
    def samples(self) -> Samples:
        """The samples to learn from."""

    def loss_normalizer(self, batch: Batch) -> Tensor:
        """Return the divisors (M,) of the sums in the loss, for one pass; they add up over passes and devices."""

    def loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Return the share of a pass in the loss of the whole batch, whose summed normalizer is given."""

    def validate(self, network: Any, step: int) -> dict[str, float]:
        """Score, draw pictures, and return columns for the log; ``val_miou`` decides which weights are the best.

        Called on every device. The network is in training mode before and after. May return early, with anything,
        once there is a ``stop_signal``: the validation is then done again on resuming.
        """

    def save(self, network: Any, provenance: dict[str, Any]) -> None:
        """Write the finished model. Called once, on the first device."""


def load_data(recipe: AnyRecipe) -> Dataset:
    """Return the dataset of a recipe, with its bands and at its ground size; the first process lists what was left out.

    Raises:
        DataError: The dataset cannot be used.
    """
    data = recipe.data
    dataset = load_dataset(data.dataset, skip_broken=data.skip_broken).read_at(recipe.tile.read_gsd_m, data.bands)
    if isinstance(data, DataConfig) and data.hold_out:
        assert data.val_split is not None  # the settings refuse it
        dataset = hold_out(dataset, data.hold_out, train_split=data.train_split, val_split=data.val_split)
    if is_first_process():
        dataset.list_broken()
    return dataset


def settle_bands(
    recipe: AnyRecipe, dataset: Dataset, scenes: Sequence[Scene], start: ModelInfo | PretrainedInfo | None
) -> tuple[Dataset, ModelConfig]:
    """Return the dataset with the bands that are read, and the settings of the network with the numbers of each.

    Red, green and blue of uint8 have what the recipe says. All else is measured on the scenes to learn from.

    Args:
        recipe: Of the run.
        dataset: Its dataset.
        scenes: To learn from.
        start: The model whose weights the training starts from, if it is known.

    Raises:
        DataError: The dataset lacks a band, or a scene cannot be read.
    """
    model, learned = recipe.model, None if start is None else start.model
    if model.bands:
        dataset = dataset.with_bands(model.bands)
    elif learned is not None and not dataset.names_bands and len(learned.band_names) == len(dataset.bands):
        dataset = dataset.with_bands(learned.band_names)
    if reads_usual_bands(dataset, scenes):
        return dataset, replace(model, bands=dataset.band_names)
    measured = measure(dataset, scenes)
    model = with_statistics(model, measured, learned)
    if is_first_process():
        for line in measured.lines():
            log.info("%s", line)
    return dataset.with_bands(model.bands, model.ranges), model


def fit(fabric: Fabric, recipe: AnyRecipe, folder: RunFolder, task: Task, network: nn.Module) -> None:
    """Train from the last checkpoint of the run folder, or from the start, until the model is written.

    Args:
        fabric: Launched.
        recipe: Every setting, as it is written into the run folder.
        folder: Checked by ``fabric.launch``.
        task: What to learn.
        network: Every weight that is learned, as a new run starts with them; a checkpoint replaces them.

    Raises:
        Stopped: A signal or ``stop_minutes`` ended the run before its last step; its checkpoint is written.
    """
    Loop(fabric, recipe, folder, task, network).run()


class Loop:
    """A training in memory: what a checkpoint holds, and what advances it. Arguments as of ``fit``."""

    def __init__(self, fabric: Fabric, recipe: AnyRecipe, folder: RunFolder, task: Task, network: nn.Module) -> None:
        self.fabric, self.recipe, self.folder, self.task, self.network = fabric, recipe, folder, task, network
        self.steps_per_epoch, self.max_steps = length(recipe.train, task.samples.tiles_per_epoch)
        check_steps(recipe.train.phases, self.max_steps)
        checkpoint = fabric.broadcast(folder.begin(recipe) if fabric.is_global_zero else None)
        settings = self.settings = self._schedule(checkpoint)
        weights = sum(p.numel() for p in network.parameters())
        usual_s = _SAVE_LARGE_S if weights > _LARGE else _SAVE_S
        self.save_every_s = usual_s if settings.save_every_s is None else settings.save_every_s
        self.validate_every = settings.validate_every or self.steps_per_epoch
        self.step, self.elapsed_s, self.best_miou = 0, 0.0, -1.0
        self.no_better = 0
        """Validations since the best one."""
        self.longer = checkpoint is not None and checkpoint.get("max_steps", self.max_steps) < self.max_steps
        self.row: dict[str, float] | None = None
        """Columns for the log of a step that is taken and not yet validated; None between steps."""
        optimizer = make_optimizer(network, settings, fused=fabric.device.type == "cuda")
        self.model, self.optimizer = fabric.setup(network, optimizer)
        # After fabric.setup: data parallelism is to know every weight, also those that learn in a later phase only.
        self.phases = Phases(settings, network, self.max_steps)
        self.ema = None if settings.ema_decay is None else EMA(network, settings.ema_decay)
        self.with_start: StartAverage | None = None
        if settings.average_with_start is not None:
            start = self._start(new=checkpoint is None)
            with checkpoint_errors(folder.start):
                self.with_start = StartAverage(network, start, settings.average_with_start)
        if checkpoint is not None:
            with checkpoint_errors(folder.last):
                self._load(checkpoint)
        self.began_s = time.perf_counter()
        self.started_s = self.began_s - self.elapsed_s

    def _schedule(self, checkpoint: dict[str, Any] | None) -> TrainConfig | PretrainConfig:
        """Return the settings with their schedule resolved, that of a run which version 0.1.0 began as it was."""
        settings: TrainConfig | PretrainConfig = self.recipe.train
        noted = None if checkpoint is None else checkpoint.get("warmup_steps")
        if checkpoint is not None and noted is None and isinstance(settings, PretrainConfig):
            settings = replace(settings, warmup_steps=settings.warmup_steps or None)  # 0 was null then
        resolved = settings.resolve_schedule(self.steps_per_epoch, self.max_steps)
        if noted is not None and noted != resolved.warmup_steps:
            raise ConfigError(
                f"{self.folder.path}: its run has a warm-up of {noted} steps, got {resolved.warmup_steps}; resume with "
                f"--train.warmup_steps {noted}, or give another --out"
            )
        return resolved

    def _start(self, *, new: bool) -> dict[str, Tensor]:
        """Return the weights that the run began with; a new run writes them, since their source may change or go."""
        first, file = self.fabric.is_global_zero, self.folder.start
        if new:
            state = {name: x.detach().cpu().clone() for name, x in self.network.state_dict().items()}
            if first:
                self.folder.save(file, {"model": state})
            return state
        found: Any = checked(Start, torch_load(file), str(file)) if first else None
        weights: dict[str, Tensor] = self.fabric.broadcast(found)["model"]
        return weights

    def _load(self, checkpoint: dict[str, Any]) -> None:
        # After fabric.setup, which moves parameters and not the optimiser's state: loading takes the state to where
        # its parameter is, so earlier it would stay on the CPU.
        self.network.load_state_dict(checkpoint["model"])
        load_state(self.optimizer.optimizer, checkpoint["optimizer"])
        if self.ema is not None:
            # Version 0.1.0 wrote it as "average".
            self.ema.module.load_state_dict(checkpoint["ema" if "ema" in checkpoint else "average"])
        self.step, self.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
        self.best_miou = checkpoint.get("best_miou", self.best_miou)
        self.no_better = checkpoint.get("no_better", 0)
        self.row = checkpoint.get("row")
        if "phase" in checkpoint:
            self.phases.resume(checkpoint["phase"])

    def _say_if_longer(self) -> None:
        """Say what the learning rate does where a run goes on and has been made longer: its cosine ends later now."""
        settings, group = self.settings, self.optimizer.param_groups[0]
        was = group["lr"] / group.get(SCALE, 1.0)
        warmup = settings.warmup_steps or 0
        # A run in phases keeps its length.
        if settings.phases or not 0 < self.step < self.max_steps:
            return
        if self.step <= warmup:
            if self.longer and warmup >= self.max_steps:
                log.info(
                    "the run is longer than it was: its %d steps end within the warm-up of %d, in which the learning "
                    "rate rises as before",
                    *(self.max_steps, warmup),
                )
            elif self.longer:
                peak = learning_rate(settings, warmup, warmup / self.max_steps)
                log.info(
                    "the run is longer than it was: after step %d the learning rate rises as before, to %.3g at the "
                    "end of the warm-up of %d steps, and then falls to %.3g at the end of %d steps",
                    *(self.step, peak, warmup, settings.min_lr, self.max_steps),
                )
            return
        now = learning_rate(settings, self.step, self._progress())
        # Between two steps of one schedule it only falls.
        if now > was * (1 + 1e-9):
            log.info(
                "the run is longer than it was: after step %d the learning rate rises from %.3g to %.3g, where the "
                "schedule of %d steps has it, and falls to %.3g at the end",
                *(self.step, was, now, self.max_steps, settings.min_lr),
            )

    @property
    def validated_network(self) -> nn.Module:
        """The network that is validated and becomes the model: the one that learns, or a mean where asked for.

        The mean is that of the steps (EMA), that with the start, or the latter of the former.
        """
        # A network of its own: validation cannot leave the wrong weights in the one that learns.
        network = self.network if self.ema is None else self.ema.module
        return network if self.with_start is None else self.with_start.of(network)

    def run(self) -> None:
        """Run the steps that are left, validating and saving on the way, then write the model."""
        ended = self.step >= self.max_steps or self._out_of_patience()
        if ended and self.row is None and is_complete(self.folder.model):
            self._say_if_impatient()
            return
        self._say_if_longer()
        first = self.fabric.is_global_zero
        label = "pretrain" if isinstance(self.recipe, PretrainRecipe) else "train"
        names = [name for name in self.settings.loggers if name != "csv"] if first else []
        done = self.step - (self.row is not None)
        with (
            Loggers(self.recipe, self.folder, self.step, names) as loggers,
            Progress(label, self.max_steps, "step", done=done, quiet=not first) as progress,
        ):
            stopped = not (self._begin(progress, loggers) and self._steps(progress, loggers))
            loggers.finished = not stopped
            if not stopped:
                progress.end_here()  # max_minutes may have come before the last step: "2/100 step" looked unfinished
        if stopped:
            self._leave()
        self._say_if_impatient()
        if first:
            self._write_model()
        self.fabric.barrier()

    def _say_if_impatient(self) -> None:
        """Say why a run ended before its last step."""
        if self._out_of_patience() and self.step < self.max_steps:
            log.info(
                "ended after step %d of %d: no better mIoU than %.4f in %d validation%s; --resume with a larger "
                "train.patience goes on",
                *(self.step, self.max_steps, self.best_miou, self.no_better, "s"[: self.no_better > 1]),
            )

    def _begin(self, progress: Progress, loggers: Loggers) -> bool:
        """Validate before the first step where the recipe asks for it; return False if the run was told to stop."""
        if not self.settings.validate_start or self.step or self.best_miou >= 0:
            return True
        scores = self._validate(progress)
        if scores is None:
            return False
        if self.fabric.is_global_zero:
            self._log(scores, loggers)
        self._save()
        return True

    def _steps(self, progress: Progress, loggers: Loggers) -> bool:
        """Take the steps that are left; return False if the run was told to stop before, and saved for resuming."""
        passes_of_steps = self._passes()
        saved_s = time.perf_counter()
        stop = False
        # A step that was taken by the run before, which stopped instead of validating, is finished first.
        while self.row is not None or not self._ended():
            if self.row is None:
                began_s = time.perf_counter()
                with self._saved_if_data_fails():
                    passes = next(passes_of_steps)
                self.row, stop = self._step(passes)
                self._check_finite(self.row["loss"])
                self.row["tiles_per_s"] = self.settings.batch / (time.perf_counter() - began_s)
            # Before the checkpoint: a run that dies while it validates takes the step and the validation again.
            done = self._ended()
            validated = self.step % self.validate_every == 0 or done
            if validated:
                with self._saved_if_data_fails():
                    scores = None if stop else self._validate(progress)
                if scores is None:
                    self._save()
                    return False
                self.row |= scores
            if self.fabric.is_global_zero:
                self._log(self.row, loggers)
            phase = f"{self.phases.name}: " if self.phases.name else ""
            progress.advance(1, f"{phase}loss {self.row['loss']:.3f}, {self.row['tiles_per_s']:.1f} tiles/s")
            self.row = None
            if stop or validated or time.perf_counter() - saved_s >= self.save_every_s:
                self._save()
                saved_s = time.perf_counter()
            if stop:
                return False
        return True

    @contextmanager
    def _saved_if_data_fails(self) -> Iterator[None]:
        """Save before a broken file, or a killed reading process, ends the run between two steps."""
        try:
            yield
        except DataError as error:
            if self.step == 0:
                raise
            self._save()
            raise DataError(f"{error}; step {self.step} is saved, --resume goes on from it") from error

    def _leave(self) -> None:
        """End a run that stops before its last step, once its checkpoint is written."""
        self.fabric.barrier()  # a device that left earlier would take those with it that still wait for others
        if not self.fabric.is_global_zero:
            raise Stopped("")
        signal, minutes = stop_signal(), self.settings.stop_minutes
        why = signal.name if signal else "another of its processes" if minutes is None else f"stop_minutes={minutes:g}"
        raise Stopped(
            f"{self.folder.path}: stopped by {why} after step {self.step} of {self.max_steps}, which is saved",
            interrupted=signal is SIGINT,
        )

    def _passes(self) -> Iterator[list[Batch]]:
        """Yield the batches of this device for each of the steps that are left, one for each pass."""
        loader = training_loader(
            self.task.samples,
            steps=(self.step, self.max_steps),
            batch=self.settings.batch,
            passes=self.settings.accumulate,
            device=(self.fabric.global_rank, self.fabric.world_size),
            workers=self.recipe.data.workers,
            # Copied to the GPU from there while it still computes the step before; Fabric does not wait for copies.
            pinned=self.fabric.device.type == "cuda" and torch.cuda.is_available(),
        )
        # The loader shares the batch out itself, so that accumulated passes and devices see the same samples as one.
        on_device: Any = self.fabric.setup_dataloaders(loader, use_distributed_sampler=False)
        batches = iter(on_device)
        while passes := list(islice(batches, self.settings.accumulate)):
            yield passes

    def trial(self, rates: Iterable[float | None]) -> Iterator[tuple[dict[str, float], float]]:
        """Take a step for each learning rate, None for that of the schedule, without validations and checkpoints.

        Yields:
            Loss and learning rate as of the log, and the seconds that reading the samples took.
        """
        passes_of_steps = self._passes()
        for lr in rates:
            began_s = time.perf_counter()
            passes = next(passes_of_steps)
            reading_s = time.perf_counter() - began_s
            yield self._step(passes, lr)[0], reading_s

    def _step(self, passes: list[Batch], lr: float | None = None) -> tuple[dict[str, float], bool]:
        """Take one optimiser step on the passes of this device, at the schedule's learning rate or another.

        Returns:
            Loss of the whole batch and learning rate, and whether any device was told to stop.
        """
        settings, fabric, task = self.settings, self.fabric, self.task
        # A function of (seed, step, device): what stochastic depth drops does not depend on the past.
        torch.manual_seed((settings.seed * 1_000_003 + self.step) * 1009 + fabric.global_rank)
        scheduled = learning_rate(*self.phases.at(self.step, self._progress(), self.optimizer.optimizer))
        lr = scheduled if lr is None else lr
        set_learning_rate(self.optimizer, lr)
        self.optimizer.zero_grad()
        # Summed before any loss: passes with few labelled pixels must weigh less, as they would in one batch.
        normalizer = all_sum(fabric, torch.stack([task.loss_normalizer(batch) for batch in passes]).sum(0))
        total = torch.zeros((), device=fabric.device)
        for number, batch in enumerate(passes, 1):
            with fabric.no_backward_sync(self.model, enabled=number < len(passes)):
                loss = task.loss(self.model, batch, normalizer)
                # Data parallelism averages gradients over devices; this loss is a share of the whole already.
                fabric.backward(loss * fabric.world_size)
            total += loss.detach()
        if settings.clip_norm is not None:
            fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip_norm)
        self.optimizer.step()
        self.step += 1
        # One sum for both: devices that left at different steps would wait for one another for ever.
        loss, stops = all_sum(fabric, torch.stack((total, total.new_tensor(self._told_to_stop())))).tolist()
        row = {"loss": loss, "lr": lr}
        if self.ema is not None:
            self.ema.update(self.network, self.step)
        return row, stops > 0

    def _told_to_stop(self) -> float:
        """Return 1 if this process got a signal, or has used up its minutes before the last step."""
        minutes = self.settings.stop_minutes
        over = minutes is not None and time.perf_counter() - self.began_s >= 60 * minutes
        return float(stop_signal() is not None or (over and self.step < self.max_steps))

    def _check_finite(self, loss: float) -> None:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} at step {self.step}; try a lower lr than {self.settings.lr}, "
                "warmup_steps=100, or clip_norm=5"
            )

    def _validate(self, progress: Progress) -> dict[str, float] | None:
        """Validate, and keep the best weights so far in a checkpoint of their own; None if a signal cut it short."""
        network = self.validated_network
        with self.phases.validating(network):
            scores = self.task.validate(network, self.step)
        # Asked of all, since a device with a signal has left out some of its share.
        if all_sum(self.fabric, torch.tensor(float(stop_signal() is not None))) > 0:
            return None
        if "val_miou" not in scores:
            return scores
        miou, first = scores["val_miou"], self.fabric.is_global_zero
        if first:
            progress.say(f"step {self.step}: val mIoU {miou:.4f}, mF1 {scores['val_mf1']:.4f}")
        # Before the last phase parts of the network have not learned: such weights are no model.
        if not self.phases.last:
            return scores
        self.no_better += 1
        if miou > self.best_miou:
            self.best_miou, self.no_better = miou, 0
            if first:
                best = {"model": network.state_dict(), "step": self.step, "val_miou": miou}
                self.folder.save(self.folder.best, best)
        return scores

    def _log(self, row: dict[str, float], loggers: Loggers) -> None:
        numbers = {name: f"{value:.6g}" for name, value in row.items()}
        if self.phases.name:
            numbers["phase"] = self.phases.name
        numbers |= {"epoch": f"{self.step / self.steps_per_epoch:.4f}", "elapsed_s": f"{self._elapsed_s():.1f}"}
        self.folder.write_log({"step": self.step, **numbers})
        loggers.log(row, self.step)

    def _save(self) -> None:
        if self.fabric.is_global_zero:
            checkpoint = {
                "model": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "elapsed_s": self._elapsed_s(),
                "max_steps": self.max_steps,
                "warmup_steps": self.settings.warmup_steps,
                "best_miou": self.best_miou,
                "no_better": self.no_better,
                **({} if self.row is None else {"row": self.row}),
                **({"phase": self.phases.state} if self.phases.name else {}),
                **({} if self.ema is None else {"ema": self.ema.module.state_dict()}),
            }
            self.folder.save(self.folder.last, checkpoint)

    def _write_model(self) -> None:
        network, step = self.validated_network, self.step
        if self.settings.keep == "best" and self.folder.best.exists():
            best = checked(Best, torch_load(self.folder.best), str(self.folder.best))
            with checkpoint_errors(self.folder.best):
                network.load_state_dict(best["model"])
            step = best["step"]
        if self.phases.name:
            network.phase = None  # type: ignore[assignment]  # finished: all of it answers
        score = {} if self.best_miou < 0 else {"best_val_miou": self.best_miou}
        versions = {"caswit": __version__, "torch": torch.__version__}
        self.task.save(network, {"step": step, **score, "recipe": asdict(self.recipe), "versions": versions})

    def _elapsed_s(self) -> float:
        return time.perf_counter() - self.started_s

    def _progress(self) -> float:
        """Return the part of the run that is done, 0..1: in steps, or by the clock where that is further."""
        by_steps = self.step / self.max_steps
        if self.settings.max_minutes is None:
            return by_steps
        by_clock = min(1.0, self._elapsed_s() / (60 * self.settings.max_minutes))
        return float(self.fabric.broadcast(max(by_steps, by_clock)))

    def _ended(self) -> bool:
        """Return whether no step is to follow; the same on every device, which scores and the clock of one decide."""
        return self.step >= self.max_steps or self._out_of_patience() or self._out_of_time()

    def _out_of_patience(self) -> bool:
        return self.settings.patience is not None and self.no_better >= self.settings.patience

    def _out_of_time(self) -> bool:
        # Asked of the first device, whose clock decides: devices that stop at different steps would wait for ever.
        minutes = self.settings.max_minutes
        return minutes is not None and bool(self.fabric.broadcast(self._elapsed_s() >= 60 * minutes))


def length(settings: LearningConfig, tiles_per_epoch: int) -> tuple[int, int]:
    """Return the optimiser steps of an epoch and of the whole run."""
    steps_per_epoch = max(1, math.ceil(tiles_per_epoch / settings.batch))
    return steps_per_epoch, settings.max_steps or max(1, math.ceil(settings.epochs * steps_per_epoch))
