"""What a user calls an image: a file, an address, several, a pattern, a folder, a list in a text file."""

import hashlib
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from caswit.errors import DataError
from caswit.raster.reader import is_remote

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".img", ".webp")
"""Files of a folder that are taken for images."""


def list_images(words: Sequence[str]) -> list[str]:
    """Expand what was given into names that GDAL opens, in order; those of folders and patterns sorted.

    Raises:
        DataError: Nothing is there.
    """
    found = [name for word in words for name in _expand(word)]
    twice = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"{twice[0]}: given more than once")
    return found


def _expand(word: str) -> list[str]:
    path = Path(word)
    if is_remote(word):
        return [word]
    if path.is_dir():
        names = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not names:
            raise DataError(f"{word}: a folder without images ({' '.join(SUFFIXES)})")
        return names
    if has_magic(word) and not path.exists():
        names = sorted(glob(word, recursive=True))  # noqa: PTH207 (Path.glob takes no absolute patterns)
        if not names:
            raise DataError(f"{word}: no file matches this pattern")
        return names
    if path.suffix.lower() == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        names = [line if is_remote(line) else str(path.parent / line) for line in lines if line]
        if not names:
            raise DataError(f"{word}: an empty list; one image per line is needed")
        return names
    return [word]


def fingerprint(names: Sequence[str]) -> str:
    """16 hexadecimal digits that change when an image does: names, sizes, times of change."""
    facts = []
    for name in names:
        if is_remote(name):
            facts.append(name)
        else:
            status = Path(name).stat()
            facts.append(f"{Path(name).resolve()} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
