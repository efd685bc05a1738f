"""What keeps the package readable, counted."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "caswit"
MODULES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("file", MODULES, ids=lambda f: str(f.relative_to(SOURCE)))
def test_a_module_has_at_most_300_lines_and_says_what_it_is(file):
    text = file.read_text()
    assert text.count("\n") <= 300
    assert ast.get_docstring(ast.parse(text))


def test_the_public_surface_is_as_listed():
    import caswit

    assert sorted(caswit.__all__) == ["CASWiT", "__version__", "load_model"]
    assert all(hasattr(caswit, name) for name in caswit.__all__)
    assert not hasattr(caswit, "something_else")


def test_help_does_not_import_torch():
    """``caswit --help`` is instant because nothing heavy is imported before a command runs."""
    code = "import sys, caswit.cli.main; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
