"""From the words of a command line to settings: parsers made from the table of commands, and a user's mistakes.

Options are shown with dashes (``--gsd-m``) and fields are named with underscores (``gsd_m``); both spellings are read.
"""

import copy
import dataclasses
import difflib
import inspect
import re
from argparse import SUPPRESS, Action, ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from jsonargparse import ArgumentError, ArgumentParser, DefaultHelpFormatter, Namespace, set_parsing_settings

from caswit.cli.words import one_of, words_for
from caswit.config.checks import check_sizes
from caswit.config.renamed import old_options, say_once
from caswit.errors import CaswitError, brief, did_you_mean

T = TypeVar("T")

_METAVARS = {"bands": ("R", "G", "B"), "rescale": ("LOW", "HIGH")}
"""Placeholders of options that take several values."""
_ANY_NUMBER = "--bands"
"""The option that takes as many numbers as a model has bands."""
_INSTEAD, _TAKE_WORD = "auto", ("--rescale",)
"""A word in place of several values, and the options that take it."""
_SHORTCUTS = {"--skip_broken": "--data.skip_broken"}
"""Options of a command with a recipe that need no section."""
_WORDS = {"int": "an integer", "float": "a number", "str": "a text", "bool": "true or false", "null": "null"}
_KIND = (
    r"one of \[[^\]]*\]|(?:tuple|list)\[(?:int|float|str)(?:, (?:\.\.\.|int|float|str))*\]"
    r"|dict\[str, (?:int|float)\]|int|float|str|bool|null"
)
"""A kind of value as jsonargparse writes it."""
_EXPECTED = re.compile(rf"expected ((?:{_KIND})(?:, (?:{_KIND}))*), got (.*)$")
_BOOLEANS = {"true", "false", "yes", "no", "on", "off"}
_OTHERS_NAMES = {
    "learning_rate": "lr",
    "batch_size": "batch",
    **dict.fromkeys(("num_epochs", "max_epochs", "n_epochs"), "epochs"),
    **dict.fromkeys(("steps", "num_steps", "iterations", "iters", "max_iters"), "max_steps"),
    **dict.fromkeys(("num_workers", "threads"), "workers"),
    **dict.fromkeys(("gpus", "num_gpus", "ngpu"), "devices"),
    **dict.fromkeys(("tile_size", "patch_size", "crop_size", "image_size"), "tile_px"),
    **dict.fromkeys(("gsd", "resolution"), "gsd_m"),
    **dict.fromkeys(("wd", "decay"), "weight_decay"),
    **dict.fromkeys(("pretrained", "weights", "from"), "init"),
    **dict.fromkeys(("output", "out_dir", "output_dir"), "out"),
}
"""Names that other programs have for a field: their name -> ours."""
_UNKNOWN = "unrecognized arguments: "
_FEW_VALUES = re.compile(r"argument (--\S+): expected (one|at least one|\d+) arguments?")
_MISSING = "the following arguments are required: "

Argument = tuple[str, dict[str, Any]]
"""Name and options of an argument that is not a field of a config class."""


