"""A run folder: recipe, log, checkpoints, pictures, the finished model.

Everything a killed run needs to continue is in ``checkpoints/last.pt``, which is replaced atomically; the log is
cut back to the step of that checkpoint on resuming.
"""

import csv
import errno
import json
import logging
import os
import re
import shlex
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import torch
import yaml
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from caswit.config import PretrainRecipe, Recipe
from caswit.config.renamed import with_new_names
from caswit.errors import CaswitError, ConfigError, DataError, ModelError, one_line
from caswit.files import (
    atomic_path,
    atomic_write_bytes,
    checked,
    lock_holder,
    read_json,
    read_yaml,
    remove_partial_files,
)
from caswit.training.phases import PhaseState
from caswit.weights.model_folder import CONFIG, is_complete, torch_load

log = logging.getLogger(__name__)

LOCK = "lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
LOOP_COLUMNS = ("step", "epoch", "loss", "lr", "tiles_per_s", "elapsed_s")
COLUMNS = (*LOOP_COLUMNS, "val_miou", "val_mf1", "val_mbiou", "val_accuracy")
AnyRecipe = Recipe | PretrainRecipe
_ANOTHER = "the run cannot go on from it; give another --out"
# A run may continue on another machine, or be given more time. The batch must stay, however it is shared out.
FREE_TO_CHANGE = {
    *("workers", "pictures", "save_every_s", "max_minutes", "stop_minutes"),
    *("accelerator", "devices", "accumulate", "patience", "loggers"),
}
"""Settings that may differ between a run and its continuation."""
_MOST_NAMED = 4
"""Settings that differ and are named in a refusal."""
LENGTH = ("train.max_steps", "train.epochs")
"""Settings that may be raised: a run, finished or not, goes on for longer."""


class Checkpoint(TypedDict):
    """The shape of last.pt."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    step: int
    elapsed_s: float
    best_miou: NotRequired[float]
    no_better: NotRequired[int]
    """Validations since the best one, which earlier versions did not count."""
    ema: NotRequired[dict[str, torch.Tensor]]
    average: NotRequired[dict[str, torch.Tensor]]
    """Name of ``ema`` in version 0.1.0."""
    max_steps: NotRequired[int]
    """Length of the run when it was written, which earlier versions did not note."""
    warmup_steps: NotRequired[int]
    """Length of the warm-up, which version 0.1.0 did not note."""
    phase: NotRequired[PhaseState]
    """Where a training in several steps is."""
    row: NotRequired[dict[str, float] | None]
    """Columns for the log of a step that was taken and not yet validated."""


class Best(TypedDict):
    """The shape of best.pt."""

    model: dict[str, torch.Tensor]
    step: int


class Start(TypedDict):
    """The shape of start.pt."""

    model: dict[str, torch.Tensor]


@contextmanager
def checkpoint_errors(file: Path) -> Iterator[None]:
    """Turn weights and states that do not fit the recipe's network into a ModelError of one line."""
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise ModelError(f"{file}: does not fit the recipe ({one_line(error)}); {_ANOTHER}") from error


