"""Contexts of a scene at every place, averaged once, so that a sample need not read all the pixels around its tile.

The context of a tile is made of squares of factor x factor pixels that are read, and of these squares alone. There are
as many as pixels, since a tile may begin anywhere: their means, rounded as ``area_average`` rounds, take as many bytes.
They are stored phase by phase, in which squares lie side by side, so that a context is one rectangle of them.

A small scene's lie in memory; those of others in the cache, mapped into memory, which processes share. The file's name
depends on everything that can change a byte of it.

Shapes: f factor, P planes: the bands, and the label where there is one.
"""

import hashlib
import logging
import mmap
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO
from weakref import WeakSet

import numpy as np
from filelock import FileLock, Timeout

from caswit.config import IGNORE_INDEX
from caswit.errors import CaswitError, one_line
from caswit.files import atomic_path, cache_folder
from caswit.raster.image_files import describe, files_behind
from caswit.raster.reader import UInt8, is_remote
from caswit.raster.resample import moving_average
from caswit.raster.windows import Window

log = logging.getLogger(__name__)
SMALL_BYTES, HELD_BYTES = 32 << 20, 256 << 20
"""Of a level that is held in memory, and of all of them in a process; others go into the cache."""
CACHE_BYTES = 20 << 30
"""Of all levels in the cache."""
_UNUSED_S = 30 * 24 * 3600
"""Levels that nobody opened for so long make room for new ones."""
_STRIP_PX = 1 << 20
"""Pixels that are averaged at a time."""
_VERSION = 1
"""Changes when the same scene is to give other bytes."""

ReadPlanes = Callable[[Window], tuple[UInt8, UInt8 | None]]
"""Window -> image (n, H, W), black where there is no data, and class indices (H, W) if there are labels."""


