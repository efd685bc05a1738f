"""A signal ends a command quietly, wherever it arrives."""

import ctypes
import signal
import sys
import time

import pytest

from caswit.cli.signals import quiet_end
from caswit.errors import DataError
from caswit.raster.reader import Raster

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


def test_what_gdal_quotes_of_a_file_may_be_half_a_letter(tmp_path, capfd):
    """GDAL quotes the first byte of é: rasterio's log printed a traceback of three lines beside our one."""
    file = tmp_path / "odd.vrt"
    file.write_text('<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand é="Byte" band="1"/></VRTDataset>')
    with quiet_end(), pytest.raises(DataError, match=r"odd.vrt: not a raster GDAL can open"):
        Raster(file)
    assert capfd.readouterr().err == ""
