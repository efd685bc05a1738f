"""``from caswit import ...``: what the commands do, with Python's values and caswit's exceptions."""

import json
import subprocess
import sys

import pytest
import rasterio
import yaml

import caswit
from caswit.cli.main import main
from caswit.errors import CaswitError, ConfigError, DataError
from conftest import georeference

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]


def small(dataset_file) -> dict:
    return {
        "data": {"dataset": str(dataset_file), "val_split": None},
        "model": {"size": "pico"},
        "tile": {"tile_px": 32},
        "train": {"max_steps": 2, "batch": 2, "accelerator": "cpu", "keep": "last"},
    }


def test_importing_caswit_imports_nothing_heavy():
    code = (
        "import sys, caswit; dir(caswit); sys.exit(bool({'torch', 'numpy', 'rasterio', 'yaml'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_predict_is_the_command(tmp_path, monkeypatch, make_raster, image, model_folder):
    monkeypatch.chdir(tmp_path)
    file = make_raster(image, **georeference())
    main(["predict", str(file), "one.tif", "--model", str(model_folder), "--tta", "2", "--confidence", "c1.tif"])
    result = caswit.predict(file, "two.tif", caswit.load_model(model_folder), tta=2, confidence=tmp_path / "c2.tif")
    assert (result.out.name, result.skipped) == ("two.tif", ())
    for one, two in (("one.tif", "two.tif"), ("c1.tif", "c2.tif")):
        with rasterio.open(one) as a, rasterio.open(two) as b:
            assert (a.read() == b.read()).all()


def test_train_and_evaluate_are_the_commands(tmp_path, dataset_file, capsys):
    """From a mapping, a file and a file with changes: the same weights; and the scores that the command prints."""
    content = small(dataset_file)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content))
    main(["train", str(file), "--out", str(tmp_path / "command")])
    other = content | {"train": content["train"] | {"max_steps": 9}}
    folders = [
        tmp_path / "command" / "model",
        caswit.train(content, tmp_path / "mapping"),
        caswit.train(other, str(tmp_path / "changed"), train={"max_steps": 2}),
    ]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == 1
    capsys.readouterr()
    main(["evaluate", str(folders[0]), str(dataset_file), "--out", str(tmp_path / "scores")])
    said = capsys.readouterr().out
    evaluation = caswit.evaluate(folders[1], dataset_file)
    assert f"mIoU {evaluation.scores.miou:.4f}" in said
    assert not (tmp_path / "mapping" / "scores").exists()
    caswit.evaluate(caswit.load_model(folders[1]), dataset_file, tmp_path / "report", pictures=0)
    assert (tmp_path / "report" / "report.json").is_file()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: caswit.predict("nowhere.tif", "map.tif", "swin-nano-dubai"), DataError, "tif: no such file"),
        (lambda d: caswit.predict("a.tif", "map.tif", visor=1), ConfigError, "predict has no setting visor"),
        (lambda d: caswit.train("nowhere.yaml", "run"), CaswitError, "no such recipe file"),
        (lambda d: caswit.train(small(d), "run", trian={}), ConfigError, "no setting trian; did you mean train"),
        (lambda d: caswit.train(small(d), "run", train={"lrr": 1}), ConfigError, "of the recipe has no setting lrr"),
        (lambda d: caswit.train(small(d), "run", train={"batch": 0}), ConfigError, "batch"),
        (lambda d: caswit.evaluate("swin-nano-dubai", "nowhere.yaml"), DataError, "no such dataset file"),
        (lambda d: caswit.evaluate("swin-nano-dubai", d, split="nosplit"), CaswitError, "nosplit"),
    ],
)  # fmt: skip
def test_mistakes_are_our_exceptions(call, error, message, dataset_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        call(dataset_file)


def test_a_missing_extra_is_one_too(dataset_file, tmp_path):
    code = (
        "import sys; sys.modules['lightning'] = None; import caswit, json; caswit.train(json.loads(sys.argv[1]), 'run')"
    )
    words = [sys.executable, "-c", code, json.dumps(small(dataset_file))]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    said = "CaswitError: train needs lightning, which comes with the extra train: pip install"
    assert said in found.stderr
