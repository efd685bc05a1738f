"""Names of images on the command line: files, addresses, folders, patterns and lists, expanded into files."""

from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path

from caswit.errors import DataError
from caswit.raster.reader import is_remote

SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".png", ".jpg", ".jpeg", ".img", ".webp")
"""Files of a folder that are taken for images."""


def list_images(words: Sequence[str]) -> list[str]:
    """Expand words of the command line into names that GDAL opens, in order; those of folders and patterns sorted.

    Raises:
        DataError: Nothing is there, or a file is missing.
    """
    found = [name for word in words for name in _expand(word)]
    # count() in a loop is quadratic, so it runs only if there is a duplicate to report.
    twice = sorted({name for name in found if found.count(name) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"{twice[0]}: given more than once")
    for name in found:
        if not is_remote(name) and not Path(name).exists():
            raise DataError(f"{name}: no such file")
    return found


def _expand(word: str) -> list[str]:
    path = Path(word)
    # Addresses come first: a * or .txt in one is neither a pattern nor a list on this disk.
    if is_remote(word):
        return [word]
    if path.is_dir():
        names = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not names:
            raise DataError(f"{word}: a folder without images ({' '.join(SUFFIXES)})")
        return names
    # The name of a file may contain brackets itself.
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
