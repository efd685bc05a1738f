"""The paper's figures for a user's data, and what the report says about context."""

import json

import numpy as np
import pytest
from PIL import Image

from caswit.config import EvaluateConfig, FiguresConfig
from caswit.errors import ConfigError, DataError, ModelError
from caswit.evaluation.metrics import score
from caswit.evaluation.run import evaluate
from caswit.experiments.paper_figures import figures
from conftest import CLASSES

pytestmark = pytest.mark.e2e

SMALL = FiguresConfig(device="cpu", precision="fp32", tiles=2, candidates=4, panel_px=64)


def opened(file) -> np.ndarray:
    """The pixels of a figure for print."""
    with Image.open(file) as picture:
        assert picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        return np.asarray(picture)


def test_three_figures_are_drawn(dataset_file, model_folder, make_model, tmp_path):
    files = figures(model_folder, dataset_file, tmp_path / "figures", baseline=make_model(()), settings=SMALL)
    assert [file.name for file in files] == ["figure5.png", "figure6.png", "figure8.png"]
    one, attention, many = (opened(file) for file in files)
    assert one.shape[1] == many.shape[1]
    assert many.shape[0] > one.shape[0] + 64
    assert attention.shape[1] > 5 * 64  # the context and four stages
    colours = {tuple(c) for c in many[-30:].reshape(-1, 3)}
    assert {tuple(c) for c in CLASSES.colors} <= colours  # the legend


def test_without_a_baseline_the_context_is_masked(dataset_file, model_folder, tmp_path):
    assert len(figures(model_folder, dataset_file, tmp_path, settings=SMALL)) == 3


class TestRefusals:
    def test_a_model_without_context(self, dataset_file, make_model, tmp_path):
        with pytest.raises(ModelError, match="reads no context"):
            figures(make_model(()), dataset_file, tmp_path, settings=SMALL)

    def test_a_split_without_scenes(self, dataset_file, model_folder, tmp_path):
        with pytest.raises(DataError, match="no scene has split 'val'"):
            figures(model_folder, dataset_file, tmp_path, split="val", settings=SMALL)

    def test_settings_that_make_no_sense(self):
        with pytest.raises(ConfigError, match="candidates must be at least tiles=8, got 4; try 64"):
            FiguresConfig(candidates=4)


def test_the_report_shows_the_effect_of_context(dataset_file, model_folder, make_model, tmp_path):
    settings = EvaluateConfig(device="cpu", precision="fp32", masked_context=True, pictures=4)
    found = evaluate(model_folder, dataset_file, tmp_path / "scores", settings=settings)
    assert found.masked_context_counts is not None
    assert found.masked_context_counts.confusion.sum() == found.counts.confusion.sum()
    assert not np.array_equal(found.masked_context_counts.confusion, found.counts.confusion)
    content = json.loads((tmp_path / "scores" / "report.json").read_text())
    assert content["without_surroundings"]["miou"] == score(found.masked_context_counts).miou
    assert 0 < content["edges"]["errors_near"] <= 1
    page = (tmp_path / "scores" / "report.html").read_text()
    for heading in ("Effect of context", "Where the errors lie", "Worst tiles", "Best tiles", "Masked context"):
        assert heading in page
    groups = [example.group for example in found.examples]
    assert groups == ["Worst tiles"] * 2 + ["Best tiles"] * 2

    def right(example):
        known = example.truth != 255
        return (example.prediction == example.truth)[known].mean()

    worst, best = (max(map(right, found.examples[:2])), min(map(right, found.examples[2:])))
    assert worst <= best
    alone = evaluate(make_model(()), dataset_file, tmp_path / "alone", settings=settings)
    assert alone.masked_context_counts is None
    assert "Effect of context" not in (tmp_path / "alone" / "report.html").read_text()
