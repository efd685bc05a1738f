"""The table of commands: it and its functions agree, and everything made from it."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from caswit.cli.commands import COMMANDS
from caswit.cli.main import usage
from caswit.cli.parsing import current_words, make_parser, parse
from caswit.cli.recipe import with_recipe
from caswit.config import renamed
from caswit.errors import CaswitError

GOLDEN = Path(__file__).parents[1] / "golden" / "help.txt"
RECIPE = ["--data.dataset", "d", "--out", "o"]


def read(name: str, *words: str):
    """The arguments that a command's function is called with."""
    return parse(COMMANDS[name], current_words(COMMANDS[name], words))


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_a_function_takes_what_the_table_says(command):
    parameters = inspect.signature(command.run).parameters.values()
    assert [p.annotation for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD] == list(command.settings)
    taken = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    given = {name.removeprefix("--") for name, _ in command.arguments}
    # What a function takes as **place, or as a name that Python keeps for itself.
    others = {"explain": {"row", "col", "x", "y", "lon", "lat"}, "recipe": {"from"}}.get(command.name, set())
    assert taken | others == given


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_line_of_help_is_there_and_short(command):
    assert len(command.help[0]) <= 75
    assert command.help[0].endswith(".")
    assert all(action.help for action in make_parser(command)._actions)


def test_a_default_that_help_shows_can_be_given(monkeypatch):
    """It showed True and (1, 2, 3, 4); recipes and options take true and [1, 2, 3, 4]."""
    monkeypatch.setenv("COLUMNS", "1000")
    pages = [make_parser(command).format_help() for command in COMMANDS.values()]
    shown = [default for page in pages for default in re.findall(r"; default: (.*)\)$", page, re.MULTILINE)]
    assert {"true", "false", "[1, 2, 3, 4]"} <= set(shown)
    assert not [default for default in shown if default in ("True", "False", "None") or default.startswith("(")]
    help_text = make_parser(COMMANDS["train"]).format_help()
    assert "--resume [{true,false}]" in help_text  # as fields that are true or false


def test_help_of_every_command_does_not_import_torch():
    code = """
import sys
from caswit.cli.commands import COMMANDS
from caswit.cli.main import main
for name in COMMANDS:
    try:
        main([name, "--help"])
    except SystemExit as end:
        assert not end.code
    heavy = {"torch", "lightning", "rasterio", "numpy"} & sys.modules.keys()
    assert not heavy, (name, heavy)
"""
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.golden
def test_help_is_the_golden_one(monkeypatch):
    """Every option of every command. ``make golden`` writes the file anew; say in the commit why it changed."""
    monkeypatch.setenv("COLUMNS", "100")
    pages = [usage(), *(make_parser(command).format_help() for command in COMMANDS.values())]
    found = f"\n{'-' * 100}\n".join(pages)
    if os.environ.get("CASWIT_GOLDEN") == "write":
        GOLDEN.write_text(found)
    assert found == GOLDEN.read_text()


def test_both_spellings_of_an_option_are_read():
    for option in ("--overlap-px", "--overlap_px"):
        (settings, *_), _ = read("predict", "a.tif", "b.tif", option, "3")
        assert settings.overlap_px == 3


class TestSwitches:
    @pytest.mark.parametrize(
        ("words", "blend"),
        [
            ((), None),
            (("--blend",), True),
            (("--blend", "--restart"), True),
            (("--blend=false",), False),
            (("--blend", "false"), False),
            (("--blend", "true"), True),
            (("--blend", "no"), False),
        ],
    )
    def test_a_setting_that_is_true_or_false_needs_no_value(self, words, blend):
        (settings, *_), _ = read("predict", "a.tif", "b.tif", *words)
        assert settings.blend is blend

    def test_a_word_after_it_is_not_taken_for_its_value(self):
        (settings, *_), arguments = read("predict", "--blend", "a.tif", "b.tif")
        assert settings.blend
        assert arguments["images"] == ["a.tif", "b.tif"]

    def test_every_such_setting_of_a_recipe_is_one(self):
        (recipe,), arguments = read(
            "train", *RECIPE, "--model.gated", "--model.feed-forward", "false", "--skip-broken", "--resume"
        )
        assert (recipe.model.gated, recipe.model.feed_forward, recipe.data.skip_broken) == (True, False, True)
        assert arguments["resume"] is True


