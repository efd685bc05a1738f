"""Seals of finished blocks: number, size and checksum at the end of a part's file, where readers of TIFFs do not look.

A disk, a synchroniser or a user may damage, swap or cut parts during the days of a run; GDAL would make map of many of
them. The seal is in the file, not beside it, so that one rename makes both appear.
"""

import hashlib
import struct
from pathlib import Path

_FOOTER = struct.Struct("<16sQQ32s")
EMPTY = ".none"
"""Ending of the file of a block without data."""
_MARK = b"caswit block v1\n"


def sealed(part: bytes, number: int) -> bytes:
    """Return the bytes of a part, empty for a block without data, with the seal of its block."""
    return part + _footer(number, len(part), hashlib.sha256(part).digest())


def is_sealed(file: Path, number: int) -> bool:
    """Return whether a file is there, holds this block, and is as it was written; only a .none holds nothing."""
    try:
        content = memoryview(file.read_bytes())
    except OSError:
        return False
    size = len(content) - _FOOTER.size
    if size < 0 or (size == 0) != (file.suffix == EMPTY):
        return False
    return content[size:] == _footer(number, size, hashlib.sha256(content[:size]).digest())


def add_seal(file: Path, number: int) -> None:
    """Seal a part that was written without one."""
    # Appended in place: a kill leaves a TIFF with bytes behind it, which is sealed again as it is.
    content = file.read_bytes()
    with file.open("ab") as opened:
        opened.write(_footer(number, len(content), hashlib.sha256(content).digest()))


def _footer(number: int, size: int, checksum: bytes) -> bytes:
    return _FOOTER.pack(_MARK, number, size, checksum)
