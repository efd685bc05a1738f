"""Counts of labels, class weights, and draws of tiles by class."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import yaml

from caswit.config import IGNORE_INDEX, AugmentConfig, DataConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.data.label_counts import ClassDraws, count_labels, median_frequencies
from caswit.data.reader import SceneReaders
from caswit.data.sampler import TrainingSamples
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import CLASSES, georeference


def make_samples(file: Path, sampling: str = "balanced", **data) -> TrainingSamples:
    return TrainingSamples(
        load_dataset(file),
        DataConfig(dataset=str(file), sampling=sampling, **data),
        TileConfig(tile_px=32, context_factor=2),
        AugmentConfig(),
        seed=0,
        context=True,
    )


@pytest.fixture
def rare_file(tmp_path, make_raster):
    """A scene of 8 x 8 tiles, all of class 0 but for a pixel of class 1 in one tile and half of another of class 2."""
    label = np.zeros((1, 256, 256), np.uint8)
    label[0, 70, 70] = 1
    label[0, 128:144, 128:160] = 2
    label[0, 250:] = 7  # ignored
    rng = np.random.default_rng(0)
    make_raster(rng.integers(0, 256, (3, 256, 256), dtype=np.uint8), "a.tif", **georeference())
    make_raster(label, "a_label.tif", **georeference())
    file = tmp_path / "dataset.yaml"
    scenes = [{"image": "a.tif", "label": "a_label.tif", "split": "train"}]
    file.write_text(yaml.safe_dump({"name": "rare", "classes": CLASSES.to_dicts(), "scenes": scenes}))
    return file


def test_counts_are_those_of_the_tiles_that_training_reads(dataset_file):
    samples = make_samples(dataset_file, "grid")
    counts = count_labels(SceneReaders(samples.dataset, samples.scenes), samples.grid)
    read = [samples._read(i, samples._opened[i], window).label for i, window in samples.grid]
    expected = [[(label == k).sum() for k in range(len(CLASSES))] for label in read]
    assert counts.tolist() == np.array(expected).tolist()
    assert counts.sum() < len(read) * 32 * 32  # some pixels are ignored, some outside


def test_a_broken_label_counts_0_where_files_may_be_broken(dataset_file):
    dataset = load_dataset(dataset_file)
    (dataset_file.parent / "scene_label.tif").write_bytes(b"broken")
    tiles = [(0, Window(0, 0, 32, 32))]
    with pytest.raises(DataError, match=r"scene_label\.tif"):
        count_labels(SceneReaders(dataset, dataset.scenes[:1]), tiles)
    tolerant = dataclasses.replace(dataset, skip_broken=True)
    assert not count_labels(SceneReaders(tolerant, dataset.scenes[:1]), tiles).any()


def test_median_frequency_by_hand():
    # Class 0: 60 of 100; class 1: 30 of 100, since the second tile lacks it; class 2: 110 of 200; class 3: nowhere.
    counts = np.array([[60, 30, 10, 0], [0, 0, 100, 0]])
    assert median_frequencies(counts) == pytest.approx((0.55 / 0.6, 0.55 / 0.3, 1.0, 1.0))


def test_every_class_is_drawn_as_often_and_tiles_by_its_pixels():
    counts = np.array([[90, 0, 0], [10, 3, 0], [0, 1, 0]])
    draws, rng = ClassDraws(counts), np.random.default_rng(0)
    drawn = np.bincount([draws.draw(rng) for _ in range(20_000)], minlength=3) / 20_000
    np.testing.assert_allclose(drawn, [0.9 / 2, 0.1 / 2 + 0.75 / 2, 0.25 / 2], atol=0.01)


def test_balanced_samples_hold_rare_classes_far_more_often(rare_file):
    balanced, random = make_samples(rare_file), make_samples(rare_file, "random")
    balanced.balance(count_labels(SceneReaders(balanced.dataset, balanced.scenes), balanced.grid))
    having = [
        [sum((samples[n]["label"] == k).any().item() for n in range(300)) / 300 for k in (1, 2)]
        for samples in (balanced, random)
    ]
    assert max(having[1]) < 0.1
    assert having[0][0] > 0.2  # one pixel: a third of the draws, and a window that moves loses it at times
    assert having[0][1] > 0.25
    labels = {int(k) for n in range(50) for k in balanced[n]["label"].unique()}
    assert labels == {0, 1, 2, IGNORE_INDEX}


def test_a_balanced_sample_depends_on_seed_and_number_alone(rare_file):
    one, two = make_samples(rare_file), make_samples(rare_file)
    for samples in (one, two):
        samples.balance(count_labels(SceneReaders(samples.dataset, samples.scenes), samples.grid))
    forward = [one._sample(n) for n in range(20)]
    for n in reversed(range(20)):
        assert all((two._sample(n)[name] == x).all() for name, x in forward[n].items())
    windows = {one._window(n, np.random.default_rng(n))[1] for n in range(60)}
    assert len(windows) > 20
    assert all(w.row >= 0 and w.row + w.height <= 256 and w.height == 32 for w in windows)


def test_balanced_samples_of_a_few_labels_use_these_alone(rare_file):
    samples = make_samples(rare_file, label_fraction=0.5)
    counts = count_labels(SceneReaders(samples.dataset, samples.scenes), samples.grid)
    assert len(counts) == 32
    samples.balance(counts)
    used = sum(int((samples[n]["label"] != IGNORE_INDEX).sum()) for n in range(20))
    assert 0 < used < 20 * 32 * 32
