"""Maps of models of other bands: found by name or number, stretched as in training, one line where one is missing."""

import json

import numpy as np
import pytest
import rasterio
import torch

from caswit.config import RGB, ModelConfig, PredictConfig, TileConfig
from caswit.config.mapping import MapRunConfig, OutputConfig
from caswit.data.classes import ClassTable
from caswit.errors import CaswitError
from caswit.inference.onnx.write import export
from caswit.mapping.arrays import load_model
from caswit.mapping.run import predict
from caswit.weights.model_folder import ModelInfo, build, save_model
from caswit.weights.summary import describe
from conftest import georeference

pytestmark = pytest.mark.usefixtures("shallow")

CLASSES = ClassTable.from_dicts(
    [{"id": i, "name": name, "color": f"#{i}{i}0000"} for i, name in enumerate("abcde")], "test"
)
NAMES = (*RGB, "nir", "dsm")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Five bands: the fourth is a range of 16 bits, the fifth was a raster beside the image."""
    settings = ModelConfig(
        size="pico",
        decoder_channels=16,
        decoder_norm="group",
        fusion_stages=(2,),
        bands=NAMES,
        mean=(120.0,) * 5,
        std=(40.0, 40.0, 40.0, 20.0, 10.0),
        ranges=((0.0, 255.0),) * 3 + ((0.0, 5100.0), (100.0, 151.0)),
    )
    info = ModelInfo(
        model=settings, tile=TileConfig(tile_px=32), classes=CLASSES, bands=(1, 2, 3, 4, "dsm"), trained_gsd_m=0.5
    )
    torch.manual_seed(0)
    network = build(info)
    with torch.no_grad():
        images = torch.randint(0, 256, (2, 1, 5, 32, 32))
        network.decoder.classify.bias -= network.eval()(*images.float()).mean((0, 2, 3))
    folder = tmp_path_factory.mktemp("model") / "five"
    save_model(network, info, folder)
    return folder


@pytest.fixture
def pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(1, 256, (4, 48, 48)).astype(np.uint16)
    image[3] = rng.integers(0, 5100, (48, 48))
    return image, (100 + 51 * rng.random((1, 48, 48))).astype(np.float32)


def mapped(model, tmp_path, images, **settings):
    out = tmp_path / "map.tif"
    outputs, run = OutputConfig(), MapRunConfig(overwrite=True, restart=True)
    predict(list(map(str, images)), out, str(model), PredictConfig(**settings), outputs, run)
    with rasterio.open(out) as src:
        return src.read(1)


def test_by_number_by_name_and_beside_are_one_map(model, make_raster, tmp_path, pixels):
    image, dsm = pixels
    where = georeference()
    make_raster(image, "rgbi.tif", **where)
    make_raster(dsm, "dsm.tif", **where)
    expected = mapped(model, tmp_path, [tmp_path / "rgbi.tif"], also=f"dsm={tmp_path / 'dsm.tif'}")
    assert len(np.unique(expected)) > 2
    make_raster(image[[3, 0, 2, 1]], "named.tif", **where)
    with rasterio.open(tmp_path / "named.tif", "r+") as dst:
        dst.descriptions = ("NIR", "Red", "Blue", "Green")
    also = f"dsm={tmp_path / 'dsm.tif'}"
    np.testing.assert_array_equal(mapped(model, tmp_path, [tmp_path / "named.tif"], also=also), expected)
    make_raster(image[[3, 0, 2, 1]], "mixed.tif", **where)
    found = mapped(model, tmp_path, [tmp_path / "mixed.tif"], also=also, bands=(2, 4, 3, 1))
    np.testing.assert_array_equal(found, expected)
    # An array of uint16 needs no range: the model has it.
    array = load_model(model).predict(np.concatenate([image.astype(np.float32), dsm]), bands=(1, 2, 3, 4, 5), gsd_m=0.5)
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("bands", "settings", "message"),
    [
        (4, {}, "lacks dsm: the model reads red, green, blue, nir, dsm, the image has 4 bands"),
        (3, {"also": "dsm=dsm.tif"}, "lacks nir: "),
        (4, {"also": "slope=dsm.tif"}, "also names slope, the model reads red, green"),
        (4, {"also": "dsm=none.tif"}, "also: none.tif: no such file"),
        (4, {"also": "dsm.tif"}, "also must be names and files, got 'dsm.tif'"),
        (4, {"bands": (1, 2, 3, 4)}, "bands must be 5 numbers from 1, of red, green, blue, nir, dsm, got"),
    ],
)
def test_a_missing_band_is_one_line(model, make_raster, tmp_path, monkeypatch, pixels, bands, settings, message):
    monkeypatch.chdir(tmp_path)
    make_raster(pixels[0][:bands], "image.tif", **georeference())
    make_raster(pixels[1], "dsm.tif", **georeference())
    with pytest.raises(CaswitError) as error:
        mapped(model, tmp_path, ["image.tif"], **settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("map*"))


def test_an_alpha_band_is_no_near_infrared(tmp_path, make_raster, pixels):
    """A transparent picture has four bands too; what is called alpha but varies is read."""
    info = ModelInfo(
        model=ModelConfig(size="pico", decoder_channels=16, bands=NAMES[:4], mean=(120.0,) * 4, std=(40.0,) * 4),
        tile=TileConfig(tile_px=32),
        classes=CLASSES,
        bands=(1, 2, 3, 4),
    )
    save_model(build(info), info, tmp_path / "four")
    image = pixels[0].clip(0, 255).astype(np.uint8)
    image[3] = np.where(image[0] > 128, 255, 0)
    make_raster(image, "rgba.tif", **georeference())
    with pytest.raises(CaswitError, match="lacks nir: the model reads red, green, blue, nir, the image has 3 bands"):
        mapped(tmp_path / "four", tmp_path, [tmp_path / "rgba.tif"])
    image[3, ::2] = 77
    image[3, :9] = 0
    make_raster(image, "rgbi.tif", **georeference())
    assert (mapped(tmp_path / "four", tmp_path, [tmp_path / "rgbi.tif"]) != 255).all()


def test_the_export_equals_the_network_and_all_descriptions_name_the_bands(model, make_raster, tmp_path, pixels):
    exported = export(str(model), tmp_path / "five.onnx")
    assert exported.difference < 1e-3 * exported.largest
    assert "5" in str(exported.inputs["tile"])
    make_raster(pixels[0], "rgbi.tif", **georeference())
    make_raster(pixels[1], "dsm.tif", **georeference())
    mapped(model, tmp_path, [tmp_path / "rgbi.tif"], also=f"dsm={tmp_path / 'dsm.tif'}")
    (item,) = (json.loads(file.read_text()) for file in tmp_path.glob("map*.json"))
    (tile, _) = item["properties"]["mlm:input"]
    assert tile["bands"] == list(NAMES)
    assert tile["input"]["shape"] == [-1, 5, 32, 32]
    assert [(s["mean"], s["stddev"]) for s in tile["value_scaling"]][-1] == (120.0, 10.0)
    assert "dsm 100 to 151" in tile["description"]
    page = describe(model)
    assert "red 1, green 2, blue 3, nir 4, dsm, uint8 made of red 0 to 255" in page
    assert "dsm 100 to 151" in page
