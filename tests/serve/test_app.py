"""The addresses of caswit serve, without a browser."""

import io
import json
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import yaml
from PIL import Image

from caswit.config import ComputeConfig, PredictConfig, ServeConfig
from caswit.errors import ConfigError, DataError
from caswit.mapping.run import predict
from caswit.raster.overviews import Overviews
from caswit.raster.reader import write_raster
from caswit.raster.windows import Window, block_windows
from caswit.serve.app import make_app, max_zoom, min_zoom
from caswit.serve.collection import Collection
from caswit.serve.layers import raster_layer
from caswit.serve.live import LiveModel
from caswit.serve.server import serve
from caswit.weights.model_folder import load_model
from conftest import CLASSES, georeference, picture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # which client library it prefers is none of our business
    from fastapi.testclient import TestClient

EXACT = PredictConfig(device="cpu", precision="fp32", batch=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory, model_folder):
    """A labelled scene and its map, made once."""
    where = tmp_path_factory.mktemp("made")
    rows, cols = np.indices((90, 130))
    label = np.array([0, 1, 2, 7], np.uint8)[(3 * rows + 2 * cols) // 17 % 4][None]
    for name, pixels in (("scene.tif", picture(90, 130)), ("scene_label.tif", label)):
        write_raster(where / name, pixels, crs="EPSG:2154", gsd_m=0.5)
    scenes = [{"image": "scene.tif", "label": "scene_label.tif", "split": "test"}]
    content = {"name": "stripes", "classes": CLASSES.to_dicts(), "scenes": scenes}
    (where / "dataset.yaml").write_text(yaml.safe_dump(content))
    predict(where / "scene.tif", where / "scene_map.tif", model_folder, EXACT)
    return where


@pytest.fixture(scope="module")
def live(model_folder):
    return LiveModel(model_folder, ComputeConfig(device="cpu", precision="fp32"))


@pytest.fixture
def folder(tmp_path, made):
    """The scene, a photograph without georeference, and things that must not be served."""
    where = shutil.copytree(made, tmp_path / "shown")
    Image.fromarray(np.moveaxis(picture(40, 50, 3), 0, -1)).save(where / "photo.png")
    (where / "notes.txt").write_text("secret of the folder")
    (tmp_path / "outside.txt").write_text("secret of the machine")
    Image.fromarray(np.moveaxis(picture(40, 50, 4), 0, -1)).save(tmp_path / "outside.png")
    (where / "link.png").symlink_to(tmp_path / "outside.png")
    (where / "away").symlink_to(tmp_path)
    return where


@pytest.fixture
def client(folder, live):
    return TestClient(make_app(Collection(folder, table=CLASSES), live), raise_server_exceptions=True)


def views(client) -> dict:
    return {view["title"]: view for view in client.get("/api/views").json()["views"]}


def layer(view: dict, kind: str) -> dict:
    (found,) = (each for each in view["layers"] if each["kind"] == kind)
    return found


def tile(client, view: dict, kind: str, place: str = "0/0/0") -> np.ndarray:
    reply = client.get(f"/api/views/{view['key']}/layers/{layer(view, kind)['key']}/tiles/{place}")
    assert reply.status_code == 200, reply.text
    return np.asarray(Image.open(io.BytesIO(reply.content)))


def test_what_belongs_together_is_found(client):
    found = views(client)
    assert set(found) == {"scene.tif", "photo.png"}
    kinds = sorted(each["kind"] for each in found["scene.tif"]["layers"])
    assert kinds == ["errors", "image", "map", "truth"]
    assert [each["kind"] for each in found["photo.png"]["layers"]] == ["image"]
    assert [c["name"] for c in layer(found["scene.tif"], "map")["classes"]] == ["building", "land", "water"]
    assert layer(found["scene.tif"], "map")["classes"][2]["color"] == "#e2a929"
    assert found["photo.png"]["corners"] is None


def test_tiles_are_the_pixels_of_the_layers(client, folder, image, label):
    scene = views(client)["scene.tif"]
    photo = tile(client, scene, "image")
    assert photo.shape == (256, 256, 4)  # PNG: outside the raster it is clear
    np.testing.assert_array_equal(photo[:90, :130, :3], np.moveaxis(image, 0, -1))
    assert not photo[90:, :, 3].any()
    assert photo[:90, :130, 3].all()
    colours = {c.id: c.rgb for c in CLASSES.predicted}
    with Overviews(folder / "scene_map.tif")._handle() as src:
        classes = src.read(1)
    drawn, truth, errors = (tile(client, scene, kind)[:90, :130] for kind in ("map", "truth", "errors"))
    for value, rgb in colours.items():
        np.testing.assert_array_equal((drawn[..., :3] == rgb).all(2), classes == value)
        np.testing.assert_array_equal((truth == (*rgb, 255)).all(2), label[0] == value)
    wrong = (classes != label[0]) & (label[0] != 0)
    np.testing.assert_array_equal((errors[..., 0] == 226) & (errors[..., 3] == 255), wrong)
    assert wrong.any()
    assert not errors[..., 3][classes == label[0]].any()


def test_points_say_class_place_and_confidence(client, label):
    scene = views(client)["scene.tif"]
    reply = client.get(f"/api/views/{scene['key']}/point", params={"row": 40, "col": 60}).json()
    assert reply["xy"] == pytest.approx([700_030.25, 6_599_979.75])
    assert reply["lonlat"] == pytest.approx([3.0, 46.5], abs=0.1)
    found = reply["layers"][layer(scene, "truth")["key"]]
    assert found["id"] == label[0, 40, 60]
    predicted = reply["layers"][layer(scene, "map")["key"]]
    assert reply["model"]["name"] == predicted["name"]  # the live model is the one that made the map
    assert 1 / 3 < reply["model"]["confidence"] < 1


def test_areas_are_counted(client, label):
    scene = views(client)["scene.tif"]
    rows = client.get(f"/api/views/{scene['key']}/layers/{layer(scene, 'truth')['key']}/areas").json()
    for row in rows:
        pixels = (label == row["id"]).sum()
        assert (row["pixels"], row["exact"]) == (pixels, True)
        assert row["area_m2"] == pytest.approx(0.25 * pixels)
    assert sum(row["share"] for row in rows) == pytest.approx(1)
    image_key = layer(scene, "image")["key"]
    assert client.get(f"/api/views/{scene['key']}/layers/{image_key}/areas").status_code == 404


def test_attention_of_a_pixel(client):
    scene = views(client)["scene.tif"]
    reply = client.get(f"/api/views/{scene['key']}/attention", params={"row": 40, "col": 60}).json()
    assert [s["stage"] for s in reply["stages"]] == [1, 2, 3, 4]
    assert [s["tokens"] for s in reply["stages"]] == [[8, 8], [4, 4], [2, 2], [1, 1]]
    assert [len(s["heads"]) for s in reply["stages"]] == [1, 2, 4, 8]
    row, col, height, _ = reply["tile"]
    assert row <= 40 < row + height
    assert reply["context"] == [row - 16, col - 16, 64, 64]
    for kind in ("as is", "masked", "swapped"):
        assert sum(p["values"][kind] for p in reply["probabilities"]) == pytest.approx(1)
    assert reply["stages"][0]["mean"].startswith("data:image/png;base64,")


OUTSIDE = [
    "/../outside.txt",
    "/page/../../outside.txt",
    "/page/..%2f..%2foutside.txt",
    "/page/%2e%2e/%2e%2e/outside.txt",
    "/page/..%5c..%5coutside.txt",
    "/page//etc/passwd",
    "/page/%2fetc%2fpasswd",
    "/page/app.py",
    "/page/notes.txt",
    "/notes.txt",
    "/link.png",
    "/away/outside.txt",
    "/api/views/../../outside.txt",
    "/api/views/%2e%2e%2foutside.txt/point?row=0&col=0",
    "/api/views/%2fetc%2fpasswd/attention?row=0&col=0",
    "/api/views/link.png/layers/link.png/tiles/0/0/0",
]


@pytest.mark.parametrize("address", OUTSIDE)
def test_nothing_outside_the_folder_is_served(client, address):
    reply = client.get(address)
    assert 400 <= reply.status_code < 500
    assert "secret" not in reply.text
    assert "root:" not in reply.text
    assert json.loads(reply.text)["detail"]


def test_links_and_virtual_rasters_out_of_the_folder_are_not_listed(client, folder):
    outside = folder.parent / "outside.png"
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{b}"><SimpleSource><SourceFilename>{outside}</SourceFilename>'
        f"<SourceBand>{b}</SourceBand></SimpleSource></VRTRasterBand>"
        for b in (1, 2, 3)
    )
    (folder / "virtual.vrt").write_text(f'<VRTDataset rasterXSize="50" rasterYSize="40">{bands}</VRTDataset>')
    assert Overviews(folder / "virtual.vrt").info.bands == 3  # it would open
    assert not {"link.png", "away/outside.png", "virtual.vrt"} & set(views(TestClient(make_app(Collection(folder)))))