class RunFolder:
    """Paths and files of one run.

    Args:
        path: The folder.
        columns: Names of the columns of log.csv.
    """

    def __init__(self, path: Path, columns: Sequence[str] = COLUMNS) -> None:
        self.path, self.columns = path, columns
        self.recipe = path / "recipe.yaml"
        self.log = path / "log.csv"
        self.last = path / "checkpoints" / "last.pt"
        self.best = path / "checkpoints" / "best.pt"
        self.start = path / "checkpoints" / "start.pt"
        self.pictures = path / "pictures"
        self.counts = path / "label_counts.npy"
        self.model = path / "model"

    def check(self, recipe: AnyRecipe, *, resume: bool, longer: bool = True) -> None:
        """Raise ConfigError if a run of this recipe cannot begin, or be resumed, in the folder.

        Args:
            recipe: Of the run that is to begin or go on.
            resume: Go on with the run that is there.
            longer: It may be longer than the run was.
        """
        if not self.last.exists() and not self.best.exists():
            return  # nothing was saved, so nothing can be lost
        if not resume:
            raise ConfigError(f"{self.path}: already holds a run; --resume continues it, or give another --out")
        try:
            before = checked(dict[str, Any], read_yaml(self.recipe), str(self.recipe))
        except DataError as error:
            raise DataError(f"{error}; {_ANOTHER}") from error
        differences = list(_differences(before, recipe))
        # The phases of a longer run begin elsewhere: some of its steps would belong to another phase.
        longer = longer and not recipe.train.phases
        others = [each for each in differences if not longer or each[0] not in LENGTH]
        if others:
            named = others[:_MOST_NAMED]
            got = "; ".join(f"{name}={one_line(was)}, got {one_line(value)}" for name, was, value in named)
            raise ConfigError(
                f"{self.path}: its run has {got}; resume with {_words(others)}the run's own recipe ({self.recipe}), "
                "or give another --out"
            )
        if differences:
            self._check_longer(_settings_of(before, recipe), recipe)

    def _check_longer(self, before: Mapping[str, Any], recipe: AnyRecipe) -> None:
        """Raise ConfigError unless the run gets longer, by the setting that says how long it is."""
        # Epochs and steps cannot be compared without the data, and epochs count only where there are no steps.
        name = "max_steps" if before["train.max_steps"] is not None else "epochs"
        was, value = before[f"train.{name}"], getattr(recipe.train, name)
        other = name == "epochs" and recipe.train.max_steps is not None
        if not isinstance(was, int | float):
            raise DataError(f"{self.recipe}: train.{name} must be a number, got {one_line(was)}; {_ANOTHER}")
        if other or value is None or value <= was:
            got = f"max_steps={recipe.train.max_steps}" if other else f"{name}={value}"
            raise ConfigError(
                f"{self.path}: its run has train.{name}={was}, got {got}; on resuming the length can only be raised: "
                f"--train.{name} {2 * was}"
            )

    def settings(self) -> dict[str, Any]:
        """Return the settings of the folder's run by section.name; none where its recipe cannot be read."""
        try:
            return flat_settings(checked(dict[str, Any], read_yaml(self.recipe), str(self.recipe)))
        except CaswitError:
            return {}

    @contextmanager
    def opened(self, recipe: AnyRecipe, *, resume: bool) -> Iterator[None]:
        """Check the folder and keep other processes out of it; the system unlocks it when this process ends.

        Raises:
            ConfigError: A run of this recipe cannot begin, or be resumed, or another process is at work in the folder.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path}: is a file; give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / LOCK, blocking=False, thread_local=False)
        try:
            lock.acquire()
            with suppress(OSError):  # Windows lets nobody write to a locked file
                (self.path / LOCK).write_text(f"process {os.getpid()} on {socket.gethostname()}")
        except Timeout:
            raise ConfigError(
                f"{self.path}: another run is at work in it ({lock_holder(self.path / LOCK)}); "
                "wait for it, or give another --out"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            log.info("%s: this file system has no locks; start only one run in this folder", self.path)
        try:
            self.check(recipe, resume=resume)
            # Those of killed runs: while we hold the lock, nobody else writes here.
            for folder in (self.path, self.last.parent, self.pictures, self.model):
                remove_partial_files(folder)
            yield
        finally:
            lock.release()

    def holds(self, recipe: AnyRecipe) -> bool:
        """Return whether the folder's run, finished or not, is of this recipe."""
        try:
            before = checked(dict[str, Any], read_yaml(self.recipe), str(self.recipe))
            return not any(_differences(before, recipe))
        except CaswitError:
            return False

    def finished(self, recipe: AnyRecipe) -> bool:
        """Return whether the folder's model was made by this recipe."""
        if not is_complete(self.model):
            return False
        config = checked(dict[str, Any], read_json(self.model / CONFIG), str(self.model / CONFIG), _ANOTHER)
        provenance = config.get("provenance")
        made_by = provenance.get("recipe") if isinstance(provenance, dict) else None
        return isinstance(made_by, dict) and not any(_differences(made_by, recipe))

    def begin(self, recipe: AnyRecipe) -> dict[str, Any] | None:
        """Make or reopen the folder; return the checkpoint to continue from, if there is one."""
        for folder in (self.path, self.last.parent, self.pictures):
            folder.mkdir(parents=True, exist_ok=True)
        # Written again on resuming, since settings that are free to change may have changed.
        text = yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False)
        atomic_write_bytes(self.recipe, text.encode())
        checkpoint: Any = None
        if self.last.exists():
            checkpoint = checked(Checkpoint, torch_load(self.last), str(self.last), _ANOTHER)
            if checkpoint["step"] < 0:
                raise DataError(f"{self.last}: step must be 0 or more, got {checkpoint['step']}; {_ANOTHER}")
        # Step 0 is a validation before the first step.
        self._cut_log(-1 if checkpoint is None else checkpoint["step"])
        return checkpoint

    def label_counts(self, shape: tuple[int, int]) -> NDArray[np.int64] | None:
        """Return the counts of training labels that the run began with; None where there are none of this shape."""
        try:
            counts = np.load(self.counts)
        except (OSError, ValueError, EOFError):
            return None
        return counts if counts.shape == shape and counts.dtype == np.int64 else None

    def save_label_counts(self, counts: NDArray[np.int64]) -> None:
        """Keep the counts of training labels for the resumed run."""
        with atomic_path(self.counts) as partial, partial.open("wb") as file:
            np.save(file, counts)

    def save(self, file: Path, checkpoint: Mapping[str, Any]) -> None:
        """Write a checkpoint under its final name only when it is complete."""
        try:
            with atomic_path(file) as partial:
                torch.save(dict(checkpoint), partial)
        except RuntimeError as error:  # what torch makes of a full disk
            raise DataError(f"{file}: could not be written; is the disk full? ({one_line(error)})") from error

    def write_log(self, row: Mapping[str, Any]) -> None:
        """Append a row to log.csv; columns that are not given stay empty."""
        # Opened for each row: a killed process loses no more than the line that it was writing.
        with self.log.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _cut_log(self, step: int) -> None:
        # Steps after the last checkpoint are taken again, and must not be in the log twice.
        kept = [row for row in read_log(self.log) if int(row["step"]) <= step] if self.log.exists() else []
        with atomic_path(self.log) as partial, partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows({name: row.get(name) for name in self.columns} for row in kept)


