"""Processes that read ahead: whatever happens to one is said where the next batch is asked for."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from caswit.data.loader import Loader, begin_worker
from caswit.errors import DataError


class Numbers(Dataset):
    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __getitem__(self, number: int) -> torch.Tensor:
        if number == self.broken:
            raise DataError(f"{number}.tif: DataError: no such file")
        return torch.full((1000,), number)

    def __len__(self) -> int:
        return 40


def busy(seconds: float) -> int:
    """Run Python code, in which an exception of a signal's handler would be raised."""
    end, rounds = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        rounds += 1
    return rounds


def test_a_killed_worker_is_said_where_a_batch_is_asked_for_and_nowhere_else(killing):
    batches = iter(Loader(Numbers(), num_workers=2, worker_init_fn=begin_worker))
    read = [next(batches)]
    killing.kill()
    assert busy(0.3) > 0  # with the handler of torch it was raised here
    with pytest.raises(DataError, match="ended from outside"):
        read.extend(batches)
    assert [batch[0, 0].item() for batch in read] == list(range(len(read)))  # what was read before is not lost
    batches.close()
    assert busy(0.1) > 0


def test_the_handler_of_the_program_stays(monkeypatch):
    # torch sets its own once in a process; another test may have had it set already.
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    came = []

    def note(*_: object) -> None:
        came.append(1)

    before = signal.signal(signal.SIGCHLD, note)
    try:
        assert len(list(Loader(Numbers(), num_workers=1))) == 40
        assert signal.getsignal(signal.SIGCHLD) is note
        busy(0.1)
        assert came
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_the_handler_of_a_loader_of_torchs_own_is_taken_away(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        assert len(list(DataLoader(Numbers(), num_workers=1))) == 40
        assert signal.getsignal(signal.SIGCHLD) not in (before, signal.SIG_DFL)
        assert len(list(Loader(Numbers(), num_workers=1))) == 40
        assert signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_worker_raises_is_its_own_message(workers):
    with pytest.raises(DataError) as said:
        list(Loader(Numbers(broken=7), num_workers=workers))
    assert str(said.value) == "7.tif: DataError: no such file"


def test_more_workers_than_cores_are_no_warning(recwarn):
    Loader(Numbers(), num_workers=4 * (os.cpu_count() or 1))
    assert not recwarn.list
