"""Commands in processes of their own, at the price of a fork: limits, SIGKILL at chosen moments, peak memory.

``Forks`` starts this file as a process that imports what commands need, and waits. Each command runs in a fork of it:
its own memory, descriptors and signals, without the seconds that importing takes. The fork ends without Python's own
end (``atexit`` and the like).
"""

import contextlib
import faulthandler
import json
import mmap
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

MODULES = (
    *("caswit.cli.commands", "docstring_parser", "PIL.PngImagePlugin", "caswit.weights.summary"),
    *("caswit.cli.maps", "caswit.cli.models", "caswit.cli.training", "caswit.evaluation.run", "caswit.mapping.run"),
    *("caswit.evaluation.inspect", "caswit.raster.polygons", "caswit.raster.vector_files", "caswit.raster.aoi"),
    *("caswit.training.supervised", "torch.utils.tensorboard"),
)
"""What commands import while they run."""
CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}
"""Audit events of the calls that change files, beside opening one for writing."""


class Ended(NamedTuple):
    """A command that ended, or was ended."""

    status: int
    """Exit status; a negative number is the signal that killed it."""
    out: str
    said: str
    """What it wrote to standard error."""
    peak_bytes: int
    """Most memory that was resident: VmHWM."""
    wall_s: float
    files: int
    """Calls that were about to change a file: how far a run got."""
    late: bool
    """It was killed because it took longer than it may."""


class Forks:
    """Runs commands in forks of a process that has imported the package. Use as a context manager."""

    def __enter__(self) -> "Forks":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self._server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def run(
        self,
        words: Sequence[str],
        folder: Path,
        *,
        kill_after_s: float | None = None,
        kill_at_file: int | None = None,
        kill_at_name: str | None = None,
        then_s: float = 0.0,
        limits_s: tuple[float, float] = (100.0, 300.0),
        room: int | None = None,
    ) -> Ended:
        """Run ``caswit WORDS`` in a folder.

        Args:
            words: Command and options.
            folder: Working directory.
            kill_after_s: Seconds from the start to a SIGKILL.
            kill_at_file: Number of the call that changes files, the first is 1, before which SIGKILL comes.
            kill_at_name: SIGKILL comes before the first such call in whose audit event and path, as "open a.tif", this
                regular expression is found.
            then_s: Seconds from that call to the SIGKILL; 0: before it does anything.
            limits_s: Seconds of the processor and of the clock that it may take.
            room: Bytes that may be asked for beyond what the imported package holds.
        """
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        limits = {"limits_s": limits_s, "room": room, "kill_after_s": kill_after_s, "kill_at_file": kill_at_file}
        task = {"words": list(words), "folder": str(folder), "kill_at_name": kill_at_name, "then_s": then_s} | limits
        print(json.dumps(task), file=self._server.stdin, flush=True)
        return Ended(**json.loads(self._server.stdout.readline()))


def serve() -> None:
    """Run the tasks that come in, one after the other."""
    import importlib

    for name in MODULES:
        importlib.import_module(name)
    shallow = importlib.import_module("shallow")
    shallow.SIZES["pico"] = shallow.PICO
    answers = os.fdopen(os.dup(1), "w")
    threads = {task.joinpath("comm").read_text().strip() for task in Path("/proc/self/task").iterdir()}
    # pyarrow's allocator has a thread of its own, and knows how to fork.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"only a process of one thread may fork, this one has {threads}"
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))._asdict()), file=answers, flush=True)


def _run(task: dict[str, Any]) -> Ended:
    files = [os.memfd_create(name) for name in ("in", "out", "err")]
    count, (heard, told) = mmap.mmap(-1, 8), os.pipe()
    began_s = time.monotonic()
    pid = os.fork()
    if not pid:
        _child(task, files, count, told)
    os.close(told)
    late = _wait(task, pid, heard, began_s)
    _, status, used = os.wait4(pid, 0)
    os.close(heard)
    texts = []
    for file in files:
        os.lseek(file, 0, os.SEEK_SET)
        with os.fdopen(file, "rb") as opened:
            texts.append(opened.read().decode("utf-8", "replace"))
    done = int.from_bytes(count[:8], "little")
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, texts[1], texts[2], used.ru_maxrss << 10, time.monotonic() - began_s, done, late)


def _wait(task: dict[str, Any], pid: int, heard: int, began_s: float) -> bool:
    """Wait for the end of a process, which may have to be brought about; return whether it took too long."""
    ended, poll = os.pidfd_open(pid), select.poll()
    poll.register(ended, select.POLLIN)
    poll.register(heard, select.POLLIN)
    after_s, limit_s = task["kill_after_s"], task["limits_s"][1]
    due_s = min(limit_s, limit_s if after_s is None else after_s)
    try:
        while True:
            events = dict(poll.poll(max(0.0, began_s + due_s - time.monotonic()) * 1000))
            if ended in events:
                return False
            if heard in events and os.read(heard, 1):
                due_s, after_s = time.monotonic() - began_s + task["then_s"], 0.0
                poll.unregister(heard)
            elif heard in events:
                poll.unregister(heard)  # closed by its end
            elif not events:
                # A signal that prints where the process is, if nobody meant to kill it.
                os.kill(pid, signal.SIGKILL if after_s is not None else signal.SIGPROF)
                if after_s is None:
                    time.sleep(1)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                return after_s is None
    finally:
        os.close(ended)


def _child(task: dict[str, Any], files: list[int], count: mmap.mmap, told: int) -> None:
    """Run the command as the whole process, and end."""
    status = 1
    try:
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os.chdir(task["folder"])
        faulthandler.register(signal.SIGPROF, file=2, all_threads=True, chain=True)
        signal.setitimer(signal.ITIMER_PROF, task["limits_s"][0])
        if task["room"] is not None:
            pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (pages + task["room"],) * 2)
        sys.addaudithook(_killer(task, count, told))
        status = _command(task["words"])
    finally:
        os._exit(status)


def _command(words: list[str]) -> int:
    from caswit.__main__ import main

    sys.argv = ["caswit", *words]
    try:
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return status


def _killer(task: dict[str, Any], count: mmap.mmap, told: int) -> Any:
    """Return an audit hook that counts the calls that change files, and ends the process at one of them."""
    at, name, done = task["kill_at_file"], task["kill_at_name"], 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in CHANGES:
            return
        done += 1
        count[:8] = done.to_bytes(8, "little")
        if done == at or (name is not None and re.search(name, f"{event} {arguments[0]}")):
            if task["then_s"]:
                os.write(told, b"x")
            else:
                os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    serve()
