"""The page of troubles has a place for every message that ends a command with exit status 2.

Messages are found in the source: what is given to ``CaswitError`` and its subclasses, to ``check``, and what the
command line makes of others' errors. A message without a place fails with the row to add. In rows, and in what is
found here, ``…`` stands for values.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import caswit
from package.test_docs import said_in_the_source

ROOT = Path(caswit.__file__).parent
PAGE = ROOT.parents[1] / "docs" / "troubleshooting.md"
ERRORS = {"CaswitError", "ConfigError", "DataError", "ModelError", "Stopped"}
LETTERS = 3
"""Letters of its own that a message, or a row, has at least."""

PASSED_ON = {
    # The message of another error of ours, which has a row, after a name or before a remedy.
    "config/keywords.py": {"str(error)"},
    "cli/main.py": {
        "with_options(str(error), command)",
        "…: ……",
    },  # the second is the system's: name of file, and what it says
    "cli/recipe.py": {"…: …"},
    "data/classes.py": {"…: …"},
    "data/dataset.py": {"……"},
    "data/loader.py": {"str(error).rpartition(name)[2].strip()"},
    "data/reader.py": {"…: …"},
    "evaluation/evaluate.py": {"read.error"},
    "data/sources/flair_hub.py": {"header"},
    "data/sources/swissimage.py": {"header"},
    "files.py": {"…: ……", "……"},
    "mapping/arrays.py": {"str(error)"},
    "training/run_folder.py": {"…; …"},
    "weights/model_folder.py": {"…: …"},
    # What check hands on, and the end of processes of a run whose first process says why.
    "config/checks.py": {"message"},
    "training/loop.py": {""},
}
"""Messages without words of their own, by file."""


class Message(NamedTuple):
    """A message in the source."""

    place: str
    text: str
    """With … where a value is put in; as Python writes the expression where it has no words of its own."""

    @property
    def row(self) -> str:
        """The row to add to the page."""
        beginning = re.sub(r" \(…\)$", "", self.text.split("; ")[0])
        return f"| `{beginning}` | why it happens, and what to do |"


def words(node: ast.expr, around: ast.AST, module: ast.Module) -> list[str]:
    """Return the texts that an expression can have, with … for values; none where they stand somewhere else."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return ["".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [a + b for a in words(left, around, module) or ["…"] for b in words(right, around, module) or ["…"]]
        case ast.IfExp(body=body, orelse=orelse):
            return words(body, around, module) + words(orelse, around, module)
        case ast.Name(id=name):
            nodes = [n for n in ast.walk(around) if isinstance(n, ast.Assign) and name in map(ast.unparse, n.targets)]
            return [text for n in nodes for text in words(n.value, around, module)]
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(value=ast.Name(id="self"), attr=name)):
            functions = [n for n in ast.walk(module) if isinstance(n, ast.FunctionDef) and n.name == name]
            ends = [(n.value, f) for f in functions for n in ast.walk(f) if isinstance(n, ast.Return) and n.value]
            return [text for value, function in ends for text in words(value, function, module)]
    return []


def given(call: ast.Call, own: bool) -> ast.expr | None:
    """Return what a call makes a message of, if it does: of an error, of one of its ``own`` subclasses, or later."""
    called = ast.unparse(call.func) if len(call.args) in (1, 2) else ""
    match called, call.args:
        case (("type(error)" | "CaswitError" | "ConfigError" | "DataError" | "ModelError" | "Stopped"), [said, *_]):
            return said
        case "check", [_, said]:
            return said
        case "super().__init__", [said] if own:
            return said
        case (("broken.append" | "self.broken.append"), [said]) if not isinstance(said, ast.Call):
            return said  # of a list that ends as one error
    return None


def says(node: ast.expr | None) -> bool:
    """Return whether what the command line returns of an error that is not ours has words, or is none or another's."""
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and bool(node.value))


