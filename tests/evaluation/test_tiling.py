"""Scores of scenes that are cut otherwise than in training: larger tiles, overlapping ones, whole images."""

import dataclasses
import json

import numpy as np
import pytest
import torch

import caswit.evaluation.evaluate as evaluating
from caswit.cli.main import main
from caswit.config import EvaluateConfig, ModelConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.evaluation.evaluate import scored_tiles
from caswit.evaluation.run import evaluate
from caswit.inference.load import load_predictor
from caswit.raster.windows import spread_starts, tile_grid
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from conftest import CLASSES, SIZE

pytestmark = pytest.mark.e2e

EXACT = EvaluateConfig(precision="fp32", device="cpu", batch=3, pictures=0)


def predicted(dataset_file, folder, **how):
    """(90, 130) class indices of the test scene, pasted together from its tiles; none may be counted twice."""
    data, loaded = load_dataset(dataset_file), load_model(folder)
    predictor = load_predictor(loaded, EXACT)
    found = np.full(SIZE, 255)
    for each in scored_tiles(predictor, data, data.split("test"), band_px=2, **how):
        row, col, height, width = each.tile.owned
        where = slice(row, row + height), slice(col, col + width)
        assert (found[where] == 255).all()
        found[where] = each.prediction
    return found


def network_on(folder, *images) -> np.ndarray:
    """Logits (K, H, W) of images (3, H, W)."""
    with torch.no_grad():
        return load_model(folder).network.eval()(*(torch.from_numpy(x)[None] for x in images))[0].numpy()


def padded(image, top, left, height, width):
    """The pixels of a window of an image, black outside."""
    out = np.zeros((3, height, width), np.uint8)
    rows = slice(max(top, 0), min(top + height, SIZE[0]))
    cols = slice(max(left, 0), min(left + width, SIZE[1]))
    out[:, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left] = image[:, rows, cols]
    return out