def read_log(file: Path) -> list[dict[str, str]]:
    """Return the rows of a log.csv, without a last line that was cut off."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = csv.DictReader([line for line in lines if line.endswith("\n")])
        if rows.fieldnames is not None and "step" not in rows.fieldnames:
            raise DataError(f"{file}: not the log of a run, column step is missing; move it away")
        # A row that a full disk cut short has fewer columns, or none that is called step.
        return [row for row in rows if None not in row and re.fullmatch(r"\d{1,18}", row["step"] or "", re.ASCII)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not the log of a run ({one_line(error)}); move it away") from error


def _words(differences: Sequence[tuple[str, Any, Any]]) -> str:
    """Return the words of a command that give settings the run's values; nothing where they would be a page."""
    if len(differences) > _MOST_NAMED or any(isinstance(was, dict) for _, was, _ in differences):
        return ""
    # Numbers, null and lists as the command line reads them; text as it is.
    values = [was if isinstance(was, str) else json.dumps(was, default=str) for _, was, _ in differences]
    words = [word for (name, *_), value in zip(differences, values, strict=True) for word in (f"--{name}", value)]
    return f"{shlex.join(words)}, with "


def _differences(before: dict[str, Any], recipe: AnyRecipe) -> Iterator[tuple[str, Any, Any]]:
    """Yield the settings that matter and differ: name, value before, value now."""
    old = _settings_of(before, recipe)
    for name, value in flat_settings(_plain(asdict(recipe))).items():
        # In version 0.1.0 a pretraining took 0 for what is null now; the checkpoint knows how long its warm-up was.
        unsaid = name == "train.warmup_steps" and not value and not old[name]
        if old[name] != value and not unsaid and name.rpartition(".")[2] not in FREE_TO_CHANGE:
            yield name, old[name], value


def _settings_of(before: dict[str, Any], recipe: AnyRecipe) -> dict[str, Any]:
    """Return all settings of a run folder's recipe by section.name."""
    # A setting that is missing was not known to the version that wrote the folder, which did what is now the default.
    defaults = type(recipe)(data=type(recipe.data)(dataset=""))  # type: ignore[arg-type]
    return flat_settings(_plain(asdict(defaults))) | flat_settings(before)


def flat_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return settings by section.name; ``init`` is one value."""
    flat: dict[str, Any] = {}
    for section, settings in recipe.items():
        if isinstance(settings, dict) and section != "init":
            flat |= {f"{section}.{name}": value for name, value in with_new_names(section, settings).items()}
        else:
            flat[section] = settings
    return flat


def _plain(value: Any) -> Any:
    """Return the value with lists for tuples, which is what YAML gives back."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
