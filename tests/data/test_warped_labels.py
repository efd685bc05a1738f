"""Labels in another CRS or of another size are read on their image's grid, with one line for each dataset."""

import numpy as np
import pytest
import rasterio
import yaml
from rasterio.warp import Resampling, calculate_default_transform, reproject

from caswit.cli.main import main
from caswit.config import IGNORE_INDEX
from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReaders, check_scenes, open_dataset_scene
from caswit.errors import DataError
from caswit.raster.windows import Window
from conftest import CLASSES, SIZE, georeference

WHOLE = Window(0, 0, *SIZE)


@pytest.fixture
def in_utm(dataset_file, tmp_path, label):
    """The label of the dataset in UTM, on pixels of its own."""
    with rasterio.open(tmp_path / "scene_label.tif") as src:
        transform, width, height = calculate_default_transform(
            src.crs, "EPSG:32631", src.width, src.height, *src.bounds
        )
        warped = np.full((1, height, width), 99, np.uint8)
        source = {"src_transform": src.transform, "src_crs": src.crs}
        to = {"dst_transform": transform, "dst_crs": "EPSG:32631", "dst_nodata": 99}
        reproject(label, warped, **source, **to, resampling=Resampling.nearest)
    profile = {"driver": "GTiff", "height": height, "width": width, "count": 1, "dtype": "uint8", "nodata": 99}
    with rasterio.open(tmp_path / "scene_label.tif", "w", **profile, crs="EPSG:32631", transform=transform) as out:
        out.write(warped)
    return dataset_file


def test_every_way_of_reading_takes_the_same_labels(in_utm, label):
    dataset = load_dataset(in_utm)
    expected = CLASSES.indices(label[0], "")
    with open_dataset_scene(dataset, dataset.scenes[0]) as opened:
        found = opened.native_labels(WHOLE, np.ones(SIZE, bool))
        sample = opened.read(Window(20, 30, 32, 32), 2)
        np.testing.assert_array_equal(sample.label, found[20:52, 30:62])
        np.testing.assert_array_equal(sample.context_label, found[5:69:2, 15:79:2])
    inside = found[2:-2, 2:-2] != IGNORE_INDEX
    assert (inside == (expected[2:-2, 2:-2] != IGNORE_INDEX)).mean() > 0.95
    # Warped twice, a stripe's outline moves by up to a pixel.
    assert (found == expected).mean() > 0.85


def test_one_warning_for_each_dataset(in_utm, tmp_path, caplog):
    content = yaml.safe_load(in_utm.read_text())
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(content))
    for file in (in_utm, other):
        dataset = load_dataset(file)
        check_scenes(dataset, dataset.split("train"))
        for scene in dataset.scenes:
            open_dataset_scene(dataset, scene).close()
        assert SceneReaders(dataset, dataset.scenes)[0].label is not None
    said = [r.getMessage() for r in caplog.records if "warped" in r.getMessage()]
    assert [line.split(":")[0] for line in said] == [str(in_utm), str(other)]
    assert said[0].endswith("nearest neighbour; the first is scene_label.tif of scene.tif")


def test_a_coarser_label_and_one_that_covers_a_part(dataset_file, make_raster, label):
    """10 x 10 pixels of 4 m over an image of 0.5 m, of which they cover 80 x 80 pixels; the rest is not labelled."""
    coarse = label[:, :10, :10].copy()
    coarse[:] = 1
    coarse[0, 2:4, 3:5] = 7
    make_raster(coarse, "scene_label.tif", **georeference(4))
    dataset = load_dataset(dataset_file)
    expected = np.full(SIZE, IGNORE_INDEX, np.uint8)
    expected[:80, :80] = 0
    expected[16:32, 24:40] = 2
    with open_dataset_scene(dataset, dataset.scenes[0]) as opened:
        np.testing.assert_array_equal(opened.native_labels(WHOLE, np.ones(SIZE, bool)), expected)


def test_colours_in_another_grid(dataset_file, make_raster, label):
    pixels = np.zeros((3, *SIZE), np.uint8)
    for c in CLASSES.classes:
        pixels[:, label[0] == c.id] = np.array(c.rgb)[:, None]
    make_raster(pixels.repeat(2, 1).repeat(2, 2), "scene_label.tif", **georeference(0.25))
    dataset = load_dataset(dataset_file)
    with open_dataset_scene(dataset, dataset.scenes[0]) as opened:
        found = opened.native_labels(WHOLE, np.ones(SIZE, bool))
    np.testing.assert_array_equal(found, CLASSES.indices(label[0], ""))


def test_an_unknown_id_is_found_in_the_label_file(dataset_file, make_raster, label):
    label[0, 44, 60] = 9
    path = make_raster(label, "scene_label.tif", **georeference(x=700_002))
    dataset = load_dataset(dataset_file)
    with (
        open_dataset_scene(dataset, dataset.scenes[0]) as opened,
        pytest.raises(DataError, match=f"{path}: label id 9 not in"),
    ):
        opened.native_labels(WHOLE, np.ones(SIZE, bool))


@pytest.mark.e2e
def test_a_training_reads_them(in_utm, tmp_path, caplog):
    small = "--model.size nano --tile.tile_px 32 --train.max_steps 2 --train.batch 2 --train.accelerator cpu"
    words = f"{small} --data.val_split null --data.workers 0 --data.dataset {in_utm} --model.decoder_channels 16"
    main(["train", *words.split(), "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert caplog.text.count("warped onto it") == 1
