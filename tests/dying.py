"""Trainings that die between two steps, in this process."""

import pytest

from caswit.progress import Progress


class Killed(BaseException):
    """Stands for the process dying between two steps."""


def kill_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Let the next training die right after its ``steps``-th step from now, before it saves."""
    done = 0

    def advance(self: Progress, amount: float, note: str = "") -> None:
        nonlocal done
        done += 1
        if done == steps:
            raise Killed

    monkeypatch.setattr(Progress, "advance", advance)