BAD = [
    ("/api/views/none/point?row=0&col=0", 404, "no such view"),
    ("/api/views/{view}/point?row=-1&col=0", 422, "greater than or equal to 0"),
    ("/api/views/{view}/point?row=x&col=0", 422, "integer"),
    ("/api/views/{view}/point?row=0", 422, "required"),
    ("/api/views/{view}/point?row=90&col=0", 404, "90 rows and 130 columns"),
    ("/api/views/{view}/attention?row=0&col=130", 404, "lie outside scene.tif"),
    ("/api/views/{view}/layers/none/tiles/0/0/0", 404, "no such layer"),
    ("/api/views/{view}/layers/{image}/tiles/1/0/0", 404, "zoom is 0-0"),
    ("/api/views/{view}/layers/{image}/tiles/0/1/0", 404, "lies outside the image"),
    ("/api/views/{view}/layers/{image}/tiles/0/0/-1", 404, "lies outside the image"),
    ("/api/views/{view}/layers/{image}/tiles/99999999/0/0", 404, "zoom is 0-0"),
    ("/api/views/{view}/layers/{image}/tiles/0/a/0", 422, "integer"),
]


@pytest.mark.parametrize(("address", "status", "message"), BAD)
def test_bad_requests_get_a_message(client, address, status, message):
    scene = views(client)["scene.tif"]
    reply = client.get(address.format(view=scene["key"], image=layer(scene, "image")["key"]))
    assert reply.status_code == status
    assert message in reply.text
    assert "Traceback" not in reply.text


