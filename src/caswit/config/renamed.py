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
}
"""By section of a recipe (``tile`` is one of a model folder too): old name -> name."""

OPTIONS: dict[str, dict[str, str]] = {
    "predict": {"turns": "tta"},
    "evaluate": {"turns": "tta", "without_context": "masked_context"},
    "table": {"turns": "tta", "without_context": "masked_context"},
    "inspect": {"gsd_m": "read_gsd_m"},
}
"""By command: old name -> name of an option."""


def with_new_names(section: str, content: Mapping[str, Any], where: str | None = None) -> dict[str, Any]:
    """The settings of a section under the names of today.

    Args:
        section: Name of the section, such as ``tile``.
        content: Its settings, under old names or new ones.
        where: What to call the file when an old name is said; None says nothing, for files that caswit wrote.

    Raises:
        ConfigError: A setting is there under both names.
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
    """Tell the user the new name of something, the first time the old one is used."""
    log.warning("%s is now called %s; the old name still works", old, new)
