"""The commands that the documentation tells a user to type work."""

import dataclasses
import importlib
import os
import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import pytest

import caswit.config
from caswit.cli.commands import COMMANDS
from caswit.cli.main import main
from caswit.raster.reader import write_raster
from conftest import picture

pytestmark = pytest.mark.e2e

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOT_RUN = re.compile(r"<!-- not run: \w.* -->\n$")
SMALL = {
    "train": ["--train.max_steps", "2", "--train.batch", "2", "--tile.tile_px", "32", "--train.accelerator", "cpu"],
    "figures": ["--panel_px", "64"],
}
"""Settings that make the documented commands short enough to be run by a test."""


def command_blocks(page: Path) -> list[tuple[str, bool]]:
    """Every console block of a page, and whether it is run."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"```console\n(.*?)```", text, re.DOTALL):
        before = text[: match.start()].splitlines(keepends=True)
        found.append((match[1], not (before and NOT_RUN.match(before[-1]))))
    return found


def commands(block: str) -> list[list[str]]:
    """The words of every line that a user types."""
    return [
        shlex.split(line[2:], comments=True)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's folder, as docs/own-data.md describes it."""
    home = tmp_path_factory.mktemp("user")
    (home / "my").mkdir()
    rows, cols = np.indices((96, 128))
    label = np.array([0, 1, 2, 7], np.uint8)[(3 * rows + 2 * cols) // 17 % 4][None]
    for seed, name in enumerate(("north", "south", "east")):
        write_raster(home / "my" / f"{name}.tif", picture(96, 128, seed), crs="EPSG:2154", gsd_m=0.5)
        if name == "east":
            continue  # has no label
        write_raster(home / "my" / f"{name}_label.tif", label, crs="EPSG:2154", gsd_m=0.5)
    for page in PAGES:
        for name, content in re.findall(r'```yaml title="(my/.*?)"\n(.*?)```', page.read_text("utf-8"), re.DOTALL):
            assert not (home / name).exists(), (page.name, name)
            (home / name).write_text(content)
    return home


def test_commands_of_the_pages_work_one_after_another(user, monkeypatch, capsys):
    """own-data.md first: the other pages go on with what it made."""
    monkeypatch.chdir(user)
    first = DOCS / "own-data.md"
    ran = 0
    for page in [first, *(p for p in PAGES if p != first)]:
        for block, is_run in command_blocks(page):
            for words in commands(block) if is_run else []:
                assert words[0] == "caswit", (page.name, words)
                try:
                    main([*words[1:], *SMALL.get(words[1], [])])
                except SystemExit as stop:
                    raise AssertionError(f"{page.name}: {words} failed: {capsys.readouterr().err}") from stop
                ran += 1
    assert ran >= 8
    made = (
        "runs/fine-tuned/model/model.safetensors",
        "runs/by-hand/model/model.safetensors",
        "why.png",
        "figures/figure5.png",
        "runs/mine/scores/report.html",
        "my/south_map.tif",
    )
    assert all((user / name).stat().st_size > 1000 for name in made)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_command_in_the_pages_exists(page):
    for block, _ in command_blocks(page):
        for words in commands(block):
            assert words[0] in ("caswit", "pip", "make", "export", "source"), words
            if words[0] == "caswit":
                assert words[1] in COMMANDS, words


def test_the_network_is_drawn_by_its_script():
    module = runpy.run_path(str(DOCS / "images" / "draw_network.py"))
    assert module["drawing"]() == (DOCS / "images" / "network.svg").read_text(encoding="utf-8")


def test_the_page_of_settings_is_current():
    """Regenerate with ``make golden``."""
    module = runpy.run_path(str(DOCS / "settings_page.py"))
    page = module["page"]()
    assert page == (DOCS / "settings.md").read_text(encoding="utf-8")
    for kind in vars(caswit.config).values():
        if dataclasses.is_dataclass(kind):
            for field in dataclasses.fields(kind):
                assert re.search(rf"\b{field.name.replace('_', '[-_]')}\b", page), (kind, field.name)


def test_every_name_in_the_reference_exists():
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    entries = re.findall(r"^::: ([\w.]+)\n(?: +options: \{members: \[(.*?)\]\})?", text, re.MULTILINE)
    assert len(entries) > 10
    for name, members in entries:
        module = importlib.import_module(name)
        for member in filter(None, members.split(", ")):
            assert getattr(module, member).__module__ == name, (name, member)


def test_pictures_are_small():
    for file in (DOCS / "images").iterdir():
        assert file.stat().st_size < 400_000, file.name


@pytest.mark.timeout(1300)  # a kernel of its own starts slowly on a busy machine
def test_the_tutorial_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="no nbclient: pip install nbclient ipykernel")
    nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="no ipykernel: pip install nbclient ipykernel")
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    shortened = 0
    for cell in notebook.cells:
        short = cell.source.replace("STEPS = 300", "STEPS = 2").replace("SCENE_PX = 768", "SCENE_PX = 288")
        shortened += short != cell.source
        cell.source = short
    assert shortened == 1
    where = {"metadata": {"path": str(tmp_path)}}
    client = nbclient.NotebookClient(notebook, timeout=1200, startup_timeout=300, resources=where)
    client.execute(env={**os.environ, "PYTHONPATH": str(Path(caswit.__file__).parents[1])})
    assert (tmp_path / "tutorial" / "scores" / "report.html").exists()
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
