"""A run folder whose files are damaged: one line, not a traceback."""

import json
import shlex

import pytest
import torch
from safetensors.torch import save_file

from caswit.cli.commands import COMMANDS
from caswit.cli.parsing import parse
from caswit.cli.recipe import with_recipe
from caswit.config import DataConfig, Recipe
from caswit.errors import CaswitError, ConfigError, DataError
from caswit.training.run_folder import RunFolder, checkpoint_errors, read_log
from caswit.weights.model_folder import is_complete

RECIPE = Recipe(data=DataConfig(dataset="a.yaml"))
GOOD = {"model": {}, "optimizer": {}, "step": 1, "elapsed_s": 1.0}


@pytest.mark.parametrize("content", [b"a,b\n1,2\n", b"\xff\xfe\n", b"step\n\x00\n" + b"x" * 200_000 + b"\n"])
def test_a_damaged_log(tmp_path, content):
    file = tmp_path / "log.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match="not the log of a run") as caught:
        read_log(file)
    assert "\n" not in str(caught.value)


def test_rows_of_a_log_that_are_no_steps_are_left_out(tmp_path):
    file = tmp_path / "log.csv"
    file.write_bytes("step,loss\n1,2\n²,2\n\n3\n4,5,6\n99999999999999999999999999,1\nx,1\n5,6".encode())
    assert [row["step"] for row in read_log(file)] == ["1", "3"]


@pytest.mark.parametrize(
    ("was", "remedy"),
    [
        (["--train.batch", "4"], "train.batch=4, got 2; resume with --train.batch 4, with the run's own recipe ("),
        (["--train.class_weights", "[1, 2.5]"], "--train.class_weights '[1.0, 2.5]', with"),
        (["--train.clip_norm", "3", "--train.seed", "7"], "; resume with --train.seed 7 --train.clip_norm 3.0, with"),
        (["--model.decoder_channels", "64"], "resume with --model.decoder_channels 64, with"),
        (["--init", "{from: timm, timm: true}"], "; resume with the run's own recipe ("),
    ],
)
def test_the_words_that_a_resumed_run_needs_are_said_and_do(tmp_path, was, remedy):
    """They give the recipe of the run, as the command line reads them."""
    file, folder = tmp_path / "recipe.yaml", RunFolder(tmp_path / "run")
    file.write_text("data: {dataset: a.yaml}\ntrain: {batch: 2}\n")

    def recipe(*words: str) -> Recipe:
        parsed, _ = parse(COMMANDS["train"], with_recipe([str(file), "--out", "x", *words], COMMANDS["train"]))
        return parsed[0]

    folder.begin(recipe(*was))
    folder.last.touch()
    with pytest.raises(ConfigError) as refused:
        folder.check(recipe(), resume=True)
    assert remedy in str(refused.value)
    words = str(refused.value).partition("resume with ")[2].partition("with the run's")[0]
    if words.startswith("--"):
        folder.check(recipe(*shlex.split(words.removesuffix(", "))), resume=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": "1"}, "last.pt: step: must be a whole number, got '1'"),
        ({"step": -1}, "last.pt: step must be 0 or more, got -1"),
        ({"model": []}, "last.pt: model: must be a mapping, got []"),
        ({"model": {"a": None}}, "last.pt: model: a: must be Tensor, got None"),
        ({"elapsed_s": float("nan")}, "last.pt: elapsed_s: must be a number, got nan"),
    ],
)
def test_a_checkpoint_of_another_shape(tmp_path, change, words):
    folder = RunFolder(tmp_path)
    folder.last.parent.mkdir()
    torch.save({**GOOD, **change}, folder.last)
    with pytest.raises(DataError, match="give another --out") as caught:
        folder.begin(RECIPE)
    assert words in str(caught.value)


def test_weights_that_do_not_fit(tmp_path):
    network = torch.nn.Linear(2, 2)
    with pytest.raises(CaswitError, match="does not fit the recipe") as caught, checkpoint_errors(tmp_path / "last.pt"):
        network.load_state_dict({"a": torch.zeros(1)})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "{", '{"provenance": []}', '{"provenance": {"recipe": 3}}', "3"])
def test_a_model_without_provenance_was_made_by_another_recipe(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.model.mkdir()
    (folder.model / "config.json").write_text(content)
    save_file({"a": torch.zeros(1)}, folder.model / "model.safetensors")
    assert is_complete(folder.model) == isinstance(_parsed(content), dict)
    assert not folder.finished(RECIPE)  # so that a table writes the model again


def _parsed(content):
    try:
        return json.loads(content)
    except ValueError:
        return None


@pytest.mark.parametrize("content", ["[]", "{", "3", "a: 2024-13-45"])
def test_a_damaged_recipe_of_a_run(tmp_path, content):
    folder = RunFolder(tmp_path)
    folder.last.parent.mkdir()
    torch.save(GOOD, folder.last)
    folder.recipe.write_text(content)
    with pytest.raises(DataError, match=r"recipe\.yaml.*give another --out"):
        folder.check(RECIPE, resume=True)
