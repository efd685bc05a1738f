"""Where the numbers of a run go beside its log.csv: TensorBoard, Weights & Biases, MLflow.

Their own variables say where and how: WANDB_PROJECT, WANDB_MODE=offline, MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME.
A resumed run goes on in the run that it began there, whose name ``loggers.json`` keeps.
"""

import json
import logging
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from types import TracebackType
from typing import Any, Protocol, Self

from caswit.errors import ConfigError, DataError, naming_extras, one_line
from caswit.files import atomic_write_bytes, read_json
from caswit.training.run_folder import AnyRecipe, RunFolder, flat_settings

log = logging.getLogger(__name__)

_PROJECT = "caswit"
"""Project or experiment, unless a variable names another."""


class Logger(Protocol):
    """A service that keeps numbers by step."""

    id: str | None
    """Name of the run there, for resuming; None where the folder is enough."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step."""

    def close(self, *, finished: bool) -> None:
        """End the run there, or leave it to be resumed."""


class TensorBoard:
    """Event files in the run folder."""

    id: str | None = None

    def __init__(self, folder: RunFolder, step: int) -> None:
        with naming_extras("train.loggers: tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        # purge_step hides what a killed run logged after its checkpoint; those steps are taken again.
        self.writer = SummaryWriter(str(folder.path), purge_step=step + 1)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self, *, finished: bool) -> None:
        """Write what is left."""
        _ = finished
        self.writer.close()


class WandB:
    """A run of Weights & Biases."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any], known: str | None) -> None:
        import wandb

        self.run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.path.resolve().name,
            dir=str(folder.path),
            config=dict(settings),
            id=known,
            resume="allow",
        )
        self.id: str | None = str(self.run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step."""
        self.run.log(dict(numbers), step=step)

    def close(self, *, finished: bool) -> None:
        """End the run, which a resumed training continues."""
        self.run.finish(exit_code=0 if finished else 1)


class MLflow:
    """A run of MLflow."""

    def __init__(self, folder: RunFolder, settings: Mapping[str, Any], known: str | None) -> None:
        import mlflow

        self._metric = mlflow.entities.Metric
        # A client and no active run, of which the caller's own program may have one.
        self.client: Any = mlflow.tracking.MlflowClient()
        if known is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            experiment = self.client.get_experiment_by_name(name)
            number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            known = str(self.client.create_run(number, run_name=folder.path.resolve().name).info.run_id)
            for key, value in settings.items():
                self.client.log_param(known, key, value)
        else:
            self.client.update_run(known, status="RUNNING")
        self.id: str | None = known

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step."""
        now = int(time.time() * 1000)
        self.client.log_batch(self.id, metrics=[self._metric(name, x, now, step) for name, x in numbers.items()])

    def close(self, *, finished: bool) -> None:
        """End the run, which a resumed training continues."""
        self.client.set_terminated(self.id, status="FINISHED" if finished else "KILLED")


class Loggers:
    """The loggers of a run; use as a context manager. A service that fails later is left out, with a warning.

    Args:
        recipe: Of the run; ``train.loggers`` names them.
        folder: Of the run.
        step: Steps that were taken before.
        names: Of the loggers; () for the processes that do not write.

    Raises:
        ConfigError: A service cannot be reached or refuses the run.
    """

    def __init__(self, recipe: AnyRecipe, folder: RunFolder, step: int, names: Iterable[str]) -> None:
        self.finished = False
        """To be set before the end of a run that has nothing left to do."""
        file = folder.path / "loggers.json"
        # A run that begins anew in a folder where nothing was saved is another one.
        known = _known(file) if step else {}
        settings = flat_settings(asdict(recipe))
        self.loggers: dict[str, Logger] = {}
        for name in names:
            self.loggers[name] = _started(name, folder, settings, known.get(name), step)
        ids = {name: each.id for name, each in self.loggers.items() if each.id is not None}
        if ids:
            atomic_write_bytes(file, json.dumps(known | ids).encode())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in list(self.loggers):
            self._do(name, lambda each: each.close(finished=self.finished and kind is None))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Keep the numbers of a step: validation scores under val/, all others under train/."""
        tagged = {
            f"val/{name.removeprefix('val_')}" if name.startswith("val_") else f"train/{name}": value
            for name, value in numbers.items()
        }
        for name in list(self.loggers):
            self._do(name, lambda each: each.log(tagged, step))

    def _do(self, name: str, what: Any) -> None:
        try:
            what(self.loggers[name])
        # A service that is down must not end a training of days; of its errors no list is known.
        except Exception as error:
            if name == "tensorboard":  # writes into the run folder as the training itself does
                raise
            log.warning("%s: %s; nothing more is logged there", name, one_line(error))
            del self.loggers[name]


def check_loggers(names: Iterable[str]) -> None:
    """Refuse loggers whose package is not installed.

    Raises:
        CaswitError: One is not.
    """
    for name in names:
        try:
            if name == "tensorboard":
                with naming_extras("train.loggers: tensorboard"):
                    __import__("torch.utils.tensorboard")
            elif name != "csv":
                __import__(name)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"train.loggers: {name} is not installed; install the package {name}, or leave it out"
            ) from error


def _started(name: str, folder: RunFolder, settings: Mapping[str, Any], known: str | None, step: int) -> Logger:
    if name == "tensorboard":
        return TensorBoard(folder, step)
    try:
        return WandB(folder, settings, known) if name == "wandb" else MLflow(folder, settings, known)
    except Exception as error:  # of whatever kind: the line says what the service said
        offline = "set WANDB_MODE=offline" if name == "wandb" else "see MLFLOW_TRACKING_URI"
        raise ConfigError(
            f"train.loggers: {name} did not start ({one_line(error)}); {offline}, or leave it out"
        ) from error


def _known(file: Any) -> dict[str, str]:
    try:
        content = read_json(file)
    except DataError:
        return {}
    return {str(k): str(v) for k, v in content.items()} if isinstance(content, dict) else {}
