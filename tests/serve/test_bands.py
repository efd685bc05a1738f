"""The bands of images in the viewer: which are shown, what they are called, and models that read others than three."""

import io
import warnings

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from rasterio.enums import ColorInterp

from caswit.config import ComputeConfig, ModelConfig, ServeConfig, TileConfig
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.inference.load import load_predictor
from caswit.raster.stack import Further
from caswit.raster.windows import owner
from caswit.serve.app import make_app
from caswit.serve.bands import numbers_of
from caswit.serve.collection import Collection
from caswit.serve.live import LiveModel
from caswit.serve.server import serve
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from conftest import CLASSES, georeference, picture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

SIDE = 40
RGBI = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha)
NAMES = "red", "green", "blue", "nir", "dsm"


def bands(count: int) -> np.ndarray:
    return np.concatenate([picture(SIDE, SIDE, seed) for seed in (1, 2)])[:count]


def shown(client, query: str = "", title: str = "a.tif"):
    """The image's layer, and its tile at full resolution, or what is said instead."""
    (view,) = (v for v in client.get("/api/views").json()["views"] if v["title"] == title)
    layer = view["layers"][0]
    reply = client.get(f"/api/views/{view['key']}/layers/{layer['key']}/tiles/0/0/0{query}")
    if reply.status_code != 200:
        return layer, reply
    tile = np.asarray(Image.open(io.BytesIO(reply.content)).convert("RGBA"))[:SIDE, :SIDE]
    return layer, np.moveaxis(tile, -1, 0)


@pytest.fixture
def client(tmp_path):
    return TestClient(make_app(Collection(tmp_path)))


def describe(path, names=None, colours=None):
    with rasterio.open(path, "r+") as dst:
        if names:
            dst.descriptions = names
        if colours:
            dst.colorinterp = colours


def test_every_choice_of_three_bands_is_a_tile_of_them(tmp_path, make_raster, client):
    pixels = bands(5)
    make_raster(pixels, "a.tif", photometric="MINISBLACK", **georeference())
    layer, usual = shown(client)
    assert (layer["shown"], layer["bands"]) == ([1, 2, 3], [""] * 5)
    np.testing.assert_array_equal(usual[:3], pixels[:3])
    for choice in ([4, 1, 2], [5, 5, 5], [3, 2, 1]):
        _, tile = shown(client, f"?v=1&bands={','.join(map(str, choice))}")
        np.testing.assert_array_equal(tile[:3], pixels[[n - 1 for n in choice]])


@pytest.mark.parametrize(
    "said", ["0,1,2", "1,2,6", "1,2", "1,2,3,4", "a", "-1,2,3", "1,2,3\n", "99999,1,1", "\uff11,2,3"]
)
def test_bands_that_are_not_there_are_one_line(tmp_path, make_raster, client, said):
    make_raster(bands(5), "a.tif", photometric="MINISBLACK", **georeference())
    _, reply = shown(client, f"?bands={said.replace(chr(10), '%0A')}")
    assert reply.status_code == 422
    says = reply.json()["detail"]
    assert says.startswith("bands must be three of 1-5, the bands of a.tif, got ")
    assert says.endswith("; try 1,2,3")
    assert "\n" not in says


def test_an_image_without_the_bands_that_are_asked_for_is_said(tmp_path, make_raster, caplog):
    make_raster(bands(4), "a.tif", photometric="MINISBLACK", **georeference())
    layer, _ = shown(TestClient(make_app(Collection(tmp_path, bands=(4, 1, 9)))))
    assert layer["shown"] == [1, 2, 3]
    assert caplog.text.count(f"not shown: bands 4, 1, 9 of {tmp_path / 'a.tif'}, which has 4") == 1


def test_a_map_has_no_bands_to_choose(tmp_path, make_raster, client):
    make_raster(bands(3), "a.tif", **georeference())
    make_raster(np.ones((1, SIDE, SIDE), np.uint8), "a_map.tif", **georeference())
    (view,) = client.get("/api/views").json()["views"]
    layer = next(each for each in view["layers"] if each["kind"] == "map")
    reply = client.get(f"/api/views/{view['key']}/layers/{layer['key']}/tiles/0/0/0?bands=1,1,1")
    assert (reply.status_code, layer["shown"], layer["bands"]) == (422, [], [])
    assert "is no image" in reply.json()["detail"]


def test_bands_called_red_green_and_blue_are_shown(tmp_path, make_raster, client):
    pixels = bands(4)
    make_raster(pixels, "a.tif", photometric="MINISBLACK", **georeference())
    describe(tmp_path / "a.tif", ("NIR", "Red", "Green", "Blue"))
    layer, tile = shown(client)
    assert (layer["shown"], layer["bands"]) == ([2, 3, 4], ["NIR", "Red", "Green", "Blue"])
    np.testing.assert_array_equal(tile[:3], pixels[1:])
    said = TestClient(make_app(Collection(tmp_path, bands=(1, 2, 3))))
    np.testing.assert_array_equal(shown(said)[1][:3], pixels[:3])  # what the user says wins


