"""``gsd_m`` of a dataset.yaml: how large pixels are on the ground where an image does not say it."""

import dataclasses

import numpy as np
import pytest
import yaml

from caswit.config import AugmentConfig, DataConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.data.reader import check_scenes, ground_size_m, open_dataset_scene
from caswit.data.sampler import TrainingSamples
from caswit.errors import DataError
from conftest import CLASSES, georeference, picture

READ_GSD_M = 0.9


@pytest.fixture
def dataset(tmp_path, make_raster):
    """Write a dataset of one image, with or without a georeference, with some entries more."""

    def write(where: dict, *, of_scene: dict | None = None, **entries):
        make_raster(picture(96, 160), "scene.tif", **where)
        label = np.repeat(np.array([1, 2, 7, 0], np.uint8), 40)[None, None].repeat(96, 1)
        make_raster(label, "scene_label.tif", **where)
        scene = {"image": "scene.tif", "label": "scene_label.tif", "split": "train", **(of_scene or {})}
        file = tmp_path / "dataset.yaml"
        file.write_text(yaml.safe_dump({"name": "x", "classes": CLASSES.to_dicts(), "scenes": [scene], **entries}))
        return load_dataset(file).read_at(READ_GSD_M)

    return write


def samples(dataset) -> list[np.ndarray]:
    """Tile, context and labels of a few samples, whose ground size differs from one to the next."""
    tiles = TrainingSamples(
        dataset,
        DataConfig(dataset="x", sampling="random"),
        TileConfig(tile_px=32, read_gsd_m=READ_GSD_M),
        AugmentConfig(scale=0.3),
        seed=0,
        context=True,
    )
    return [np.asarray(x) for number in range(4) for x in tiles[number].values()]


@pytest.mark.parametrize(
    "said",
    [{"gsd_m": 0.5}, {"of_scene": {"gsd_m": 0.5}}, {"gsd_m": 3, "of_scene": {"gsd_m": 0.5}}],
    ids=["dataset", "scene", "scene before dataset"],
)
def test_what_is_said_reads_as_what_the_file_says(dataset, said):
    by_file = dataset(georeference(gsd=0.5))
    expected, scene = samples(by_file), by_file.scenes[0]
    with open_dataset_scene(by_file, scene) as opened:
        shape, raster = (opened.height, opened.width), opened.region(opened.raster).image
    for where in ({}, georeference(gsd=0.2)):  # a file that does not say it, and one that is wrong
        told = dataset(where, **said)
        check_scenes(told, told.scenes)
        with open_dataset_scene(told, told.scenes[0]) as opened:
            assert (opened.height, opened.width, opened.source_gsd_m) == (*shape, 0.5)
            np.testing.assert_array_equal(opened.region(opened.raster).image, raster)
        for ours, theirs in zip(samples(told), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert ground_size_m(dataclasses.replace(told, read_gsd_m=None), told.scenes[0]) == 0.5


def test_what_nobody_says_is_refused_with_the_remedy(dataset):
    unknown = dataset({})
    with pytest.raises(DataError, match=r"say it with gsd_m: METRES in the dataset\.yaml"):
        check_scenes(unknown, unknown.scenes)


@pytest.mark.parametrize("wrong", [0, -0.5, float("inf"), "half a metre", [0.5], True])
@pytest.mark.parametrize("where", ["dataset", "scene"])
def test_a_ground_size_that_is_none_is_refused(dataset, where, wrong):
    entries = {"gsd_m": wrong} if where == "dataset" else {"of_scene": {"gsd_m": wrong}}
    with pytest.raises(DataError, match=r"gsd_m.* in metres") as caught:
        dataset({}, **entries)
    assert "\n" not in str(caught.value)
