"""How a run is launched: devices, precision, data parallelism, repeatability. Lightning Fabric does the work."""

import contextlib
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


def make_fabric(settings: LearningConfig, *, unused_weights: bool = False) -> Fabric:
    """Fabric for the devices and the precision that the settings ask for; not yet launched.

    Args:
        settings: How to learn.
        unused_weights: The network has weights that its output does not depend on.

    Raises:
        ConfigError: They are not there.
    """
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
    """True before launching, and after it in the process that writes files and messages."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0


def all_sum(fabric: Fabric, values: Tensor) -> Tensor:
    """The sum over devices, on every device."""
    summed = fabric.all_reduce(values.to(fabric.device), reduce_op="sum")
    assert isinstance(summed, Tensor)
    return summed


@contextlib.contextmanager
def repeatable(settings: LearningConfig, device: torch.device) -> Iterator[None]:
    """Operations that repeat to the bit, if asked for; puts torch's global state back afterwards."""
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
