"""The journal of a run is its folder of parts: a part that is there, and as it was written, is done.

OUT.parts/
├── manifest.json        all that a part depends on and where the blocks lie; another run refuses to go on here
├── lock                 held while a run is at work
├── 0000012.tif          a finished block, with its seal
├── 0000013.none         a finished block without data: a seal alone
└── 0000014.skipped      a block that could not be read, and why; tried again by the next run
"""

import json
import logging
import os
import re
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from caswit.errors import ConfigError, DataError, one_line
from caswit.files import atomic_write_bytes, checked, lock_holder, read_json
from caswit.mapping.seal import EMPTY, add_seal, is_sealed, sealed

log = logging.getLogger(__name__)

SUFFIX = ".parts"
MANIFEST = "manifest.json"
LOCK = "lock"
_DONE = (".tif", EMPTY)
_RENAMED = {"turns": "tta", "read_at_m": "read_gsd_m"}
"""Names in manifests of version 0.1.0 -> names of today."""
_MOST_SHOWN = 8
"""Differing settings that an error names: a manifest of something else differs in all."""
_SINCE_0_1 = ("layout", "context_factor", "model_config", "sidecars_and_sources")
"""Entries that older manifests lack: those that agree in all others are taken to agree in these."""
_BEFORE = {"ignore_alpha": "False", "fill": "black"}
"""What older manifests, which lack these entries, were made with."""
_SEALED = {"parts": "sealed"}
"""Entry of manifests whose parts all have seals; without it, parts are checked and sealed when a run goes on."""
_OURS = re.compile(r"(\d{7,}\.(tif|none|skipped)|row-\d+\.vrt|mosaic\.vrt)(\.aux\.xml)?|\..*\.tmp|manifest\.json|lock")
"""Names of the files in a folder of parts, GDAL's statistics among them. No other file in it is ever deleted."""
_LISTED = 5
"""Blocks that a message names."""


class Journal:
    """The finished blocks of a run, as ``open_journal`` finds them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done = {number for number, _ in finished_parts(folder)}
        # Blocks that earlier runs skipped are not done: they are tried again.
        self.skipped: dict[int, str] = {}

    def part(self, number: int) -> Path | None:
        """The file of a finished block, if it has data."""
        file = self.folder / f"{number:07}.tif"
        return file if file.exists() else None

    def finish(self, number: int, part: bytes | None) -> None:
        """Store a block; None is a block without data."""
        # A file marks a block without data as done, so that it is not read again.
        suffix = EMPTY if part is None else ".tif"
        atomic_write_bytes(self.folder / f"{number:07}{suffix}", sealed(part or b"", number))
        self._finished(number)

    def adopt(self, number: int, written: str) -> None:
        """Make what another process wrote with ``write_loose`` the part of a block.

        Raises:
            FileNotFoundError: It was written to another folder than this.
        """
        (self.folder / written).rename(self.folder / f"{number:07}.tif")
        self._finished(number)

    def _finished(self, number: int) -> None:
        # After the part is written: a kill in between leaves a stale note rather than no trace of the block.
        self._skip_file(number).unlink(missing_ok=True)
        self.skipped.pop(number, None)
        self.done.add(number)

    def discard_damaged(self) -> list[int]:
        """Delete the parts of finished blocks that are not as they were written; return the blocks to compute again."""
        damaged = [n for n in sorted(self.done) if not is_sealed(self.part(n) or self.folder / f"{n:07}{EMPTY}", n)]
        _discard(self.folder, damaged)
        self.done.difference_update(damaged)
        return damaged

    def skip(self, number: int, reason: str) -> None:
        """Note that a block could not be read."""
        atomic_write_bytes(self._skip_file(number), reason.encode())
        self.skipped[number] = reason

    def _skip_file(self, number: int) -> Path:
        return self.folder / f"{number:07}.skipped"

    def remove(self) -> None:
        """Delete the folder: its map is complete. Files that are not ours stay, and the folder with them."""
        _clear(self.folder)
        # The lock's file goes last, while we hold it: until then nobody can begin another run here. Windows deletes no
        # file that is open; there it goes when the lock is released.
        with suppress(OSError):
            (self.folder / LOCK).unlink()
            self.folder.rmdir()


def write_loose(folder: Path, number: int, part: bytes) -> str:
    """Write a part under a name that means nothing until ``Journal.adopt`` gives it its own; return that name."""
    # Only the holder of the lock decides what is done: a process that outlived its run can leave nothing but litter.
    file = folder / f".{number:07}.tif.{secrets.token_hex(8)}.tmp"
    with file.open("xb") as dst:
        dst.write(sealed(part, number))
        dst.flush()
        os.fsync(dst.fileno())
    return file.name


def finished_parts(folder: Path) -> list[tuple[int, Path]]:
    """Return number and file of the finished blocks of a folder of parts."""
    return sorted((int(f.stem), f) for f in folder.iterdir() if f.suffix in _DONE and f.stem.isdigit())


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest of a folder of parts; None where a run ended before it was written.

    Raises:
        DataError: The file is damaged.
    """
    file = folder / MANIFEST
    if not file.exists():
        return None
    try:
        content = checked(dict[str, Any], read_json(file), str(file))
    except DataError as error:
        raise DataError(f"{error}: is damaged; discard the parts with --restart") from error
    return {_RENAMED.get(name, name): value for name, value in content.items()}


