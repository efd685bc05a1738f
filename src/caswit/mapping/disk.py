"""A full disk while a map is written: which file, what is needed, and that the same call goes on."""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from caswit.errors import DataError
from caswit.mapping.journal import Journal
from caswit.mapping.plan import PlannedBlock
from caswit.raster.reader import IncompleteFile

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def saying_what_is_needed(file: Path, needed: Callable[[], int | None]) -> Iterator[None]:
    """Turn the errors of a full disk into one that says what is free, what is needed and how to go on.

    Args:
        file: The file, or the folder of files, that is written meanwhile.
        needed: Called then: about how many more bytes are needed; None where nothing is known.

    Raises:
        DataError: The disk is full, or the file grew larger than the system lets it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        limit = "; ulimit -f says how large a file may be" if error.errno == errno.EFBIG else ""
        raise DataError(_line(Path(error.filename or file), f"{error.strerror}{limit}", needed())) from error
    except IncompleteFile as error:
        raise DataError(_line(file, f"could not be written completely{error.reason}", needed())) from error


def _line(file: Path, what: str, needed: int | None) -> str:
    folder = next(place for place in (file, *file.absolute().parents) if place.is_dir())
    more = "" if needed is None else f", and about {_size(needed)} more are needed"
    free = _size(shutil.disk_usage(folder).free)
    return f"{file}: {what}: {free} are free on its disk{more}; make room, then the same call goes on from here"


def _size(count: int) -> str:
    """Write a number of bytes as one reads it."""
    value, unit = float(count), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g} {unit}" if value < 1000 else f"{value:,.0f} {unit}"


def bytes_of_parts(journal: Journal) -> int:
    """Return the size of the parts that are finished, which a map made of them has too, more or less."""
    files = (journal.part(number) for number in journal.done)
    return sum(file.stat().st_size for file in files if file is not None)


def bytes_to_come(journal: Journal, blocks: Sequence[PlannedBlock]) -> int | None:
    """Return how much the blocks that are left and the map will take, if they are like the finished ones."""
    pixels = {block.number: block.native.height * block.native.width for block in blocks}
    done = sum(pixels.get(number, 0) for number in journal.done)
    if not done:
        return None
    # All parts and the map of them, less the parts that are there.
    return round(bytes_of_parts(journal) * (2 * sum(pixels.values()) / done - 1))
