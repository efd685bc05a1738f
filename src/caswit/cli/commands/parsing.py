"""What the command lines have in common."""

import dataclasses
import difflib
import re
from collections.abc import Iterable
from typing import TypeVar

from jsonargparse import ArgumentParser, Namespace

T = TypeVar("T")


_UNKNOWN = "unrecognized arguments: "
_MISSING = "the following arguments are required: "


def command_message(message: str, parser: ArgumentParser) -> str:
    """What jsonargparse says about the words of a command, in a user's words and one line."""
    text = plain_message(message)
    if text.startswith(_UNKNOWN):
        return _unknown(text.removeprefix(_UNKNOWN), parser)
    if text.startswith(_MISSING):
        words = {a.dest: a.option_strings[0] if a.option_strings else a.dest.upper() for a in parser._actions}
        missing = (words.get(name, name) for name in text.removeprefix(_MISSING).split(", "))
        return f"missing: {', '.join(missing)}; {parser.prog} --help says what they are"
    return text


def plain_message(message: str) -> str:
    """What jsonargparse says about a value, in a user's words and one line."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: ", r"expected \1, got ", text)
    text = re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null").replace("typing.Literal", "one of ")
    return re.sub(r'^Parser key "(.*?)": ', r"--\1: ", text)


def closest(word: str, words: Iterable[str]) -> str:
    """A question whether the most similar of some words was meant, or nothing."""
    found = difflib.get_close_matches(word, words, n=1)
    return f"; did you mean {found[0]}?" if found else ""


def _unknown(words: str, parser: ArgumentParser) -> str:
    """What to say of words that no option takes."""
    options = [option for action in parser._actions for option in action.option_strings]
    first = words.split()[0].split("=")[0]
    return f"{parser.prog} takes no {words}{closest(first, options) if first.startswith('-') else ''}"


def make_parser(name: str, description: str, usage: str | None = None) -> ArgumentParser:
    """An empty parser for ``caswit NAME`` that raises instead of exiting."""
    prog = f"caswit {name}"
    # No abbreviations: a misspelt option must not be taken for another.
    return ArgumentParser(prog=prog, description=description, usage=usage, exit_on_error=False, allow_abbrev=False)


def recipe_parser(name: str, description: str, kind: type) -> ArgumentParser:
    """The parser of a command that makes a run folder from a recipe of some kind."""
    command = make_parser(
        name,
        f"{description} Any field of the recipe can be given as --section.field VALUE.",
        usage=f"caswit {name} RECIPE --out DIR [--resume] [--section.field VALUE ...]",
    )
    command.add_argument("--recipe", action="config", help="YAML file with the settings below (or first argument)")
    command.add_argument("--out", type=str, required=True, help="run folder; its model/ is the result")
    command.add_argument("--resume", action="store_true", help="continue the run in --out from its last checkpoint")
    command.add_class_arguments(kind, fail_untyped=True)
    return command


def settings_of(kind: type[T], arguments: Namespace) -> T:
    """The settings of one dataclass out of everything that was parsed."""
    return kind(**{field.name: arguments[field.name] for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
