"""Learning-rate range test (Smith 2017, "Cyclical learning rates"): the loss while the rate rises to where it breaks.

A hundred steps from the weights that a training would start with, each at a rate a little higher than the last. Below
some rate the loss does not move, then it falls, and in the end it rises. The suggestion is a tenth of the rate at which
the smoothed loss is lowest, as usual: the smoothing is late, and a whole training must bear the rate for longer.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caswit.config import Recipe
from caswit.errors import ConfigError
from caswit.files import atomic_write_bytes
from caswit.progress import Progress
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import trial
from caswit.viz.curves import Mark, log_curve
from caswit.viz.pictures import png_bytes

STEPS = 100
_RANGES = {"sgd": (1e-6, 10.0)}
_USUAL = (1e-7, 1.0)
_SMOOTH = 0.9
"""Share of the past in the smoothed loss."""
_QUIET = 20
"""Steps at the beginning whose rates are too low to change anything: they show how much batches differ."""
_BROKEN = 3.0
"""The test ends when the smoothed loss is so many times what it was at its lowest."""
_CLEAR = 4.0
"""Standard errors by which the loss has to fall, or to rise, to count: the lowest of many means is low by chance."""
PNG, CSV = "find_lr.png", "find_lr.csv"
_GREEN, _RED = (24, 128, 56), (200, 40, 40)


class LearningRates(NamedTuple):
    """What the test found."""

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    lowest: float
    """Rate at which the smoothed loss is lowest."""
    suggestion: float
    fell: bool
    """False where the loss never fell by more than batches differ: the suggestion is a tenth of where it rises."""
    picture: Path | None = None

    def lines(self, lr: float) -> list[str]:
        """Return what there is to say, beside the learning rate of the recipe."""
        if self.fell:
            why = f"a tenth of {self.lowest:.1e}, where the loss is lowest"
        else:
            why = (
                f"a tenth of {self.lowest:.1e}, up to where the loss does not rise; it never fell by more than batches "
                "differ, as of weights that know the data already"
            )
        return [f"suggestion: train.lr {self.suggestion:.1e} ({why}); the recipe has {lr:.1e}"]


def find_lr(recipe: Recipe, out: Path, *, resume: bool = False) -> LearningRates:
    """Take 100 steps at rising learning rates and write a picture and a table of the loss into a folder.

    Args:
        recipe: Of the training: its weights at the start, samples, loss, batch and optimiser are used, on one device.
        out: Run folder of the training, which must be free for it.
        resume: As of ``train``; the test begins anew all the same.

    Raises:
        CaswitError: As ``train``; or the recipe trains in phases, which have a rate each.
    """
    RunFolder(out).check(recipe, resume=resume)
    if recipe.train.phases:
        raise ConfigError("train.phases has several learning rates, and --find-lr tests one; leave train.phases out")
    settings = recipe.train
    alone = replace(
        settings, devices=1, accumulate=settings.accumulate * settings.devices, max_steps=STEPS, max_minutes=None
    )
    rates = list(map(float, np.geomspace(*_RANGES.get(settings.optimizer, _USUAL), STEPS)))
    losses: list[float] = []
    with trial(replace(recipe, train=alone)) as (loop, _), Progress("find-lr", STEPS, "step") as progress:
        for row, _ in loop.trial(rates):
            losses.append(row["loss"])
            progress.advance(1, f"lr {row['lr']:.1e}, loss {row['loss']:.3f}")
            if broke(losses):
                progress.end_here()
                break
    found = suggested(rates, losses)
    out.mkdir(parents=True, exist_ok=True)
    text = StringIO()
    table = csv.writer(text)
    table.writerow(("step", "lr", "loss", "smoothed"))
    table.writerows(
        (number, f"{lr:.6g}", f"{loss:.6g}", f"{smooth:.6g}")
        for number, (lr, loss, smooth) in enumerate(zip(found.rates, found.losses, found.smoothed, strict=True), 1)
    )
    atomic_write_bytes(out / CSV, text.getvalue().encode())
    atomic_write_bytes(out / PNG, png_bytes(_drawn(found, settings.lr)))
    return found._replace(picture=out / PNG)


def smooth(losses: Sequence[float]) -> list[float]:
    """Return running means of the losses up to each step, without the pull towards 0 at the beginning."""
    found, mean = [], 0.0
    for step, loss in enumerate(losses, 1):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        found.append(mean / (1 - _SMOOTH**step))
    return found


def broke(losses: Sequence[float]) -> bool:
    """Return whether the rate has become so high that the loss got out of hand."""
    smoothed = smooth(losses)
    return not math.isfinite(losses[-1]) or (len(losses) > _QUIET and smoothed[-1] > _BROKEN * min(smoothed))


def suggested(rates: Sequence[float], losses: Sequence[float]) -> LearningRates:
    """Return the learning rate that the losses of the first of these rates speak for."""
    kept = [loss for loss in losses if math.isfinite(loss)]
    if len(kept) <= _QUIET:
        raise ConfigError(
            f"the loss is not finite after {len(kept)} steps at learning rates below "
            f"{rates[len(kept)]:.1e}; look at the data with caswit inspect"
        )
    rates, smoothed = list(rates[: len(kept)]), smooth(kept)
    level = float(np.mean(kept[:_QUIET]))
    # What a running mean of n steps, n = (1 + s) / (1 - s), has of the differences between batches.
    error = float(np.std(kept[:_QUIET], ddof=1)) * math.sqrt((1 - _SMOOTH) / (1 + _SMOOTH))
    later = smoothed[_QUIET:]
    least = _QUIET + int(np.argmin(later))
    fell = bool(smoothed[least] < level - _CLEAR * error)
    if not fell:
        # The last rate before the loss rises for good.
        risen = [i for i in range(_QUIET, len(kept)) if smoothed[i] <= level + _CLEAR * error]
        least = risen[-1] if risen else _QUIET
    return LearningRates(rates, kept, smoothed, rates[least], _rounded(rates[least] / 10), fell)


def _rounded(value: float) -> float:
    """Return a value with two digits, which is more than the test tells."""
    return float(f"{value:.1e}")


def _drawn(found: LearningRates, lr: float) -> np.ndarray:
    # Up to twice the loss at the start: the explosion would press all else to the bottom.
    most = 2 * max(found.smoothed[:_QUIET])
    end = next((i for i, loss in enumerate(found.smoothed) if i > _QUIET and loss > most), len(found.smoothed))
    shown = slice(0, end)
    marks = [Mark(found.suggestion, f"suggestion {found.suggestion:.1e}", _GREEN)]
    if found.rates[0] <= lr <= found.rates[end - 1]:
        marks.append(Mark(lr, f"recipe {lr:.1e}", _RED))
    return log_curve(
        found.rates[shown],
        found.losses[shown],
        found.smoothed[shown],
        title="Loss while the learning rate rises (dots: steps, line: smoothed)",
        names=("learning rate", "loss"),
        marks=marks,
    )
