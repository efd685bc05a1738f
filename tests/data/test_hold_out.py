"""A part of the training scenes for validation: nothing in both, nothing lost, no label of it learned."""

import dataclasses

import numpy as np
import pytest
import yaml

from caswit.config import AugmentConfig, DataConfig, Recipe, TileConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.hold_out import hold_out
from caswit.data.sampler import TrainingSamples
from caswit.errors import ConfigError, DataError
from caswit.raster.windows import Window
from conftest import CLASSES, georeference, picture


def held(dataset: Dataset, share: float) -> Dataset:
    return hold_out(dataset, share, train_split="train", val_split="held_out")


def covered(dataset: Dataset, split: str, shape: tuple[int, int]) -> np.ndarray:
    """How often each pixel of the image is in the split."""
    times = np.zeros(shape, int)
    for scene in dataset.split(split):
        for area in scene.areas or (Window(0, 0, *shape),):
            times[area.row : area.row + area.height, area.col : area.col + area.width] += 1
    return times


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5])
def test_parts_of_a_scene_are_apart_and_make_up_the_whole(dataset_file, share):
    data = held(load_dataset(dataset_file), share)
    train, val = (covered(data, split, (90, 130)) for split in ("train", "held_out"))
    assert np.array_equal(train + val, np.ones((90, 130)))
    assert val.mean() == pytest.approx(share, abs=0.01)
    assert val[:, -1].all()  # the end of the longer side
    assert not val[:, 0].any()
    assert [s.split for s in data.scenes if s.split not in ("train", "held_out")] == ["test", "unlabelled"]


def many(dataset_file, count: int, areas=None) -> Dataset:
    data = load_dataset(dataset_file)
    first = data.split("train")[0]
    scenes = tuple(dataclasses.replace(first, areas=areas) for _ in range(count))
    return dataclasses.replace(data, scenes=scenes)


def test_of_many_scenes_whole_ones_are_kept_back(dataset_file):
    data = held(many(dataset_file, 11), 0.2)
    assert [i for i, scene in enumerate(data.scenes) if scene.split == "held_out"] == [2, 7]
    assert all(scene.areas is None for scene in data.scenes)


def test_of_many_areas_whole_ones_are_kept_back(dataset_file):
    areas = tuple(Window(0, 10 * i, 10, 10) for i in range(10))
    data = held(many(dataset_file, 2, areas), 0.2)
    for split, count in (("train", 8), ("held_out", 2)):
        assert [len(scene.areas) for scene in data.split(split)] == [count, count]
    assert {*data.split("train")[0].areas, *data.split("held_out")[0].areas} == set(areas)


def test_of_few_areas_the_end_of_each_is_kept_back(dataset_file):
    areas = (Window(0, 0, 20, 10), Window(0, 10, 10, 30))
    data = held(many(dataset_file, 1, areas), 0.25)
    assert data.split("train")[0].areas == (Window(0, 0, 15, 10), Window(0, 10, 10, 22))
    assert data.split("held_out")[0].areas == (Window(15, 0, 5, 10), Window(0, 32, 10, 8))


@pytest.mark.parametrize("sampling", ["grid", "random"])
def test_no_label_of_the_part_is_learned(tmp_path, make_raster, sampling):
    """With changed scale and contexts, windows reach over the border between both parts."""
    make_raster(picture(64, 160), "scene.tif", **georeference())
    label = np.ones((1, 64, 160), np.uint8)
    label[:, :, 120:] = 7  # the quarter at the end
    make_raster(label, "scene_label.tif", **georeference())
    scenes = [{"image": "scene.tif", "label": "scene_label.tif", "split": "train"}]
    file = tmp_path / "d.yaml"
    file.write_text(yaml.safe_dump({"name": "d", "classes": CLASSES.to_dicts(), "scenes": scenes}))

    def labels(share: float) -> set[int]:
        config = DataConfig(dataset=str(file), sampling=sampling, hold_out=share, val_split="held_out")
        data = held(load_dataset(file), share) if share else load_dataset(file)
        tile = TileConfig(tile_px=32, context_factor=4)
        augment = AugmentConfig(spatial=True, scale=1.0, context_swap=0.5)
        samples = TrainingSamples(data, config, tile, augment, seed=0, context=True)
        found = [samples[n] for n in range(40)]
        return {int(x) for s in found for name in ("label", "context_label") for x in s[name].unique()} - {255}

    assert labels(0.25) == {0}
    assert labels(0.0) == {0, 2}  # not vacuous


def test_a_split_that_is_there_is_not_made_anew(dataset_file):
    with pytest.raises(DataError, match=r"has a split 'test'; leave out data.hold_out"):
        hold_out(load_dataset(dataset_file), 0.2, train_split="train", val_split="test")


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"hold_out": 0.9}, r"hold_out must be in \[0, 0.5\], got 0.9; try 0.2"),
        ({"hold_out": 0.2, "val_split": None}, "as val_split, which is null"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        DataConfig(dataset="x", **settings)


def test_only_what_is_learned_has_the_side_of_a_crop():
    recipe = Recipe(data=DataConfig(dataset="x", crop_px=64), tile=TileConfig(tile_px=128, context_factor=2))
    assert (recipe.crop.tile_px, recipe.tile.tile_px) == (64, 128)
    assert recipe.crop.context_factor == 2
    with pytest.raises(ConfigError, match=r"data.crop_px: tile_px must be"):
        Recipe(data=DataConfig(dataset="x", crop_px=33))
