"""What the settings have in common."""

from caswit.errors import ConfigError

IGNORE_INDEX = 255
"""Class index of pixels that count neither in the loss nor in any score; also nodata of class maps."""


def check(ok: bool, message: str) -> None:
    """Raise ConfigError with ``message`` unless ``ok``."""
    if not ok:
        raise ConfigError(message)
