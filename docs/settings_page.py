"""Write docs/settings.md: every argument and setting of every command, from the table of commands.

python docs/settings_page.py
"""

from argparse import SUPPRESS, Action
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, set_parsing_settings

from caswit.cli.commands import COMMANDS
from caswit.cli.parsing import Command, dashed, make_parser
from caswit.cli.words import words_for
from caswit.config import SOURCES, InitConfig, PhaseConfig, RowConfig

PAGE = Path(__file__).with_name("settings.md")
HEAD = "| {} | values | default | meaning |\n|---|---|---|---|\n"
INTRODUCTION = """\
# Settings

Every argument and setting of every command. The same text is the command's `--help`; hyphens and underscores are the
same (`--gsd-m`, `--gsd_m`), and a setting that is true or false needs no value (`--blend`). Fields of a recipe stand
under their section; on the command line, the field `size` of the section `model` is `--model.size`.

<!-- Made by `python docs/settings_page.py` from the docstrings in src/caswit/config: edit those, not this page. -->
"""
FILES = """\
## Fields of files

What YAML files hold beside the settings above.
"""


def page() -> str:
    """Return the whole page."""
    kinds = {f"Dataset: `source: {{kind: {kind}}}`": source for kind, source in SOURCES.items()}
    kinds |= {
        "Recipe: `row`, for `caswit table`": RowConfig,
        "Recipe: `init`": InitConfig,
        "Recipe: `train.phases`": PhaseConfig,
    }
    files = [f"### {title}\n\n{field_table(kind)}" for title, kind in kinds.items()]
    return "\n".join([INTRODUCTION, *(section(command) for command in COMMANDS.values()), FILES, *files])


def section(command: Command) -> str:
    """Return the part of the page on a command: a table for each group of its arguments."""
    parser = make_parser(command)
    parts = [f"## caswit {command.name}\n", *(f"{paragraph}\n" for paragraph in command.help)]
    parts.append(f"```text\n{parser.usage}\n```\n")
    general: list[Action] = []
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if _is_setting(action)]
        if any("." in action.dest for action in actions):
            name = actions[0].dest.split(".")[0]
            parts.append(f"### `{name}` of `caswit {command.name}`: {group.title}\n")
            parts.append(table("field", ((action.dest.removeprefix(f"{name}."), action) for action in actions)))
        elif actions and group.title in ("positional arguments", "options"):
            general += actions
        elif actions:
            parts.append(f"{group.title}:\n")
            parts.append(table("option", ((_option(action), action) for action in actions)))
    if general:
        parts.insert(len(command.help) + 2, table("argument", ((_option(action), action) for action in general)))
    return "\n".join(parts)


def field_table(kind: Any) -> str:
    """Return a table of the fields of a config class, as they are written in a file."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser()
    parser.add_class_arguments(kind, "it")
    actions = [action for action in parser._actions if _is_setting(action)]
    renamed = {"source": "from"} if kind is InitConfig else {}
    names = (action.dest.removeprefix("it.") for action in actions)
    return table("field", zip((renamed.get(name, name) for name in names), actions, strict=True))


def table(head: str, rows: Iterable[tuple[str, Action]]) -> str:
    """Return a Markdown table with a row for each named action."""
    lines = (f"| `{name}` | {_values(action)} | {_default(action)} | {_text(action)} |\n" for name, action in rows)
    return HEAD.format(head) + "".join(lines)


def _values(action: Action) -> str:
    if action.choices:
        return _quoted(action.choices)
    if not hasattr(action, "_typehint") and action.type is not None:
        return str(action.type)
    one = words_for(getattr(action, "_typehint", Path), _quoted)
    if isinstance(action.nargs, int):
        kind, _, instead = one.partition(" or ")
        return f"{action.nargs} {kind}s{instead and f' or {instead}'}"
    return f"one or more {one}s" if action.nargs == "+" else one


def _quoted(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _default(action: Action) -> str:
    if action.required:
        return "required"
    value = list(action.default) if isinstance(action.default, tuple) else action.default
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10) + '...' + chr(10)).strip()}`"


def _text(action: Action) -> str:
    return " ".join((action.help or "").replace("|", "\\|").replace("*", "\\*").split())


def _option(action: Action) -> str:
    return dashed(action.option_strings[0]) if action.option_strings else str(action.metavar)


def _is_setting(action: Action) -> bool:
    """Return whether an action takes a value of its own: not ``--help``, and no file for a whole section."""
    return action.default != SUPPRESS or action.dest == "recipe"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
