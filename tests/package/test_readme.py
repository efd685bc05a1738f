"""The README's Python runs as printed."""

import re
import shutil
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_blocks_run(capsys):
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), {})
    assert "(512, 512)\n" in capsys.readouterr().out


def test_commands_exist():
    from caswit.cli.commands import COMMANDS

    used = re.findall(r"caswit (\w+)", "\n".join(blocks("console")))
    assert used
    assert set(used) <= set(COMMANDS)


def test_links_inside_the_repository_lead_somewhere():
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\(([^)#:]+)\)|src=\"([^\":]+)\"", README):
        assert (root / (link[0] or link[1])).exists(), link


def test_make_targets_exist():
    assert shutil.which("make")
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    for target in re.findall(r"^\$ make (\w+)", README, re.MULTILINE):
        assert f"\n{target}:" in makefile