def test_near_infrared_that_is_called_alpha_is_a_band_and_no_mask(tmp_path, make_raster, client):
    """Dark water in near infrared was clear; a real alpha stays one."""
    pixels = bands(4)
    pixels[3, :5] = 0
    make_raster(pixels, "a.tif", **georeference())
    describe(tmp_path / "a.tif", colours=RGBI)
    mask = np.where(np.arange(SIDE) < 5, 0, 255).astype(np.uint8)[:, None].repeat(SIDE, 1)
    make_raster(np.concatenate([pixels[:3], mask[None]]), "b.tif", **georeference())
    describe(tmp_path / "b.tif", colours=RGBI)
    layer, tile = shown(client, "?bands=4,1,2")
    assert layer["bands"] == ["red", "green", "blue", ""]
    np.testing.assert_array_equal(tile, [*pixels[[3, 0, 1]], np.full((SIDE, SIDE), 255)])
    layer, tile = shown(client, title="b.tif")
    assert layer["bands"] == ["red", "green", "blue"]
    np.testing.assert_array_equal(tile[3], mask)


def test_sixteen_bits_and_floats_are_stretched_band_by_band(tmp_path, make_raster, client):
    pixels = bands(4).astype(np.float32) * np.array([1, 10, 100, 0.01], np.float32)[:, None, None]
    make_raster(pixels, "a.tif", **georeference())
    make_raster((bands(3) * 16).astype(np.uint16), "b.tif", **georeference())
    _, tile = shown(client, "?bands=4,2,3")
    low, high = np.percentile(pixels[[3, 1, 2]].reshape(3, -1), (1, 99), axis=1)[..., None, None]
    expected = np.clip(255 * (pixels[[3, 1, 2]] - low) / (high - low), 0, 255)
    np.testing.assert_allclose(tile[:3], expected, atol=0.51)
    assert shown(client, title="b.tif")[1][:3].std() > 30


def test_a_dataset_names_the_bands_and_makes_one_band_an_image(tmp_path, make_raster):
    pixels = bands(4)
    make_raster(pixels, "a.tif", photometric="MINISBLACK", **georeference())
    make_raster(pixels[:1], "grey.tif", **georeference())
    for file, name, said in (
        ("dataset.yaml", "a.tif", {"nir": 1, "red": 2, "green": 3, "blue": 4}),
        ("grey/dataset.yaml", "../grey.tif", {"height": 1}),
    ):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        scenes = [{"image": name, "split": "test"}]
        (tmp_path / file).write_text(
            yaml.safe_dump(
                {"name": "d", "classes": CLASSES.to_dicts(), "bands": said, "scenes": scenes}, sort_keys=False
            )
        )
    client = TestClient(make_app(Collection(tmp_path)))
    layer, tile = shown(client)
    assert (layer["shown"], layer["bands"]) == ([2, 3, 4], ["nir", "red", "green", "blue"])
    np.testing.assert_array_equal(tile[:3], pixels[1:])
    layer, tile = shown(client, title="grey.tif")
    assert (layer["kind"], layer["shown"], layer["bands"]) == ("image", [1, 1, 1], ["height"])
    np.testing.assert_array_equal(tile[:3], pixels[[0, 0, 0]])