def test_without_a_model_there_is_no_attention(folder):
    bare = TestClient(make_app(Collection(folder)))
    assert bare.get("/api/views").json()["explains"] is False
    scene = views(bare)["scene.tif"]
    reply = bare.get(f"/api/views/{scene['key']}/attention?row=0&col=0")
    assert (reply.status_code, "--model" in reply.text) == (404, True)
    assert bare.get(f"/api/views/{scene['key']}/point?row=0&col=0").json()["model"] is None


def test_a_raster_damaged_meanwhile_is_a_message(folder):
    client = TestClient(make_app(Collection(folder)))
    scene = views(client)["scene.tif"]
    file = folder / "scene.tif"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    reply = client.get(f"/api/views/{scene['key']}/layers/{layer(scene, 'image')['key']}/tiles/0/0/0")
    assert reply.status_code in (404, 422)
    assert "Traceback" not in reply.text


def test_other_names_for_this_machine_are_refused(folder):
    """A page elsewhere may point its own name at 127.0.0.1 and read what is served there."""
    client = TestClient(make_app(Collection(folder), hosts=("127.0.0.1",)), base_url="http://127.0.0.1:8000")
    assert client.get("/api/views").status_code == 200
    assert client.get("/api/views", headers={"host": "elsewhere.example"}).status_code == 400


