"""Trainings in several steps, one after the other, in each of which one part of the network learns."""

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypedDict

from torch import nn
from torch.optim import Optimizer

from caswit.config import PhaseConfig, PretrainConfig, Recipe, TrainConfig
from caswit.errors import ConfigError
from caswit.nn.baselines.table2 import network_class

log = logging.getLogger(__name__)

_NEARLY = 1e-9
"""Share of a run below which a step is where a phase begins: progress is a rounded quotient."""


class PhaseState(TypedDict):
    """What a checkpoint holds of the phases."""

    number: int
    """Of the phase of the last step, from 0."""
    began: int
    """Steps of the run before it."""


def check_phases(recipe: Recipe) -> None:
    """Refuse steps of a training that the network does not have, and say it where they are left out.

    Raises:
        ConfigError: The recipe names a phase that does not exist, or one has no optimiser step.
    """
    if recipe.model.kind != "table2":
        return
    phases, arch = recipe.train.phases, recipe.model.arch
    known: Mapping[str, Any] = network_class(arch).phases
    unknown = [phase.name for phase in phases if phase.name not in known]
    if unknown:
        allowed = f"its phases are {', '.join(known)}" if known else "it has none; leave train.phases out"
        raise ConfigError(f"train.phases: {arch} has no phase {', '.join(map(repr, unknown))}; {allowed}")
    if known and not phases:
        log.info(
            "%s: all of it learns at once; the phases that train.phases can name are %s",
            *(recipe.model.title, ", ".join(known)),
        )
    if recipe.train.max_steps is not None:
        check_steps(phases, recipe.train.max_steps)


def check_steps(phases: tuple[PhaseConfig, ...], max_steps: int) -> None:
    """Raise ConfigError if a run is too short for each phase to have an optimiser step."""
    ends = _ends(phases, max_steps)
    for phase, begin, end in zip(phases, (0, *ends), ends, strict=False):
        if end <= begin:
            raise ConfigError(
                f"train.phases: {phase.name} has no step in a run of {max_steps} with share {phase.share:g}; "
                f"try at least {math.ceil(1 / min(p.share for p in phases))} steps"
            )


class Phases:
    """Where a run is in its phases; a run without any is a single one, in which everything learns.

    Args:
        settings: Of the run, with the schedule resolved.
        network: Whose parts learn; only one with phases is touched.
        max_steps: Of the run.
    """

    def __init__(self, settings: TrainConfig | PretrainConfig, network: nn.Module, max_steps: int) -> None:
        self.phases: tuple[PhaseConfig, ...] = settings.phases
        self.settings, self.network, self.max_steps = settings, network, max_steps
        self.state: PhaseState = {"number": -1, "began": 0}
        self.ends = tuple(end / max_steps for end in _ends(self.phases, max_steps))

    @property
    def name(self) -> str | None:
        """Name of the phase that the run is in; None without phases."""
        return self.phases[max(0, self.state["number"])].name if self.phases else None

    @property
    def last(self) -> bool:
        """True in the last phase, after which the network is finished, and without phases."""
        return not self.phases or self.state["number"] == len(self.phases) - 1

    def at(self, step: int, progress: float, optimizer: Optimizer) -> tuple[TrainConfig | PretrainConfig, int, float]:
        """Be in the phase of a step.

        Args:
            step: Number of the step in the run, from 0.
            progress: Part of the run that is done, 0..1.
            optimizer: Starts anew where a phase does, as in a training of its own.

        Returns:
            Settings of the schedule, number of the step in the phase, and the part of the phase that is done, 0..1.
        """
        if not self.phases:
            return self.settings, step, progress
        number = sum(progress >= end - _NEARLY for end in self.ends[:-1])
        if number != self.state["number"]:
            self.state = {"number": number, "began": step}
            optimizer.state.clear()
            self._learn()
            self._say()
        begin = (0.0, *self.ends)[number]
        done = (progress - begin) / (self.ends[number] - begin)
        return self._settings(), step - self.state["began"], min(1.0, max(0.0, done))

    def resume(self, state: PhaseState) -> None:
        """Be in the phase of a checkpoint's last step."""
        self.state = state
        if state["number"] >= 0:
            self._learn()

    @contextmanager
    def validating(self, network: nn.Module) -> Iterator[None]:
        """Let a network that is validated be in the phase of the run, and in the last one be finished."""
        if not self.phases:
            yield
            return
        before, network.phase = network.phase, None if self.last else self.name  # type: ignore[assignment]
        try:
            yield
        finally:
            network.phase = before
            network.train()  # again, now that it is known which batch norms stay as they are

    def _learn(self) -> None:
        network: Any = self.network
        network.phase = self.name
        for name, weights in network.network.named_parameters():
            weights.requires_grad_(network.learns(name))
        network.train(network.training)

    def _settings(self) -> TrainConfig | PretrainConfig:
        lr = self.phases[self.state["number"]].lr
        return self.settings if lr is None else replace(self.settings, lr=lr)

    def _say(self) -> None:
        number, began = self.state["number"], self.state["began"]
        end = round(self.ends[number] * self.max_steps)
        until = f"to {end}" if self.settings.max_minutes is None else "on"
        log.info(
            "phase %s (%d of %d): steps %d %s, lr %.3g",
            *(self.name, number + 1, len(self.phases), began + 1, until, self._settings().lr),
        )


def _ends(phases: tuple[PhaseConfig, ...], max_steps: int) -> tuple[int, ...]:
    """Return the steps of the run after each phase; after the last they are all, however the shares are rounded."""
    ends = [round(share * max_steps) for share in accumulate(phase.share for phase in phases)]
    return (*ends[:-1], max_steps) if ends else ()