class Begun(NamedTuple):
    """What an earlier run of an output settled where the user leaves it open; None where there are no parts."""

    confidence: bool | None = None
    """Whether its parts have confidence."""
    fill: str | None = None
    blend: bool | None = None

    @staticmethod
    def of(out: Path) -> "Begun":
        """Look at the manifest of the parts of an output."""
        with suppress(DataError):  # ``open_journal`` says that it is damaged
            if manifest := read_manifest(_folder(out)):
                known = {"True": True, "False": False}
                confidence, blend = (known.get(str(manifest.get(name))) for name in ("confidence", "blend"))
                return Begun(confidence, str(manifest.get("fill", _BEFORE["fill"])), blend)
        return Begun()


@contextmanager
def open_journal(
    out: Path,
    manifest: Mapping[str, Any],
    *,
    restart: bool,
    beside: Sequence[Path] = (),
    is_part: Callable[[int, Path], bool] = lambda number, file: True,
) -> Iterator[Journal]:
    """Open the journal of an output, which is ours alone while the context lasts.

    Args:
        out: The map; the journal lies beside it.
        manifest: Everything on which a part depends, by a name that a user understands, as JSON holds it.
        restart: Discard what another run left.
        beside: Files that the run writes apart from ``out``.
        is_part: Says of a part without a seal, from version 0.1.0, whether its size is right and it can be read.

    Raises:
        ConfigError: Another run is at work on this output, or left parts of another map, or the folder is not ours.
    """
    folder = _folder(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is in the way of the folder for parts of the map; move it")
    _check_ours(folder, out)
    lock = _lock(folder, out)
    try:
        # Half-written files are those of a run that was killed: while we hold the lock, nobody else writes them.
        for file in (out, *beside):
            for old in file.parent.glob(f".{escape(file.name)}.*.tmp*"):
                old.unlink(missing_ok=True)
        for old in folder.glob(".*.tmp"):
            old.unlink(missing_ok=True)
        if not _check_manifest(folder, out, manifest, restart=restart):
            _seal_all(folder, is_part)
        # Written even if it agrees, which brings an older manifest up to date.
        content = json.dumps({**manifest, **_SEALED}, indent=2) + "\n"
        atomic_write_bytes(folder / MANIFEST, content.encode())
        journal = Journal(folder)
        journal.discard_damaged()
        try:
            yield journal
        finally:
            if folder.exists() and not journal.done and not journal.skipped:
                journal.remove()
    finally:
        lock.release()
        # Usually gone already, or not empty; after a finished run on Windows it is still there.
        with suppress(OSError):
            folder.rmdir()


def _folder(out: Path) -> Path:
    return out.with_name(out.name + SUFFIX)


def _lock(folder: Path, out: Path) -> FileLock:
    """Hold the folder's lock file; the system lets go of it when this process ends, however it ends."""
    file = folder / LOCK
    lock = FileLock(file, blocking=False, thread_local=False)
    while not lock.is_locked:
        folder.mkdir(exist_ok=True)
        try:
            lock.acquire()
        except FileNotFoundError:  # a run that just ended removed the folder
            continue
        except Timeout:
            # Otherwise a run ended, and removed what it held, between our opening and locking it: try once more.
            if file.exists():
                raise ConfigError(
                    f"{out}: another run is writing this map ({lock_holder(file)}); wait for it, or end it"
                ) from None
    with suppress(PermissionError):  # Windows lets nobody write to a locked file
        file.write_text(f"process {os.getpid()} on {socket.gethostname()}")
    return lock


def _check_ours(folder: Path, out: Path) -> None:
    """Raise ConfigError if a folder holds files and is not the folder of parts of a run."""
    names: dict[str, Path] = {}
    with suppress(FileNotFoundError):  # there is none yet, or a run that just ended removed it
        names = {file.name: file for file in folder.iterdir()}
    with suppress(DataError):  # a damaged manifest says nothing
        if "images" in (read_manifest(folder) or {}):
            return
    # A run was killed before it wrote its manifest, or a 0.1.0 while it removed what it had: the lock is still there.
    foreign = [name for name, file in names.items() if not _OURS.fullmatch(name) or file.is_dir()]
    foreign += [] if LOCK in names else [name for name in names if not name.endswith(".tmp")]
    if foreign:
        raise ConfigError(
            f"{folder}: is needed for parts of the map, but holds files that are not caswit's ({min(foreign)}); "
            f"move it, or give another name than {out.name}"
        )


def _clear(folder: Path) -> None:
    """Delete our files in a folder of parts, except the lock."""
    # The manifest goes last: whatever is left by a kill can be told from a user's files.
    for file in sorted(folder.iterdir(), key=lambda file: file.name == MANIFEST):
        if _OURS.fullmatch(file.name) and file.name != LOCK:
            file.unlink()


def _seal_all(folder: Path, is_part: Callable[[int, Path], bool]) -> None:
    """Seal the parts of an older version, after a look at each."""
    damaged = []
    for number, file in finished_parts(folder):
        if is_sealed(file, number):  # by a run that was killed here
            continue
        if file.stat().st_size == 0 if file.suffix == EMPTY else is_part(number, file):
            add_seal(file, number)
        else:
            damaged.append(number)
    _discard(folder, damaged)


def _discard(folder: Path, damaged: Sequence[int]) -> None:
    """Delete the parts of some blocks, and say so."""
    for number in damaged:
        for suffix in _DONE:
            (folder / f"{number:07}{suffix}").unlink(missing_ok=True)
    if damaged:
        more = f" and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
        numbers = ", ".join(map(str, damaged[:_LISTED])) + more
        log.warning("%s: parts are missing or damaged; computing these blocks again: %s", folder, numbers)


def _check_manifest(folder: Path, out: Path, manifest: Mapping[str, Any], *, restart: bool) -> bool:
    """Return whether the parts have seals; raise ConfigError if they are those of other settings."""
    old = None if restart else read_manifest(folder)
    # Parts without a manifest may belong to any settings, so they are deleted.
    if old is None:
        _clear(folder)
        return True
    parts = old.pop("parts", None)
    before = {name: value for name, value in _BEFORE.items() if name in manifest}
    if (old := {name: manifest[name] for name in _SINCE_0_1 if name in manifest} | before | old) != manifest:
        names = [name for name in sorted({*old, *manifest}) if old.get(name) != manifest.get(name)]
        names = [name for name in names if name != "layout"] or names  # where blocks lie follows from other entries
        shown = [{n: one_line(m.get(n, "not set")) for n in names} for m in (old, manifest)]
        differs = (f"{n} was {shown[0][n]}, now {shown[1][n]}" for n in names[:_MOST_SHOWN])
        raise ConfigError(
            f"{folder}: holds {len(finished_parts(folder))} finished blocks of another run: {'; '.join(differs)}; "
            f"use the same settings, give another name than {out.name}, or discard the blocks with --restart"
        )
    return parts == _SEALED["parts"]
