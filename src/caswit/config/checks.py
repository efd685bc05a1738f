"""Checks and constants that the settings share."""

from caswit.errors import ConfigError

IGNORE_INDEX = 255
"""Class index of pixels that are left out of the loss and of every score; also the nodata value of class maps."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``ok``."""
    if not ok:
        raise ConfigError(message)
