"""The values that a type allows, in words: of help texts and of the page of settings."""

import types
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

_NAMES = {bool: "true or false", int: "integer", float: "number", str: "text", type(None): "null", Path: "file"}


def words_for(hint: Any, choices: Callable[[list[str]], str]) -> str:
    """Return the values that a type allows.

    Args:
        hint: Type of a setting.
        choices: Joins the words of which one is to be chosen.
    """
    kind, items = get_origin(hint), get_args(hint)
    if kind is Literal:
        return choices([str(item) for item in items])
    if kind in (Union, types.UnionType):
        return " or ".join(words_for(item, choices) for item in items)
    if kind is tuple:
        one = words_for(items[0], choices)
        several = one if get_origin(items[0]) is Literal else f"{one}s"
        return f"list of {several}" if items[-1] is ... else f"{len(items)} {several}"
    if is_dataclass(hint) or hint is dict or kind in (dict, Mapping):
        return "mapping"
    return _NAMES[hint]


def one_of(words: list[str]) -> str:
    """Return words of which one is to be chosen: a, b or c."""
    return " or ".join(filter(None, (", ".join(words[:-1]), words[-1])))
