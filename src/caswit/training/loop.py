"""The loop of every training: steps, checkpoints, log, resuming. What is learned is an ``Objective``.

The loop is ours and short; Lightning Fabric supplies devices, precision and data parallelism. What a step does
is a function of (recipe, step, weights): samples and random numbers come from (seed, step), so a checkpoint of
weights, optimiser and step is all there is to resume from.
"""

import logging
import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from caswit.config import LearningConfig
from caswit.data.sampler import Samples, training_loader
from caswit.errors import ConfigError
from caswit.progress import Progress
from caswit.training.fabric import all_sum, is_first_process, make_fabric
from caswit.training.optim import adamw, learning_rate
from caswit.training.run_folder import AnyRecipe, RunFolder

log = logging.getLogger(__name__)
Batch = dict[str, Tensor]


class Objective(Protocol):
    """What is learned, from what, and what comes out of it."""

    @property
    def label(self) -> str:
        """What is being done, for whoever watches."""

    @property
    def network(self) -> nn.Module:
        """Every weight that is learned; returns what ``loss`` takes."""

    @property
    def samples(self) -> Samples:
        """What it is learned from."""

    @property
    def memory(self) -> dict[str, Any]:
        """Plain values that belong into a checkpoint beside the weights."""

    def begin(self) -> None:
        """Give the network the weights that a new run starts from."""

    def masses(self, batch: Batch) -> Tensor:
        """(M,): what the sums of the loss are divided by, of one pass. They add up over passes and devices."""

    def loss(self, model: nn.Module, batch: Batch, masses: Tensor) -> Tensor:
        """The share that a pass has in the loss of the whole batch, whose masses are given."""

    def stepped(self, step: int) -> None:
        """Called on every device after every optimiser step, with its number from 1."""

    def look(self, step: int, progress: Progress) -> dict[str, float]:
        """Validate, draw pictures; what is to be logged. Called on every device."""

    def look_every(self, steps_per_epoch: int) -> int:
        """After how many steps to look."""

    def finish(self, step: int) -> None:
        """Write the model. Called once, on the first device."""


class Loop:
    """A training in memory: what a checkpoint holds, and what advances it.

    Args:
        fabric: Launched.
        recipe: Of the run, as it is written into the run folder.
        settings: How to learn.
        folder: Checked.
        objective: What to learn.
    """

    def __init__(
        self, fabric: Fabric, recipe: AnyRecipe, settings: LearningConfig, folder: RunFolder, objective: Objective
    ) -> None:
        self.fabric, self.folder, self.objective = fabric, folder, objective
        self.workers = recipe.data.workers
        self.steps_per_epoch, self.max_steps = length(settings, objective.samples.tiles_per_epoch)
        self.settings = settings.absolute(self.steps_per_epoch, self.max_steps)
        self.look_every = objective.look_every(self.steps_per_epoch)
        network = self.network = objective.network
        checkpoint = fabric.broadcast(folder.begin(recipe) if fabric.is_global_zero else None)
        if checkpoint is None:
            objective.begin()
        optimizer = adamw(network, self.settings)
        self.step, self.elapsed_s = 0, 0.0
        if checkpoint is not None:
            network.load_state_dict(checkpoint["model"])
            optimizer.load_state_dict(checkpoint["optimizer"])
            self.step, self.elapsed_s = checkpoint["step"], checkpoint["elapsed_s"]
            objective.memory.update({name: checkpoint[name] for name in objective.memory})
        self.model, self.optimizer = fabric.setup(network, optimizer)
        self.started_s = time.perf_counter() - self.elapsed_s

    def fit(self) -> None:
        """Run the steps that are left, looking and saving on the way, then write the model."""
        if self.step >= self.max_steps and self.folder.model.is_dir():
            return
        first = self.fabric.is_global_zero
        writer = SummaryWriter(str(self.folder.path), purge_step=self.step + 1) if first else None
        with Progress(self.objective.label, self.max_steps, "step", done=self.step, quiet=not first) as progress:
            self._steps(progress, writer)
        if writer is not None:
            writer.close()
            self.objective.finish(self.step)
        self.fabric.barrier()

    def _steps(self, progress: Progress, writer: SummaryWriter | None) -> None:
        passes_of_steps = self._passes()
        saved_s = time.perf_counter()
        while self.step < self.max_steps and not self._out_of_time():
            began_s = time.perf_counter()
            row = self._step(next(passes_of_steps))
            self.step += 1
            self.objective.stepped(self.step)
            row["tiles_per_s"] = self.settings.batch / (time.perf_counter() - began_s)
            done = self.step == self.max_steps or self._out_of_time()
            if self.step % self.look_every == 0 or done:
                row |= self.objective.look(self.step, progress)
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
                self.objective.samples,
                steps=(self.step, self.max_steps),
                batch=settings.batch,
                passes=settings.accumulate,
                device=(fabric.global_rank, fabric.world_size),
                workers=self.workers,
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
        masses = all_sum(fabric, torch.stack([self.objective.masses(batch) for batch in passes]).sum(0))
        total = torch.zeros((), device=fabric.device)
        for number, batch in enumerate(passes, 1):
            with fabric.no_backward_sync(self.model, enabled=number < len(passes)):
                loss = self.objective.loss(self.model, batch, masses)
                # Data parallelism averages gradients over devices; this loss is a share of the whole already.
                fabric.backward(loss * fabric.world_size)
            total += loss.detach()
        if settings.clip_norm is not None:
            fabric.clip_gradients(self.model, self.optimizer, max_norm=settings.clip_norm)
        self.optimizer.step()
        return {"loss": self._finite(float(all_sum(fabric, total))), "lr": lr}

    def _finite(self, loss: float) -> float:
        if not math.isfinite(loss):
            raise ConfigError(
                f"the loss became {loss} at step {self.step + 1}; try a lower lr than {self.settings.lr}, "
                "warmup_steps=100, or clip_norm=5"
            )
        return loss

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
                **self.objective.memory,
            }
            self.folder.save(self.folder.last, checkpoint)

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


def launched(recipe: AnyRecipe, folder: RunFolder, *, resume: bool) -> Fabric:
    """Start the run on all its devices, once its folder is known to be free, or to hold this very run.

    Raises:
        ConfigError: It is not, or the devices are not there.
    """
    # Architectures of others build parts they do not use, e.g. PSPNet the deepest stages of its encoder.
    fabric = make_fabric(recipe.train, unused_weights=recipe.model.arch != "caswit")
    # Launching starts this program again on the other devices: check once, before that.
    if is_first_process():
        folder.check(recipe, resume=resume)
        if resume and not folder.last.exists():
            log.info("%s: nothing to resume yet, starting from step 0", folder.path)
    fabric.launch()
    return fabric


def length(settings: LearningConfig, tiles_per_epoch: int) -> tuple[int, int]:
    """Steps of an epoch and of the whole run."""
    steps_per_epoch = max(1, math.ceil(tiles_per_epoch / settings.batch))
    return steps_per_epoch, settings.max_steps or max(1, math.ceil(settings.epochs * steps_per_epoch))
