"""Files that are complete or absent."""

import signal
import subprocess
import sys

import pytest

from caswit.files import atomic_path, atomic_write_bytes


def write_half(file, error):
    with atomic_path(file) as partial:
        partial.write_bytes(b"ha")
        raise error


def test_a_file_appears_whole(tmp_path):
    atomic_write_bytes(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        write_half(file, KeyboardInterrupt)
    assert file.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_the_name_appears_at_the_end_only(tmp_path):
    with atomic_path(tmp_path / "map.tif") as partial:
        partial.write_bytes(b"half")
        assert partial.parent == tmp_path
        assert not list(tmp_path.glob("*.tif"))
    assert (tmp_path / "map.tif").read_bytes() == b"half"


def test_two_writers_do_not_meet(tmp_path):
    file = tmp_path / "a.txt"
    with atomic_path(file) as one, atomic_path(file) as other:
        one.write_bytes(b"one")
        other.write_bytes(b"other")
    assert file.read_bytes() == b"one"  # the outer one ends last
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_process_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(b"old")
    code = """
import os, signal, sys
from pathlib import Path
from caswit.files import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"ha")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code, str(file)], check=False).returncode == -signal.SIGKILL
    assert file.read_bytes() == b"old"
