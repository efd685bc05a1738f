"""The commands that the documentation tells a user to type work."""

import ast
import dataclasses
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform as warp

import caswit
import caswit.config
from caswit.cli.commands import COMMANDS
from caswit.cli.main import main
from caswit.raster.reader import write_raster
from conftest import picture

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NOT_RUN = re.compile(r" *<!-- not run: \w.* -->\n$")
SMALL = {
    "train": ["--train.max_steps", "2", "--train.batch", "2", "--tile.tile_px", "32", "--train.accelerator", "cpu"],
    "figures": ["--panel_px", "64"],
    "finetune": ["--steps", "2"],
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
        shlex.split(line.strip()[2:], comments=True)
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip().startswith("$ ")  # blocks in a list are indented
    ]


@pytest.fixture(scope="module")
def user(tmp_path_factory):
    """A user's folder, as docs/own-data.md describes it, with the label files of docs/labels.md."""
    label_files = runpy.run_path(str(DOCS / "images" / "label_files.py"))
    home = tmp_path_factory.mktemp("user")
    (home / "my").mkdir()
    rows, cols = np.indices((96, 128))
    label = np.array([0, 1, 2, 7], np.uint8)[(3 * rows + 2 * cols) // 17 % 4][None]
    for seed, name in enumerate(("north", "south", "east")):
        write_raster(home / "my" / f"{name}.tif", picture(96, 128, seed), crs="EPSG:2154", gsd_m=0.5)
        if name == "east":
            continue  # has no label
        write_raster(home / "my" / f"{name}_label.tif", label, crs="EPSG:2154", gsd_m=0.5)
    label_files["write_label_files"](home / "my", home / "my" / "north.tif", label[0] == 1)
    for page in PAGES:
        for name, content in re.findall(r'```yaml title="(my/.*?)"\n(.*?)```', page.read_text("utf-8"), re.DOTALL):
            assert not (home / name).exists(), (page.name, name)
            (home / name).write_text(content.replace("size: nano", "size: pico"))
    return home


def test_commands_of_the_pages_work_one_after_another(user, monkeypatch, capsys):
    """own-data.md first: the other pages go on with what it made."""
    monkeypatch.chdir(user)
    first = DOCS / "own-data.md"
    ran: list[list[str]] = []
    for page in [first, *(p for p in PAGES if p != first)]:
        for block, is_run in command_blocks(page):
            for words in commands(block) if is_run else []:
                assert words[0] == "caswit", (page.name, words)
                if words in ran:
                    continue
                try:
                    main([*words[1:], *SMALL.get(words[1], [])])
                except SystemExit as stop:
                    raise AssertionError(f"{page.name}: {words} failed: {capsys.readouterr().err}") from stop
                ran.append(words)
    assert len(ran) >= 8
    made = (
        "runs/fine-tuned/model/model.safetensors",
        "runs/by-hand/model/model.safetensors",
        "runs/little-again/model/model.safetensors",
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
            assert words[0] in ("caswit", "pip", "python", "make", "export", "source"), words
            if words[0] == "caswit":
                assert words[1] in (*COMMANDS, "--version"), words


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


def test_the_examples_of_the_python_page_run_one_after_another(user, monkeypatch, capsys):
    monkeypatch.chdir(user)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) >= 8
    exec(compile("\n".join(blocks), "api.md", "exec"), {})
    said = capsys.readouterr().out
    for printed in ("building ", "(3, 64, 64) (3, 64, 64) (64, 64)", "0.5\n", "my/nowhere.tif: no such file"):
        assert printed in said, printed
    assert (user / "python_map.tif").exists()


def test_polygons_become_labels_as_the_page_says(user, monkeypatch):
    """Polygons in degrees; the pixels whose centres they cover."""
    pyogrio, shapely = pytest.importorskip("pyogrio"), pytest.importorskip("shapely")
    monkeypatch.chdir(user)
    with rasterio.open("my/north.tif") as image:
        left, top = image.transform * (10, 20)
        right, bottom = image.transform * (40, 30)
        ring = [(left, top), (right, top), (right, bottom), (left, bottom)]
        xs, ys = warp(image.crs, "EPSG:4326", *zip(*ring, strict=True))
    polygon = shapely.to_wkb(shapely.polygons(list(zip(xs, ys, strict=True))))
    options = {"geometry_type": "Polygon", "crs": "EPSG:4326", "driver": "GPKG"}
    pyogrio.raw.write("my/polygons.gpkg", np.array([polygon]), [np.array([7])], ["class"], **options)
    (code,) = re.findall(r'```python title="rasterize.py"\n(.*?)```', (DOCS / "labels.md").read_text(), re.DOTALL)
    exec(compile(code, "labels.md", "exec"), {})
    with rasterio.open("my/drawn_label.tif") as src, rasterio.open("my/north.tif") as image:
        expected = np.zeros(image.shape, np.uint8)
        expected[20:30, 10:40] = 7
        assert np.array_equal(src.read(1), expected)
        assert (src.crs, src.transform) == (image.crs, image.transform)


def resolve(dotted: str) -> object:
    """What a dotted name stands for."""
    module, found = dotted, None
    while found is None:
        try:
            found = importlib.import_module(module)
        except ModuleNotFoundError:
            module = module.rpartition(".")[0]
    for name in dotted.removeprefix(module).split(".")[1:]:
        found = getattr(found, name)
    return found


def test_every_name_in_the_reference_exists():
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(names) > 30
    assert len(set(names)) == len(names)
    assert {f"caswit.{name}" for name in caswit.__all__ if name != "__version__"} <= set(names)
    for name in names:
        assert resolve(name).__doc__, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(DOCS)))
