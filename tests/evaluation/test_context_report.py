"""What caswit evaluate --context-report says of a model's context."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.errors import ConfigError
from caswit.evaluation.evaluate import scored_tiles
from caswit.evaluation.run import evaluate
from caswit.inference.load import load_predictor
from caswit.weights.model_folder import build, load_model, read_info, save_model

pytestmark = pytest.mark.e2e

EXACT = EvaluateConfig(precision="fp32", device="cpu", batch=3, pictures=0, context_report=True)


def test_swapped_tiles_see_the_place_half_the_tiles_away(dataset_file, model_folder):
    """Each tile is predicted by hand with another's context around its own part, in batches of another size."""
    loaded, dataset = load_model(model_folder), load_dataset(dataset_file)
    predictor = load_predictor(loaded, EXACT)
    scenes = dataset.split("test")
    tiles = [t.tile for t in scored_tiles(predictor, dataset, scenes, tile_px=32, band_px=2)]
    with open_dataset_scene(dataset, scenes[0]) as scene:
        samples = [scene.read(t.window, 2) for t in tiles]
    contexts = torch.stack([torch.from_numpy(s.context) for s in samples])
    swapped = predictor.with_swapped_context(contexts, len(tiles))
    found = [t.prediction for t in scored_tiles(swapped, dataset, scenes, tile_px=32, band_px=2)]
    for number, (tile, sample) in enumerate(zip(tiles, samples, strict=True)):
        other = contexts[(number + len(tiles) // 2) % len(tiles)].clone()
        other[:, 8:24, 8:24] = torch.from_numpy(sample.context)[:, 8:24, 8:24]
        with torch.inference_mode():
            logits = loaded.network(torch.from_numpy(sample.tile)[None], other[None])
        inside = tile.owned.inside(tile.window)
        np.testing.assert_array_equal(found[number], logits[0].argmax(0).numpy()[inside])


def test_the_report_has_all_three_and_what_they_cost(dataset_file, model_folder, tmp_path):
    found = evaluate(model_folder, dataset_file, tmp_path / "r", settings=EXACT)
    report = json.loads((tmp_path / "r" / "report.json").read_text())
    assert found.masked_context_counts is not None
    assert found.context is not None
    for counts in (found.counts, found.masked_context_counts, found.context.swapped):
        assert counts.confusion.sum() == report["evaluated"]["labelled_pixels"]
    stated = report["context_report"]
    assert stated["own"]["miou"] == report["miou"]
    assert stated["masked"]["miou"] == report["without_surroundings"]["miou"]
    assert len(stated["iou"]["swapped"]) == 3
    assert min(stated["cost"].values()) > 0
    assert f"costs {100 * (report['miou'] - stated['masked']['miou']):.1f} points" in stated["said"][0]
    html = (tmp_path / "r" / "report.html").read_text()
    assert ">Swapped</th>" in html
    assert stated["said"][0] in html.replace("&#39;", "'")


def test_a_context_that_is_not_used_is_said_to_be_that(dataset_file, model_folder, tmp_path):
    info = read_info(model_folder)
    network = build(info)
    with torch.no_grad():
        for block in network.fusion.values():
            block.attention.proj.weight.zero_()
            block.attention.proj.bias.zero_()
    save_model(network, info, tmp_path / "deaf" / "model")
    found = evaluate(tmp_path / "deaf" / "model", dataset_file, None, settings=EXACT)
    np.testing.assert_array_equal(found.counts.confusion, found.context.swapped.confusion)
    lines = found.context.said(found.counts, found.masked_context_counts)
    assert lines[0] == "Masking the context costs 0.0 points of mIoU, another place's context 0.0."
    assert lines[1].startswith("The model hardly uses its context here")


def test_a_context_that_only_misleads_is_said_to_do_that(dataset_file, model_folder):
    found = evaluate(model_folder, dataset_file, None, settings=EXACT)
    truth = np.diag(found.counts.confusion.sum(1))
    right, wrong = (replace(found.counts, confusion=each) for each in (truth, np.roll(truth, 1, 1)))
    lines = replace(found.context, swapped=wrong).said(right, right)
    assert lines[0] == "Masking the context costs 0.0 points of mIoU, another place's context 100.0."
    assert lines[1].startswith("Another place's context misleads the model, its own gains it little")


def test_whole_images_have_none_to_swap():
    with pytest.raises(ConfigError, match="tile_px whole has none to swap"):
        EvaluateConfig(context_report=True, tile_px="whole")


def test_a_model_without_context_has_nothing_to_report(dataset_file, model_folder, tmp_path, caplog):
    caplog.set_level("INFO")
    info = read_info(model_folder)
    info = replace(info, model=replace(info.model, fusion_stages=()))
    save_model(build(info), info, tmp_path / "alone" / "model")
    found = evaluate(tmp_path / "alone" / "model", dataset_file, tmp_path / "r", settings=EXACT)
    assert found.context is None
    assert "context_report" not in json.loads((tmp_path / "r" / "report.json").read_text())
    assert "the model reads no context: there is nothing to report of it" in caplog.text
