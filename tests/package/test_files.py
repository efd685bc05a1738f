"""Files that are complete or absent."""

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from caswit.files import atomic_path, atomic_write_bytes, remove_partial_files


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


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_a_file_has_the_mode_of_other_new_files(tmp_path, umask):
    """safetensors writes files that only their owner may read."""
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "weights") as partial:
            save_file({"x": torch.zeros(3)}, partial)
        atomic_write_bytes(tmp_path / "text", b"text")
    finally:
        os.umask(before)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("weights", "text")] == [0o666 & ~umask] * 2
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.fstat(number).st_size))
    with atomic_path(tmp_path / "weights") as partial:
        save_file({"x": torch.zeros(3)}, partial)
    assert synced == [(tmp_path / "weights").stat().st_size]


def test_only_partial_files_are_removed(tmp_path):
    for name in (".last.pt.01234567.tmp", ".last.pt.01234567.mode.tmp", ".notes.tmp", "last.pt", "a.01234567.tmp"):
        (tmp_path / name).touch()
    remove_partial_files(tmp_path)
    remove_partial_files(tmp_path / "missing")
    assert sorted(p.name for p in tmp_path.iterdir()) == [".notes.tmp", "a.01234567.tmp", "last.pt"]