def test_settings_of_several_values_are_separate_words():
    with pytest.raises(CaswitError, match=r"^--seeds: expected an integer, got x$"):
        read("table", "r.yaml", "--out", "o", "--seeds", "0", "x")
    (settings, *_), _ = read("predict", "a", "b", "--bands", "4", "3", "2", "--rescale", "-5", "300")
    assert (settings.bands, settings.rescale) == ((4, 3, 2), (-5.0, 300.0))
    for words in (("a", "b", "--rescale", "auto"), ("--rescale=auto", "a", "b"), ("--rescale", "auto", "a", "b")):
        (settings, *_), arguments = read("predict", *words)
        assert (settings.rescale, arguments["images"]) == ("auto", ["a", "b"])
    (settings,), _ = read("table", "r.yaml", "--out", "o", "--seeds", "0", "7")
    assert settings.seeds == (0, 7)


class TestOldNames:
    def test_an_option_says_its_new_name_once(self, caplog):
        renamed.say_once.cache_clear()
        for _ in range(2):
            (settings,), _ = read("evaluate", "m", "d", "--out", "o", "--turns=2", "--without-context")
            assert (settings.tta, settings.masked_context) == (2, True)
        assert caplog.messages == [
            "--turns is now called --tta; the old name still works",
            "--without-context is now called --masked-context; the old name still works",
        ]

    def test_a_field_of_a_recipe_has_its_old_name_too(self, caplog):
        renamed.say_once.cache_clear()
        (recipe,), _ = read("pretrain", *RECIPE, "--tile.gsd-m", "0.5", "--augment.hide_context=0.1")
        assert (recipe.tile.read_gsd_m, recipe.augment.context_dropout) == (0.5, 0.1)
        assert caplog.messages[0] == "--tile.gsd-m is now called --tile.read-gsd-m; the old name still works"

    def test_every_new_name_is_an_option(self):
        for command in COMMANDS.values():
            options = {option for action in make_parser(command)._actions for option in action.option_strings}
            new = set(renamed.old_options(command.name, recipe=command.reads_recipe).values())
            sections = {"train": {"augment", "tile", "train"}, "pretrain": {"augment", "tile"}}.get(command.name)
            assert {n for n in new if sections is None or n[2:].split(".")[0] in sections} <= options


class TestRecipeWord:
    @pytest.mark.parametrize(
        "words",
        [
            ["{}", "--out", "o"],
            ["--recipe", "{}"],
            ["--out", "o", "--recipe={}"],
            ["--out", "o", "{}"],
            ["--out=o", "--resume", "{}", "--train.lr", "1"],
            ["--resume", "true", "--data.skip_broken", "--model.gated", "no", "{}"],
        ],
    )
    def test_a_recipe_is_replaced_by_what_it_says(self, tmp_path, words):
        file = tmp_path / "r.yaml"
        file.write_text("data: {dataset: x}\nrow: {name: one}\n")
        found = with_recipe([word.format(file) for word in words], COMMANDS["train"])
        assert [word for word in found if "dataset: x" in word and "row" not in word]
        assert str(file) not in " ".join(found)
        assert read("train", "--out", "o", *found)[1]["out"] == "o"

    @pytest.mark.parametrize("place", [0, 2, 4])
    def test_what_is_typed_wins_over_the_recipe_wherever_that_stands(self, tmp_path, place):
        file = tmp_path / "r.yaml"
        file.write_text("data: {dataset: x}\ntrain: {max_steps: 9}\n")
        words = ["--out", "o", "--train.max_steps", "2"]
        words.insert(place, str(file))
        (recipe,), _ = read("train", *with_recipe(words, COMMANDS["train"]))
        assert recipe.train.max_steps == 2

    def test_no_recipe(self):
        assert with_recipe(["--out", "o"], COMMANDS["train"]) == ["--out", "o"]
        with pytest.raises(CaswitError, match=r"missing: --data\.dataset"):
            read("train", "--out", "o")
