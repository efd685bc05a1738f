"""Several contexts of a tile are exactly those that would be read one by one."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caswit.config import AugmentConfig, DataConfig, TileConfig
from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReader, context_window
from caswit.data.sampler import TrainingSamples
from caswit.data.scene import Scene
from caswit.data.transforms import augment, only_labels
from caswit.errors import ConfigError
from caswit.raster.windows import Window
from conftest import CLASSES, georeference

shared_files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
FACTORS = (2, 8)
ALL = AugmentConfig(
    spatial=True, brightness=0.2, contrast=0.2, gamma=0.2, tint=0.1, saturation=0.3, blur=2.0, noise=0.02, holes=0.5,
    context_dropout=0.3,
)  # fmt: skip


@pytest.fixture
def files(make_raster, image, label):
    return Scene(image=make_raster(image, **georeference()), label=make_raster(label, "label.tif", **georeference()))


def assert_same(several, alone):
    """Each field of the sample of several contexts is that of the samples of one."""
    for one in alone:
        np.testing.assert_array_equal(several.tile, one.tile)
        np.testing.assert_array_equal(several.label, one.label)
    np.testing.assert_array_equal(several.context, np.stack([one.context for one in alone]))
    np.testing.assert_array_equal(several.context_label, np.stack([one.context_label for one in alone]))


@shared_files
@given(st.integers(-40, 110), st.integers(-40, 150), st.sampled_from([None, 0.5, 0.8, 0.3]))
def test_several_contexts_are_read_as_each_is_alone(files, row, col, read_gsd_m):
    tile = Window(row, col, 32, 32)
    with SceneReader(files, CLASSES, read_gsd_m=read_gsd_m) as scene:
        several, alone = scene.read(tile, FACTORS), [scene.read(tile, factor) for factor in FACTORS]
        region = scene.region(context_window(tile, FACTORS))
        assert region.window.height == 8 * 32
        np.testing.assert_array_equal(region.context(tile, FACTORS), several.context)
    assert several.context.shape == (2, 3, 32, 32)
    assert several.context_label.shape == (2, 32, 32)
    assert_same(several, alone)


@shared_files
@given(st.integers(0, 10_000), st.booleans())
def test_random_changes_of_several_contexts_are_those_of_each_alone(files, seed, labelled):
    """Geometry, colours, blur, holes and context dropout: the same draws for every context, each at its own scale."""
    tile = Window(20, 40, 32, 32)
    with SceneReader(files, CLASSES if labelled else None) as scene:
        samples = [scene.read(tile, factor) for factor in (FACTORS, *FACTORS)]
    changed = [
        augment(sample, ALL, np.random.default_rng(seed), factor=factor)
        for sample, factor in zip(samples, (FACTORS, *FACTORS), strict=True)
    ]
    if labelled:
        assert_same(changed[0], changed[1:])
    else:
        np.testing.assert_array_equal(changed[0].context, np.stack([one.context for one in changed[1:]]))
        assert not changed[0].label.size
        assert not changed[0].context_label.size


def test_context_dropout_masks_all_contexts(files):
    with SceneReader(files, CLASSES) as scene:
        sample = scene.read(Window(20, 40, 32, 32), FACTORS)
    masked = augment(sample, AugmentConfig(context_dropout=1.0), np.random.default_rng(0), factor=FACTORS)
    for context, before, middle in zip(masked.context, sample.context, (slice(8, 24), slice(14, 18)), strict=True):
        np.testing.assert_array_equal(context[:, middle, middle], before[:, middle, middle])
        assert before.any(0).sum() > context.any(0).sum() == (middle.stop - middle.start) ** 2


def test_labels_elsewhere_are_left_out_of_every_context(files):
    tile, labelled = Window(20, 40, 32, 32), [Window(10, 30, 32, 50)]
    with SceneReader(files, CLASSES) as scene:
        several, alone = (
            only_labels(scene.read(tile, FACTORS), tile, FACTORS, labelled),
            [only_labels(scene.read(tile, factor), tile, factor, labelled) for factor in FACTORS],
        )
    assert_same(several, alone)


def test_training_samples_have_all_contexts(dataset_file):
    def samples(factor):
        return TrainingSamples(
            load_dataset(dataset_file), DataConfig(dataset=str(dataset_file), sampling="random"),
            TileConfig(tile_px=32, context_factor=factor), ALL, seed=0, context=True,
        )  # fmt: skip

    several, alone = samples([2, 8])[3], [samples(factor)[3] for factor in (2, 8)]
    for name in ("context", "context_label"):
        assert torch.equal(several[name], torch.stack([one[name] for one in alone]))


@pytest.mark.parametrize(
    ("factor", "tile_px", "says"),
    [
        ([8, 2], 64, r"must be a number or an increasing list of numbers, got \[8, 2\]; try \[2, 8\]"),
        ([2, 2], 64, r"an increasing list of numbers, got \[2, 2\]; try 2"),
        ([], 64, r"an increasing list of numbers, got \[\]; try 2"),
        ([2, 32], 64, r"must be in 1\.\.16, got 32 in \[2, 32\]; try 2"),
        ([2, 3], 508, r"must be a multiple of 2 x each context_factor of \[2, 3\], so of 12, got tile_px=508; try 504"),
        (3, 508, r"must be a multiple of 2 x context_factor = 6, got tile_px=508; try 510"),
        ([12], 34, r"got tile_px=34; try 48"),
    ],
)
def test_factors_that_cannot_be_read_are_refused_in_one_line(factor, tile_px, says):
    with pytest.raises(ConfigError, match=says):
        TileConfig(context_factor=factor, tile_px=tile_px)


def test_a_list_of_one_is_the_number():
    assert TileConfig(context_factor=[4]) == TileConfig(context_factor=4)
    assert TileConfig(context_factor=[4]).context_factor == 4
    several = TileConfig(context_factor=[2, 8])
    assert (several.context_factor, several.context_px, several.step_px) == ((2, 8), 4096, 16)


@given(st.lists(st.integers(1, 16), min_size=1, max_size=3, unique=True), st.integers(32, 2000))
def test_a_tile_that_is_refused_fits_where_the_message_says(factors, tile_px):
    try:
        tile = TileConfig(context_factor=sorted(factors), tile_px=tile_px)
    except ConfigError as error:
        tile = TileConfig(context_factor=sorted(factors), tile_px=int(str(error).rpartition("try ")[2]))
    for factor in tile.context_factors:  # which checks that both branches see the same ground
        assert context_window(Window(0, 0, tile.tile_px, tile.tile_px), factor).height == factor * tile.tile_px
