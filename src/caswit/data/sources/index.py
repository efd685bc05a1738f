"""Headers of many GeoTIFFs, read once and remembered until a file changes."""

import os
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from caswit.errors import DataError
from caswit.files import atomic_path
from caswit.progress import Progress
from caswit.raster.tiff_header import Header, read_header

_VERSION = 2
_AT_ONCE = 16
"""Threads that read headers; most of the time they wait for the disk."""
_CHUNK = 256
_QUIET_BELOW = 2000
"""Fewer headers than this are read without showing progress."""


class File(NamedTuple):
    """A file of a tree, and what changes when its content does."""

    path: str
    """Relative to the root."""
    bytes: int
    modified_ns: int


Found = Header | str
"""A header, or a line about what is wrong with the file."""


def list_files(root: Path, folders: Sequence[str], suffix: str = ".tif") -> list[File]:
    """List all files with a suffix below some folders of ``root``, sorted by path."""
    return sorted(file for folder in folders for file in _walk(root, folder, suffix))


def _walk(root: Path, folder: str, suffix: str) -> Iterator[File]:
    with os.scandir(root / folder) as entries:
        for entry in entries:
            if entry.is_dir():
                yield from _walk(root, f"{folder}/{entry.name}", suffix)
            elif entry.name.endswith(suffix):
                status = entry.stat()
                yield File(f"{folder}/{entry.name}", status.st_size, status.st_mtime_ns)


def read_headers(root: Path, files: Sequence[File], cache: Path) -> dict[str, Found]:
    """Return the header of every file by its relative path, from the cache where size and time of change are the same.

    Args:
        root: Folder the paths are relative to.
        files: The files that are there now.
        cache: File to keep the headers in.
    """
    known = _load(cache)
    found = {f.path: entry[1] for f in files if (entry := known.get(f.path)) and entry[0] == f}
    fresh = [f for f in files if f.path not in found]
    chunks = [fresh[i : i + _CHUNK] for i in range(0, len(fresh), _CHUNK)]
    quiet = len(fresh) < _QUIET_BELOW
    with Progress(f"index {root}", len(fresh), "files", quiet=quiet) as progress, ThreadPoolExecutor(_AT_ONCE) as pool:
        for chunk, headers in zip(chunks, pool.map(lambda c: [_read(root, f) for f in c], chunks), strict=True):
            found |= {f.path: header for f, header in zip(chunk, headers, strict=True)}
            progress.advance(len(chunk))
    if fresh or len(known) != len(files):
        _save(cache, files, found)
    # In the order of the files, whichever were read anew: mosaics are then the same.
    return {f.path: found[f.path] for f in files}


def _read(root: Path, file: File) -> Found:
    try:
        return read_header(root / file.path)
    except DataError as error:
        return str(error)


def _save(cache: Path, files: Sequence[File], found: dict[str, Found]) -> None:
    """Write one array per column: half a million rows load in a second."""
    entries = [found[f.path] for f in files]
    headers = [e if isinstance(e, Header) else Header(0, 0, 0, "", None, "") for e in entries]
    nowhere = (np.nan,) * 6
    columns: dict[str, Any] = {
        "version": np.array(_VERSION),
        "paths": _text([f.path for f in files]),
        "bytes": np.array([f.bytes for f in files], np.int64),
        "modified_ns": np.array([f.modified_ns for f in files], np.int64),
        "sizes": np.array([h[:3] for h in headers], np.int64).reshape(-1, 3),
        "dtypes": _text([h.dtype for h in headers]),
        "transforms": np.array([h.transform or nowhere for h in headers], np.float64).reshape(-1, 6),
        "crs": _text([h.crs for h in headers]),
        "nodata": np.array([-1 if h.nodata is None else h.nodata for h in headers], np.int64),
        "errors": _text(["" if isinstance(e, Header) else e.replace("\n", " ") for e in entries]),
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(cache) as partial, partial.open("wb") as file:
        np.savez(file, **columns)


def _load(cache: Path) -> dict[str, tuple[File, Found]]:
    """Read what ``_save`` wrote; nothing where the cache is missing, broken or of another version."""
    try:
        with np.load(cache) as columns:
            if columns["version"] != _VERSION:
                return {}
            names = "paths", "dtypes", "crs", "errors"
            paths, dtypes, crs, errors = (_lines(columns[name]) for name in names)
            files = list(map(File, paths, columns["bytes"].tolist(), columns["modified_ns"].tolist()))
            placed = np.isfinite(columns["transforms"][:, 0]).tolist()
            transforms = [
                tuple(t) if there else None for t, there in zip(columns["transforms"].tolist(), placed, strict=True)
            ]
            sizes = columns["sizes"].tolist()
            nodata = [None if value < 0 else value for value in columns["nodata"].tolist()]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    rows = zip(files, sizes, dtypes, transforms, crs, nodata, errors, strict=True)
    return {f.path: (f, error or Header(*size, *about)) for f, size, *about, error in rows}


def _text(lines: list[str]) -> Any:
    return np.frombuffer("\n".join(lines).encode(), np.uint8)


def _lines(column: Any) -> list[str]:
    return column.tobytes().decode().split("\n") if len(column) else []
