"""A signal ends a command quietly, wherever it arrives."""

import ctypes
import signal
import sys
import time

import pytest

from caswit.cli.signals import quiet_end

SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_library_that_makes_its_own_error_of_it(number):
    """As numpy does while it is imported: the user saw a traceback that ended in an ImportError."""

    def import_it():
        try:
            signal.raise_signal(number)
        except BaseException as error:
            raise ImportError("the extension cannot be loaded") from error

    with pytest.raises(SystemExit) as caught, quiet_end():
        import_it()
    assert caught.value.code == 128 + number


@pytest.mark.parametrize("number", SIGNALS)
def test_a_callback_that_drops_it(number, capfd):
    """Nothing can be raised through C: Python printed the exception, and the command went on."""
    callback = ctypes.CFUNCTYPE(None)(lambda: signal.raise_signal(number))

    def go_on():
        callback()
        time.sleep(10)

    with pytest.raises(SystemExit) as caught, quiet_end():
        go_on()
    assert caught.value.code == 128 + number
    assert capfd.readouterr().err == ""


def test_what_was_there_before_is_there_again():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with quiet_end():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before


def test_errors_that_no_signal_caused_stay():
    with pytest.raises(ImportError), quiet_end():
        raise ImportError("a bug")
