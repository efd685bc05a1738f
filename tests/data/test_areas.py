"""Rectangles of an image as scenes: nothing outside of them is learned, counted or scored."""

import numpy as np
import pytest
import yaml

from caswit.config import AugmentConfig, DataConfig, EvaluateConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.data.folds import fold_scenes
from caswit.data.reader import check_scenes, open_dataset_scene
from caswit.data.sampler import TrainingSamples
from caswit.errors import DataError
from caswit.evaluation.run import evaluate
from caswit.raster.windows import Window
from conftest import CLASSES, georeference, picture

LEFT, RIGHT = [0, 0, 64, 96], [0, 96, 64, 64]


@pytest.fixture
def parts(tmp_path, make_raster):
    """Write a dataset of one image in two splits; labels are 1 on the left and 7 on the right."""
    make_raster(picture(64, 160), "scene.tif", **georeference())
    label = np.ones((1, 64, 160), np.uint8)
    label[:, :, 96:] = 7
    make_raster(label, "scene_label.tif", **georeference())

    def write(train=None, val=None):
        entry = {"image": "scene.tif", "label": "scene_label.tif"}
        scenes = [
            entry | {"split": "train", "areas": [LEFT] if train is None else train},
            entry | {"split": "val", "areas": [RIGHT] if val is None else val},
        ]
        file = tmp_path / "parts.yaml"
        content = {"name": "parts", "classes": CLASSES.to_dicts(), "scenes": scenes}
        file.write_text(yaml.safe_dump(content))
        return file

    return write


def test_areas_are_windows_of_the_scene(parts):
    train, val = load_dataset(parts()).scenes
    assert train.areas == (Window(0, 0, 64, 96),)
    assert val.areas == (Window(0, 96, 64, 64),)


@pytest.mark.parametrize("sampling", ["grid", "random"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_no_label_outside_is_learned(parts, sampling, split):
    """With changed scale and contexts, windows reach over the border."""
    config = DataConfig(dataset=str(parts()), sampling=sampling, train_split=split)
    augment = AugmentConfig(spatial=True, scale=1.0, context_swap=0.5)
    tile = TileConfig(tile_px=32, context_factor=4)
    samples = TrainingSamples(load_dataset(config.dataset), config, tile, augment, seed=0, context=True)
    found = [samples[n] for n in range(40)]
    learned = {int(x) for s in found for name in ("label", "context_label") for x in s[name].unique()}
    assert learned - {255} == {{"train": 0, "val": 2}[split]}


def test_what_is_scored_is_the_area(parts, model_folder, tmp_path):
    """Tiles of 64 px do not divide its sides; every pixel of it counts once all the same."""
    areas = [[3, 5, 40, 50], [50, 100, 10, 60]]
    found = evaluate(model_folder, parts(val=areas), tmp_path, split="val", settings=EvaluateConfig(pictures=0))
    assert found.counts.confusion.sum() == 40 * 50 + 10 * 60


def test_folds_keep_both_parts_of_an_image(parts):
    data = load_dataset(parts())
    other = data.scenes[0].image.with_name("other.tif")
    scenes = [*data.scenes, *(type(s)(image=other, label=s.label, areas=s.areas) for s in data.scenes)]
    held_out = [scene for scene in fold_scenes(scenes, 1, 2, "x") if scene.split == "held_out"]
    assert len(held_out) == 2
    assert len({scene.image for scene in held_out}) == 1
    assert {scene.areas for scene in held_out} == {scene.areas for scene in data.scenes}


@pytest.mark.parametrize(
    "areas", [[], [0, 0, 5, 5], [[0, 0, 5]], [[0, 0, -5, 5]], [[0, 0, 5.5, 5]], "all", [[0, 0, True, 5]]]
)
def test_what_is_no_list_of_rectangles_is_refused(parts, areas):
    with pytest.raises(DataError, match=r"scene 1: areas: must be rectangles \[row, column, height, width\] in pixels"):
        load_dataset(parts(train=areas))


@pytest.mark.parametrize("area", [[0, 0, 65, 5], [60, 0, 5, 5], [0, 160, 5, 5], [0, 0, 0, 5]])
def test_a_rectangle_beyond_the_image_is_refused(parts, area):
    data = load_dataset(parts(train=[area]))
    with pytest.raises(DataError, match=r"scene.tif: areas: .* is not inside the image of 64 rows and 160 columns"):
        check_scenes(data, data.scenes)
    with pytest.raises(DataError, match="is not inside"), open_dataset_scene(data, data.scenes[0]):
        pass
