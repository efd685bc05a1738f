"""The command line as a user meets it."""

import errno
import os
import resource
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
import torch
import yaml

import caswit
import caswit.mapping.outputs
from caswit.cli.commands import COMMANDS
from caswit.cli.inputs import check_inputs
from caswit.cli.main import main
from caswit.config import DataConfig, Recipe
from caswit.errors import CaswitError, install
from conftest import georeference, picture

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]


def run(capsys, *words: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a command."""
    try:
        main([str(word) for word in words])
        status = 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def refused(capsys, *words: str) -> str:
    """The one line a user's mistake gets."""
    status, out, err = run(capsys, *words)
    assert status == 2
    assert out == ""
    assert err.startswith("caswit: ")
    assert err.count("\n") == 1, err
    return err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(capsys, words):
    status, out, _ = run(capsys, *words)
    assert status == 0
    assert all(f"  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(capsys, name):
    status, out, _ = run(capsys, name, "--help")
    assert status == 0
    assert out.startswith(f"usage: caswit {name}")


def test_help_of_a_setting_is_the_docstring_of_its_field(capsys):
    out = " ".join(run(capsys, "train", "--help")[1].split())
    assert "Highest learning rate." in out
    assert "(number; default: 6e-05)" in out


def test_version(capsys):
    assert run(capsys, "--version")[1] == f"caswit {caswit.__version__}\n"


def test_python_dash_m_and_exit_status():
    done = subprocess.run([sys.executable, "-m", "caswit", "nonsense"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("caswit: no command 'nonsense'; commands are: ")


def test_not_every_dataset_can_be_prepared(capsys, tmp_path):
    message = refused(capsys, "prepare", "swissimage", "x")
    assert "only flair_hub and urur can be prepared, got 'swissimage'" in message
    for kind in ("flair_hub", "urur"):
        assert "x: no such folder" in refused(capsys, "prepare", kind, str(tmp_path / "x"))


def test_from_recipe_to_map(capsys, dataset_file, tmp_path):
    """Train with two overridden fields, describe, score, map: what the README promises."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "data": {"dataset": str(dataset_file), "val_split": "test"},
                "model": {"size": "pico"},
                "tile": {"tile_px": 32},
                "train": {"batch": 2, "max_steps": 50, "accelerator": "cpu"},
            }
        )
    )
    out, model = tmp_path / "run", tmp_path / "run" / "model"
    status, said, _ = run(capsys, "train", recipe, "--out", out, "--train.max_steps", "2", "--train.seed=3")
    assert status == 0
    assert str(model) in said
    resolved = yaml.safe_load((out / "recipe.yaml").read_text())
    assert (resolved["train"]["max_steps"], resolved["train"]["seed"]) == (2, 3)
    status, said, _ = run(capsys, "info", model)
    assert status == 0
    assert "GFLOP per tile" in said
    status, said, _ = run(capsys, "evaluate", model, dataset_file, "--out", tmp_path / "scores")
    assert status == 0
    assert "mIoU 0." in said
    assert "not in the truth" not in said
    with rasterio.open(tmp_path / "scene_label.tif", "r+") as dry:
        label = dry.read(1)
        dry.write(np.where(label == 7, 1, label), 1)
    status, said, _ = run(capsys, "evaluate", model, dataset_file, "--out", tmp_path / "dry")
    assert "not in the truth of split test: water, with an IoU of 0 in these means" in said
    status, said, _ = run(capsys, "predict", tmp_path / "scene.tif", tmp_path / "map.tif", "--model", model)
    assert status == 0
    assert (tmp_path / "map.tif").is_file()
    assert "--resume" in refused(capsys, "train", recipe, "--out", out)
    assert run(capsys, "info", out)[1] == run(capsys, "info", model)[1]  # a run is described by its model


class TestMistakes:
    def test_unknown_option(self, capsys):
        assert "--colour" in refused(capsys, "predict", "a.tif", "b.tif", "--model", "m", "--colour", "red")

    def test_abbreviated_option(self, capsys):
        """A misspelt option must not be taken for another."""
        assert "--mod" in refused(capsys, "predict", "a.tif", "b.tif", "--mod", "m")

    def test_map_that_is_no_tif(self, capsys, tmp_path, model_folder):
        assert "ends in .tif" in refused(capsys, "predict", __file__, tmp_path / "b.png", "--model", model_folder)

    def test_missing_option(self, capsys):
        assert "--out" in refused(capsys, "explain", __file__, "--row", "1", "--col", "1")

    @pytest.mark.parametrize(
        ("option", "value", "words"),
        [
            ("--batch", "many", "--batch: expected an integer, got many"),
            ("--batch", "1.5", "--batch: expected an integer, got 1.5"),
            ("--batch", "9" * 30, "batch must be at most 1048576, got 9"),
            ("--overlap_px", "x", "--overlap-px: expected an integer or null, got x"),
            ("--precision", "fp16", "--precision: expected auto, bf16, fp32 or int8, got fp16; did you mean bf16?"),
        ],
    )
    def test_value_of_the_wrong_type(self, capsys, option, value, words):
        assert words in refused(capsys, "predict", "a.tif", "b.tif", "--model", "m", option, value)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--rescale", "300"], "caswit: --rescale needs 2 values: LOW HIGH, or auto\n"),
            (["--bands", "a"], "caswit: --bands: not numbers, as in 1 2 3: 'a'\n"),
            (["--vector"], "caswit: --vector needs a value; caswit predict --help says which\n"),
            (["--min_area"], "caswit: --min-area needs a value; caswit predict --help says which\n"),
            (["--nodata", "foo"], "caswit: --nodata: expected a number or auto, got foo\n"),
            (["--rescale", "a", "b"], "caswit: --rescale: expected a number or auto, got a\n"),
            (
                ["--min-confidence", "0.7"],
                "caswit: --min-confidence must be a percentage, not a share, got 0.7; try 70\n",
            ),
            (["--min-confidence", "1"], "caswit: --min-confidence must be a percentage, not a share, got 1; try 70\n"),
        ],
    )
    def test_too_few_values_and_values_that_are_no_numbers(self, capsys, words, message):
        assert refused(capsys, "predict", "a.tif", "b.tif", "--model", "m", *words) == message

    def test_value_out_of_range(self, capsys):
        message = refused(capsys, "predict", "a.tif", "b.tif", "--model", "m", "--batch", "0")
        assert "batch must be at least 1, got 0" in message

    def test_missing_recipe(self, capsys, tmp_path):
        assert "none.yaml" in refused(capsys, "train", tmp_path / "none.yaml", "--out", tmp_path / "run")
        (tmp_path / "banepa-nano.yaml").write_text("")
        said = refused(capsys, "train", tmp_path / "banepa-nan.yaml", "--out", tmp_path / "run")
        assert said.endswith("banepa-nan.yaml: no such recipe file; did you mean banepa-nano.yaml?\n")

    def test_folder_instead_of_a_recipe(self, capsys, tmp_path):
        assert "no such recipe file" in refused(capsys, "train", tmp_path, "--out", tmp_path / "run")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"\x89PNG\xff", "r.yaml: not YAML"),
            (b"hello", "r.yaml: must be a mapping with some of augment, base, data, "),
            (b"data: {dataset: x}\nmodel:", "r.yaml: model: must be a mapping with some of "),
            (b"data: {dataset: x}\nmodels: {size: nano}", "r.yaml: unknown models; allowed: "),
            (b"name: x\nscenes: []", "r.yaml: describes a dataset and is no recipe; caswit recipe "),
            (b"data: {dataset: x}\nmodel: {size: huge}", "--model.size: expected pico, nano, "),
            (b"model: {size: nano}", "missing: --data.dataset"),
        ],
    )
    def test_recipe_that_is_none(self, capsys, tmp_path, content, words):
        (tmp_path / "r.yaml").write_bytes(content)
        assert words in refused(capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run")

    def test_recipe_that_is_not_yaml(self, capsys, tmp_path):
        (tmp_path / "r.yaml").write_text("{")
        assert "r.yaml" in refused(capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run")

    def test_recipe_with_an_unknown_key(self, capsys, tmp_path):
        (tmp_path / "r.yaml").write_text("data: {dataset: x}\ntrain: {learning_rate: 1}")
        assert "r.yaml: train: unknown learning_rate; allowed: accelerator, " in refused(
            capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run"
        )

    def test_recipe_with_a_value_out_of_range(self, capsys, tmp_path):
        (tmp_path / "r.yaml").write_text("data: {dataset: x}\ntile: {tile_px: 250, context_factor: 4}")
        message = refused(capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run")
        assert "tile_px must be a multiple of 2 x context_factor = 8, got tile_px=250; try 248" in message

    def test_recipe_that_names_an_unset_variable(self, capsys, tmp_path, monkeypatch):
        monkeypatch.delenv("CASWIT_DATA", raising=False)
        (tmp_path / "r.yaml").write_text("data: {dataset: $CASWIT_DATA/dubai/dataset.yaml}")
        message = refused(capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run")
        assert "the environment variable CASWIT_DATA is not set; try: export CASWIT_DATA=" in message
        assert not (tmp_path / "run").exists()

    def test_image_that_is_not_there(self, capsys, tmp_path, model_folder):
        message = refused(capsys, "predict", tmp_path / "a.tif", tmp_path / "b.tif", "--model", model_folder)
        assert "a.tif: no such file" in message

    def test_options_and_commands_that_are_not_there(self, capsys):
        assert refused(capsys, "predict", "a", "b", "--gsdm=3") == (
            "caswit: caswit predict takes no --gsdm=3; did you mean --gsd-m?\n"
        )
        for said, meant in (
            ("--train.learning_rate", "--train.lr"),
            ("--lr", "--train.lr"),
            ("--train.batch_size", "--train.batch"),
            ("--max-steps", "--train.max-steps"),
            ("--model.sze", "--model.size"),
        ):
            assert refused(capsys, "train", "--out", "o", said, "3").endswith(f"; did you mean {meant}?\n")
        assert refused(capsys, "evaluate", "a", "b", "c", "--out", "d") == "caswit: caswit evaluate takes no c\n"
        said = refused(capsys, "finetune", "a", "b", "--out", "d", "--lr", "1")
        assert said == "caswit: caswit finetune takes no --lr 1; caswit finetune --help lists its options\n"
        assert refused(capsys, "predct").endswith("push; did you mean predict?\n")

    def test_what_is_missing_is_called_as_it_is_typed(self, capsys):
        said = refused(capsys, "explain", "a.tif", "--row", "3")
        assert said == "caswit: missing: --out; caswit explain --help says what they are\n"
        assert refused(capsys, "predict").startswith("caswit: missing: IMAGES; ")
        assert "missing: OUT.tif; " in refused(capsys, "predict", __file__)

    def test_model_that_is_not_there(self, capsys, tmp_path, dataset_file):
        words = refused(capsys, "predict", dataset_file.with_name("scene.tif"), tmp_path / "b.tif", "--model", "none")
        assert "none: no such model folder" in words

    def test_overlap_of_a_whole_tile(self, capsys, tmp_path, dataset_file, model_folder):
        image = dataset_file.with_name("scene.tif")
        words = refused(capsys, "predict", image, tmp_path / "b.tif", "--model", model_folder, "--overlap_px", "32")
        assert "--overlap-px must be below the model's tile_px=32, got 32; try 8" in words

    def test_folder_that_is_not_there(self, capsys, tmp_path, dataset_file, model_folder):
        out = tmp_path / "none" / "b.tif"
        words = refused(capsys, "predict", dataset_file.with_name("scene.tif"), out, "--model", model_folder)
        assert "its folder does not exist; create it first" in words

    def test_run_folder_inside_a_file(self, capsys, tmp_path, dataset_file):
        small = ["--model.size", "nano", "--train.batch", "2", "--tile.tile_px", "32", "--train.accelerator", "cpu"]
        words = refused(
            capsys, "train", "--out", dataset_file / "run", "--data.dataset", dataset_file, "--data.val_split", "null",
            *small,
        )  # fmt: skip
        assert "Not a directory" in words

    def test_what_gdal_says_is_in_the_one_line(self, make_raster, image, model_folder, tmp_path):
        """GDAL's messages came before ours, through logging; pytest catches logging, so in a process of its own."""
        path = make_raster(image, compress="deflate", tiled=True)
        path.write_bytes(path.read_bytes()[:12_000])
        words = ["predict", path, tmp_path / "map.tif", "--model", model_folder, "--blend=false"]
        done = subprocess.run([sys.executable, "-m", "caswit", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(
            f"caswit: {path}: cannot read rows 0-90, columns 0-130; the file may be truncated"
        )
        assert done.stderr.count("\n") == 1

    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
    def test_ctrl_c_and_kill(self, make_raster, model_folder, tmp_path, how):
        """SIGTERM left a temporary file behind."""
        path, out = make_raster(picture(600, 600)), tmp_path / "out"
        out.mkdir()
        words = ["predict", path, out / "map.tif", "--model", model_folder, "--block_px", "32", "--device", "cpu"]
        words += ["--blend", "false"]  # and no line that says so
        # Shells start background processes with SIGINT ignored, and children inherit that.
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += "from caswit.cli.main import main; main(sys.argv[1:])"
        run = subprocess.Popen([sys.executable, "-c", code, *words], stderr=subprocess.PIPE, text=True)
        while not list(out.glob("*/*.tif")) and run.poll() is None:
            time.sleep(0.05)
        run.send_signal(how)
        *said, last = run.communicate()[1].splitlines()
        assert run.returncode == 128 + how
        assert all(line.startswith("predict image.tif with ") for line in said), said  # where the machine is slow
        again = shlex.join(["caswit", *map(str, words)])
        assert last == f"caswit: stopped; finished blocks are kept; go on with: {again}"
        assert [p.name for p in out.iterdir()] == ["map.tif.parts"]
        assert not list(out.glob("*/.*.tmp"))

    def test_options_may_be_written_with_a_hyphen(self, capsys):
        words = refused(capsys, "predict", "a.tif", "b.tif", "--model", "m", "--overlap-px", "x", "--block-px=64")
        assert "--overlap-px: expected an integer or null, got x" in words

    def test_address_of_an_image(self, capsys, tmp_path, model_folder):
        """Its two slashes became one."""
        url = "https://127.0.0.1:1/a.tif"
        message = refused(capsys, "predict", url, tmp_path / "b.tif", "--model", model_folder)
        assert f"{url}: not a raster GDAL can open" in message

    def test_corrupt_image(self, capsys, tmp_path, model_folder):
        (tmp_path / "a.tif").write_bytes(b"II*\0junk")
        assert "a.tif" in refused(capsys, "predict", tmp_path / "a.tif", tmp_path / "b.tif", "--model", model_folder)
        assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_a_dataset_named_through_the_environment_is_found(monkeypatch, tmp_path, dataset_file):
    """The early look for missing files took $NAME literally, so no recipe of ours began."""
    monkeypatch.setenv("SOMEWHERE", str(dataset_file.parent))
    recipe = Recipe(data=DataConfig(dataset=f"$SOMEWHERE/{dataset_file.name}"))
    check_inputs([recipe], {})
    with pytest.raises(CaswitError, match="no such file"):
        check_inputs([Recipe(data=DataConfig(dataset="$SOMEWHERE/nowhere.yaml"))], {})


@pytest.mark.parametrize("start", ["", "init: swin-nano-buildings"])
def test_training_without_its_extra_says_what_to_install(capsys, tmp_path, dataset_file, monkeypatch, start):
    """With ``init`` it was a traceback: what follows from the model is looked up before the training begins."""
    for name in [
        name
        for name in sys.modules
        if name.startswith(("lightning", "caswit.training.supervised", "caswit.training.fabric"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)  # importing it now fails as if it were not there
    (tmp_path / "r.yaml").write_text(f"data: {{dataset: {dataset_file}}}\n{start}")
    message = refused(capsys, "train", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert install("train") in message


@pytest.mark.data
@pytest.mark.parametrize("name", ["dubai-nano", "banepa-nano"])
def test_the_recipes_of_the_repository_train(capsys, tmp_path, real_data, monkeypatch, name, request):
    monkeypatch.setenv("CASWIT_DATA", str(real_data))
    recipe = request.config.rootpath / "recipes" / f"{name}.yaml"
    small = ["--train.max_steps", "1", "--train.batch", "2", "--data.val_split", "null"]
    status, _, err = run(capsys, "train", recipe, "--out", tmp_path / "run", *small)
    assert status == 0, err
    assert (tmp_path / "run" / "model" / "config.json").is_file()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENAMETOOLONG, errno.EFBIG, errno.ENOSPC, errno.EIO])
def test_what_the_system_says_is_one_line(capsys, monkeypatch, number):
    """Five numbers were known; all others were tracebacks."""
    message = run_raising(capsys, monkeypatch, OSError(number, os.strerror(number), "a\nb" * 2000))
    assert os.strerror(number) in message or len(message) > 2000
    assert len(message) < 2100


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes"
        ),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has a total capacity of"),
        MemoryError("Unable to allocate 9 GiB"),
    ],
)
def test_too_little_memory_is_one_line(capsys, monkeypatch, error):
    """A recipe cut short is a good one of a network for a larger machine: its end was a traceback of torch."""
    message = run_raising(capsys, monkeypatch, error)
    assert message.startswith("caswit: not enough memory (")
    assert "try smaller images or settings" in message


def test_a_bug_stays_a_bug(capsys, monkeypatch):
    with pytest.raises(ValueError, match="ours"):
        run_raising(capsys, monkeypatch, ValueError("ours"))


def run_raising(capsys, monkeypatch, error: Exception) -> str:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("caswit.cli.main.parse", fail)
    return refused(capsys, "info", "model")


# Nor can a file that cannot be written be closed.
@pytest.mark.filterwarnings("ignore:Exception ignored in")
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_polygons_on_a_full_disk(capsys, monkeypatch, make_raster, model_folder, tmp_path, suffix):
    """SQLite's words for a full disk were a traceback."""
    path, out = make_raster(picture(64, 64), **georeference()), tmp_path / "out"
    out.mkdir()
    write, limit = caswit.mapping.outputs._write_polygons, resource.getrlimit(resource.RLIMIT_FSIZE)

    def write_little(*given):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limit[1]))
        return write(*given)

    monkeypatch.setattr(caswit.mapping.outputs, "_write_polygons", write_little)
    words = ["--model", model_folder, "--vector", out / f"p{suffix}", "--device", "cpu"]
    try:
        status, _, said = run(capsys, "predict", path, out / "map.tif", *words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert status == 2, said
    last = said.splitlines()[-1]
    assert last.startswith("caswit: ")
    assert str(out) in last
    assert "Traceback" not in said
    assert [p.name for p in out.iterdir()] == ["map.tif.parts"]
