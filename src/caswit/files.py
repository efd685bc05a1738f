"""Files that are either complete or absent whenever the process dies; YAML; paths that users write."""

import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from caswit.errors import DataError

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}(\.mode)?\.tmp")
"""Names that ``atomic_path`` writes to."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to instead of `path`; renamed to it at the end, removed on an exception.

    The temporary name lies in the same folder, since a rename is atomic only within a file system,
    and ends in `.tmp`, so that no pattern for finished files matches it.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield partial
        _settle(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _settle(file: Path) -> None:
    """Bring a file to the disk, and give it the mode of other new files."""
    # Some writers, safetensors among them, make files that only their owner may read. The process's umask cannot be
    # read without setting it, which other threads would notice; a file beside it shows what it is.
    if not stat.S_IMODE(file.stat().st_mode) & 0o077:
        probe = file.with_suffix(".mode.tmp")
        try:
            probe.touch(exist_ok=False)
            file.chmod(stat.S_IMODE(probe.stat().st_mode))
        finally:
            probe.unlink(missing_ok=True)
    with file.open("rb+") as written:
        os.fsync(written.fileno())  # a rename may reach the disk before the bytes it names


def remove_partial_files(folder: Path) -> None:
    """Delete what killed processes left of ``atomic_path`` in a folder that nobody else is writing to."""
    for file in folder.glob(".*.tmp"):
        if _PARTIAL.fullmatch(file.name):
            file.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there before."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def cache_folder() -> Path:
    """Return the folder for indexes of large data sets: $CASWIT_CACHE, or caswit in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CASWIT_CACHE") or Path(users) / "caswit")


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        DataError: It is not YAML.
    """
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: not YAML ({' '.join(str(error).split())})") from error


def only_keys(row: Any, needed: set[str], optional: set[str], where: str) -> None:
    """Raise DataError unless a row is a mapping with all needed keys and no unknown ones."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be a mapping with {', '.join(sorted(needed))}, got {type(row).__name__}")
    missing, unknown = needed - row.keys(), row.keys() - needed - optional
    if missing:
        raise DataError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown:
        allowed = ", ".join(sorted(needed | optional))
        raise DataError(f"{where}: unknown {', '.join(sorted(map(str, unknown)))}; allowed: {allowed}")


def expand_path(text: str) -> Path:
    """Replace $NAME from the environment and ~.

    Raises:
        DataError: A variable is not set.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        name = expanded.split("$", 1)[1].strip("{").split("/")[0].split("}")[0]
        raise DataError(f"{text}: the environment variable {name} is not set; try: export {name}=/path/to/it")
    return Path(expanded).expanduser()
