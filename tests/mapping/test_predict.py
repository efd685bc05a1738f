"""Maps of whole rasters."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rio_cogeo import cog_validate

import caswit
from caswit.config import PredictConfig
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError, ModelError
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.mapping.run import predict
from caswit.raster.reader import CACHE_MB
from caswit.raster.windows import Tile, Window, block_at, block_windows
from caswit.weights.model_folder import load_model
from conftest import georeference

pytestmark = pytest.mark.e2e

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read(1)


def test_the_map_lies_on_the_images_grid_and_says_what_it_is(make_raster, image, model_folder, tmp_path):
    mask = np.full((90, 130), 255, np.uint8)
    mask[:40, :70] = 0
    path, out = make_raster(image, mask=mask, **georeference()), tmp_path / "map.tif"
    predict(path, out, model_folder, PredictConfig(**EXACT))
    with rasterio.open(path) as source, rasterio.open(out) as found:
        assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        assert found.dtypes == ("uint8",)
        assert found.nodata == 255
        assert found.profile["tiled"]
        assert found.compression.name == "deflate"
        assert cog_validate(out, quiet=True)[0]
        assert found.colormap(1)[7] == (0xE2, 0xA9, 0x29, 255)
        assert found.tags(1)["CLASS_7"] == "water"
        tags = found.tags()
        assert tags["CASWIT_MODEL_SHA256"] == load_model(model_folder).digest
        assert tags["TIFFTAG_SOFTWARE"] == f"caswit {caswit.__version__}"
        assert (tags["CASWIT_IMAGE"], tags["CASWIT_TILE_PX"], tags["CASWIT_OVERLAP_PX"]) == ("image.tif", "32", "8")
        assert (tags["CASWIT_CONTEXT_FACTOR"], tags["CASWIT_PRECISION"]) == ("2", "fp32")
        classes = found.read(1)
    np.testing.assert_array_equal(classes == 255, mask == 0)
    assert set(np.unique(classes)) <= {1, 2, 7, 255}
    assert len(np.unique(classes)) > 2


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (77, 1), (32, 32), (31, 33), (20, 100)])
def test_any_size_down_to_one_pixel(make_raster, image, model_folder, tmp_path, shape):
    path = make_raster(image[:, : shape[0], : shape[1]], **georeference())
    predict(path, tmp_path / "map.tif", model_folder, PredictConfig(**EXACT))
    classes = read(tmp_path / "map.tif")
    assert classes.shape == shape
    assert (classes != 255).all()


@pytest.mark.parametrize("name", ["photo.jpg", "photo.png"])
def test_images_without_a_georeference(make_raster, image, model_folder, tmp_path, name):
    predict(make_raster(image, name), tmp_path / "map.tif", model_folder, PredictConfig(**EXACT))
    classes = read_quietly(tmp_path / "map.tif")
    assert classes.shape == (90, 130)


def read_quietly(path: Path) -> np.ndarray:
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        return read(path)


def test_the_block_size_does_not_change_the_map(make_raster, image, model_folder, tmp_path):
    path = make_raster(image, **georeference())
    maps = []
    for block_px in (32, 50, 64, 4096):
        out = tmp_path / f"{block_px}.tif"
        predict(path, out, model_folder, PredictConfig(**EXACT, block_px=block_px, overlap_px=10))
        maps.append(read(out))
    assert all(np.array_equal(one, maps[0]) for one in maps)


def test_the_batch_size_changes_next_to_nothing(make_raster, image, model_folder, tmp_path):
    """Sums may be taken in another order, so a pixel on the edge between two classes may fall either way."""
    path = make_raster(image, **georeference())
    for batch in (1, 7):
        settings = PredictConfig(**(EXACT | {"batch": batch}))
        predict(path, tmp_path / f"{batch}.tif", model_folder, settings)
    assert (read(tmp_path / "1.tif") == read(tmp_path / "7.tif")).mean() > 0.999


@pytest.mark.parametrize("fusion_stages", [(), (1, 2, 3, 4)])
@pytest.mark.parametrize(("fill", "padding"), [(None, "reflect"), ("black", "constant")])
def test_streaming_equals_predicting_every_tile_by_hand(
    make_raster, image, make_model, tmp_path, fusion_stages, fill, padding
):
    folder = make_model(fusion_stages)
    network = load_model(folder).network
    settings = PredictConfig(**EXACT, overlap_px=0, fill=fill)
    predict(make_raster(image, **georeference()), tmp_path / "map.tif", folder, settings)
    padded = np.pad(image, ((0, 0), (16, 64), (16, 64)))
    expected = np.zeros((90, 130), np.uint8)
    for row in (0, 32, 58):
        for col in (0, 32, 64, 96, 98):
            wide = padded[:, row : row + 64, col : col + 64].astype(np.float32)
            tile = wide[:, 16:48, 16:48]
            context = np.floor(wide.reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)) + 0.5)
            # How many averaged pixels lie above, below, left and right of the image.
            around = [[max(0, 16 - at) // 2, max(0, at + 48 - end) // 2] for at, end in ((row, 90), (col, 130))]
            (above, below), (before, after) = around
            inside = context[:, above : 32 - below, before : 32 - after]
            context = np.pad(inside, ((0, 0), *around), mode=padding)
            with torch.inference_mode():
                logits = network(torch.from_numpy(tile)[None], torch.from_numpy(context)[None])
            # Later tiles own what they share with earlier ones only from the middle on.
            top = {58: 61}.get(row, row)
            left = {98: 113}.get(col, col)
            found = np.array([1, 2, 7], np.uint8)[logits[0].argmax(0).numpy()]
            expected[top : row + 32, left : col + 32] = found[top - row :, left - col :]
    # Rows 58-61 and columns 98-113 of the earlier tiles were overwritten by nobody.
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), expected)


def test_a_network_that_copies_gives_back_the_image(make_raster, model_folder):
    """Every pixel comes from its own place: a predictor that reads its class off the red band."""
    classes = np.random.default_rng(1).integers(0, 3, (90, 130), dtype=np.uint8)
    red = np.stack([classes * 100 + 20] * 3)
    loaded = load_model(model_folder)

    class Copy(Predictor):
        def logits(self, region, tiles: tuple[Tile, ...], averaged=None):
            red = torch.from_numpy(np.stack([region.tile(t.window)[0] for t in tiles])).long() // 100
            return torch.nn.functional.one_hot(red, 3).movedim(-1, 1).float()

    model = Copy(loaded.network, context_factor=2, batch=3, device=torch.device("cpu"), bf16=False)
    with SceneReader(Scene(image=make_raster(red, **georeference()))) as scene:
        for window in block_windows(90, 130, 32, 12, 64):
            block = block_at(window, 90, 130, 32, 12, halo=False)
            rows, cols = block.window.inside(Window(0, 0, 90, 130))
            np.testing.assert_array_equal(model.classes(scene, block), classes[rows, cols])


def test_memory_does_not_grow_with_the_image_and_empty_tiles_cost_nothing(tmp_path, model_folder):
    """20,000 x 20,000 pixels would be 1.2 GB in memory. GDAL's cache may grow to its bound meanwhile."""
    images = []
    for side in (4000, 20_000):
        images.append(tmp_path / f"{side}.tif")
        profile = {"driver": "GTiff", "count": 3, "dtype": "uint8", "nodata": 0, **georeference()}
        layout = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate", "sparse_ok": True}
        rasterio.open(images[-1], "w", height=side, width=side, **profile, **layout).close()
    model = shutil.copytree(model_folder, tmp_path / "model")
    config = model / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"tile": {"tile_px": 512, "context_factor": 2}}))
    code = """
import resource, sys
from pathlib import Path
from caswit.config import PredictConfig
from caswit.mapping.run import predict
from caswit.inference.predictor import Predictor

def never(*_):
    raise AssertionError("computed a tile without data")

Predictor.logits = never
for image in map(Path, sys.argv[2:]):
    predict(image, image.with_suffix(".map.tif"), Path(sys.argv[1]), PredictConfig(block_px=1024, overlap_px=0))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, model, *images], capture_output=True, text=True, env=ONE_THREAD, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks_mb = [int(line) for line in done.stdout.split()]
    assert peaks_mb[1] - peaks_mb[0] < CACHE_MB + 100
    with rasterio.open(images[1].with_suffix(".map.tif")) as found:
        assert found.shape == (20_000, 20_000)
        assert (found.read(1, window=rasterio.windows.Window(19_000, 19_000, 1000, 1000)) == 255).all()


class TestRefusals:
    def test_an_overlap_of_a_whole_tile(self, make_raster, image, model_folder, tmp_path):
        with pytest.raises(ConfigError, match="overlap_px must be below the model's tile_px=32, got 32; try 8"):
            predict(make_raster(image), tmp_path / "map.tif", model_folder, PredictConfig(overlap_px=32))

    def test_writing_onto_the_image(self, make_raster, image, model_folder):
        path = make_raster(image)
        with pytest.raises(ConfigError, match="is the input image"):
            predict(path, path, model_folder)

    def test_a_missing_image_and_a_map_of_earlier(self, model_folder, tmp_path):
        (tmp_path / "map.tif").touch()
        with pytest.raises(DataError, match=r"none\.tif: no such file"):
            predict(tmp_path / "none.tif", tmp_path / "map.tif", model_folder)

    def test_a_folder_as_the_map(self, make_raster, image, model_folder, tmp_path):
        (tmp_path / "map.tif").mkdir()
        with pytest.raises(ConfigError, match="is a folder; give another name"):
            predict(make_raster(image), tmp_path / "map.tif", model_folder)

    def test_a_device_as_the_map(self, make_raster, image, model_folder, tmp_path):
        """OUT=/dev/null, as root, put a file in its place."""
        out = tmp_path / "map.tif"
        os.mkfifo(out)
        with pytest.raises(ConfigError, match="is not a plain file; give another name"):
            predict(make_raster(image), out, model_folder)
        assert out.is_fifo()

    def test_a_folder_that_does_not_exist(self, make_raster, image, model_folder, tmp_path):
        with pytest.raises(ConfigError, match="folder does not exist"):
            predict(make_raster(image), tmp_path / "none" / "map.tif", model_folder)

    def test_a_missing_model(self, make_raster, image, tmp_path):
        with pytest.raises(ModelError, match="no such model folder"):
            predict(make_raster(image), tmp_path / "map.tif", tmp_path / "none")

    def test_an_unknown_device(self, make_raster, image, model_folder, tmp_path):
        with pytest.raises(ConfigError, match="try auto or cpu"):
            predict(make_raster(image), tmp_path / "map.tif", model_folder, PredictConfig(device="toaster"))


@pytest.mark.data
def test_bf16_and_fp32_agree_on_real_imagery(real_data, model_folder):
    """Random weights put many pixels near an edge between classes; trained ones far fewer."""
    loaded = load_model(model_folder)
    tile = Tile(Window(200, 200, 128, 128), Window(200, 200, 128, 128))
    with SceneReader(Scene(image=real_data / "dubai" / "tile2.tif")) as scene:
        region = scene.region(tile.window.grown(64))
        exact, rough = (
            load_predictor(loaded, PredictConfig(device="cpu", precision=p)).logits(region, [tile])
            for p in ("fp32", "bf16")
        )
    assert (rough - exact).abs().mean() < 0.05 * exact.std()


@pytest.fixture
def model_at(model_folder, tmp_path):
    """A copy of the model that reads pixels of a given ground size."""

    def copy(gsd_m: float) -> Path:
        folder = tmp_path / f"model-{gsd_m:g}"
        shutil.copytree(model_folder, folder)
        config = json.loads((folder / "config.json").read_text())
        config["tile"]["read_gsd_m"] = gsd_m
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


def ground_size(path: Path) -> float:
    with SceneReader(Scene(image=path)) as scene:
        return scene.image.grid.source_gsd_m


def test_a_finer_image_is_read_at_the_models_ground_size(make_raster, image, model_folder, model_at, tmp_path):
    """One tile whose pixels are all repeated: its map is the argmax of bilinearly enlarged logits."""
    coarse = image[:, :32, :32]
    fine = make_raster(coarse.repeat(3, 1).repeat(3, 2), **georeference())
    model = load_model(model_at(3 * ground_size(fine)))
    with torch.inference_mode():
        context = np.zeros((3, 64, 64), np.uint8)
        context[:, 16:48, 16:48] = coarse
        context = (context.reshape(3, 32, 2, 32, 2).mean((2, 4)) + 0.5).astype(np.uint8)
        logits = model.network(*(torch.from_numpy(x)[None] for x in (coarse, context)))
        large = torch.nn.functional.interpolate(logits, scale_factor=3, mode="bilinear")
    predict(fine, tmp_path / "map.tif", tmp_path / model.name, PredictConfig(**EXACT, fill="black"))
    expected = model.info.classes.ids[large[0].argmax(0).numpy()]
    assert (read(tmp_path / "map.tif") == expected).mean() > 0.999  # ties between near-equal logits


@pytest.mark.parametrize("ratio", [2.0, 1.5, 0.6])
def test_at_another_ground_size_block_size_changes_nothing_and_nodata_stays(
    make_raster, image, model_at, tmp_path, ratio
):
    mask = np.full((90, 130), 255, np.uint8)
    mask[13:50, :71] = 0
    path = make_raster(image, mask=mask, **georeference())
    model = model_at(ratio * ground_size(path))
    maps = []
    for block_px in (32, 64, 4096):
        out = tmp_path / f"{block_px}.tif"
        predict(path, out, model, PredictConfig(**EXACT, block_px=block_px))
        with rasterio.open(path) as source, rasterio.open(out) as found:
            assert (found.crs, found.transform, found.shape) == (source.crs, source.transform, source.shape)
        maps.append(read(out))
    np.testing.assert_array_equal(maps[0] == 255, mask == 0)
    assert len(np.unique(maps[0])) > 2
    for other in maps[1:]:
        np.testing.assert_array_equal(maps[0], other)
