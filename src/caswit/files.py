"""Files that are either complete or absent whenever the process dies; YAML; paths that users write."""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from caswit.errors import ConfigError, DataError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to instead of `path`; renamed to it at the end, removed on an exception.

    The temporary name lies in the same folder, since a rename is atomic only within a file system,
    and ends in `.tmp`, so that no pattern for finished files matches it.
    """
    partial = _partial(path)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def try_writing(path: Path) -> None:
    """Raise ConfigError unless `atomic_path` can write this file: its folder may be read-only, its name too long."""
    partial = _partial(path)
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another name or folder") from error


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there before."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the bytes it names


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
