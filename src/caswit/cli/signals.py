"""SIGINT and SIGTERM end a command like an exception, without a traceback wherever they arrive."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_AGAIN_S = 0.1


class _Ended(SystemExit):
    """Raised by a signal; leaves through every ``finally``, so that files written half are removed."""


@contextmanager
def quiet_end() -> Iterator[None]:
    """Let SIGINT end the process with status 130 and SIGTERM with 143 while the context lasts, and say nothing.

    Importing a library is the hard part: an extension module may turn the exception into an ImportError of its own,
    or print and drop it in a callback, where nothing can be raised.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _quiet_rasterio(), _ending():
        yield


@contextmanager
def _quiet_rasterio() -> Iterator[None]:
    """Let rasterio print nothing where it cannot read what GDAL says."""
    # GDAL quotes files byte by byte, half letters too, and rasterio makes text of it where nothing can be raised, to
    # log what we say in our own words. Python then calls both hooks. What ends the process comes after this context.
    printed, unraisable = sys.excepthook, sys.unraisablehook

    def quiet_printed(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        if kind is not UnicodeDecodeError:
            printed(kind, value, trace)

    def quiet_unraisable(what: Any) -> None:
        if what.object != "rasterio._env.log_error" or not isinstance(what.exc_value, UnicodeDecodeError):
            unraisable(what)

    sys.excepthook, sys.unraisablehook = quiet_printed, quiet_unraisable
    try:
        yield
    finally:
        sys.excepthook, sys.unraisablehook = printed, unraisable


@contextmanager
def _ending() -> Iterator[None]:
    came: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        came.append(number)
        raise _Ended(128 + number)

    def unraisable(what: Any) -> None:
        if not came or not isinstance(what.exc_value, _Ended):
            before_hook(what)
            return
        # The exception is lost here, and with it the signal: it is sent once more when the callback is over.
        again = threading.Timer(_AGAIN_S, signal.raise_signal, came[-1:])
        again.daemon = True
        again.start()

    handled = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    before_hook, sys.unraisablehook = sys.unraisablehook, unraisable
    try:
        yield
    except Exception:
        if not came:
            raise
        sys.exit(128 + came[-1])  # made of our exception by something on its way
    finally:
        sys.unraisablehook = before_hook
        for number, handler in handled.items():
            signal.signal(number, handler)
