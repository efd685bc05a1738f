"""Inputs that are not there, and how a command that was stopped goes on."""

import os
import subprocess
import sys

import numpy as np
import pytest
import rasterio

from caswit.cli.commands import COMMANDS
from caswit.cli.main import _again, main
from caswit.cli.parsing import with_options

NOTHING = """
import sys
from caswit.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert end.code == 2
assert not {"torch", "lightning"} & sys.modules.keys()
"""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predict", "none.tif", "map.tif"], "none.tif: no such file"),
        (["predict", "none.tif", "--out-dir", "maps"], "none.tif: no such file"),
        (["predict", "none*.tif", "map.tif"], "none*.tif: no file matches this pattern"),
        (
            ["predict", "there.tif", "map.tif", "--model", "none"],
            "none: no such model folder, and no model of the pack",
        ),
        (["predict", "there.tif"], "missing: OUT.tif"),
        (
            ["explain", "none.tif", "--model", "m", "--row", "1", "--col", "1", "--out", "a.png"],
            "none.tif: no such file",
        ),
        (["evaluate", "swin-nano-dubai", "none.yaml", "--out", "scores"], "none.yaml: no such file"),
        (["info", "none"], "none: no such model folder"),
        (["train", "recipe.yaml", "--out", "run"], "none.yaml: no such file"),
        (
            ["table", "recipe.yaml", "recip.yaml", "--out", "r"],
            "recip.yaml: no such recipe file; did you mean recipe.yaml",
        ),
        (["serve", "there.tif", "none"], "none: no such folder or raster"),
    ],
)
def test_what_is_not_there_is_said_before_torch_is_imported(tmp_path, words, says):
    """It took six seconds to hear of a misspelt name."""
    (tmp_path / "there.tif").write_bytes(b"")
    (tmp_path / "recipe.yaml").write_text("data: {dataset: none.yaml}\n")
    call = [sys.executable, "-c", NOTHING, *words]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith(f"caswit: {says}"), done.stderr
    assert done.stderr.count("\n") == 1


def test_the_models_that_fit_are_listed_without_torch(tmp_path):
    where = {"crs": "EPSG:2154", "transform": rasterio.Affine(0.2, 0, 700_000, 0, -0.2, 6_250_000)}
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", width=8, height=8, count=3, dtype="uint16", **where
    ) as dst:
        dst.write(np.ones((3, 8, 8), np.uint16))
    code = "import sys; from caswit.cli.main import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    call = [sys.executable, "-c", code, "predict", str(tmp_path / "a.tif"), "--list"]
    said = subprocess.run(call, capture_output=True, text=True, check=True).stdout
    assert said.startswith("a.tif: pixels of 0.2 m, 3 bands of uint16, near 43.")
    assert (
        "\ncaswit-nano-france  chosen: pixels of 0.2 m; it is for 0.15 to 0.5 m, and it has the most classes\n" in said
    )
    assert "\nswin-nano-buildings  fits, as others do; choose it with --model: pixels of 0.2 m; it is for 0.05" in said
    assert "\nswin-nano-dubai  not for this image: pixels of 0.2 m are finer than its 0.5 to 2 m\n" in said
    assert "\n  learned in Hérault, France, 18 km from here\n" in said
    assert "\n  learned in Hérault, France (18 km from here) and in Banepa, Nepal\n" in said
    assert said.endswith("add --rescale auto, or --rescale LOW HIGH\n")


def test_a_list_says_which_bands_an_image_lacks(tmp_path, capsys):
    where = {"crs": "EPSG:2154", "transform": rasterio.Affine(0.2, 0, 700_000, 0, -0.2, 6_250_000)}
    file = {"driver": "GTiff", "width": 8, "height": 8, "dtype": "uint8", **where}
    with rasterio.open(tmp_path / "a.tif", "w", count=1, **file) as dst:
        dst.write(np.ones((1, 8, 8), np.uint8))
    main(["predict", str(tmp_path / "a.tif"), "--list"])
    assert capsys.readouterr().out.endswith("the image has 1 band, and the models read red, green and blue\n")


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("gsd_m must be above 0, got -1.0; try 0.25", "--gsd-m must be above 0, got -1.0; try 0.25"),
        ("batch must be at least 1, got 0", "--batch must be at least 1, got 0"),
        (
            "blend needs tiles that overlap, got overlap_px=0; leave overlap_px out",
            "--blend needs tiles that overlap, got --overlap-px 0; leave --overlap-px out",
        ),
        ("overlap_px must be below the model's tile_px=32", "--overlap-px must be below the model's tile_px=32"),
        ("/data/gsd_m/a.tif: its batch is old", "/data/gsd_m/a.tif: its batch is old"),
        ("srun started 2; use srun --ntasks=1", "srun started 2; use srun --ntasks=1"),
        ("workers of the cluster cannot start", "workers of the cluster cannot start"),
        ("min_area is about polygons; add --vector FILE", "--min-area is about polygons; add --vector FILE"),
    ],
)
def test_settings_that_are_refused_are_named_as_they_are_typed(message, expected):
    assert with_options(message, COMMANDS["predict"]) == expected
    assert with_options(message, COMMANDS["train"]) == message  # the key of a recipe


@pytest.mark.parametrize(
    ("words", "option", "expected"),
    [
        (["predict", "my image.tif", "b.tif"], None, "go on with: caswit predict 'my image.tif' b.tif"),
        (["predict", "--restart", "a.tif", "b.tif"], None, "go on with: caswit predict a.tif b.tif"),
        (["predict", "a", "b", "--restart", "true", "--blend"], None, "go on with: caswit predict a b --blend"),
        (["train", "r.yaml", "--out", "x"], "--resume", "go on with: caswit train r.yaml --out x --resume"),
        (["train", "r.yaml", "--resume", "--out", "x"], "--resume", "go on with: caswit train r.yaml --resume --out x"),
        (["predict", *(f"{i}.tif" for i in range(999))], None, "the same command goes on"),
    ],
)
def test_the_command_that_goes_on_can_be_pasted(words, option, expected):
    assert _again(words, option) == expected