def averaged(image, factor):
    blocks = image.reshape(3, image.shape[1] // factor, factor, -1, factor).astype(int).sum((2, 4))
    return ((2 * blocks + factor**2) // (2 * factor**2)).astype(np.uint8)


def test_the_models_own_tiles_are_what_no_option_says(dataset_file, make_model, tmp_path):
    one, other = (
        evaluate(make_model(()), dataset_file, tmp_path / name, settings=dataclasses.replace(EXACT, **how))
        for name, how in (("one", {}), ("other", {"tile_px": 32}))
    )
    np.testing.assert_array_equal(one.counts.confusion, other.counts.confusion)
    assert one.scores.mbiou == other.scores.mbiou


def test_a_whole_image_is_one_pass_of_the_network(dataset_file, make_model, image):
    """90 x 130 pixels become 96 x 160 with black below and to the right; only the image's own count."""
    found = predicted(dataset_file, make_model(()), tile_px="whole")
    expected = network_on(make_model(()), padded(image, 0, 0, 96, 160)).argmax(0)[:90, :130]
    labelled = found != 255
    assert labelled.sum() > 8000
    np.testing.assert_array_equal(found[labelled], expected[labelled])


def test_a_whole_image_keeps_its_context(dataset_file, model_folder, image):
    """The context of 96 x 160 pixels is 192 x 320 around them, averaged by 2: mostly black."""
    found = predicted(dataset_file, model_folder, tile_px="whole")
    context = averaged(padded(image, -48, -80, 192, 320), 2)
    expected = network_on(model_folder, padded(image, 0, 0, 96, 160), context).argmax(0)[:90, :130]
    labelled = found != 255
    np.testing.assert_array_equal(found[labelled], expected[labelled])


@pytest.mark.parametrize("block_px", [6144, 70])
def test_overlapping_tiles_are_averaged(dataset_file, make_model, image, monkeypatch, block_px):
    """The sum of the logits of 48 px tiles that overlap by 12 px or more decides, in blocks of any size."""
    monkeypatch.setattr(evaluating, "_OVERLAPPED_PX", block_px)
    found = predicted(dataset_file, make_model(()), tile_px=48, overlap_px=12)
    sums, seen = np.zeros((3, *SIZE)), np.zeros(SIZE)
    for top in (0, 21, 42):  # two tiles would overlap by 6
        for left in (0, 27, 55, 82):  # three would overlap by 7; 82 / 3 = 27.3
            sums[:, top : top + 48, left : left + 48] += network_on(make_model(()), padded(image, top, left, 48, 48))
            seen[top : top + 48, left : left + 48] += 1
    assert (seen > 0).all()
    mean = sums / seen
    runner_up, best = np.sort(mean, axis=0)[-2:]
    sure = (best - runner_up > 1e-4) & (found != 255)  # sums in another order differ in their last digits
    assert sure.sum() > 8000
    np.testing.assert_array_equal(found[sure], mean.argmax(0)[sure])
    alone = predicted(dataset_file, make_model(()), tile_px=48)
    assert (alone != found).any()


def test_larger_tiles_without_overlap(dataset_file, make_model, image):
    found = predicted(dataset_file, make_model(()), tile_px=64)
    for window, owned in tile_grid(*SIZE, 64, 0):
        logits = network_on(make_model(()), padded(image, window.row, window.col, 64, 64))
        part = found[owned.row : owned.row + owned.height, owned.col : owned.col + owned.width]
        expected = logits.argmax(0)[owned.inside(window)]
        np.testing.assert_array_equal(part[part != 255], expected[part != 255])


def test_the_report_says_how(dataset_file, make_model, tmp_path, capsys):
    words = ["evaluate", make_model(()), dataset_file, "--out", tmp_path / "a", "--device", "cpu", "--pictures", "2"]
    main([str(word) for word in [*words, "--tile-px", "64", "--overlap-px", "16"]])
    said = json.loads((tmp_path / "a" / "report.json").read_text())["evaluated"]
    assert (said["tile_px"], said["overlap_px"]) == (64, 16)
    assert "of 64 x 64 px, which overlap by 16 px or more" in (tmp_path / "a" / "report.md").read_text()
    main([str(word) for word in [*words, "--tile-px", "whole"]])
    said = json.loads((tmp_path / "a" / "report.json").read_text())["evaluated"]
    assert (said["tile_px"], said["tiles"]) == ("whole", 1)
    assert "each a whole image" in (tmp_path / "a" / "report.md").read_text()
    assert "whole images" in (tmp_path / "a" / "report.html").read_text()
    # The band of Boundary IoU stays that of the model's tiles, whatever is predicted at once.
    assert said["band_px"] == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--tile-px", "34"], "--tile-px must be a multiple of 2 x context_factor = 4, got --tile-px 34; try 32"),
        (["--tile-px", "16"], "--tile-px must be at least 32"),
        (["--overlap-px", "32"], "--overlap-px must be below the side of the tiles, 32, got 32; try 4"),
        (["--tile-px", "64", "--overlap-px", "64"], "--overlap-px must be below --tile-px"),
        (["--tile-px", "whole", "--overlap-px", "8"], "--tile-px whole leaves nothing to overlap"),
        (["--tile-px", "half"], "half"),
    ],
)
def test_tiles_that_cannot_be(dataset_file, model_folder, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as stop:
        main([str(w) for w in ["evaluate", model_folder, dataset_file, "--out", tmp_path / "out", *options]])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_baselines_stride(dataset_file, tmp_path, capsys):
    info = ModelInfo(model=ModelConfig(arch="unet", encoder="resnet18"), tile=TileConfig(tile_px=32), classes=CLASSES)
    save_model(build(info), info, tmp_path / "unet")
    words = ["evaluate", tmp_path / "unet", dataset_file, "--out", tmp_path / "out", "--device", "cpu"]
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words, "--tile-px", "48"]])
    assert stop.value.code == 2
    assert "arch unet needs --tile-px in multiples of 32, got 48; try 64" in capsys.readouterr().err
    main([str(word) for word in [*words, "--tile-px", "whole", "--pictures", "0"]])
    assert "over 1 tiles" in capsys.readouterr().out


@pytest.mark.parametrize("length", [508, 509, 1000, 1024, 2448, 5000, 5120])
def test_patches_begin_where_glnet_lays_them(length):
    """Its rule in its own words: enough patches to cover a side, one more while neighbours overlap by less than 50."""
    count = 1
    while length > count * 508:
        count += 1
    while count > 1 and 508 - (length - 508) / (count - 1) < 50:
        count += 1
    expected = [round(i * (length - 508) / max(count - 1, 1)) for i in range(count)]
    assert spread_starts(length, 508, 50) == expected
