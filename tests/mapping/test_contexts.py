"""Maps of a model that reads several contexts."""

import json
import shutil

import numpy as np
import pytest
import rasterio
import torch

from caswit.config import ComputeConfig, PredictConfig, TileConfig
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.inference.load import load_predictor
from caswit.inference.predictor import mask_context, swap_context
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.run import predict
from caswit.nn.fusion import CrossAttention
from caswit.raster.windows import Tile, Window
from caswit.weights.model_folder import build, load_model, save_model
from conftest import georeference, picture

pytestmark = pytest.mark.e2e

FACTORS = (2, 4)
EXACT = {"precision": "fp32", "batch": 1, "device": "cpu", "fill": "black"}
"""One tile at a time in fp32: whatever the blocks, the same sums."""


@pytest.fixture(scope="module")
def two(make_model, tmp_path_factory):
    """A model of two contexts, for whose classes what it reads from them counts, each in its own way."""
    made = load_model(make_model((1, 4), TileConfig(tile_px=32, context_factor=FACTORS)))
    torch.manual_seed(0)
    network = build(made.info).eval()
    network.load_state_dict(made.network.state_dict())
    for module in network.modules():
        if isinstance(module, CrossAttention):
            for weight in (module.to_q.weight, module.to_kv.weight, module.proj.weight):
                torch.nn.init.normal_(weight, std=0.3)
            torch.nn.init.normal_(module.context_embedding)
    folder = tmp_path_factory.mktemp("two") / "model"
    save_model(network, made.info, folder)
    return folder


@pytest.fixture
def path(make_raster, image):
    return make_raster(image, **georeference())


def read(file):
    with rasterio.open(file) as src:
        return src.read(1)


def test_every_tile_is_labelled_with_the_contexts_around_it(path, image, two, tmp_path):
    """Computed by hand: pixels of the padded image, averaged by each factor."""
    predict(path, tmp_path / "map.tif", two, PredictConfig(**EXACT, overlap_px=0))
    found, network = read(tmp_path / "map.tif"), load_model(two).network
    padded = np.pad(image, ((0, 0), (48, 160), (48, 160))).astype(np.float32)
    for row, col in ((0, 0), (32, 64)):
        wide = padded[:, row : row + 128, col : col + 128]
        tile = wide[:, 48:80, 48:80]
        narrow = np.floor(wide[:, 32:96, 32:96].reshape(3, 32, 2, 32, 2).mean(axis=(2, 4)) + 0.5)
        widest = np.floor(wide.reshape(3, 32, 4, 32, 4).mean(axis=(2, 4)) + 0.5)
        with torch.inference_mode():
            logits = network(*(torch.from_numpy(x)[None] for x in (tile, np.stack([narrow, widest]))))
            swapped = network(*(torch.from_numpy(x)[None] for x in (tile, np.stack([widest, narrow]))))
        owned = min(26, 90 - 32 - row)  # what no other tile shares
        expected = np.array([1, 2, 7], np.uint8)[logits[0].argmax(0).numpy()]
        np.testing.assert_array_equal(found[row : row + owned, col : col + 26], expected[:owned, :26])
        assert (logits - swapped).abs().max() > 1e-2 * logits.abs().max()


@pytest.mark.parametrize("options", [{}, {"blend": True}, {"fill": "mirror"}, {"tta": 2}], ids=str)
def test_the_block_size_does_not_change_the_map(path, two, tmp_path, options):
    maps = []
    for block_px in (50, 4096):
        predict(
            path, tmp_path / f"{block_px}.tif", two, PredictConfig(**EXACT | options, block_px=block_px, overlap_px=8)
        )
        maps.append(read(tmp_path / f"{block_px}.tif"))
    np.testing.assert_array_equal(*maps)
    assert len(np.unique(maps[0])) > 1


def test_a_mirror_stands_around_the_image_in_every_context(path, two, tmp_path):
    black, mirror = (load_predictor(load_model(two), PredictConfig(**EXACT | {"fill": f})) for f in ("black", "mirror"))
    shown = []
    for predictor in (black, mirror):
        predictor.image_logits = lambda hr, context: shown.append(context[0])
        with SceneReader(Scene(image=path)) as scene:
            tile = Window(0, 0, 32, 32)
            predictor.logits(scene.region(tile.grown(48)), [Tile(tile, tile)])
    assert shown[0].shape == (2, 3, 32, 32)
    assert [(x == 0).all(0).any().item() for x in shown[0]] == [True, True]
    assert [(x == 0).all(0).any().item() for x in shown[1]] == [False, False]


def test_masked_context_masks_all_contexts(two):
    predictor = load_predictor(load_model(two), ComputeConfig(precision="fp32", device="cpu"))
    hr, contexts, others = (torch.from_numpy(picture(32, 32, seed)).float()[None] for seed in (1, 2, 3))
    contexts, others = (x[:, None].repeat(1, 2, 1, 1, 1) for x in (contexts, others))
    masked = mask_context(contexts, FACTORS)
    for number, middle in enumerate((slice(8, 24), slice(12, 20))):
        assert torch.equal(masked[:, number, :, middle, middle], contexts[:, number, :, middle, middle])
        assert masked[:, number].any(1).sum() == (middle.stop - middle.start) ** 2
    with_masks = predictor.with_masked_context()
    expected = predictor.image_logits(hr, masked)
    assert torch.equal(with_masks.image_logits(hr, contexts), expected)
    assert torch.equal(with_masks.image_logits(hr, swap_context(contexts, others, FACTORS)), expected)
    assert not torch.equal(predictor.image_logits(hr, contexts), expected)


def test_a_run_that_ended_early_goes_on_to_the_same_map(path, two, tmp_path, monkeypatch, capsys):
    settings = PredictConfig(**EXACT, block_px=64)
    predict(path, tmp_path / "expected.tif", two, settings)

    class Interrupted(BaseException):
        pass

    done, original = [], BlockMapper.begin

    def stop_at_third(self, block, pixels):
        if len(done) == 2:
            raise Interrupted
        done.append(block.window)
        return original(self, block, pixels)

    with monkeypatch.context() as patch:
        patch.setattr(BlockMapper, "begin", stop_at_third)
        with pytest.raises(Interrupted):
            predict(path, tmp_path / "map.tif", two, settings)
    manifest = json.loads((tmp_path / "map.tif.parts" / "manifest.json").read_text())
    assert manifest["context_factor"] == "(2, 4)"
    # The same weights with other factors are another map.
    other = tmp_path / "other" / "model"
    shutil.copytree(two, other)
    config = json.loads((other / "config.json").read_text())
    config["tile"]["context_factor"] = [2, 8]
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"context_factor was \(2, 4\), now \(2, 8\)"):
        predict(path, tmp_path / "map.tif", other, settings)
    capsys.readouterr()
    predict(path, tmp_path / "map.tif", two, settings)
    assert "going on, 2 of " in capsys.readouterr().err
    np.testing.assert_array_equal(read(tmp_path / "map.tif"), read(tmp_path / "expected.tif"))
    item = json.loads((tmp_path / "map.stac.json").read_text())
    assert [x["name"] for x in item["properties"]["mlm:input"]] == ["tile", "context 2", "context 4"]
