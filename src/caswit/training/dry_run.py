"""Try a training out: a few of its steps, their memory, and how long the whole run would take. Nothing is written."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from caswit.config import Recipe, TrainConfig
from caswit.evaluation.tile_pictures import grid_tiles
from caswit.inference.devices import MB, resident_mb
from caswit.progress import clock
from caswit.training.loop import Loop
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import SupervisedTask, trial

_STEPS, _ENOUGH_S = 4, 30.0
"""Steps that are taken, the first of which warms up; seconds after which no further one begins."""


class DryRun(NamedTuple):
    """What a few steps of a training say about the whole of it."""

    title: str
    """Of the network."""
    weights: int
    learning: int
    """Weights that are learned."""
    scenes: tuple[int, int]
    """Scenes to learn from and to validate on."""
    tiles: tuple[int, int]
    """Tiles of an epoch, and of a validation."""
    crop: str
    """The tiles of a pass."""
    loss: float
    """Of the first step."""
    step_s: float
    """Seconds of a step."""
    reading_s: float
    """Of these, seconds for reading samples."""
    validation_s: float
    """Seconds of a validation; 0 without one."""
    steps: int
    validations: int
    max_minutes: float | None
    memory_mb: float
    """Peak: on a GPU what torch reserved, else the resident memory of the process."""
    device: str

    @property
    def total_s(self) -> float:
        """Seconds of the whole run, as far as these few steps tell."""
        total = self.steps * self.step_s + self.validations * self.validation_s
        return total if self.max_minutes is None else min(total, 60 * self.max_minutes)

    def lines(self) -> list[str]:
        """Return what there is to say, a line for each subject."""
        every = "all of them learn" if self.learning == self.weights else f"{self.learning:,} of them learn"
        val = f"{self.scenes[1]} to validate on, {self.tiles[1]:,} tiles" if self.tiles[1] else "none to validate on"
        ends = "" if self.max_minutes is None else f", ended by max_minutes={self.max_minutes:g}"
        count = _many(self.validations, "validation")
        validations = f" and {count} of {self.validation_s:.1f} s" if self.validations else ""
        return [
            f"network: {self.title}, {self.weights:,} weights, {every}",
            f"data:    {_many(self.scenes[0], 'scene')} to learn from, {self.tiles[0]:,} tiles an epoch; {val}",
            f"step:    {self.crop}; loss {self.loss:.3f}; {self.step_s:.2f} s, of which reading {self.reading_s:.2f} s",
            f"memory:  {self.memory_mb / 1024:.1f} GB at most so far ({self.device})",
            f"time:    about {clock(self.total_s)} for {self.steps:,} steps of {self.step_s:.2f} s{validations}{ends}",
            "nothing was written",
        ]


def dry_run(recipe: Recipe, out: Path, *, resume: bool = False) -> DryRun:
    """Take the first steps of a training, forward and backward, and one part of a validation.

    A run on several devices is tried with the share of one; what they have to tell each other is not in the time.

    Args:
        recipe: Every setting.
        out: Run folder of the training, which must be free for it and is not touched.
        resume: The training is to go on there.

    Raises:
        CaswitError: As ``train``: what would stop it at its beginning.
    """
    RunFolder(out).check(recipe, resume=resume)
    settings = recipe.train
    alone = replace(settings, devices=1, batch=settings.batch // settings.devices, pictures=0)
    with trial(replace(recipe, train=alone)) as (loop, task):
        losses, seconds, reading = [], [], []
        began_s = last_s = time.perf_counter()
        for row, reading_s in loop.trial([None] * min(_STEPS, loop.max_steps)):
            now_s = time.perf_counter()
            losses.append(row["loss"])
            seconds.append(now_s - last_s)
            reading.append(reading_s)
            last_s = now_s
            if now_s - began_s > _ENOUGH_S:
                break
        # The first step chooses kernels and fills caches.
        timed = list(zip(seconds, reading, strict=True))[1:] or [(seconds[0], reading[0])]
        validation_s, tiles = _validation(loop, task)
        return DryRun(
            title=recipe.model.title,
            weights=_count(loop.network),
            learning=_count(loop.network, learning=True),
            scenes=(len(task.samples.scenes), len(task.validation_scenes)),
            tiles=(task.samples.tiles_per_epoch, tiles),
            crop=_crop(recipe),
            loss=losses[0],
            step_s=sum(s for s, _ in timed) / len(timed),
            reading_s=sum(r for _, r in timed) / len(timed),
            validation_s=validation_s / settings.devices,
            steps=loop.max_steps,
            validations=_validations(settings, loop) if tiles else 0,
            max_minutes=settings.max_minutes,
            memory_mb=_peak_mb(loop.fabric.device),
            device=loop.fabric.device.type,
        )


def _validation(loop: Loop, task: SupervisedTask) -> tuple[float, int]:
    """Return the seconds that a validation takes and its number of tiles, from one pass of them."""
    if not task.validation_scenes:
        return 0.0, 0
    whole = task.validation_sample or grid_tiles(task.dataset, task.validation_scenes, task.recipe.tile.tile_px)
    task.validation_sample = whole[:: -(-len(whole) // task.recipe.train.batch)]
    network: Any = loop.validated_network
    began_s = time.perf_counter()
    task.validate(network, 0)
    return (time.perf_counter() - began_s) / len(task.validation_sample) * len(whole), len(whole)


def _validations(settings: TrainConfig, loop: Loop) -> int:
    return math.ceil(loop.max_steps / loop.validate_every) + settings.validate_start


def _crop(recipe: Recipe) -> str:
    train, side = recipe.train, recipe.crop.tile_px
    parts = [f"{train.batch} tiles of {side} px"]
    if train.accumulate > 1:
        parts.append(f"in {train.accumulate} passes")
    if train.devices > 1:
        parts.append(f"on {train.devices} devices, of which one was tried")
    return " ".join(parts)


def _count(network: nn.Module, *, learning: bool = False) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad or not learning)


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _peak_mb(device: torch.device) -> float:
    return torch.cuda.max_memory_reserved(device) / MB if device.type == "cuda" else resident_mb()