def argument(name: str, about: str, kind: Any = str, **options: Any) -> Argument:
    """Describe an argument: ``model`` is given by its place, ``--out`` by its name. Not required, it is None."""
    # A switch shows its two values.
    shown = {} if kind is bool else {"metavar": name.removeprefix("--").upper()}
    return name, {"type": kind, "help": about, **shown, **options}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its function, whose docstring is the help, and what the function takes."""

    run: Callable[..., None]
    """Called with one object of each class in ``settings``, and the ``arguments`` by name."""
    arguments: tuple[Argument, ...] = ()
    """Everything that is not a field of a config class."""
    settings: tuple[type, ...] = ()
    """Config classes, each field of which is an option; with ``reads_recipe`` a recipe, whose fields are sections."""
    reads_recipe: bool = False
    """True where the first word is a recipe file."""

    @property
    def name(self) -> str:
        """The word after ``caswit``."""
        return self.run.__name__

    @property
    def help(self) -> list[str]:
        """The paragraphs of the help; the first is the line in ``caswit --help``."""
        return [" ".join(paragraph.split()) for paragraph in (inspect.getdoc(self.run) or "").split("\n\n")]

    @property
    def synopsis(self) -> str:
        """The name and the arguments that are given by their place."""
        words = [self.name, "RECIPE"] if self.reads_recipe else [self.name]
        for name, options in self.arguments:
            if not name.startswith("--"):
                word = str(options["metavar"])
                words.append({"+": f"{word}...", "?": f"[{word}]"}.get(options.get("nargs", ""), word))
        return " ".join(words)


class _Help(DefaultHelpFormatter):
    """Shows options with dashes, their values in words, and that ``--blend`` needs no value."""

    # Only what is shown changes: jsonargparse recognises nested and list options by their registered spelling.
    def _format_action_invocation(self, action: Action) -> str:
        shown = copy.copy(action)
        shown.option_strings = [dashed(option) for option in action.option_strings]
        shown.nargs = "?" if _is_bool(action) else action.nargs
        return super()._format_action_invocation(shown)

    def _get_type_str(self, action: Action) -> str | None:
        hint = getattr(action, "_typehint", None)
        return words_for(hint, one_of) if hint is not None else super()._get_type_str(action)

    def _get_help_string(self, action: Action) -> str:
        about = super()._get_help_string(action)
        about = about.replace("type: %(type)s", "%(type)s").replace(", default: %(default)s", "; default: %(default)s")
        default = action.default
        if not isinstance(default, bool | tuple):
            return about
        # As YAML has it, which is what recipes and options take.
        return about.replace("%(default)s", str(default).lower() if isinstance(default, bool) else str(list(default)))


def make_parser(command: Command) -> ArgumentParser:
    """Return the parser of a command, which raises instead of exiting."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)  # fields' docstrings are their help
    required = [f"{name} {options['metavar']}" for name, options in command.arguments if options.get("required")]
    parser = ArgumentParser(
        prog=f"caswit {command.name}",
        usage=" ".join(["caswit", command.synopsis, *required, "[options]"]),
        description=" ".join(command.help),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,  # a misspelt option must not be taken for another
    )
    if command.reads_recipe:
        parser.add_argument("--recipe", action="config", help="YAML file with the settings below (or first argument)")
    for name, options in command.arguments:
        parser.add_argument(name, **options)
    for kind in command.settings:
        _add_settings(parser, kind)
    for action in parser._actions:
        # jsonargparse's own: a file for each section and a print of the recipe, which the run folder has anyway.
        if action.dest == "print_config" or (action.help or "").startswith("Path to a configuration file"):
            action.help = SUPPRESS
    return parser


def _add_settings(parser: ArgumentParser, kind: Any) -> None:
    """Add every field of a config class; those that are tuples take their values as separate words.

    jsonargparse would want ``--seeds '[0, 1]'``; people type ``--seeds 0 1``.
    """
    # A parser of its own reads the help of all fields, because the one below must skip some.
    tuples = {field.name: field for field in dataclasses.fields(kind) if _tuple_items(field.type)}
    described = ArgumentParser()
    described.add_class_arguments(kind)
    about = {action.dest: action.help for action in described._actions}
    parser.add_class_arguments(kind, fail_untyped=True, skip=set(tuples))
    for name, field in tuples.items():
        item, *others = _tuple_items(field.type)
        words = [kind for kind in get_args(field.type) if get_origin(kind) is Literal]
        # Several words are a list, also where one is the rule.
        default: Any = [field.default] if isinstance(field.default, int) else field.default
        if _is_any_number(field):
            parser._action_groups[-1].add_argument(
                f"--{name}", type=_Integers(), metavar="N ...", default=field.default, help=about[name]
            )
            continue
        parser._action_groups[-1].add_argument(
            f"--{name}",
            type=Union[item, *words],
            nargs="+" if others == [...] else 1 + len(others),
            metavar=_METAVARS.get(name),
            default=[default] if isinstance(default, int) else default and list(default),
            help=about[name],
        )


