"""Scores of a model folder on labelled scenes."""

import json

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import confusion_matrix, f1_score, jaccard_score

from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.errors import ConfigError, DataError
from caswit.evaluation.evaluate import count_scenes, scored_sample, scored_tiles
from caswit.evaluation.metrics import Counts
from caswit.evaluation.run import evaluate
from caswit.evaluation.tile_pictures import grid_tiles
from caswit.inference.load import load_predictor
from caswit.raster.windows import tile_grid
from caswit.weights.model_folder import load_model
from conftest import CLASSES, georeference

pytestmark = pytest.mark.e2e

EXACT = EvaluateConfig(precision="fp32", device="cpu", batch=3)


@pytest.fixture
def scored(dataset_file, model_folder):
    """Every tile of the test split, and the class indices of truth and prediction pasted together."""
    dataset = load_dataset(dataset_file)
    predictor = load_predictor(load_model(model_folder), EXACT)
    tiles = list(scored_tiles(predictor, dataset, dataset.split("test"), tile_px=32, band_px=2))
    truth, prediction = np.full((90, 130), 255), np.full((90, 130), 255)
    for t in tiles:
        where = (
            slice(t.tile.owned.row, t.tile.owned.row + t.tile.owned.height),
            slice(t.tile.owned.col, t.tile.owned.col + t.tile.owned.width),
        )
        assert (truth[where] == 255).all()
        truth[where], prediction[where] = t.truth, t.prediction
    return truth, prediction


def test_the_report_equals_scikit_learn(dataset_file, model_folder, tmp_path, scored, label):
    evaluate(model_folder, dataset_file, tmp_path / "report", settings=EXACT)
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    truth, prediction = scored
    np.testing.assert_array_equal(truth, CLASSES.indices(label[0], "x"))
    kept = truth != 255
    truth, prediction = truth[kept], prediction[kept]
    assert report["miou"] == pytest.approx(jaccard_score(truth, prediction, average="macro", zero_division=0))
    assert report["mf1"] == pytest.approx(f1_score(truth, prediction, average="macro", zero_division=0))
    assert report["overall_accuracy"] == pytest.approx((truth == prediction).mean())
    assert report["confusion"]["pixels"] == confusion_matrix(truth, prediction, labels=range(3)).tolist()
    assert list(report["per_class"]) == ["building", "land", "water"]
    assert report["evaluated"]["labelled_pixels"] == kept.sum()
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.json", "report.md", "report.html"}


def test_counts_equal_scikit_learn_over_tiles_predicted_by_hand(dataset_file, model_folder):
    """Each tile is read, predicted and cropped in plain sight; every labelled pixel counts once."""
    dataset, loaded = load_dataset(dataset_file), load_model(model_folder)
    truths, predictions = [], []
    with open_dataset_scene(dataset, dataset.split("test")[0]) as scene:
        for window, owned in tile_grid(scene.height, scene.width, 32, 0):
            sample = scene.read(window, 2)
            with torch.inference_mode():
                logits = loaded.network(*(torch.from_numpy(x)[None] for x in (sample.tile, sample.context)))
            kept = owned.inside(window)
            truths.append(sample.label[kept].ravel())
            predictions.append(logits[0].argmax(0).numpy()[kept].ravel())
    truth, prediction = np.concatenate(truths), np.concatenate(predictions)
    assert truth.size == 90 * 130
    labelled = truth != 255
    assert 0 < labelled.sum() < truth.size
    predictor = load_predictor(loaded, EvaluateConfig(precision="fp32", device="cpu", batch=1))
    counts = count_scenes(predictor, dataset, dataset.split("test"), tile_px=32, band_px=2)
    expected = confusion_matrix(truth[labelled], prediction[labelled], labels=range(3))
    np.testing.assert_array_equal(counts.confusion, expected)
    assert (expected.sum(axis=0) > 0).all()  # every class is predicted somewhere


def test_parts_of_a_split_add_up_to_it(dataset_file, model_folder):
    """So that several processes can share out an evaluation."""
    dataset = load_dataset(dataset_file)
    predictor = load_predictor(load_model(model_folder), EXACT)

    def counts(part: tuple[int, int]) -> Counts:
        scenes = dataset.split("test") + dataset.split("train")
        return count_scenes(predictor, dataset, scenes, tile_px=32, band_px=2, part=part)

    joined, whole = counts((0, 2)) + counts((1, 2)), counts((0, 1))
    np.testing.assert_array_equal(joined.confusion, whole.confusion)
    np.testing.assert_array_equal(joined.boundary_union, whole.boundary_union)
    assert counts((0, 2)).confusion.sum() < whole.confusion.sum()


def test_single_tiles_count_as_they_do_in_their_blocks(dataset_file, model_folder):
    """So that a sample of a split is a sample of its score."""
    dataset = load_dataset(dataset_file)
    predictor, scenes = load_predictor(load_model(model_folder), EXACT), dataset.split("test")
    every = grid_tiles(dataset, scenes, 32)
    whole = count_scenes(predictor, dataset, scenes, tile_px=32, band_px=2)
    alone = [list(scored_sample(predictor, dataset, every, band_px=2, part=(part, 2))) for part in (0, 1)]
    joined = sum((tile.counts for part in alone for tile in part), start=Counts.zeros(3))
    assert np.abs(joined.confusion - whole.confusion).sum() <= 2  # batches of other sizes round ties differently
    assert [tile.tile for tile in alone[0]] == [tile for _, tile in every[::2]]


class TestRefusals:
    def test_other_classes(self, dataset_file, model_folder, tmp_path):
        content = yaml.safe_load(dataset_file.read_text())
        content["classes"][1]["name"] = "house"
        dataset_file.write_text(yaml.safe_dump(content))
        with pytest.raises(DataError, match=r"the model predicts 1 building.*the dataset has 1 house"):
            evaluate(model_folder, dataset_file, tmp_path / "report")
        assert not (tmp_path / "report").exists()

    def test_a_report_folder_inside_a_file(self, dataset_file, model_folder):
        with pytest.raises(ConfigError, match="is a file, or lies in one; give a folder"):
            evaluate(model_folder, dataset_file, dataset_file / "report")

    def test_nothing_labelled(self, dataset_file, make_raster, label, model_folder, tmp_path):
        make_raster(np.zeros_like(label), "scene_label.tif", **georeference())
        with pytest.raises(DataError, match="split 'test' has no labelled pixel to score"):
            evaluate(model_folder, dataset_file, tmp_path / "report", settings=EXACT)

    def test_a_split_that_is_not_there(self, dataset_file, model_folder, tmp_path):
        with pytest.raises(DataError, match="splits are: test, train, unlabelled"):
            evaluate(model_folder, dataset_file, tmp_path / "report", split="val")


@pytest.mark.parametrize("ratio", [2.0, 1.4, 0.5])
def test_at_another_ground_size_every_native_pixel_counts_once(dataset_file, model_folder, label, ratio):
    dataset = load_dataset(dataset_file)
    (scene,) = dataset.split("test")
    with open_dataset_scene(dataset, scene) as opened:
        gsd_m = ratio * opened.image.grid.source_gsd_m
    predictor = load_predictor(load_model(model_folder), EXACT)
    counts = count_scenes(predictor, dataset.read_at(gsd_m), [scene], tile_px=32, band_px=2)
    truth = CLASSES.indices(label[0], "x")
    assert counts.confusion.sum(1).tolist() == [(truth == k).sum() for k in range(3)]
