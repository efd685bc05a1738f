"""FLAIR-HUB's zip files, unpacked by ``caswit prepare flair_hub``: aerial images, their labels and the splits.

A GeoTIFF in a zip can neither be placed by its first bytes nor read in part, so the zips are unpacked once. Where a
file goes is told by its own name, whatever folders a zip has, so nothing is written elsewhere.
"""

import logging
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

from caswit.config import check
from caswit.data.sources.flair_splits import IMAGES, LABELS
from caswit.errors import DataError, one_line
from caswit.files import atomic_path
from caswit.progress import Progress

log = logging.getLogger(__name__)

_PATCH = re.compile(rf"(?P<folder>[A-Za-z0-9]+-[A-Za-z0-9]+_({IMAGES}|{LABELS}))_(?P<roi>[\w-]+)_\d+-\d+\.tif")
_SPLITS = "GLOBAL_ALL_MTD_SPLIT.gpkg"
_TABLE = re.compile(r"[\w-]+[_-](TRAIN|VALID|VALIDATION|VAL|TEST)\.csv", re.IGNORECASE)
_AT_ONCE = 64
"""Files that are unpacked in one go: an interruption waits for those at hand."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError)
"""What zipfile raises for zips that are cut off, damaged, encrypted, or compressed in a way it does not know."""


class _Member(NamedTuple):
    """A file in a zip that is needed."""

    name: str
    file: Path
    """Where it goes."""
    bytes: int

    def is_done(self) -> bool:
        """Return whether it has been unpacked: a file under its final name is complete."""
        return self.file.is_file() and self.file.stat().st_size == self.bytes


def prepare_flair_hub(root: Path, *, workers: int = 2, skip_broken: bool = False) -> Path:
    """Unpack the zip files in ``root`` and ``root / "data"`` into ``root``, but for what is there already.

    Args:
        root: Folder of the zip files.
        workers: Files written at the same time.
        skip_broken: Go on where a zip file is damaged.

    Returns:
        The folder that a ``source: {kind: flair_hub, root: ...}`` names.

    Raises:
        DataError: There are no such zip files, one is damaged, or the disk has no room for what is in them.
    """
    check(workers >= 1, f"workers must be at least 1, got {workers}")
    zips = sorted([*root.glob("*.zip"), *(root / "data").glob("*.zip")])
    found: dict[Path, list[_Member]] = {}
    for file in zips:
        try:
            found[file] = list(_members(file, root))
        except DataError as error:
            _left_out(error, skip_broken=skip_broken)
    if not any(found.values()):
        raise DataError(
            f"{root}: none of its {len(zips)} zip files holds patches of {IMAGES} or {LABELS}; put those of FLAIR-HUB "
            "there, as docs/datasets.md shows"
        )
    left = {file: [m for m in members if not m.is_done()] for file, members in found.items()}
    _check_room(root, sum(member.bytes for members in left.values() for member in members))
    total, open_ = (sum(map(len, some.values())) for some in (found, left))
    chunks = [(file, m[i : i + _AT_ONCE]) for file, m in left.items() for i in range(0, len(m), _AT_ONCE)]
    with (
        Progress("prepare flair_hub", total, "files", done=total - open_) as progress,
        ThreadPoolExecutor(workers) as pool,
    ):
        jobs = {pool.submit(_unpack, file, members): len(members) for file, members in chunks}
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except DataError as error:
                    _left_out(error, skip_broken=skip_broken)
                progress.advance(jobs[job])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return root


def _left_out(error: DataError, *, skip_broken: bool) -> None:
    """Raise the error, or log it."""
    if not skip_broken:
        raise error
    log.warning("left out: %s", error)


def _members(file: Path, root: Path) -> Iterator[_Member]:
    """Yield the files in a zip that are needed."""
    try:
        with zipfile.ZipFile(file) as opened:
            entries = opened.infolist()
    except _DAMAGED as error:
        raise _damaged(file, error) from error
    for entry in entries:
        name = entry.filename.replace("\\", "/").rsplit("/", 1)[-1]
        if match := _PATCH.fullmatch(name):
            yield _Member(entry.filename, root / match["folder"] / match["roi"] / name, entry.file_size)
        elif name == _SPLITS:
            yield _Member(entry.filename, root / "GLOBAL_ALL_MTD" / name, entry.file_size)
        elif _TABLE.fullmatch(name):
            yield _Member(entry.filename, root / name, entry.file_size)


def _unpack(file: Path, members: Sequence[_Member]) -> None:
    try:
        with zipfile.ZipFile(file) as opened:
            for member in members:
                member.file.parent.mkdir(parents=True, exist_ok=True)
                # Read to its end, a member is compared with its checksum.
                with opened.open(member.name) as packed, atomic_path(member.file) as partial, partial.open("wb") as to:
                    shutil.copyfileobj(packed, to, 1 << 20)
    except _DAMAGED as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: BaseException) -> DataError:
    return DataError(f"{file}: a damaged or incomplete zip file ({one_line(error)}); download it again")


def _check_room(root: Path, needed: int) -> None:
    free = shutil.disk_usage(root).free
    if needed > free:
        raise DataError(
            f"{root}: unpacking takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free; free some, or move the zip "
            "files of some domains elsewhere"
        )