def test_openapi_describes_every_address(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert len(paths) == 7
    assert all(operation["summary"] for path in paths.values() for operation in path.values())


def test_the_page_needs_no_network(client):
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    for name in ("app.js", "app.css", "leaflet.js", "leaflet.css"):
        assert f"page/{name}" in page.text
        file = client.get(f"/page/{name}")
        assert file.status_code == 200
        assert len(file.content) > 1000
    ours = page.text + client.get("/page/app.js").text + client.get("/page/app.css").text
    assert "http://" not in ours
    assert "https://" not in ours


def test_tiles_can_be_asked_for_all_at_once(client):
    scene = views(client)["scene.tif"]
    alone = tile(client, scene, "map")
    with ThreadPoolExecutor(16) as pool:
        tiles = list(pool.map(lambda kind: tile(client, scene, kind), ["map", "image", "errors", "truth"] * 12))
    assert all(np.array_equal(one, alone) for one in tiles[::4])


class TestPartialMap:
    """A folder of parts, as an interrupted or unfinished ``caswit predict`` leaves it."""

    @pytest.fixture
    def partial_map(self, folder, model_folder):
        finished = folder / "scene_map.tif"
        with Overviews(finished)._handle() as src:
            classes = src.read(1)
        finished.unlink()
        parts = folder / "new.tif.parts"
        parts.mkdir()
        manifest = {"images": f"{folder / 'scene.tif'} (abc)", "tile_px": "32", "overlap_px": "8", "block_px": "60"}
        (parts / "manifest.json").write_text(json.dumps(manifest))
        windows = list(block_windows(90, 130, 32, 8, 60))
        return parts, windows, classes

    @staticmethod
    def finish(parts, windows, classes, index):
        window = windows[index]
        where = window.inside(Window(0, 0, 90, 130))
        with Image.fromarray(classes[where]) as image:
            image.save(parts / f"{index:07}.tif")

    def test_it_fills_in_as_parts_appear(self, partial_map, folder):
        parts, windows, classes = partial_map
        assert len(windows) > 3
        collection = Collection(folder, table=CLASSES)
        client = TestClient(make_app(collection))
        self.finish(*partial_map, 1)
        (parts / "0000002.none").touch()
        first = layer(views(client)["scene.tif"], "map")
        assert 0 < first["done"] < 1
        seen = tile(client, views(client)["scene.tif"], "map")[:90, :130]
        known = np.zeros((90, 130), bool)
        known[windows[1].inside(Window(0, 0, 90, 130))] = True
        np.testing.assert_array_equal(seen[..., 3] == 255, known)
        for index in range(len(windows)):
            self.finish(*partial_map, index)
        (parts / "0000002.none").unlink()
        collection._listed_s = -100
        last = layer(views(client)["scene.tif"], "map")
        assert (last["key"], last["done"]) == (first["key"], 1)
        assert last["revision"] != first["revision"]
        whole = tile(client, views(client)["scene.tif"], "map")[:90, :130]
        for c in CLASSES.predicted:
            np.testing.assert_array_equal((whole[..., :3] == c.rgb).all(2), classes == c.id)

    def test_parts_that_do_not_fit_are_left_alone(self, partial_map, folder):
        parts, *_ = partial_map
        Image.fromarray(np.zeros((7, 7), np.uint8)).save(parts / "0000000.tif")
        kinds = [each["kind"] for each in views(TestClient(make_app(Collection(folder))))["scene.tif"]["layers"]]
        assert "map" not in kinds

    def test_a_damaged_manifest_is_left_alone(self, partial_map, folder):
        (partial_map[0] / "manifest.json").write_text("{")
        assert "scene.tif" in views(TestClient(make_app(Collection(folder))))


def test_maps_find_their_image(tmp_path):
    """By the longest name they begin with; images of one name in two folders keep their own."""
    for name in ("a/tile1.tif", "a/tile11.tif", "b/tile1.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_raster(tmp_path / name, picture(20, 30), crs="EPSG:2154")
    for name in ("a/tile1_map.tif", "a/tile11_map.tif", "b/tile1_new.tif", "b/elsewhere.tif"):
        write_raster(tmp_path / name, np.zeros((1, 20, 30), np.uint8), crs="EPSG:2154")
    found = {v.image.title: [o.title for o in v.overlays] for v in Collection(tmp_path).views().values()}
    assert found == {
        "a/tile1.tif": ["a/tile1_map.tif"],
        "a/tile11.tif": ["a/tile11_map.tif"],
        "b/tile1.tif": ["b/tile1_new.tif"],
    }


def test_one_raster_brings_what_belongs_to_it(folder):
    assert set(views(TestClient(make_app(Collection(folder / "scene.tif"))))) == {"scene.tif"}


def test_a_large_raster_without_overviews_is_not_read_whole(make_raster, tmp_path):
    """Zoomed out it is refused; with overviews it is not."""
    path = make_raster(np.zeros((3, 64, 64), np.uint8), "big.tif", **georeference())
    plain = raster_layer("image", "big", Overviews(path), bands=(1, 2, 3))
    large = plain.__class__(**{**vars(plain), "height": 300_000, "width": 200_000})
    assert max_zoom(large) == 11
    assert min_zoom(large) == 6
    assert min_zoom(plain.__class__(**{**vars(large), "coarsest": 64})) == 0


def test_reading_a_pyramid_equals_reading_pixels(make_raster, image):
    overviews = Overviews(make_raster(image, nodata=0, **georeference()))
    window = Window(-10, 100, 60, 60)
    pixels, valid = overviews.read(window, 60, 60, (1, 2, 3))
    expected = np.pad(image, ((0, 0), (10, 10), (0, 50)))[:, 0:60, 100:160]
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, expected.any(0))
    halved, _ = overviews.read(Window(0, 0, 80, 120), 40, 60, (1, 2, 3), average=True)
    means = image[:, :80, :120].reshape(3, 40, 2, 60, 2).mean((2, 4))
    assert np.abs(halved - means).max() <= 0.5


class TestRefusals:
    def test_a_place_that_is_not_there(self, tmp_path):
        with pytest.raises(DataError, match="no such folder or raster"):
            Collection(tmp_path / "none")

    def test_a_folder_without_images(self, tmp_path):
        with pytest.raises(ConfigError, match="holds no image or map to show"):
            serve(tmp_path, None, ServeConfig(), say=print)

    def test_a_port_that_is_taken(self, folder):
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            settings = ServeConfig(port=taken.getsockname()[1])
            with pytest.raises(ConfigError, match="try --port 0"):
                serve(folder, None, settings, say=print)

    def test_a_port_that_does_not_exist(self):
        with pytest.raises(ConfigError, match=r"port must be in 0\.\.65535"):
            ServeConfig(port=70_000)


def test_without_the_extra_the_command_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['fastapi'] = None; from caswit.cli.main import main; main(['serve', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr == "caswit: serve needs fastapi, which comes with: pip install 'caswit[serve]'\n"


def test_labels_listed_in_a_dataset_need_no_telling_name(folder, model_folder):
    (folder / "scene_label.tif").rename(folder / "what_we_drew.tif")
    file = folder / "dataset.yaml"
    content = yaml.safe_load(file.read_text())
    for scene in content["scenes"]:
        if "label" in scene:
            scene["label"] = "what_we_drew.tif"
    file.write_text(yaml.safe_dump(content))
    assert load_model(model_folder).info.classes == CLASSES
    assert layer(views(TestClient(make_app(Collection(folder))))["scene.tif"], "truth")["title"] == "what_we_drew.tif"
