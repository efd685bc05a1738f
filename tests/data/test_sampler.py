"""Training samples are functions of (seed, number)."""

import numpy as np
import pytest
import torch
import yaml
from rasterio.errors import RasterioError

from caswit.config import AugmentConfig, DataConfig, TileConfig, context_factors
from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReader, SceneReaders
from caswit.data.sampler import TrainingSamples, training_loader
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import georeference

AUGMENT = AugmentConfig(spatial=True, brightness=0.1, contrast=0.1, gamma=0.1)


def make_samples(file, sampling: str, *, seed: int = 0, context: bool = True) -> TrainingSamples:
    return TrainingSamples(
        load_dataset(file),
        DataConfig(dataset=str(file), sampling=sampling),
        TileConfig(tile_px=32, context_factor=2),
        AUGMENT,
        seed=seed,
        context=context,
    )


def equal(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_scenes_read_last_stay_open_and_others_are_closed(dataset_file, monkeypatch):
    monkeypatch.setattr("caswit.data.reader.MAX_OPEN", 2)
    dataset = load_dataset(dataset_file)
    scenes = SceneReaders(dataset, dataset.scenes[:1] * 3)
    first, second = scenes[0], scenes[1]
    assert scenes[0] is first
    third = scenes[2]  # in the place of the second, which was read before the first was read again
    assert (scenes[0], scenes[2]) == (first, third)
    with pytest.raises(RasterioError, match="closed"):
        second.image.read_image(Window(0, 0, 8, 8))
    assert scenes[1] is not second
    scenes.forget()
    third.image.read_image(Window(0, 0, 8, 8))  # still open: it may be another process's
    assert scenes[2] is not third


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_a_sample_depends_on_seed_and_number_alone(dataset_file, sampling):
    samples = make_samples(dataset_file, sampling)
    forward = [samples[n] for n in range(40)]
    again = make_samples(dataset_file, sampling)
    assert all(equal(again[n], forward[n]) for n in reversed(range(40)))
    others = make_samples(dataset_file, sampling, seed=1)
    assert sum(equal(others[n], forward[n]) for n in range(40)) < 5


def test_every_epoch_of_the_grid_sees_every_tile_once_in_another_order(dataset_file):
    samples = make_samples(dataset_file, "grid")
    count = samples.tiles_per_epoch
    assert count == 3 * 5  # 90 x 130 px in tiles of 32
    epochs = [[samples._grid_window(e * count + n) for n in range(count)] for e in range(3)]
    assert all(sorted(epoch) == sorted(samples.grid) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_begins_later_gives_the_same_batches(dataset_file, workers):
    samples = make_samples(dataset_file, "random")
    whole = list(training_loader(samples, steps=(0, 6), batch=4))
    later = list(training_loader(samples, steps=(3, 6), batch=4, workers=workers))
    assert len(later) == 3
    assert all(equal(a, b) for a, b in zip(whole[3:], later, strict=True))


def test_devices_and_passes_share_out_the_batch(dataset_file):
    samples = make_samples(dataset_file, "random")
    whole = list(training_loader(samples, steps=(5, 7), batch=8))
    parts = [list(training_loader(samples, steps=(5, 7), batch=8, passes=2, device=(d, 2))) for d in range(2)]
    for step in range(2):
        joined = [parts[device][2 * step + each]["tile"] for each in range(2) for device in range(2)]
        assert torch.equal(torch.cat(joined), whole[step]["tile"])


def test_random_windows_lie_inside_and_scenes_are_drawn_by_area(tmp_path, make_raster, dataset_file):
    make_raster(np.zeros((3, 45, 65), np.uint8), "small.tif", **georeference())
    make_raster(np.zeros((1, 45, 65), np.uint8), "small_label.tif", **georeference())
    content = yaml.safe_load(dataset_file.read_text())
    content["scenes"].append({"image": "small.tif", "label": "small_label.tif", "split": "train"})
    dataset_file.write_text(yaml.safe_dump(content))
    samples = make_samples(dataset_file, "random")
    drawn = [samples._random_window(np.random.default_rng((9, n))) for n in range(2000)]
    sizes = [(90, 130), (45, 65)]
    for scene, window in drawn:
        assert window.clipped(*sizes[scene]) == window
    share = np.mean([scene for scene, _ in drawn])
    assert share == pytest.approx(1 / 5, abs=0.03)  # a quarter of the other's area
    rows = {window.row for scene, window in drawn if scene == 0}
    assert (min(rows), max(rows)) == (0, 90 - 32)


def test_a_scene_smaller_than_a_tile_is_padded(tmp_path, make_raster, dataset_file):
    make_raster(np.ones((3, 20, 20), np.uint8), "scene.tif", **georeference())
    make_raster(np.ones((1, 20, 20), np.uint8), "scene_label.tif", **georeference())
    sample = make_samples(dataset_file, "random")[0]
    assert sample["tile"].shape == (3, 32, 32)
    assert (sample["label"] != 255).sum() == 400


def test_the_baseline_reads_no_context(dataset_file):
    sample = make_samples(dataset_file, "grid", context=False)[0]
    assert sample["context"].numel() == 0


def test_scale_changes_the_ground_size_of_tile_and_context_alike(tmp_path, make_raster):
    """On a ramp of 1 a pixel the slope of a sample is the factor its ground size was multiplied with."""
    ramp = np.broadcast_to(np.arange(250, dtype=np.uint8), (3, 250, 250))
    make_raster(np.ascontiguousarray(ramp), "ramp.tif", **georeference())
    file = tmp_path / "ramp.yaml"
    classes = [{"id": 0, "name": "ground", "color": "#808080"}]
    make_raster(np.zeros((1, 250, 250), np.uint8), "ramp_label.tif", **georeference())
    scenes = [{"image": "ramp.tif", "label": "ramp_label.tif", "split": "train"}]
    file.write_text(yaml.safe_dump({"name": "ramp", "classes": classes, "scenes": scenes}))
    samples = TrainingSamples(
        load_dataset(file),
        DataConfig(dataset=str(file), sampling="random"),
        TileConfig(tile_px=64, context_factor=2),
        AugmentConfig(scale=0.5),
        seed=0,
        context=True,
    )
    factors = []
    for number in range(60):
        sample = samples[number]
        assert (sample["label"] == 0).all()  # inside the raster
        tile, context = sample["tile"][0].float(), sample["context"][0, 16:48, 16:48].float()
        factors.append(float(tile[:, -1].mean() - tile[:, 0].mean()) / 63)
        assert float(context[:, -1].mean() - context[:, 0].mean()) / 31 == pytest.approx(2 * factors[-1], abs=0.05)
    assert 1 / 1.5 - 0.02 <= min(factors) < 0.75
    assert 1.35 < max(factors) <= 1.5 + 0.02


def few(file, sampling: str, fraction: float, **settings) -> TrainingSamples:
    return TrainingSamples(
        load_dataset(file),
        DataConfig(dataset=str(file), sampling=sampling, label_fraction=fraction),
        TileConfig(tile_px=32, context_factor=2),
        AugmentConfig(**settings),
        seed=3,
        context=True,
    )


@pytest.mark.parametrize(("fraction", "count"), [(0.1, 2), (0.2, 3), (0.5, 8)])
def test_a_fraction_of_the_labels_is_that_share_of_the_grid(dataset_file, fraction, count):
    samples, whole = few(dataset_file, "grid", fraction), make_samples(dataset_file, "grid")
    assert samples.tiles_per_epoch == count
    assert set(samples.grid) < set(whole.grid)
    assert samples.grid == few(dataset_file, "grid", fraction).grid


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_no_label_of_another_tile_is_ever_seen_with_few_labels(dataset_file, sampling):
    """Labels of tile and context, over many samples, against the tiles whose labels are used."""
    samples, scene = few(dataset_file, sampling, 0.2), load_dataset(dataset_file).scenes[0]
    allowed = np.zeros((200, 240), bool)  # the scene with a border of 50, which contexts reach into
    for _, w in samples.grid:
        allowed[50 + w.row : 50 + w.row + w.height, 50 + w.col : 50 + w.col + w.width] = True
    with SceneReader(scene, samples.dataset.classes) as opened:
        everything = opened.labels(Window(-50, -50, 200, 240), np.ones((200, 240), bool))
    places, seen = set(), 0
    for number in range(60):
        rng = np.random.default_rng((3, number))
        _, window = samples._random_window(rng) if sampling == "random" else samples._grid_window(number)
        row, col = window.row + 50, window.col + 50
        expected = np.where(allowed, everything, 255)
        sample = samples[number]
        assert np.array_equal(sample["label"], expected[row : row + 32, col : col + 32])
        context = expected[row - 16 : row + 48, col - 16 : col + 48][1::2, 1::2]
        assert np.array_equal(sample["context_label"], context)
        places.add((row, col))
        seen += int((sample["label"] != 255).any())
    assert seen > 50
    assert (len(places) > 20) == (sampling == "random")


def test_nor_with_few_labels_at_other_scales(dataset_file, make_raster):
    """Tiles whose labels are used have another class than all others, which must never be seen."""
    samples = few(dataset_file, "random", 0.2, scale=0.5)
    ids = np.full((1, 90, 130), 2, np.uint8)
    for _, w in samples.grid:
        ids[0, w.row : w.row + w.height, w.col : w.col + w.width] = 1
    make_raster(ids, "scene_label.tif", **georeference())
    again = few(dataset_file, "random", 0.2, scale=0.5)
    assert again.grid == samples.grid
    seen = [set(np.unique(again[n][name])) for n in range(60) for name in ("label", "context_label")]
    assert set.union(*seen) == {0, 255}  # class 1 has index 0
    assert sum(0 in ids for ids in seen) > 100


@pytest.mark.parametrize(("fraction", "factor"), [(1.0, 2), (0.5, 2), (1.0, (2, 4))])
def test_swapped_contexts_keep_the_tile_and_its_labels(dataset_file, fraction, factor):
    def samples(share: float) -> TrainingSamples:
        return TrainingSamples(
            load_dataset(dataset_file),
            DataConfig(dataset=str(dataset_file), sampling="random", label_fraction=fraction),
            TileConfig(tile_px=32, context_factor=factor),
            AugmentConfig(context_swap=share),
            seed=0,
            context=True,
        )

    def each(contexts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return contexts.unbind(0) if isinstance(factor, tuple) else (contexts,)

    always, never = samples(1.0), samples(0.0)
    others = 0
    for number in range(12):
        swapped, own = always[number], never[number]
        assert torch.equal(swapped["tile"], own["tile"])
        assert torch.equal(swapped["label"], own["label"])
        for name in ("context", "context_label"):
            for one, other, f in zip(each(swapped[name]), each(own[name]), context_factors(factor), strict=True):
                middle = slice(16 - 16 // f, 16 + 16 // f)
                assert torch.equal(one[..., middle, middle], other[..., middle, middle])
        others += not torch.equal(swapped["context"], own["context"])
    assert others >= 10


class TestLabelled:
    """``sampling: labelled`` draws windows that have labels."""

    @pytest.fixture
    def sparse_file(self, dataset_file, make_raster, label):
        """Two spots of labels: one pixel, and a corner."""
        sparse = np.zeros_like(label)
        sparse[0, 20, 40] = 1
        sparse[0, 85:, 128:] = 2
        make_raster(sparse, "scene_label.tif", **georeference())
        return dataset_file

    def test_every_window_has_a_label_and_lies_in_the_scene(self, sparse_file):
        samples = make_samples(sparse_file, "labelled")
        rng = np.random.default_rng(0)
        windows = {samples._random_window(rng)[1] for _ in range(300)}
        assert all(0 <= w.row <= 90 - 32 and 0 <= w.col <= 130 - 32 for w in windows)
        assert len(windows) > 60  # not those of the grid
        assert all((samples[n]["label"] != 255).any() for n in range(40))
        seen = {int(v) for n in range(40) for v in samples[n]["label"].unique()}
        assert seen == {0, 1, 255}
        random = make_samples(sparse_file, "random")
        assert not all((random[n]["label"] != 255).any() for n in range(40))

    def test_windows_without_labels_are_counted(self, sparse_file, caplog):
        caplog.set_level("INFO")
        samples = make_samples(sparse_file, "labelled")
        assert samples.tiles_per_epoch == 2
        assert "13 of 15 windows of split train have no label and are not drawn" in caplog.text

    def test_a_sample_depends_on_seed_and_number_alone(self, sparse_file):
        samples, again = make_samples(sparse_file, "labelled"), make_samples(sparse_file, "labelled")
        assert all(equal(samples[n], again[n]) for n in (3, 1, 2))

    def test_labels_where_the_image_has_no_data_do_not_count(self, sparse_file, make_raster, image):
        mask = np.full(image.shape[1:], 255, np.uint8)
        mask[80:, 120:] = 0
        make_raster(image, "scene.tif", mask=mask, **georeference())
        assert make_samples(sparse_file, "labelled").tiles_per_epoch == 1

    def test_no_label_at_all(self, dataset_file, make_raster, label):
        make_raster(np.zeros_like(label), "scene_label.tif", **georeference())
        with pytest.raises(DataError, match="no window of split train has a label that counts"):
            make_samples(dataset_file, "labelled")
