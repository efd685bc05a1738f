"""SIGINT and SIGTERM end a command like an exception, without a traceback wherever they arrive."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
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
