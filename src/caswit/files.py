"""Files that are either complete or absent whenever the process dies; YAML and JSON; paths that users write.

What comes out of a YAML or JSON file has been read within bounds (``read_yaml``, ``read_json``) and has the shape that
its reader declares as types (``checked``). Nothing else in the package calls a parser on a file.
"""

import json
import os
import re
import secrets
import stat
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

import yaml

from caswit.errors import CaswitError, ConfigError, DataError, brief, one_line

_MOST_BYTES = 64 << 20
_MOST_LEVELS = 40
_MOST_REPEATED = 10_000
"""Nodes that aliases of a YAML file may stand for, all together."""
_LARGEST, _LARGEST_INT = 1e300, 1 << 63
"""Numbers in a file are smaller than these."""

_PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}(\.mode)?\.tmp")
"""Names that ``atomic_path`` writes to."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path to write to instead of `path`; renamed to it at the end, removed on an exception.

    The temporary name lies in the same folder, since a rename is atomic only within a file system,
    and ends in `.tmp`, so that no pattern for finished files matches it.
    """
    partial = _partial(path)
    try:
        yield partial
        _settle(partial)
        partial.replace(path)
    except OSError as error:
        # A full disk names no file, and nobody knows the temporary one.
        if error.errno is not None and (error.filename is None or str(error.filename) == str(partial)):
            error.filename = str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def check_place(place: Path) -> None:
    """Raise DataError if there is neither a folder nor a file."""
    if not place.exists():
        raise DataError(f"{place}: no such folder or raster")


def try_writing(path: Path) -> None:
    """Raise ConfigError unless `atomic_path` can write this file: its folder may be read-only, its name too long."""
    partial = _partial(path)
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another name or folder") from error


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


def lock_holder(lock_file: Path) -> str:
    """Return who holds a lock file, as its holder wrote into it."""
    with suppress(OSError):
        return lock_file.read_text().strip() or "another process"
    return "another process"


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file, or leave what was there before."""
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def cache_folder() -> Path:
    """Return the folder for indexes of large data sets: $CASWIT_CACHE, or caswit in the user's cache folder."""
    users = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("CASWIT_CACHE") or Path(users) / "caswit")


class _YamlLoader(yaml.SafeLoader):
    """Refuses what is small as a file and huge or endless once it is used: nested aliases, and deep nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._level, self._repeated = 0, 0
        self._nodes = 0
        self._sizes: dict[Any, int] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node as PyYAML does, counting what it stands for once its aliases are followed."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            # An anchor whose node is not complete yet is an alias inside of itself.
            if event.anchor in self.anchors and event.anchor not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"alias *{event.anchor} contains itself", mark)
            size = self._sizes.get(event.anchor, 1)
            self._nodes, self._repeated = self._nodes + size, self._repeated + size
            if self._repeated > _MOST_REPEATED:
                said = f"its aliases stand for more than {_MOST_REPEATED} values"
                raise yaml.composer.ComposerError(None, None, said, mark)
            return super().compose_node(parent, index)
        if self._level >= _MOST_LEVELS:
            raise yaml.composer.ComposerError(None, None, f"nested deeper than {_MOST_LEVELS} levels", mark)
        before = self._nodes
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        self._nodes += 1
        if event.anchor is not None:
            self._sizes[event.anchor] = self._nodes - before
        return node


def read_yaml(file: Path) -> Any:
    """Read a YAML file.

    Raises:
        DataError: It cannot be read, is not YAML, or is nested or repeated beyond measure.
    """
    text = _read_text(file, "YAML")
    try:
        return yaml.load(text, _YamlLoader)
    # PyYAML's constructors raise of many kinds: 2024-13-45 is a ValueError, !!bool x a KeyError.
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{file}: not YAML ({one_line(error)})") from error


def read_json(file: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: It cannot be read, or is not JSON.
    """
    text = _read_text(file, "JSON")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: not JSON ({one_line(error)})") from error


