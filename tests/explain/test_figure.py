"""caswit explain as a user types it."""

import numpy as np
import pytest
from PIL import Image

from caswit.cli.main import main
from caswit.raster.georef import lonlat_of
from caswit.raster.reader import Raster
from conftest import georeference

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(capsys, make_raster, image, model_folder, tmp_path):
    """Function from the words that name a pixel to (exit status, output, error)."""
    path = make_raster(image, **georeference())

    def go(*words: str, out: str = "why.png") -> tuple[int, str, str]:
        fixed = ["--model", str(model_folder), "--out", str(tmp_path / out), "--device", "cpu", "--precision", "fp32"]
        try:
            main(["explain", str(path), *words, *fixed])
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        return status, *capsys.readouterr()

    return go


def test_three_ways_to_name_a_pixel(run, tmp_path, make_raster, image):
    with Raster(make_raster(image, "same.tif", **georeference())) as raster:
        lon, lat = lonlat_of(raster.grid, 40.5, 60.5)
    said = {
        run(*words)[:2]
        for words in (
            ("--row", "40", "--col", "60"),
            ("--x", "700030.3", "--y", "6599979.7"),
            ("--lon", str(lon), "--lat", str(lat)),
        )
    }
    ((status, out),) = said
    assert status == 0
    assert "row 40, column 60" in out
    assert "context masked:" in out
    with Image.open(tmp_path / "why.png") as picture:
        assert np.asarray(picture).std() > 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "got none"),
        (("--row", "4"), "got --row"),
        (("--row", "4", "--col", "4", "--x", "1"), "got --row, --col, --x"),
        (("--row", "4", "--y", "4"), "name the pixel with --row and --col"),
        (("--row", "400", "--col", "4"), "rows 0-89"),
        (("--lon", "0", "--lat", "0"), "lie outside image.tif"),
    ],
)
def test_places_that_are_refused(run, words, message):
    status, out, error = run(*words)
    assert (status, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1


def test_a_figure_is_a_png_in_a_folder_that_exists(run):
    assert "ends in .png" in run("--row", "4", "--col", "4", out="why.jpg")[2]
    assert "does not exist" in run("--row", "4", "--col", "4", out="none/why.png")[2]
