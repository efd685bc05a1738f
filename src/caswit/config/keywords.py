"""Settings given as keyword arguments of a Python function, under the names that the options of the command have."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from caswit.config.checks import check_sizes
from caswit.errors import ConfigError, DataError
from caswit.files import checked

T = TypeVar("T")


def keyword_settings(name: str, given: Mapping[str, Any], kind: type[T]) -> T:
    """Return the settings of one config class.

    Args:
        name: The function that was called, for errors.
        given: Values by the names of the fields; fields that are not named have their defaults.
        kind: The config class.

    Raises:
        ConfigError: There is no such field, or its value is not allowed.
    """
    (settings,) = keyword_groups(name, given, (kind,))
    return settings


def keyword_groups(name: str, given: Mapping[str, Any], kinds: Iterable[type[Any]]) -> list[Any]:
    """Return an object of each of some config classes; no two of them have a field of the same name.

    Raises:
        ConfigError: As ``keyword_settings``.
    """
    names = {kind: [field.name for field in fields(kind)] for kind in kinds}
    check_names(name, given, [each for group in names.values() for each in group])
    plain = {key: _plain(value) for key, value in given.items()}
    try:
        made = [checked(kind, {n: plain[n] for n in group if n in plain}, name) for kind, group in names.items()]
    except DataError as error:
        raise ConfigError(str(error)) from error
    for each in made:
        check_sizes(each)
    return made


def check_names(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise ConfigError if a name is not among the known ones."""
    known = sorted(known)
    for each in given:
        if each not in known:
            close = difflib.get_close_matches(each, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}"
            raise ConfigError(f"{name} has no setting {each}; {hint}")


def _plain(value: Any) -> Any:
    """Return paths as text, and numpy's numbers as Python's: the settings know no others."""
    if isinstance(value, Path):
        return str(value)
    return value.item() if isinstance(value, np.generic) else value
