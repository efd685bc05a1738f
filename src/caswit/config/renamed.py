"""Settings that had another name in version 0.1.0. The old name keeps working and says the new one, once."""

import functools
import logging
from collections.abc import Mapping
from typing import Any

from caswit.errors import ConfigError

log = logging.getLogger(__name__)

SECTIONS: dict[str, dict[str, str]] = {
    "tile": {"gsd_m": "read_gsd_m"},
    "train": {"average": "ema_decay"},
    "augment": {"hide_context": "context_dropout"},
    "about": {"read_at_m": "read_gsd_m"},
}
"""By section of a recipe (``tile`` is also in a model's config.json), and of ``push --about``: old name -> name."""

OPTIONS: dict[str, dict[str, str]] = {
    "predict": {"turns": "tta"},
    "evaluate": {"turns": "tta", "without_context": "masked_context"},
    "table": {"turns": "tta", "without_context": "masked_context"},
    "inspect": {"gsd_m": "read_gsd_m"},
}
"""By command: old name -> name of an option."""


def old_options(command: str, *, recipe: bool) -> dict[str, str]:
    """Return the options of a command that had another name: old option -> option, spelled with underscores."""
    if recipe:
        return {f"--{s}.{old}": f"--{s}.{new}" for s, names in SECTIONS.items() for old, new in names.items()}
    return {f"--{old}": f"--{new}" for old, new in OPTIONS.get(command, {}).items()}


def with_new_names(section: str, content: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """Return the settings of a section under the names of today.

    Args:
        section: Name of the section, such as ``tile``.
        content: Its settings, under old names or new ones.
        where: The file, for messages; None logs nothing, for files that caswit wrote itself.

    Raises:
        ConfigError: A setting is given under both names.
    """
    names = SECTIONS.get(section, {})
    for old in names.keys() & content.keys():
        if names[old] in content:
            raise ConfigError(f"{where or section}: {section} has {names[old]} and its old name {old}; leave {old} out")
        if where is not None:
            say_once(f"{section}.{old}", f"{section}.{names[old]}")
    return {names.get(name, name): value for name, value in content.items()}


@functools.cache
def say_once(old: str, new: str) -> None:
    """Log the new name of something, the first time its old name is used."""
    log.warning("%s is now called %s; the old name still works", old, new)
