"""Files that are complete or absent, and progress without a terminal."""

import pytest

from caswit.files import atomic_path, atomic_write_bytes
from caswit.progress import Progress, clock


def test_a_file_appears_whole(tmp_path):
    atomic_write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(file) as partial:  # noqa: PT012
        partial.write_bytes(b"ha")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_progress_prints_plain_lines_when_there_is_no_terminal(capsys):
    with Progress("map", 3, "Mpx") as progress:
        progress.advance(1.5, "note")
        progress.advance(1.5)
    err = capsys.readouterr().err
    assert err.startswith("map: 3/3 Mpx, ")
    assert err.count("\n") == 1
    assert "\r" not in err


def test_quiet_progress_prints_nothing(capsys):
    with Progress("map", 3, "Mpx", quiet=True) as progress:
        progress.advance(3)
        progress.say("hello")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(5, "0:05"), (65.4, "1:05"), (3725, "1:02:05"), (float("inf"), "?")])
def test_clock(seconds, text):
    assert clock(seconds) == text