def test_the_bands_of_a_model_are_shown_where_a_file_names_none(tmp_path, make_raster):
    make_raster(bands(4), "a.tif", photometric="MINISBLACK", **georeference())
    make_raster(bands(1), "grey.tif", **georeference())
    for names, numbers, expected in (
        (("red", "green", "blue"), (4, 1, 2), [4, 1, 2]),
        (("nir", "red", "green", "blue"), (1, 2, 3, 4), [2, 3, 4]),
        (("blue", "nir"), (3, 4), [1, 2, 3]),
    ):
        client = TestClient(make_app(Collection(tmp_path, numbers=numbers_of(names, numbers))))
        assert shown(client)[0]["shown"] == expected
        titles = {view["title"] for view in client.get("/api/views").json()["views"]}
        assert "grey.tif" not in titles  # it may be a map
    client = TestClient(make_app(Collection(tmp_path, numbers={"height": 1})))
    assert shown(client, title="grey.tif")[0]["kind"] == "image"


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A model of five bands, the last a raster beside the image."""
    settings = ModelConfig(
        size="pico",
        decoder_channels=16,
        decoder_norm="group",
        fusion_stages=(2,),
        bands=NAMES,
        mean=(120.0,) * 5,
        std=(40.0,) * 5,
        ranges=((0.0, 255.0),) * 4 + ((100.0, 151.0),),
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


def test_a_model_reads_a_raster_beside_the_image(tmp_path, make_raster, five):
    """Named on the command line, or by the dataset that lists the image: the same answers, those of the network."""
    make_raster(bands(4), "a.tif", photometric="MINISBLACK", **georeference())
    heights = (100 + 51 * np.random.default_rng(0).random((1, SIDE, SIDE))).astype(np.float32)
    make_raster(heights, "dsm.tif", **georeference())
    compute = ComputeConfig(device="cpu", precision="fp32")
    further = Further("dsm", str(tmp_path / "dsm.tif"))
    plain, named = LiveModel(five, compute), LiveModel(five, compute, (further,))

    def answers(live) -> list:
        client = TestClient(make_app(Collection(tmp_path), live))
        (view,) = client.get("/api/views").json()["views"]
        return [client.get(f"/api/views/{view['key']}/{what}?row=7&col=9") for what in ("point", "attention")]

    for reply in answers(plain):
        assert reply.status_code == 422
        assert reply.json()["detail"].startswith("a.tif: lacks dsm")  # folders stay on this machine
    point, attention = (reply.json() for reply in answers(named))
    scenes = [{"image": "a.tif", "split": "test"}]
    content = {
        "name": "d",
        "classes": CLASSES.to_dicts(),
        "bands": {name: number for number, name in enumerate(NAMES[:4], 1)},
        "also": {"dsm": "dsm.tif"},
        "scenes": scenes,
    }
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    assert [reply.json()["model"] for reply in answers(plain)[:1]] == [point["model"]]
    loaded = load_model(five)
    with SceneReader(
        Scene(image=tmp_path / "a.tif", also=(further,)), bands=loaded.info.bands, ranges=loaded.info.model.ranges
    ) as scene:
        tile = owner(SIDE, SIDE, 32, 8, 7, 9)
        model = load_predictor(loaded, compute)
        region = scene.region(context_window(tile.window, model.context_factor))
        expected = model.logits(region, [tile])[0].softmax(0).numpy()[:, 7 - tile.window.row, 9 - tile.window.col]
    assert point["model"]["confidence"] == pytest.approx(float(expected.max()), abs=1e-5)
    as_is = max(each["values"]["as is"] for each in attention["probabilities"])
    assert as_is == pytest.approx(float(expected.max()), abs=1e-5)


def test_a_raster_beside_the_image_passes_the_gate(tmp_path, make_raster, five):
    """A dataset.yaml of somebody else may name any file; what the user names may lie anywhere."""
    inside = tmp_path / "shown"
    inside.mkdir()
    make_raster(bands(4), "shown/a.tif", photometric="MINISBLACK", **georeference())
    make_raster(np.full((1, SIDE, SIDE), 120, np.float32), "dsm.tif", **georeference())
    scenes = [{"image": "a.tif", "split": "test"}]
    content = {
        "name": "d",
        "classes": CLASSES.to_dicts(),
        "bands": {"red": 1},
        "also": {"dsm": "../dsm.tif"},
        "scenes": scenes,
    }
    (inside / "dataset.yaml").write_text(yaml.safe_dump(content))
    compute = ComputeConfig(device="cpu", precision="fp32")
    for live, status in (
        (LiveModel(five, compute), 422),
        (LiveModel(five, compute, (Further("dsm", str(tmp_path / "dsm.tif")),)), 200),
    ):
        client = TestClient(make_app(Collection(inside), live))
        (view,) = client.get("/api/views").json()["views"]
        assert client.get(f"/api/views/{view['key']}/point?row=7&col=9").status_code == status


def test_rasters_beside_images_that_nothing_reads_are_one_line(tmp_path, make_raster, five):
    path = make_raster(bands(4), "a.tif", photometric="MINISBLACK", **georeference())
    with pytest.raises(ConfigError, match="also needs a model"):
        serve(path, None, ServeConfig(also=f"dsm={path}", port=0), say=print)
    with pytest.raises(ConfigError, match="also names slope, the model reads red, green, blue, nir, dsm"):
        serve(path, five, ServeConfig(also=f"slope={path}", port=0), say=print)


def test_a_file_that_names_nothing_has_the_dataset_s_names_in_their_order(tmp_path, make_raster):
    make_raster(bands(5).astype(np.uint16), "a.tif", **georeference())
    make_raster(bands(1), "a_dsm.tif", **georeference())
    scenes = [{"image": "a.tif", "also": {"dsm": "a_dsm.tif"}, "split": "train"}]
    names = ["blue", "green", "red", "nir", "swir"]
    content = {"name": "d", "classes": {"land": 0, "wood": 1}, "bands": names, "scenes": scenes}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    layer, _ = shown(TestClient(make_app(Collection(tmp_path))))
    assert layer["bands"] == names
    assert layer["shown"] == [3, 2, 1]