class Level:
    """The squares of one factor at every place of a raster.

    Args:
        factor: Side of a square in pixels.
        planes: (f, f, P, H', W'): by the phase of row and column; [p, q, :, i, j] is the square that begins at row
            (i - 1) * f + p and column (j - 1) * f + q.
        labels: The last plane is the label.
    """

    def __init__(self, factor: int, planes: UInt8, *, labels: bool) -> None:
        self.factor, self.planes, self.labels = factor, planes, labels

    def read(self, window: Window) -> tuple[UInt8, UInt8 | None]:
        """Return the squares side by side in a window whose sides are multiples of the factor.

        Returns:
            (n, H / f, W / f) means, as ``area_average`` has them, and (H / f, W / f) the labels of ``nearest``.
        """
        (i, p), (j, q) = (divmod(start, self.factor) for start in window[:2])
        wanted = Window(i + 1, j + 1, window.height // self.factor, window.width // self.factor)
        stored = self.planes[p, q]
        part = wanted.clipped(*stored.shape[1:])
        found = np.zeros((len(stored), *wanted[2:]), np.uint8)
        if self.labels:
            found[-1] = IGNORE_INDEX
        if part.height and part.width:
            found[:, *part.inside(wanted)] = stored[:, *part.inside(Window(0, 0, *stored.shape[1:]))]
        return (found[:-1], found[-1]) if self.labels else (found, None)


class Levels:
    """The levels of a scene, made once they are worth it.

    Args:
        name: The image, for messages.
        size: (rows, columns) that are read.
        bands: Number of bands.
        labels: There are labels.
        read: Reads a window, which may reach outside.
        sources: Files that are read, and what their bytes depend on besides; None where they may change unnoticed.
            Called when a level is to be stored.
    """

    def __init__(
        self,
        name: str,
        size: tuple[int, int],
        bands: int,
        *,
        labels: bool,
        read: ReadPlanes,
        sources: Callable[[], tuple[Sequence[str], str]],
    ) -> None:
        self.name, self.size, self.planes, self.labels = name, size, bands + labels, labels
        self._read, self._sources = read, sources
        self._opened_ns = time.time_ns()
        self._around_px = 0
        """Pixels that were read for contexts alone."""
        self._made: dict[int, Level | None] = {}

    def get(self, factors: Sequence[int], tile: Window) -> list[Level]:
        """Return the levels of some factors, or none: the contexts of this tile are then to be read pixel by pixel.

        Making one takes as long as reading the scene, so it is made when contexts have cost as much as that: no order
        of reading takes more than twice the time it would take otherwise.

        Args:
            factors: One for each context, the widest last.
            tile: That is to be read.
        """
        missing = [factor for factor in factors if factor not in self._made]
        if missing:
            wide, alone = (window.clipped(*self.size) for window in (tile.widened(factors[-1]), tile))
            self._around_px += wide.height * wide.width - alone.height * alone.width
            if self._around_px < self.size[0] * self.size[1] * len(missing):
                return []
            self._around_px = 0
            for factor in missing:
                self._make(factor)
        found = [self._made.get(factor) for factor in factors]
        return [level for level in found if level is not None] if None not in found else []

    def _make(self, factor: int) -> None:
        shape = self._shape(factor)
        size = int(np.prod(shape))
        try:
            if size <= SMALL_BYTES and size + sum(level.planes.nbytes for level in _held) <= HELD_BYTES:
                planes = np.empty(shape, np.uint8)
                for rows, strip in self._strips(factor):
                    planes[..., rows, :] = strip
                self._made[factor] = level = Level(factor, planes, labels=self.labels)
                _held.add(level)
            else:
                self._made[factor] = self._stored(factor)
        except Timeout:  # another process is making it; a look at it after as many pixels again
            pass
        except CaswitError:  # what is wrong with a file is said where a tile needs it
            self._made[factor] = None
        except (OSError, NotImplementedError) as error:  # no room, no right to write, a file system without locks
            self._made[factor] = None
            _say_once(_folder(), error)

    def _shape(self, factor: int) -> tuple[int, ...]:
        # Squares that begin up to f - 1 pixels before the raster still reach into it.
        along = [(length - 1) // factor + 2 for length in self.size]
        return factor, factor, self.planes, along[0], along[1]

    def _strips(self, factor: int) -> Iterator[tuple[slice, UInt8]]:
        """Yield (f, f, P, some rows, W') of the planes and which rows these are."""
        *_, rows, cols = self._shape(factor)
        some = max(1, _STRIP_PX // (factor * factor * cols))
        for first in range(0, rows, some):
            end = min(rows, first + some)
            height, width = (end - first) * factor, cols * factor
            window = Window((first - 1) * factor, -factor, height + factor - 1, width + factor - 1)
            image, labels = self._read(window)
            values = moving_average(image, factor)
            if labels is not None:
                # The middle pixel of the square that begins at each.
                middle = slice(factor // 2, factor // 2 + height), slice(factor // 2, factor // 2 + width)
                values = np.concatenate([values, labels[None, *middle]])
            yield slice(first, end), values.reshape(-1, end - first, factor, cols, factor).transpose(2, 4, 0, 1, 3)

    def _stored(self, factor: int) -> Level | None:
        """Return a level out of the cache, where it is made if it is not there; None where it cannot be kept."""
        shape = self._shape(factor)
        file = self._file(factor)
        if file is None:
            return None
        if not _is_whole(file, shape):
            file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(file.with_suffix(".lock"), blocking=False):
                # It may have been made since.
                if not _is_whole(file, shape):
                    _make_room(int(np.prod(shape)))
                    log.info("contexts of %s are averaged once and kept in %s", self.name, file)
                    with atomic_path(file) as partial, partial.open("wb") as opened:
                        for rows, strip in self._strips(factor):
                            _write(opened, shape, rows, strip)
        with suppress(OSError):  # a cache that others filled may be read-only
            file.touch()
        with file.open("rb") as opened:
            mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        return Level(factor, np.frombuffer(mapped, np.uint8).reshape(shape), labels=self.labels)

    def _file(self, factor: int) -> Path | None:
        names, depends = self._sources()
        # Of what lies elsewhere nobody says whether it has changed.
        if any(is_remote(name) for name in names):
            return None
        behind = files_behind(names)
        for file in behind:
            status = file.stat()
            # Pixels come from files as they were opened, the name from those that are there now.
            if max(status.st_mtime_ns, status.st_ctime_ns) >= self._opened_ns:
                return None
        text = repr((_VERSION, self._shape(factor), depends, [describe(file) for file in behind]))
        return _folder() / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.bin"


_held: "WeakSet[Level]" = WeakSet()
"""The levels in the memory of this process."""


def _folder() -> Path:
    return cache_folder() / "levels"


def _is_whole(file: Path, shape: tuple[int, ...]) -> bool:
    return file.is_file() and file.stat().st_size == int(np.prod(shape))


def _write(opened: BinaryIO, shape: tuple[int, ...], rows: slice, strip: UInt8) -> None:
    """Write some rows of all planes of a level."""
    # Not through a mapping: on a full disk, writing to one ends the process.
    height, width = shape[-2:]
    for number, plane in enumerate(strip.reshape(-1, *strip.shape[-2:])):
        opened.seek((number * height + rows.start) * width)
        opened.write(plane.tobytes())


def _make_room(size: int) -> None:
    """Remove levels that nobody used for long; raise OSError if there is no room for one of ``size`` bytes."""
    taken = 0
    for file in _folder().glob("*.bin"):
        with suppress(OSError):
            status = file.stat()
            if time.time() - status.st_mtime > _UNUSED_S:
                file.unlink()
                file.with_suffix(".lock").unlink(missing_ok=True)
            else:
                taken += status.st_size
    if taken + size > CACHE_BYTES:
        raise OSError(f"{(taken + size) / 1e9:.1f} GB would be more than {CACHE_BYTES / 1e9:.0f}")
    free = shutil.disk_usage(_folder()).free
    if size > free // 2:
        raise OSError(f"{size / 1e9:.1f} GB are more than half of the free space of the disk")


@cache
def _said(folder: Path) -> list[str]:
    """Return what was said of a folder: scenes are many, and one line is enough."""
    return []


def _say_once(folder: Path, error: Exception) -> None:
    reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
    if not _said(folder):
        _said(folder).append(reason)
        log.warning("%s: averaged contexts cannot be kept there (%s), so reading takes longer", folder, reason)
