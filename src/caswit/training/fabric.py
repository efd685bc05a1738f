"""Launch a run: devices, precision, data parallelism, repeatability. Lightning Fabric does the work."""

import contextlib
import logging
import os
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from caswit.config import LearningConfig
from caswit.errors import ConfigError
from caswit.inference.devices import pick_device, uses_bf16
from caswit.training.run_folder import AnyRecipe, RunFolder

log = logging.getLogger(__name__)


def launch(recipe: AnyRecipe, folder: RunFolder, *, resume: bool) -> Fabric:
    """Start the run on all its devices, once its folder is known to be free, or to hold this very run.

    Raises:
        ConfigError: The folder holds another run, or the devices are not there.
    """
    # Architectures of others build parts they do not use, e.g. PSPNet the deepest stages of its encoder.
    fabric = _fabric(recipe.train, unused_weights=recipe.model.arch != "caswit")
    # Launching starts this program again on the other devices: check once, before that.
    if is_first_process():
        folder.check(recipe, resume=resume)
        if resume and not folder.last.exists():
            log.info("%s: nothing to resume yet, starting from step 0", folder.path)
    fabric.launch()
    return fabric


def _fabric(settings: LearningConfig, *, unused_weights: bool) -> Fabric:
    kind = "auto" if settings.accelerator in ("auto", "gpu") else settings.accelerator
    bf16 = uses_bf16(settings.precision, pick_device(kind))
    ddp = "ddp_find_unused_parameters_true" if unused_weights else "ddp"
    try:
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices,
            strategy="auto" if settings.devices == 1 else ddp,
            precision="bf16-mixed" if bf16 else "32-true",
        )
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            f"cannot train on accelerator={settings.accelerator} devices={settings.devices} "
            f"({' '.join(str(error).split())}); try accelerator=auto devices=1"
        ) from error


def is_first_process() -> bool:
    """Return True before launching, and after it in the process that writes files and messages."""
    # Asked before there is a Fabric too; its launcher starts the other processes with this variable.
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def all_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """Return the sum over devices, on every device."""
    summed = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


@contextlib.contextmanager
def repeatable(settings: LearningConfig, device: torch.device) -> Iterator[None]:
    """Use operations that repeat to the bit, if asked for; put torch's global state back afterwards."""
    wanted = device.type == "cpu" if settings.deterministic is None else settings.deterministic
    torch_deterministic: Any = torch.utils.deterministic  # a module with a property, which mypy does not see
    before = torch.are_deterministic_algorithms_enabled(), torch_deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(wanted)
    # Filling fresh memory would catch reads of uninitialised values; it is not what repeats, and is slow.
    torch_deterministic.fill_uninitialized_memory = False
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch_deterministic.fill_uninitialized_memory = before[1]
