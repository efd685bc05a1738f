"""Rows of a dataset.yaml: their keys and paths."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from caswit.errors import DataError


def only_keys(row: Any, needed: set[str], optional: set[str], where: str) -> None:
    """Raise DataError unless a row is a mapping with all needed keys and no strange ones."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be a mapping with {', '.join(sorted(needed))}, got {type(row).__name__}")
    missing, strange = needed - row.keys(), row.keys() - needed - optional
    if missing:
        raise DataError(f"{where}: missing {', '.join(sorted(missing))}")
    if strange:
        allowed = ", ".join(sorted(needed | optional))
        raise DataError(f"{where}: unknown {', '.join(sorted(map(str, strange)))}; allowed: {allowed}")


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
