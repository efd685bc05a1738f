"""Batches that processes read ahead; one that was killed is one line where the next batch is asked for."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from caswit.errors import CaswitError, DataError

T_co = TypeVar("T_co", covariant=True)
_RAISED = "Caught "
"""How torch begins what a worker raised."""


class Loader(DataLoader[T_co]):
    """torch's loader, which takes the same arguments, with errors for users; see ``__iter__``."""

    def check_worker_number_rationality(self) -> None:
        """Do not warn of more workers than cores: they are what one wants where a disk is far away."""

    def __iter__(self) -> Iterator[T_co]:  # type: ignore[override]
        """Yield the batches in order.

        Raises:
            DataError: A worker was killed, as where there is not enough memory; up to 5 seconds after that.
            CaswitError: What a worker raised.
        """
        try:
            with _no_handler_left():
                batches = super().__iter__()
            yield from batches
        except CaswitError as error:
            if not str(error).startswith(_RAISED):
                raise
            # The worker's traceback, which ends with its message.
            name = f"{type(error).__module__}.{type(error).__name__}: "
            raise type(error)(str(error).rpartition(name)[2].strip()) from error
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_gone(error):
                raise
            raise DataError(
                "a process that reads ahead was ended from outside; memory, or shared memory in /dev/shm, may be too "
                "little: try fewer workers (--workers, in trainings --data.workers)"
            ) from error


@contextlib.contextmanager
def _no_handler_left() -> Iterator[None]:
    """Put the handler of SIGCHLD back that was there before: torch sets one, once, with its first workers.

    It would raise in whatever runs when a worker dies: in the middle of a step, or in a ``__del__``, where an
    exception is printed and lost. Without it torch looks for dead workers itself, every 5 seconds that it waits.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    if getattr(before, "__module__", None) == signal_handling.__name__:
        before = signal.SIG_DFL  # of a loader that is not ours
    try:
        yield
    finally:
        if before is not None:  # None: set by a library in C; Python cannot put it back
            signal.signal(signal.SIGCHLD, before)


def _is_gone(error: Exception) -> bool:
    """Return whether an error says that a worker is gone, rather than what it raised."""
    # It may go while what it has read is fetched from it.
    fetching = isinstance(error, ConnectionError | EOFError | FileNotFoundError) and _RAISED not in str(error)
    return fetching or "DataLoader worker (pid" in str(error)


def begin_worker(_worker: int) -> None:
    """Make a process one that reads for another: it leaves signals to that one, and computes in one thread."""
    # Ctrl-C and the signals of a cluster reach every process of a run. The training process saves first, for which it
    # still needs its workers; they end when it does.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # Workers are as many as there are cores to spare: more threads in each would only wait for one another.
    torch.set_num_threads(1)
