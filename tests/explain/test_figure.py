"""caswit explain as a user types it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from caswit.cli.main import main
from caswit.explain.figure import colour_bar, heatmap_over
from caswit.raster.georef import lonlat_of
from caswit.raster.reader import Raster
from caswit.weights.model_folder import build, read_info, save_model
from conftest import georeference, picture

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
        (("--lon", "0", "--lat", "0"), "lies outside image.tif"),
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


@pytest.mark.parametrize("gsd_m", ["0.2", "1", None])
def test_a_model_that_reads_its_context_is_chosen_by_ground_size(make_raster, image, tmp_path, capsys, caplog, gsd_m):
    caplog.set_level("INFO")
    words = ["explain", str(make_raster(image)), "--row", "4", "--col", "4", "--out", str(tmp_path / "why.png")]
    if gsd_m == "0.2":
        main([*words, "--gsd-m", gsd_m])
        assert "model: caswit-nano-france (pixels of 0.2 m" in caplog.text
        return
    with pytest.raises(SystemExit):
        main([*words, *(["--gsd-m", gsd_m] if gsd_m else [])])
    error = capsys.readouterr().err
    said = (
        "add --gsd-m METRES, or --model NAME"
        if gsd_m is None
        else "swin-nano-dubai is meant for pixels of 1 m, and reads no"
    )
    assert said in error
    assert "caswit-nano-france" in error


def test_gates_are_printed_and_closed_ones_named(model_folder, make_raster, image, tmp_path, capsys):
    info = read_info(model_folder)
    info = replace(info, model=replace(info.model, gated=True))
    network = build(info)
    with torch.no_grad():
        for number, block in enumerate(network.fusion.values()):
            block.gate.fill_(0.01 if number else 1.0)
    save_model(network, info, tmp_path / "gated" / "model")
    words = ["--row", "45", "--col", "70", "--out", str(tmp_path / "why.png"), "--model", str(tmp_path / "gated/model")]
    main(["explain", str(make_raster(image)), *words])
    out = capsys.readouterr().out
    gates = network.gates
    assert "gates tanh(g): " + ", ".join(f"stage {s} {g:.3f}" for s, g in gates.items()) in out
    closed = ", ".join(str(s) for s in [*gates][1:])
    assert f" {closed}; little of what is read there counts" in out


def test_gates_and_padding_of_a_place_inside(run):
    _, out, _ = run("--row", "45", "--col", "70")
    assert "gates: none, each stage adds all that it reads" in out
    assert "attention on padding" not in out
    assert "attention on padding: stage 1 " in run("--row", "0", "--col", "0")[1]


def test_the_colour_bar_has_the_colours_of_the_heatmap():
    """A heatmap that rises evenly from 0 to its peak, over mid-grey, has the colours of the bar."""
    rising = np.linspace(1, 0, 200)[:, None].repeat(200, 1)
    grey = np.full((200, 200, 3), 128, np.uint8)
    bar = colour_bar(rising, 200)
    drawn = heatmap_over(grey, np.clip(rising, 0, None))
    column = next(c for c in range(bar.shape[1]) if (bar[:, c] != 255).any())
    brightest = max(np.percentile(rising, 99.5), 3 * rising.mean())
    at = [int(200 * (1 - value / brightest)) for value in (0.25, 0.5, 0.75)]
    rows = [int(200 * (1 - value)) for value in (0.25, 0.5, 0.75)]
    assert np.abs(bar[at, column].astype(int) - drawn[rows, 0]).max() <= 6


@pytest.mark.parametrize(("side", "there"), [(40, False), (90, True)])
def test_without_a_place_to_swap_with_it_is_said_why(run, make_raster, side, there):
    """The line was missing, without a word."""
    make_raster(picture(side, side), **georeference())
    _, out, _ = run("--row", "4", "--col", "5")
    (line,) = [line for line in out.splitlines() if line.startswith("context swapped: ")]
    assert line.startswith("context swapped: left out, since the image has no other tile") is not there
