"""Scores of a model folder on labelled scenes."""

import dataclasses
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
from caswit.evaluation.evaluate import scored_sample, scored_tiles
from caswit.evaluation.metrics import Counts
from caswit.evaluation.run import evaluate
from caswit.evaluation.tile_pictures import grid_tiles
from caswit.inference.load import load_predictor
from caswit.raster.windows import tile_grid
from caswit.weights.model_folder import load_model
from conftest import CLASSES, georeference

pytestmark = pytest.mark.e2e

EXACT = EvaluateConfig(precision="fp32", device="cpu", batch=3)


def count_scenes(*arguments, **settings) -> Counts:
    """The sum of the counts of ``scored_tiles``."""
    return sum((tile.counts for tile in scored_tiles(*arguments, **settings)), start=Counts.zeros(3))


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


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("parts", [1, 2])
def test_workers_change_no_count(dataset_file, model_folder, workers, parts):
    """Neither do ranks, each with workers of its own: every tile has the same truth and prediction, to the pixel."""
    dataset = load_dataset(dataset_file)
    predictor, scenes = load_predictor(load_model(model_folder), EXACT), dataset.split("test") + dataset.split("train")
    alone = list(scored_tiles(predictor, dataset, scenes, tile_px=32, band_px=2))
    every = grid_tiles(dataset, scenes, 32)
    sample = list(scored_sample(predictor, dataset, every[::2], band_px=2))
    shared = [
        tile
        for n in range(parts)
        for tile in scored_tiles(predictor, dataset, scenes, tile_px=32, band_px=2, part=(n, parts), workers=workers)
    ]
    assert len(shared) == len(alone) > 1

    def known(tiles):
        return {(id(t.scene), t.tile): (t.truth.tobytes(), t.prediction.tobytes()) for t in tiles}

    assert known(shared) == known(alone)
    joined, whole = (sum((t.counts for t in tiles), start=Counts.zeros(3)) for tiles in (shared, alone))
    for name in ("confusion", "boundary_intersection", "boundary_union"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))
    again = list(scored_sample(predictor, dataset, every[::2], band_px=2, workers=workers))
    assert known(again) == known(sample)


def test_a_report_does_not_tell_how_it_was_read(dataset_file, model_folder, tmp_path):
    for name, workers in (("alone", 0), ("ahead", 2)):
        evaluate(model_folder, dataset_file, tmp_path / name, settings=dataclasses.replace(EXACT, workers=workers))
    alone, ahead = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("alone", "ahead"))
    alone["evaluated"].pop("elapsed_s", None), ahead["evaluated"].pop("elapsed_s", None)
    assert alone == ahead


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_file_is_one_error_whoever_reads_it(dataset_file, model_folder, tmp_path, workers):
    content = (tmp_path / "scene_label.tif").read_bytes()
    (tmp_path / "scene_label.tif").write_bytes(content[:-4000])  # the header is whole
    with pytest.raises(DataError, match=r"scene_label.tif: cannot read rows"):
        evaluate(model_folder, dataset_file, tmp_path / "r", settings=dataclasses.replace(EXACT, workers=workers))


@pytest.mark.parametrize("in_python", [True, False])
def test_a_worker_that_is_killed_is_one_line(dataset_file, model_folder, killing, in_python):
    """Whatever runs when it is killed: the network, or code of those who ask for tiles."""
    dataset = load_dataset(dataset_file)
    predictor = load_predictor(load_model(model_folder), EXACT)
    if not in_python:
        forward = predictor.network.forward
        predictor.network.forward = lambda *inputs: [killing.kill(), forward(*inputs)][1]

    def kill_the_workers() -> None:
        for _ in scored_tiles(predictor, dataset, dataset.split("test") * 20, tile_px=32, band_px=2, workers=1):
            if in_python:
                killing.kill()
                sum(range(100_000))

    with pytest.raises(DataError, match=r"process that reads ahead was ended from outside.*try fewer workers"):
        kill_the_workers()
    assert killing.killed


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
