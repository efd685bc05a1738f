"""Launch a run: devices, precision, data parallelism, repeatability. Lightning Fabric does the work."""

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from caswit.config import LearningConfig
from caswit.errors import ConfigError
from caswit.inference.devices import pick_device, uses_bf16
from caswit.training.run_folder import AnyRecipe, RunFolder

log = logging.getLogger(__name__)


def folder_for(recipe: AnyRecipe, out: Path, columns: Sequence[str], *, resume: bool) -> RunFolder:
    """Return the folder of a run, before data are read that take long.

    Raises:
        ConfigError: The run cannot begin, or go on, in it.
    """
    folder = RunFolder(out, columns)
    if recipe.train.devices == 1:  # several processes have to be told together, which ``launch`` does
        folder.check(recipe, resume=resume)
    return folder


@contextlib.contextmanager
def launch(recipe: AnyRecipe, folder: RunFolder, *, resume: bool) -> Iterator[Fabric]:
    """Start the run on all its devices, once its folder is known to be free, or to hold this very run.

    Within the context the folder is locked, and signals that ask to stop are noted for ``stop_signal``.

    Raises:
        ConfigError: The folder holds another run, another process is at work in it, or the devices are not there.
    """
    if not is_first_process():
        logging.getLogger("caswit").setLevel(logging.WARNING)
    # Architectures of others build parts they do not use, e.g. PSPNet the deepest stages of its encoder.
    fabric = _fabric(recipe.train, unused_weights=recipe.model.arch != "caswit")
    with contextlib.ExitStack() as stack:
        refusal = None
        if is_first_process():
            try:
                stack.enter_context(folder.opened(recipe, resume=resume))
            except ConfigError as error:
                refusal = error
        # Launching starts this program again on the other devices, so only a run that may begin does. What srun started
        # is there already, waits for this process, and must be told.
        if refusal is None or srun_tasks() > 1:
            stack.enter_context(noting_signals())
            with _device_errors(recipe.train):
                fabric.launch()
            if fabric.broadcast(refusal is not None) and refusal is None:
                raise SystemExit(2)  # the first process says why
        if refusal is not None:
            raise refusal
        if recipe.train.devices > 1 and is_first_process():
            machines = getattr(fabric.strategy, "num_nodes", 1)
            many = "" if machines == 1 else "s"
            log.info("%d processes, one for each device, on %d machine%s", fabric.world_size, machines, many)
        if resume and is_first_process() and not folder.last.exists():
            log.info("%s: nothing to resume yet, starting from step 0", folder.path)
        yield fabric


@contextlib.contextmanager
def one_device(recipe: AnyRecipe) -> Iterator[Fabric]:
    """Start on one device, without a run folder.

    Raises:
        ConfigError: The device is not there.
    """
    fabric = _fabric(recipe.train, unused_weights=recipe.model.arch != "caswit")
    with _device_errors(recipe.train):
        fabric.launch()
    yield fabric


def _fabric(settings: LearningConfig, *, unused_weights: bool) -> Fabric:
    kind = "auto" if settings.accelerator in ("auto", "gpu") else settings.accelerator
    bf16 = uses_bf16(settings.precision, pick_device(kind))
    ddp = "ddp_find_unused_parameters_true" if unused_weights else "ddp"
    tasks = srun_tasks()
    nodes = int(os.environ.get("SLURM_NNODES", "1")) if tasks > 1 else 1
    if tasks > 1 and tasks != settings.devices:
        raise ConfigError(
            f"srun started {tasks} processes, but train.devices is {settings.devices}; set --train.devices {tasks}, "
            "or start one process with srun --ntasks=1, which starts the others"
        )
    if tasks % nodes:
        raise ConfigError(f"srun started {tasks} processes on {nodes} machines; start as many on each")
    with _device_errors(settings):
        return Fabric(
            accelerator=settings.accelerator,
            devices=settings.devices // nodes,
            num_nodes=nodes,
            strategy="auto" if settings.devices == 1 else ddp,
            precision="bf16-mixed" if bf16 else "32-true",
            # In a SLURM job Fabric expects srun to have started every process; where it started one, we start the rest.
            plugins=[LightningEnvironment()] if tasks == 1 and "SLURM_NTASKS" in os.environ else None,
        )


@contextlib.contextmanager
def _device_errors(settings: LearningConfig) -> Iterator[None]:
    """Turn what Fabric and torch say of devices and processes into a ConfigError of one line."""
    try:
        yield
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ConfigError(
            f"cannot train on accelerator={settings.accelerator} devices={settings.devices} "
            f"({' '.join(str(error).split())}); try accelerator=auto devices=1"
        ) from error


def srun_tasks() -> int:
    """Return the number of processes that srun started for this run; 1 where it did not start them."""
    # Without srun the batch script of a job has no rank; jobs of these names are shells, as Fabric sees it too.
    if "SLURM_PROCID" not in os.environ or os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive"):
        return 1
    return int(os.environ.get("SLURM_NTASKS", "1"))


def is_first_process() -> bool:
    """Return True before launching, and after it in the process that writes files and messages."""
    # Asked before there is a Fabric too; its launcher starts the other processes with this variable.
    return int(os.environ["SLURM_PROCID"] if srun_tasks() > 1 else os.environ.get("LOCAL_RANK", "0")) == 0


_noted: list[signal.Signals] = []


def stop_signal() -> signal.Signals | None:
    """Return the first signal that asked this process to stop: Ctrl-C, SIGTERM, or SIGUSR1 before a time limit."""
    return _noted[0] if _noted else None


@contextlib.contextmanager
def noting_signals() -> Iterator[None]:
    """Note signals for ``stop_signal`` instead of ending the process; a second Ctrl-C ends it at once."""
    if threading.current_thread() is not threading.main_thread():  # Python hands signals to the main thread only
        yield
        return
    _noted.clear()
    wanted = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]
    # What the shell that started this process wants ignored, as for a job in the background, stays ignored.
    before = {s: signal.getsignal(s) for s in wanted if signal.getsignal(s) is not signal.SIG_IGN}

    def note(number: int, _frame: object) -> None:
        _noted.append(signal.Signals(number))
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, before[signal.SIGINT])

    for each in before:
        signal.signal(each, note)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
        _noted.clear()


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
