"""Checks and constants that the settings share."""

from dataclasses import fields
from typing import Any

from caswit.errors import ConfigError

IGNORE_INDEX = 255
"""Class index of pixels that are left out of the loss and of every score; also the nodata value of class maps."""

KEEPS_MAP = {"changes_map": False}
"""Metadata of a field that changes neither a pixel of a map nor how it is stored in parts."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``ok``."""
    if not ok:
        raise ConfigError(message)


def map_settings(settings: Any) -> dict[str, Any]:
    """Return the fields of a settings dataclass that change the map, by name: all that are not ``KEEPS_MAP``."""
    # A field that says nothing counts: one that was forgotten may refuse a resume, never mix two maps in one.
    return {f.name: getattr(settings, f.name) for f in fields(settings) if f.metadata.get("changes_map", True)}