def expressions(module: ast.Module, name: str) -> Iterator[tuple[int, ast.expr, ast.AST]]:
    """Yield line, expression and surrounding function of everything that becomes a message."""
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    classes = [node for node in ast.walk(module) if isinstance(node, ast.ClassDef) and name != "errors.py"]
    own = [node for node in classes if ERRORS & {*map(ast.unparse, node.bases)}]

    def inside(node: Any, places: list[Any]) -> list[Any]:
        return [place for place in places if place.lineno <= node.lineno <= place.end_lineno]

    for node in ast.walk(module):
        said = None
        if isinstance(node, ast.Call):
            said = given(node, own=bool(inside(node, own)))
        elif isinstance(node, ast.Assign | ast.AugAssign) and isinstance(node.value, ast.ListComp):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            said = (
                node.value.elt
                if says(node.value.elt) and {*map(ast.unparse, targets)} & {"broken", "missing"}
                else None
            )
        elif isinstance(node, ast.Return) and says(node.value):
            # What the command line says of errors that are not ours.
            said = node.value if inside(node, [f for f in functions if f.name == "_users_fault"]) else None
        if said is not None:
            yield node.lineno, said, max(inside(node, functions), key=lambda f: f.lineno, default=module)


@cache
def messages() -> tuple[Message, ...]:
    """Every message of the package that has words of its own."""
    found: list[Message] = []
    for file in sorted(ROOT.rglob("*.py")):
        name, module = str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))
        for line, node, around in expressions(module, name):
            for text in words(node, around, module) or [ast.unparse(node)]:
                if text not in PASSED_ON.get(name, ()):
                    found.append(Message(f"src/caswit/{name}:{line}", text))
    return tuple(dict.fromkeys(found))


def rows(text: str) -> list[str]:
    """Return the messages in the first column of the tables; a cell may hold several, each in a line of its own."""
    cells = re.findall(r"^\| (`.*?`) \| .", text.partition("## No message")[0], re.MULTILINE)
    return [message[1:-1] for cell in cells for message in cell.split("<br>")]


def pattern(row: str) -> re.Pattern[str]:
    """Return what a row stands for: the beginning of a message."""
    # Options are settings with dashes: --gsd-m in the row is gsd_m in the source.
    row = re.sub(r"^--([a-z-]+)", lambda option: option[1].replace("-", "_"), row)
    return re.compile("…+".join(map(re.escape, row.rstrip("…").split("…"))))


def without_place(found: tuple[Message, ...], page: str) -> list[Message]:
    patterns = [pattern(row) for row in rows(page)]
    return [message for message in found if not any(each.match(message.text) for each in patterns)]


def test_every_message_has_a_place_on_the_page():
    found = messages()
    assert len(found) > 250
    missing = without_place(found, PAGE.read_text(encoding="utf-8"))
    lines = [f"{message.row}\n    for {message.place}: {message.text}" for message in missing]
    assert not missing, "add to a table of docs/troubleshooting.md:\n" + "\n".join(lines)


def test_every_row_is_a_message_of_the_source():
    # One text, which is searched as fast as it is read; no row has the character between its parts.
    said = "\0".join(said_in_the_source()).replace("\n", "…")
    for row in rows(PAGE.read_text(encoding="utf-8")):
        assert pattern(row).search(said), row
        assert len(re.findall("[a-z]", row)) >= LETTERS, row


def test_messages_without_words_of_their_own_are_listed_where_they_are():
    for message in messages():
        assert len(re.findall("[a-z]", message.text)) >= LETTERS, message


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ('raise DataError(f"{file}: no such thing; buy one")', "…: no such thing; buy one"),
        ('check(x > 0, f"size must be above 0, got {x}")', "size must be above 0, got …"),
        ('said = f"{x}: too " + word\n    raise ModelError(said)', "…: too …"),
        ("raise ConfigError(no_cluster(x))", "no cluster at …"),
        ('super().__init__("not an error")', None),
    ],
)
def test_messages_are_found(source, text):
    module = ast.parse(f"def no_cluster(x):\n    return f'no cluster at {{x}}'\ndef f():\n    {source}\n")
    found = [text for _, node, around in expressions(module, "x.py") for text in words(node, around, module)]
    assert found == ([] if text is None else [text])


def test_a_row_is_asked_for_where_a_message_has_none():
    message = Message("src/caswit/x.py:3", "…: is too loud (…); whisper")
    (missing,) = without_place((message,), "| `…: is too quiet` | shout |")
    assert missing.row == "| `…: is too loud` | why it happens, and what to do |"
    assert not without_place((message,), missing.row)