def _tuple_items(hint: Any) -> tuple[Any, ...]:
    """Return the types of a tuple's items, also of ``tuple[...] | None``; nothing for other types."""
    return next((get_args(kind) for kind in (hint, *get_args(hint)) if get_origin(kind) is tuple), ())


def current_words(command: Command, words: Iterable[str]) -> list[str]:
    """Return the words with options under today's names, spelled as fields are: ``--turns 2`` is ``--tta 2``."""
    renamed = old_options(command.name, recipe=command.reads_recipe)
    shortcuts = _SHORTCUTS if command.reads_recipe else {}
    found = []
    for word in words:
        option, equals, value = word.partition("=")
        if option.startswith("--"):
            option = option[:2] + option[2:].replace("-", "_")
        if option in renamed:
            say_once(dashed(option), dashed(renamed[option]))
        found.append(renamed.get(option, shortcuts.get(option, option)) + equals + value)
    return _repeated(_joined(found) if _ANY_NUMBER in _any_numbers(command) else found)


def _any_numbers(command: Command) -> set[str]:
    """Return the options of a command that take as many numbers as are given."""
    return {f"--{f.name}" for kind in command.settings for f in dataclasses.fields(kind) if _is_any_number(f)}


def _is_any_number(field: Any) -> bool:
    # Others that take any number of values stand after the words that have a place.
    return f"--{field.name}" == _ANY_NUMBER and _tuple_items(field.type)[1:] == (...,)


def _joined(words: Iterable[str]) -> list[str]:
    """Return the words with ``--bands 1 2 3 4`` as one value, 1,2,3,4: the words after it may be images."""
    found: list[str] = []
    reading = False
    for word in words:
        if reading and re.fullmatch(r"-?\d+", word):
            found[-1] = f"{found[-1]},{word}" if found[-1] != _ANY_NUMBER else found[-1]
            found += [word] if found[-1] == _ANY_NUMBER else []
            continue
        reading = word == _ANY_NUMBER
        found.append(word)
    return found


class _Integers:
    """The type of an option whose value is 1,2,3,4. A class for its name in the help."""

    def __repr__(self) -> str:
        return "numbers"

    def __call__(self, value: str | list[int] | tuple[int, ...]) -> list[int]:
        """Return the numbers; jsonargparse asks for those that it has already once more."""
        if not isinstance(value, str):
            return list(value)
        try:
            return [int(word) for word in value.split(",")]
        except ValueError as error:
            raise ArgumentTypeError(f"not numbers, as in 1 2 3: {brief(value)}") from error


def _repeated(words: Iterable[str]) -> list[str]:
    """Return the words with ``--rescale auto`` as the two values that the option takes."""
    found: list[str] = []
    for word in words:
        option, equals, value = word.partition("=")
        if option in _TAKE_WORD and equals and value == _INSTEAD:
            found += [option, value, value]
        else:
            found += [word, word] if word == _INSTEAD and found and found[-1] in _TAKE_WORD else [word]
    return found