def test_every_dotted_name_in_the_pages_exists(page):
    """The log and the decisions keep the names of their day."""
    if page.name == "log.md" or page.parent.name == "decisions":
        return
    for name in re.findall(r"`(caswit(?:\.\w+)+)[`(]", page.read_text(encoding="utf-8")):
        resolve(name)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("::: caswit.load_model", None),
        ("::: caswit.load_nothing", "load_nothing"),
        ("[there](nowhere.md)", "nowhere.md"),
        ("[there](index.md#nowhere)", "nowhere"),
    ],
)
def test_a_name_or_link_that_does_not_exist_fails_make_docs(tmp_path, line, complaint):
    """A list of ``members`` did not: mkdocstrings leaves out what it does not find; nor did links with --quiet."""
    (command,) = re.findall(r"^\t.*/(mkdocs .*)$", (DOCS.parent / "Makefile").read_text(), re.MULTILINE)
    assert "members" not in re.sub(r"^::: caswit.Model\n.*", "", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Page\n\n{line}\n")
    settings = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    source = DOCS.parent / "src"
    (tmp_path / "mkdocs.yml").write_text(settings[: settings.index("\nnav:")].replace("[src]", f"[{source}]"))
    done = subprocess.run(
        [sys.executable, "-m", *shlex.split(command)],
        cwd=tmp_path,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (complaint is None), done.stderr
    assert (complaint or "") in done.stderr
    assert complaint or 'id="caswit.load_model"' in (tmp_path / "site" / "index.html").read_text()


def said_in_the_source() -> list[str]:
    """Every text of the package, with a line end where a value is put in."""
    found = []
    for file in Path(caswit.__file__).parent.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\n" for part in node.values]
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
                found.append(node.value)
    return found


def test_no_row_of_the_table_of_growth_is_there_twice():
    rows = re.findall(r"^\| (inference|training.*?) \| (\d+) \| (\d+) \|", (DOCS / "performance.md").read_text(), re.M)
    assert len(rows) == len(set(rows)) > 12


def test_the_site_shows_the_changelog_with_links_that_lead_somewhere():
    module = runpy.run_path(str(DOCS / "hooks.py"))
    shown = module["on_page_markdown"]("", SimpleNamespace(file=SimpleNamespace(src_uri="changelog.md")))
    assert "## Unreleased" in shown
    assert "](docs/" not in shown
    assert module["on_page_markdown"]("text", SimpleNamespace(file=SimpleNamespace(src_uri="index.md"))) == "text"


def test_pictures_are_small():
    for file in (DOCS / "images").iterdir():
        assert file.stat().st_size < 400_000, file.name


def test_the_page_of_the_tutorial_is_the_notebook():
    """Regenerate with ``python docs/tutorial_page.py``."""
    nbformat = pytest.importorskip("nbformat", reason="no nbformat: pip install nbclient ipykernel")
    pytest.importorskip("nbclient", reason="no nbclient: pip install nbclient ipykernel")
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    module = runpy.run_path(str(DOCS / "tutorial_page.py"))
    for source in module["sources"](nbformat.read(DOCS / "tutorial.ipynb", as_version=4)):
        assert all(part in page for part in (source.split("\n", 1) if source.startswith("# ") else [source])), source
    pictures = re.findall(r"!\[.+\]\((images/tutorial\d+\.jpg)\)", page)
    assert len(pictures) == 3
    assert all((DOCS / file).is_file() for file in pictures)


@pytest.mark.slow
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
