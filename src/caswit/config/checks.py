"""Checks and constants that the settings share."""

from dataclasses import fields, is_dataclass
from typing import Any

from caswit.errors import ConfigError, brief

IGNORE_INDEX = 255
"""Class index of pixels that are left out of the loss and of every score; also the nodata value of class maps."""

_LARGEST, _MOST = 1 << 53, {"batch": 1 << 20, "workers": 1 << 12, "devices": 1 << 20}
"""Largest whole number of a setting, and of those that are that many things in memory."""

KEEPS_MAP = {"changes_map": False}
"""Metadata of a field that changes neither a pixel of a map nor how it is stored in parts."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``ok``."""
    if not ok:
        raise ConfigError(message)


def nearest_multiple(value: int, step: int, least: int = 1) -> int:
    """Return the multiple of ``step`` nearest to a value, ``least`` times ``step`` at least."""
    # In whole numbers: one of 400 digits, as a damaged file may have, is no float.
    times, left = divmod(value, step)
    return max(least, times + (2 * left + times % 2 > step)) * step


def check_sizes(settings: Any, name: str = "") -> None:
    """Raise ConfigError if a whole number of settings or of their sections is beyond all counting."""
    for field in fields(settings):
        value, whole = getattr(settings, field.name), f"{name}{field.name}"
        if is_dataclass(value):
            check_sizes(value, f"{whole}.")
        elif isinstance(value, int):
            most = _MOST.get(field.name, _LARGEST)
            check(abs(value) <= most, f"{whole} must be at most {most}, got {brief(value)}")


def map_settings(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that change the map, by name: all that are not ``KEEPS_MAP``."""
    # A field that says nothing counts: one that was forgotten may refuse a resume, never mix two maps in one.
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata.get("changes_map", True)}