def parse(
    command: Command, words: Sequence[str], follow: Callable[[Namespace], dict[str, Any]] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Return an object of each of a command's settings, and its other arguments by name.

    Args:
        command: Of the table.
        words: What follows its name.
        follow: Given what the words say, returns the defaults that follow from it, by name.

    Raises:
        CaswitError: A word is unknown, missing, or not a value that is allowed.
    """
    parser = make_parser(command)
    switches = {option for action in parser._actions if _is_bool(action) for option in action.option_strings}
    # "--blend map.tif" must not take the image for a value, so only words that can be values are taken.
    complete = [
        f"{word}=true" if word in switches and not is_boolean(following) else word
        for word, following in zip(words, [*words[1:], ""], strict=False)
    ]
    try:
        if follow is not None:
            parser.set_defaults(follow(parser.parse_args(complete, defaults=False)))
        parsed = parser.parse_args(complete)
        refuse_null(parser, parsed)
        found = parser.instantiate(parsed)
    except ArgumentError as error:
        raise CaswitError(_command_message(str(error), parser)) from error
    names = [name.removeprefix("--") for name, _ in command.arguments]
    settings: list[Any] = [settings_of(kind, found) for kind in command.settings]
    for each in settings:
        check_sizes(each)
    return settings, {name: found[name] for name in names}


def refuse_null(parser: ArgumentParser, parsed: Namespace) -> None:
    """Raise ArgumentError if null is given for a setting that cannot be null, which jsonargparse lets through."""
    for action in parser._actions:
        hint = getattr(action, "_typehint", None)
        null = hint is not None and parsed.get(action.dest, action.default) is None
        if null and action.default is not None and type(None) not in get_args(hint):
            usual = f"{action.default:g}" if isinstance(action.default, float) else brief(action.default)
            raise ArgumentError(None, f'Parser key "{action.dest}": must not be null; leave it out for {usual}')


def settings_of(kind: type[T], found: Namespace) -> T:
    """Return the settings of one config class out of everything that was parsed."""
    values = {field.name: found[field.name] for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    return kind(**{name: _value(value) for name, value in values.items()})


def _value(value: Any) -> Any:
    """Return what was parsed as a field has it: several values are a tuple, and a word in place of them all itself."""
    if not isinstance(value, list):
        return value
    return value[0] if value and all(each == _INSTEAD for each in value) else tuple(value)


def is_boolean(word: str) -> bool:
    """Return whether a word can be the value of a switch."""
    return word.lower() in _BOOLEANS


def _is_bool(action: Action) -> bool:
    hint = getattr(action, "_typehint", None)
    return hint is bool or set(get_args(hint)) == {bool, type(None)}


def dashed(text: str) -> str:
    """Return a text whose options are written with dashes."""
    return re.sub(r"--[a-z][\w.]*", lambda option: option[0].replace("_", "-"), text)


def with_options(message: str, command: Command) -> str:
    """Return what a setting refuses with its fields named as options: ``gsd_m must be ...`` is ``--gsd-m must be ...``.

    In a recipe fields have their own names, so messages of commands that read one are left alone.
    """
    if command.reads_recipe:
        return message
    fields = [field.name for kind in command.settings for field in dataclasses.fields(kind)]
    options = [*fields, *(name.removeprefix("--") for name, _ in command.arguments if name.startswith("--"))]
    # A name of one word may be an ordinary word of the message; at its beginning it is the subject.
    begin = re.match(r"(\w+)(?= (must|needs|is a|is about)\b)", message)
    if begin and begin[1] in options:
        message = f"--{message}"
    written = "|".join(sorted((name for name in options if "_" in name), key=len, reverse=True))
    if written:
        message = re.sub(rf"(?<![\w./-])({written})\b", r"--\1", message)
    # Options of other programs, such as srun --ntasks=1, are written as those programs take them.
    ours = "|".join(sorted(map(re.escape, options), key=len, reverse=True)) or "(?!)"
    return re.sub(rf"--({ours})\b(=(?=\S))?", lambda found: dashed(f"--{found[1]}") + " " * bool(found[2]), message)


def _command_message(message: str, parser: ArgumentParser) -> str:
    """Return what jsonargparse says about the words of a command, in a user's words and one line."""
    text = plain_message(message)
    if text.startswith(_UNKNOWN):
        return _unknown_message(dashed(text.removeprefix(_UNKNOWN)), parser)
    if text.startswith(_MISSING):
        words = {a.dest: a.option_strings[0] if a.option_strings else a.metavar for a in parser._actions}
        missing = dashed(", ".join(str(words.get(name, name)) for name in text.removeprefix(_MISSING).split(", ")))
        return f"missing: {missing}; {parser.prog} --help says what they are"
    if few := _FEW_VALUES.fullmatch(text):
        option, count = few[1].lstrip("-"), few[2].replace("one", "a")
        which = f": {' '.join(_METAVARS[option])}" if option in _METAVARS else f"; {parser.prog} --help says which"
        instead = f", or {_INSTEAD}" if few[1] in _TAKE_WORD else ""
        return dashed(f"{few[1]} needs {count} value{'s' * (count.isdecimal())}{which}{instead}")
    return dashed(text.removeprefix("argument "))


def plain_message(message: str) -> str:
    """Return what jsonargparse says about a value, in a user's words and one line."""
    text = " ".join(message.split())
    text = re.sub(r"Does not validate .* Subtypes: \[(.*?)\] Errors: .* Given value: ", r"expected \1, got ", text)
    text = re.sub(r"Expected an? (.*)\. Got value: ", r"expected \1, got ", text)
    # Of an item that is a mapping, jsonargparse names the class and not the item.
    text = re.sub(r"Problem with given class_path '.*?': (?:Parser key \"(\w+)\": )?", r"\1 ", text)
    text = re.sub(r"<class '(\w+)'>", r"\1", text).replace("NoneType", "null").replace("typing.Literal", "one of ")
    # A word in place of a number, such as auto.
    text = re.sub(r"expected float, one of \['(\w+)'\](, null)?, got", r"expected a number or \1, got", text)
    text = _EXPECTED.sub(_expected, text)
    return re.sub(r'^Parser key "(.*?)"(?: element \d+)?: ', r"--\1: ", text)


def _expected(found: re.Match[str]) -> str:
    """Return what a value has to be in a user's words: ``int, null`` is an integer or null."""
    choices: list[str] = []
    kinds = []
    for kind in re.findall(_KIND, found[1]):
        if kind.startswith("one of"):
            choices = re.findall(r"'([^']*)'", kind)
            kinds += choices
        elif kind.startswith("dict"):
            kinds.append("{NAME: NUMBER, ...}")
        elif "[" in kind:
            kinds.append(f"a list of {_WORDS[re.findall('int|float|str', kind)[0]].split()[-1]}s")
        else:
            kinds.append(_WORDS[kind])
    return f"expected {one_of(kinds)}, got {found[2]}{did_you_mean(found[2], choices)}"


def closest(word: str, words: Iterable[str]) -> str:
    """Return a question whether the most similar of some words was meant, or nothing.

    ``--lr`` and ``--train.learning-rate`` are close to ``--train.lr``: fields are compared without their section too,
    and under the names that other programs have for them.
    """
    known = list(words)
    by_field: dict[str, list[str]] = {}
    for each in known:
        by_field.setdefault(_field(each), []).append(each)
    field = _OTHERS_NAMES.get(_field(word), _field(word))
    # One field of the same name; several, as the weight_decay of many sections would be, only if one is near.
    same = by_field.get(field, [])
    near = difflib.get_close_matches(word, same if len(same) > 1 else known, n=1, cutoff=0.6)
    fields = difflib.get_close_matches(field, by_field, n=1, cutoff=0.75)
    found = same if len(same) == 1 else near or (by_field[fields[0]] if fields else [])
    return f"; did you mean {found[0]}?" if found else ""


def _field(option: str) -> str:
    """Return the last part of an option's name, as fields are spelled: that of ``--train.max-steps`` is max_steps."""
    return option.lstrip("-").rpartition(".")[2].replace("-", "_")


def _unknown_message(words: str, parser: ArgumentParser) -> str:
    shown = [action for action in parser._actions if action.help != SUPPRESS]
    options = [dashed(option) for action in shown if action.dest != "help" for option in action.option_strings]
    first = words.split()[0].split("=")[0]
    if not first.startswith("-"):
        return f"{parser.prog} takes no {words}"
    return f"{parser.prog} takes no {words}{closest(first, options) or f'; {parser.prog} --help lists its options'}"
