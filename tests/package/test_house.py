"""The house: what lies where, what imports what, and what is public."""

import ast
import graphlib
import importlib
import importlib.metadata
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import caswit

SOURCE = Path(__file__).parents[2] / "src" / "caswit"
PROJECT = tomllib.loads((SOURCE.parents[1] / "pyproject.toml").read_text())
MODULES = {
    ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(SOURCE.rglob("*.py"))
}
ROOT = {"__init__", "__main__", "errors", "progress", "files"}


def test_packages_and_five_modules_lie_in_the_root():
    entries = [entry for entry in SOURCE.iterdir() if entry.name != "__pycache__"]
    assert {entry.name for entry in entries if entry.is_file()} == {f"{name}.py" for name in ROOT} | {"py.typed"}
    assert all((entry / "__init__.py").is_file() for entry in entries if entry.is_dir())


@pytest.mark.parametrize("module", MODULES)
def test_a_module_says_what_it_is(module):
    assert ast.get_docstring(ast.parse(MODULES[module].read_text()))


def test_the_contract_has_at_most_ten_layers_and_holds_every_package():
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    (layers,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    assert len(layers) <= 10
    named = [name.strip() for layer in layers for name in layer.replace("|", ":").split(":")]
    packages = {f"caswit.{folder.parent.name}" for folder in SOURCE.glob("*/__init__.py")}
    assert sorted(named) == sorted(packages | {f"caswit.{name}" for name in ROOT if "__" not in name})


def imports(file: Path) -> set[str]:
    """The modules of the package that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        parents = [f"{node.module}.{name}" for name in names] if isinstance(node, ast.ImportFrom) else names
        found |= {name if name in MODULES else name.rpartition(".")[0] for name in parents} & MODULES.keys()
    return found


def test_no_two_files_import_each_other_directly_or_through_others():
    """``caswit`` itself stands apart: it imports what it exports when that is first used."""
    graph = {module: imports(file) - {module, "caswit"} for module, file in MODULES.items() if module != "caswit"}
    assert len(graph) > 100
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, with the circle


def test_imports_are_statements():
    """An import by name would hide an arrow from the contract and from the test above."""
    assert not [module for module, file in MODULES.items() if "import_module" in file.read_text()]


def test_the_version_is_the_package_metadatas():
    assert caswit.__version__ == importlib.metadata.version("caswit")
    assert "__version__ = version(" in MODULES["caswit"].read_text()


def test_the_public_surface_is_as_listed():
    assert sorted(caswit.__all__) == ["CASWiT", "Model", "__version__", "evaluate", "load_model", "predict", "train"]
    assert all(hasattr(caswit, name) for name in caswit.__all__)
    assert not hasattr(caswit, "something_else")


def test_the_script_is_a_function():
    """``caswit = "caswit.cli:main"`` named a module after the command line became a package."""
    module, _, name = PROJECT["project"]["scripts"]["caswit"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_extras_are_those_of_the_package():
    from caswit.errors import EXTRAS

    extras = PROJECT["project"]["optional-dependencies"]
    assert EXTRAS.keys() <= extras.keys()
    for extra, modules in EXTRAS.items():
        named = {re.match(r"[\w-]+", each)[0].replace("-", "_") for each in extras[extra]}
        # starlette comes with fastapi.
        assert {m.replace("-", "_") for m in modules} <= named | {"starlette"}, extra


def test_what_is_said_about_an_extra_can_be_typed(monkeypatch, tmp_path):
    """``pip install 'caswit[serve]'`` found nothing: the package is on no index."""
    from caswit import errors

    pip, verb, *options, what = shlex.split(errors.install("vector"))
    assert (pip, verb) == ("pip", "install")
    assert options in ([], ["--editable"])
    clone, _, extra = what.removesuffix("]").rpartition("[")
    assert extra == "vector"
    assert tomllib.loads((Path(clone) / "pyproject.toml").read_text())["project"]["name"] == "caswit"

    class Noted:
        text = None

        def read_text(self, name):
            return self.text

    monkeypatch.setattr(errors, "distribution", lambda name: Noted())
    for text in (None, '{"url": "https://example.org/caswit.git"}', f'{{"url": "file://{tmp_path}/gone"}}'):
        Noted.text = text
        assert (
            errors.install("vector") == "pip install '.[vector]' in a clone of caswit, which is on no package index yet"
        )
    clone = tmp_path / "a clone"
    clone.mkdir()
    (clone / "pyproject.toml").touch()
    Noted.text = f'{{"dir_info": {{}}, "url": "{clone.as_uri()}"}}'
    assert shlex.split(errors.install("ray")) == ["pip", "install", f"{clone}[ray]"]


def test_every_extra_that_is_named_anywhere_exists():
    """One function makes the messages; pages install from a clone, since no index has the package."""
    root = SOURCE.parents[1]
    files = [*SOURCE.rglob("*"), *(root / "docs").rglob("*.md"), *root.glob("*.md"), *(root / "tests").rglob("*.py")]
    known, found = PROJECT["project"]["optional-dependencies"].keys(), set()
    for file in files:
        if file.suffix not in (".py", ".md", ".j2", ".html", ".js", ".yaml") or file == Path(__file__).resolve():
            continue
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"caswit\[[a-z]", text), f"{file}: names an extra of a package that no index has"
        assert not re.search(r"pip install caswit\b", text), file
        for extras in re.findall(r"\.\[([a-z, ]+)\]'", text):
            found |= set(extras.split(","))
    assert found
    assert found <= known
    # Nobody but errors.install writes such a command for a terminal.
    said = [f for f in SOURCE.rglob("*.py") if "pip install" in f.read_text() and f.name != "errors.py"]
    assert not said


def test_help_does_not_import_torch():
    """``caswit --help`` is instant because nothing heavy is imported before a command runs."""
    code = "import sys, caswit.cli.main; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


CONTRIBUTING = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()


def test_the_core_that_is_listed_is_the_one_of_the_contract():
    listed = re.search(r"<!-- core: .*?-->(.*?)<!-- end of the core -->", CONTRIBUTING, re.DOTALL)[1]
    rows = [line.strip("| ").split(" | ") for line in listed.strip().splitlines()[2:]]
    modules = [
        ".".join(["caswit", *([] if package == "root" else [package.strip("`")]), name])
        for package, names in rows
        for name in re.findall(r"`(\w+)`", names)
    ]
    (core,) = [c for c in PROJECT["tool"]["importlinter"]["contracts"] if c["name"] == "the core stands alone"]
    assert sorted(modules) == sorted(core["source_modules"])


def test_the_ways_through_the_code_name_files_that_are_there():
    ways = CONTRIBUTING[CONTRIBUTING.index("## Three ways") : CONTRIBUTING.index("## Words")]
    named = re.findall(r"`([a-z_/]+\.py)`", ways)
    assert len(named) > 60
    beside = {"swin.py", "window_partition.py", "fusion.py", "decoders.py", "conv.py"}  # written after nn/caswit.py
    assert not [n for n in named if not (SOURCE / n).is_file() and n not in beside and not n.startswith("benchmarks/")]