def _read_text(file: Path, kind: str) -> str:
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise DataError(f"{file}: not {kind} (more than {_MOST_BYTES >> 20} MiB)")
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not {kind} ({one_line(error)})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def checked(kind: Any, value: Any, where: str, remedy: str = "") -> Any:
    """Return a value that was read from a file if it is of a type, with dataclasses and tuples made from it.

    Args:
        kind: A plain type, dataclass, TypedDict (further keys are ignored), Literal, union, or list, tuple or dict of
            such. A float may be written as a whole number, but is finite.
        value: Mappings, lists and plain values.
        where: The file, and the place in it; the error begins with it.
        remedy: Something to try; the error ends with it.

    Raises:
        DataError: Key, value and what is allowed, in one line.
    """
    try:
        return _checked(kind, value, where)
    except ConfigError as error:  # a dataclass refuses its values
        raise DataError(f"{where}: {error}{remedy and '; ' + remedy}") from error
    except DataError as error:
        raise DataError(f"{error}{remedy and '; ' + remedy}") from error


def _checked(kind: Any, value: Any, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_typeddict(kind) or is_dataclass(kind):
        return _made(kind, value, where)
    if origin in (Union, types.UnionType):
        for choice in inner:
            with suppress(CaswitError):
                return _checked(choice, value, where)
    elif origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, inner[0]) for key in value):
            return {key: _checked(inner[1], item, f"{where}: {one_line(key)}") for key, item in value.items()}
    elif origin in (list, tuple):
        if (kinds := _kinds_of_items(kind, value)) is not None:
            each = enumerate(zip(kinds, value, strict=True), 1)
            return origin(_checked(k, item, f"{where}: item {number}") for number, (k, item) in each)
    elif _is_plain(kind, value):
        return float(value) if kind is float else value
    raise DataError(f"{where}: must be {_described(kind)}, got {brief(value)}")


def _kinds_of_items(kind: Any, value: Any) -> Sequence[Any] | None:
    """Return the type of each item of a list or tuple; None if the value is none, or not of that length."""
    inner = get_args(kind)
    if not isinstance(value, list | tuple):
        return None
    if get_origin(kind) is list or inner[-1] is ...:
        return inner[:1] * len(value)
    return inner if len(inner) == len(value) else None


def _is_plain(kind: Any, value: Any) -> bool:
    """Return whether a value is of a type without items."""
    if kind is Any:
        return True
    if get_origin(kind) is Literal:
        return any(type(value) is type(choice) and value == choice for choice in get_args(kind))
    if kind is float:
        # Compared, not converted: NaN is not between, and a whole number of 400 digits is no float.
        return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST_INT
    return isinstance(value, kind)


def _made(kind: Any, value: Any, where: str) -> Any:
    """Return the dataclass or TypedDict of a mapping."""
    hints = get_type_hints(kind)
    if is_typeddict(kind):
        needed, known = set(kind.__required_keys__), {**value} if isinstance(value, Mapping) else value
        only_keys(known, needed, set(known) if isinstance(known, dict) else set(), where)
        return {
            key: _checked(hints[key], item, f"{where}: {key}") if key in hints else item for key, item in value.items()
        }
    given = {f.name: f for f in fields(kind) if f.init}
    needed = {name for name, f in given.items() if f.default is MISSING and f.default_factory is MISSING}
    only_keys(value, needed, given.keys() - needed, where)
    return kind(**{name: _checked(hints[name], item, f"{where}: {name}") for name, item in value.items()})


def _described(kind: Any) -> str:
    """Return in a user's words the values that a type takes."""
    origin, inner = get_origin(kind), get_args(kind)
    plain = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null"}
    if origin in (Union, types.UnionType):
        return " or ".join(_described(choice) for choice in inner)
    if origin is Literal:
        return "one of " + ", ".join(map(str, inner))
    if origin is tuple and inner[-1] is not ...:
        return f"a list of {len(inner)}, each {_described(inner[0])}"
    if origin in (list, tuple):
        return f"a list, each {_described(inner[0])}"
    if origin is dict or is_dataclass(kind) or is_typeddict(kind):
        return "a mapping"
    return plain.get(kind, getattr(kind, "__name__", str(kind)))


def only_keys(row: Any, needed: set[str], optional: set[str], where: str) -> None:
    """Raise DataError unless a row is a mapping with all needed keys and no unknown ones."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be a mapping with {', '.join(sorted(needed))}, got {type(row).__name__}")
    missing, unknown = needed - row.keys(), row.keys() - needed - optional
    if missing:
        raise DataError(f"{where}: missing {', '.join(sorted(missing))}")
    if unknown:
        allowed = ", ".join(sorted(needed | optional))
        raise DataError(f"{where}: unknown {one_line(', '.join(sorted(map(str, unknown))))}; allowed: {allowed}")


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
