"""The addresses of caswit serve, without a browser."""

import io
import json
import shutil
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyogrio.raw
import pytest
import shapely
import yaml
from PIL import Image
from pyproj import Geod, Transformer
from rasterio import CRS, Affine
from rasterio import open as rasterio_open
from rasterio.shutil import copy as rasterio_copy
from rasterio.warp import transform as warp
from shapely.affinity import affine_transform

from caswit.config import ComputeConfig, OutputConfig, PredictConfig, ServeConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.errors import ConfigError, DataError, install
from caswit.mapping.run import predict
from caswit.raster import geopackage
from caswit.raster.georef import Grid
from caswit.raster.ground import class_areas
from caswit.raster.overviews import Overviews
from caswit.raster.reader import quiet, write_raster
from caswit.raster.web_mercator import mercator_fit, terms
from caswit.raster.windows import Window, block_windows
from caswit.serve.app import make_app, max_zoom, min_zoom
from caswit.serve.collection import Collection, _begins_with
from caswit.serve.layers import raster_layer
from caswit.serve.live import LiveModel
from caswit.serve.server import serve
from caswit.viz.pictures import png_bytes
from caswit.weights.model_folder import load_model, save_model
from conftest import CLASSES, georeference, picture
from trees import make_deepglobe

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


def test_a_class_of_255_is_drawn_counted_and_compared(tmp_path):
    """Masks are often 0 and 255, while 255 is nodata in maps, where that class has another value."""
    table = ClassTable(
        (LandClass(id=0, name="ground", color="#112233"), LandClass(id=255, name="roof", color="#ffcc00"))
    )
    mask = np.where(np.indices((40, 50)).sum(0) % 10 < 5, 0, 255).astype(np.uint8)
    mapped = table.ids[table.indices(mask, "x")]
    assert set(np.unique(mapped)) == {0, 1}
    mapped[:3] = 1 - mapped[:3]  # wrong in three rows
    for name, pixels in (("a.tif", picture(40, 50)), ("a_label.tif", mask[None]), ("a_map.tif", mapped[None])):
        write_raster(tmp_path / name, pixels, crs="EPSG:2154", gsd_m=0.5)
    scenes = [{"image": "a.tif", "label": "a_label.tif", "split": "test"}]
    content = {"name": "masks", "classes": table.to_dicts(), "scenes": scenes}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    client = TestClient(make_app(Collection(tmp_path, table=ClassTable(table.mapped))))
    view = views(client)["a.tif"]
    truth, errors = (tile(client, view, kind)[:40, :50] for kind in ("truth", "errors"))
    np.testing.assert_array_equal((truth == (255, 204, 0, 255)).all(2), mask == 255)
    assert errors[:3, :, 3].all()
    assert not errors[3:, :, 3].any()
    areas = client.get(f"/api/views/{view['key']}/layers/{layer(view, 'truth')['key']}/areas").json()
    assert [each["pixels"] for each in areas] == [(mask == 0).sum(), (mask == 255).sum()]
    point = client.get(f"/api/views/{view['key']}/point", params={"row": 0, "col": 7}).json()
    assert point["layers"][layer(view, "truth")["key"]]["name"] == "roof"


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ("binary", lambda mask: np.where(mask, 7, 0)),
        ("binary", lambda mask: np.repeat(np.where(mask, 255, 0)[..., None], 3, -1)),
        ({7: "roof", "*": "ground"}, lambda mask: np.where(mask, 7, np.indices(mask.shape)[0] % 3)),
        ("auto", lambda mask: np.where(mask[..., None], (255, 204, 0), (17, 34, 51))),
        ("near_colors", lambda mask: np.where(mask[..., None], (250, 210, 3), (20, 30, 60))),
    ],
)
def test_labels_of_one_class_and_of_colours_are_drawn_as_they_are_read(tmp_path, values, stored):
    table = ClassTable((LandClass(id=0, name="ground", color="#112233"), LandClass(id=1, name="roof", color="#ffcc00")))
    mask = np.indices((40, 50)).sum(0) % 10 >= 5
    write_raster(tmp_path / "a.tif", picture(40, 50), crs="EPSG:2154", gsd_m=0.5)
    write_raster(tmp_path / "a_map.tif", np.ones((1, 40, 50), np.uint8), crs="EPSG:2154", gsd_m=0.5)
    Image.fromarray(stored(mask).astype(np.uint8)).save(tmp_path / "a_label.png")
    scenes = [{"image": "a.tif", "label": "a_label.png", "split": "test", "label_values": values}]
    content = {"name": "masks", "classes": table.to_dicts(), "scenes": scenes}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content))
    client = TestClient(make_app(Collection(tmp_path, table=table)))
    view = views(client)["a.tif"]
    truth, errors = (tile(client, view, kind)[:40, :50] for kind in ("truth", "errors"))
    np.testing.assert_array_equal((truth == (255, 204, 0, 255)).all(2), mask)
    np.testing.assert_array_equal((truth == (17, 34, 51, 255)).all(2), ~mask)
    np.testing.assert_array_equal(errors[..., 3] > 0, ~mask)


def test_images_of_a_dataset_that_lie_elsewhere_are_said(tmp_path, caplog):
    """Mosaics of FLAIR-HUB lie in the cache: the folder shows patches one by one, and a line says what is missing."""
    shown, other = tmp_path / "shown", tmp_path / "other"
    for folder, name in ((shown, "a.tif"), (other, "b.tif"), (other, "c.tif")):
        folder.mkdir(exist_ok=True)
        write_raster(folder / name, picture(40, 50), crs="EPSG:2154", gsd_m=0.5)
    classes = [{"id": 1, "name": "roof", "color": "#ffcc00"}]
    scenes = [{"image": image, "split": "test"} for image in ("a.tif", "../other/b.tif", "../other/c.tif")]
    (shown / "dataset.yaml").write_text(yaml.safe_dump({"name": "far", "classes": classes, "scenes": scenes}))
    collection = Collection(shown)
    for _ in range(2):
        assert len(collection.views(refresh=True)) == 1
    told = [line for line in caplog.messages if "images outside" in line]
    assert len(told) == 1
    assert told[0].endswith(f"images outside {shown}: 2 of 3; name {other} too)")
    assert len(Collection((shown, other)).views()) == 3


def test_labels_that_are_shapes_are_drawn(tmp_path, monkeypatch, caplog):
    """And files that the gate does not let through are left out, with their image shown all the same."""
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    shown = tmp_path / "shown"
    shown.mkdir()
    table = ClassTable(
        (LandClass(id=0, name="background", color="#112233"), LandClass(id=255, name="roof", color="#ffcc00"))
    )
    write_raster(shown / "a.tif", picture(40, 50), crs="EPSG:2154", gsd_m=0.5)
    write_raster(shown / "a_map.tif", np.ones((1, 40, 50), np.uint8), crs="EPSG:2154", gsd_m=0.5)
    with rasterio_open(shown / "a.tif") as image:
        (left, top), (right, bottom) = image.transform * (10, 5), image.transform * (30, 25)
    wkb = np.array([shapely.to_wkb(shapely.box(left, bottom, right, top))], object)
    for name in ("roofs.gpkg", "roofs.geojson"):
        pyogrio.raw.write(shown / name, wkb, [], [], crs="EPSG:2154", geometry_type="Polygon")
        scenes = [{"image": "a.tif", "label": name, "split": "test"}]
        content = {"name": "shapes", "classes": table.to_dicts(), "scenes": scenes}
        (shown / "dataset.yaml").write_text(yaml.safe_dump(content))
        client = TestClient(make_app(Collection(shown, table=ClassTable(table.mapped))))
        view = views(client)["a.tif"]
        if name == "roofs.gpkg":
            expected = np.zeros((40, 50), bool)
            expected[5:25, 10:30] = True
            truth, errors = (tile(client, view, kind)[:40, :50] for kind in ("truth", "errors"))
            np.testing.assert_array_equal((truth == (255, 204, 0, 255)).all(2), expected)
            np.testing.assert_array_equal(errors[..., 3] > 0, ~expected)
            assert "not shown" not in caplog.text
    assert {each["kind"] for each in view["layers"]} == {"image", "map"}
    assert "roofs.geojson: neither GeoPackage, FlatGeobuf nor a shapefile" in caplog.text


def test_public_datasets_are_shown_with_their_truth(tmp_path):
    make_deepglobe(tmp_path, picture(40, 50), ["119"])
    (tmp_path / "dataset.yaml").write_text("name: d\nsource: {kind: deepglobe, root: ., splits: papers}\n")
    client = TestClient(make_app(Collection(tmp_path)))
    (view,) = views(client).values()
    truth = tile(client, view, "truth")[:40, :50]
    stored = np.array(Image.open(tmp_path / "land-train" / "119_mask.png")) > 127
    known = stored.any(2)
    np.testing.assert_array_equal(truth[known][:, :3] > 127, stored[known])


def test_labels_of_flair_hub_are_no_maps(tmp_path):
    """Its scenes are mosaics in the cache, outside of the folder: patches are known by their names."""
    for what, pixels in (("RGBI", picture(40, 50)), ("LABEL-COSIA", np.ones((1, 40, 50), np.uint8))):
        folder = tmp_path / f"D034-2021_AERIAL_{what}"
        folder.mkdir()
        write_raster(folder / f"{folder.name}_UU-S1-1_0-0.tif", pixels, crs="EPSG:2154", gsd_m=0.5)
    (view,) = views(TestClient(make_app(Collection(tmp_path)))).values()
    assert [each["kind"] for each in view["layers"]] == ["image", "truth"]


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


@pytest.mark.parametrize("count_px", [2048, 64])
def test_areas_are_those_that_predict_prints(tmp_path, monkeypatch, count_px):
    """On the ellipsoid where pixels are those of a web map, whose rows differ in size; nearly so where sampled."""
    monkeypatch.setattr("caswit.serve.layers._COUNT_PX", count_px)
    label = (np.arange(128) >= 64).astype(np.uint8)[:, None] + np.zeros((1, 96), np.uint8)
    for name, pixels in (("a.tif", picture(128, 96)), ("a_label.tif", label[None])):
        profile = {"driver": "GTiff", "height": 128, "width": 96, "count": len(pixels), "dtype": "uint8"}
        place = {"crs": "EPSG:3857", "transform": Affine(150, 0, 9.52e6, 0, -150, 8.7e6)}
        with rasterio_open(tmp_path / name, "w", **profile, **place) as out:
            out.write(pixels)
    table = ClassTable((LandClass(id=0, name="land", color="#8429f6"), LandClass(id=1, name="water", color="#e2a929")))
    client = TestClient(make_app(Collection(tmp_path, table=table)))
    view = views(client)["a.tif"]
    found = client.get(f"/api/views/{view['key']}/layers/{layer(view, 'truth')['key']}/areas").json()
    exact = class_areas(tmp_path / "a_label.tif")
    assert [row["area_m2"] for row in found] == pytest.approx([exact[0].area_m2, exact[1].area_m2], rel=1e-4)
    assert found[0]["area_m2"] < found[1]["area_m2"]


@pytest.mark.parametrize("place", [{}, {"crs": "EPSG:2154", "transform": Affine(0.2, 0, 7e5, 0, -0.2, 6.6e6)}])
@pytest.mark.parametrize("told", ["0.8", "nan", "-1", "wide", None])
def test_areas_of_a_map_are_measured_with_the_ground_size_that_its_maker_told(tmp_path, place, told):
    """predict --gsd-m printed square metres, and the page pixels, or square metres by the file's own ground size."""
    profile = {"driver": "GTiff", "height": 64, "width": 96, "dtype": "uint8", **place}
    with quiet(), rasterio_open(tmp_path / "a.tif", "w", count=3, **profile) as out:
        out.write(picture(64, 96))
    with quiet(), rasterio_open(tmp_path / "map.tif", "w", count=1, nodata=255, **profile) as out:
        out.write((np.arange(64) >= 16).astype(np.uint8)[None, :, None] + np.zeros((1, 64, 96), np.uint8))
        out.update_tags(CASWIT_IMAGE="a.tif", **({"CASWIT_GSD_M": told} if told else {}))
        out.update_tags(1, CLASS_0="land", CLASS_1="water")
    client = TestClient(make_app(Collection(tmp_path)))
    view = views(client)["a.tif"]
    found = client.get(f"/api/views/{view['key']}/layers/{layer(view, 'map')['key']}/areas").json()
    pixel = 0.64 if told == "0.8" else 0.04 if place else None
    assert [row["pixels"] for row in found] == [16 * 96, 48 * 96]
    expected = [None if pixel is None else pytest.approx(pixel * row["pixels"]) for row in found]
    assert [row["area_m2"] for row in found] == expected


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_an_image_whose_dataset_says_its_ground_size_is_measured_and_answered_by_it(tmp_path, model_folder):
    loaded, shown = load_model(model_folder), tmp_path / "shown"
    info = replace(loaded.info, tile=replace(loaded.info.tile, read_gsd_m=0.5))
    save_model(loaded.network, info, tmp_path / "model")
    live = LiveModel(tmp_path / "model", ComputeConfig(device="cpu", precision="fp32"))
    shown.mkdir()
    Image.fromarray(np.moveaxis(picture(96, 96, 3), 0, -1)).save(shown / "photo.png")
    content = {"name": "x", "classes": CLASSES.to_dicts(), "scenes": [{"image": "photo.png", "split": "unlabelled"}]}
    answers = []
    for gsd_m in (None, 0.5, 0.25):
        told = {} if gsd_m is None else {"gsd_m": gsd_m}
        (shown / "dataset.yaml").write_text(yaml.safe_dump(content | told))
        client = TestClient(make_app(Collection(shown, table=CLASSES), live))
        view = views(client)["photo.png"]
        assert view["gsd_m"] == gsd_m
        unit = client.get(f"/api/views/{view['key']}/measure?places=0,0,0,30,40,30").json()["unit"]
        assert unit == ("px" if gsd_m is None else "m")
        answers.append(client.get(f"/api/views/{view['key']}/attention?row=40&col=50").json()["tile"])
    # Of unknown ground size an image is read as if it had the model's.
    assert answers[0] == answers[1]
    assert answers[2] != answers[1]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_map_made_with_gsd_m_is_measured_in_metres(tmp_path, model_folder):
    """Its photograph says no ground size: areas, lengths and the scale were in pixels, beside hectares in predict."""
    Image.fromarray(np.moveaxis(picture(40, 50, 3), 0, -1)).save(tmp_path / "photo.png")
    result = predict(tmp_path / "photo.png", tmp_path / "photo_map.tif", model_folder, replace(EXACT, gsd_m=0.5))
    client = TestClient(make_app(Collection(tmp_path, table=CLASSES)))
    view = views(client)["photo.png"]
    assert view["gsd_m"] == 0.5
    areas = client.get(f"/api/views/{view['key']}/layers/{layer(view, 'map')['key']}/areas").json()
    named = {each["id"]: each["name"] for each in layer(view, "map")["classes"]}
    assert {named[each["id"]]: each["area_m2"] for each in areas} == {n: a.area_m2 for n, a in result.areas.items()}
    assert sum(each["area_m2"] for each in areas) == 40 * 50 * 0.25
    measured = client.get(f"/api/views/{view['key']}/measure?places=0,0,0,30,40,30").json()
    assert measured == {"unit": "m", "length": 35, "perimeter": 60, "area": 150}
    # A tag may hold anything, and two maps may disagree; then the ground size is unknown.
    for told in ("1e999", "-1", "nan", "wide", "0.25"):
        with rasterio_open(tmp_path / "photo_map.tif") as first:
            content, profile, tags = first.read(), first.profile, first.tags()
        with rasterio_open(tmp_path / "photo_map2.tif", "w", **profile) as second:
            second.write(content)
            second.update_tags(**tags | {"CASWIT_GSD_M": told})
        both = views(TestClient(make_app(Collection(tmp_path, table=CLASSES))))["photo.png"]
        assert len(both["layers"]) == 3
        assert both["gsd_m"] == (None if told == "0.25" else 0.5), told


def test_figures_of_caswit_are_no_images(tmp_path):
    """A folder with runs and explanations listed their figures beside the images."""
    drawn = np.moveaxis(picture(40, 50, 3), 0, -1)
    for name in ("photo.png", "pictures/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(drawn).save(tmp_path / name)
    (tmp_path / "why.png").write_bytes(png_bytes(drawn))
    assert set(views(TestClient(make_app(Collection(tmp_path))))) == {"photo.png", "pictures/mine.png"}
    (tmp_path / "recipe.yaml").write_text("data: {dataset: x.yaml}")  # a run of a version that did not mark them
    assert set(views(TestClient(make_app(Collection(tmp_path))))) == {"photo.png"}
    assert set(views(TestClient(make_app(Collection([tmp_path / "why.png"]))))) == {"why.png"}


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
    ("/api/views/{view}/attention?row=0&col=130", 404, "lies outside scene.tif"),
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


@pytest.mark.parametrize(
    ("name", "image", "belongs"),
    [
        ("d.gpkg", "d.tif", True),
        ("d_map.gpkg", "d.tif", True),
        ("d-2.tif", "d.tif", True),
        ("dubai.gpkg", "d.tif", False),
        ("tile11_map.tif", "tile1.tif", False),
        ("map_of_d.tif", "d.tif", False),
    ],
)
def test_a_name_that_begins_with_another_goes_on_with_a_word(name, image, belongs):
    assert _begins_with(Path(name), Path(image)) is belongs


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
    assert done.stderr == f"caswit: serve needs fastapi, which comes with the extra serve: {install('serve')}\n"


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


class TestNamedFiles:
    """Files of several folders: exactly those that are named, and their sidecars."""

    @pytest.fixture
    def two(self, tmp_path, made):
        """An image in one folder, its map under another name in another, and neighbours that nobody named."""
        for name in ("images", "maps"):
            (tmp_path / name).mkdir()
        for folder in ("images", "maps"):
            Image.fromarray(np.moveaxis(picture(90, 130, 9), 0, -1)).save(tmp_path / folder / "neighbour.png")
        image = shutil.copy(made / "scene.tif", tmp_path / "images" / "ortho.tif")
        return image, shutil.copy(made / "scene_map.tif", tmp_path / "maps" / "result.tif")

    def listed(self, *where, **options) -> dict[str, list[str]]:
        collection = Collection(where if len(where) > 1 else where[0], **options)
        found = views(TestClient(make_app(collection)))
        return {title: [f"{each['kind']} {each['title']}" for each in view["layers"]] for title, view in found.items()}

    def test_an_image_and_its_map_from_two_folders(self, two):
        assert self.listed(*two) == {"ortho.tif": ["image ortho.tif", "map result.tif"]}

    def test_without_a_georeference_too(self, two, tmp_path):
        image, mapped = tmp_path / "images" / "photo.png", tmp_path / "maps" / "classes.png"
        Image.fromarray(np.moveaxis(picture(90, 130), 0, -1)).save(image)
        Image.fromarray(np.ones((90, 130), np.uint8)).save(mapped)
        assert self.listed(image, mapped) == {"photo.png": ["image photo.png", "map classes.png"]}

    def test_a_map_of_another_place_is_a_view_of_its_own(self, two, tmp_path):
        write_raster(tmp_path / "images" / "far.tif", picture(90, 130), crs="EPSG:2154", gsd_m=0.25)
        found = self.listed(tmp_path / "images" / "far.tif", two[1])
        assert found == {"far.tif": ["image far.tif"], "result.tif": ["map result.tif"]}

    def test_a_map_alone_is_shown(self, two):
        collection = Collection(two[1])
        client = TestClient(make_app(collection))
        view = views(client)["result.tif"]
        assert [each["kind"] for each in view["layers"]] == ["map"]
        assert tile(client, view, "map").shape == (256, 256, 4)
        point = client.get(f"/api/views/{view['key']}/point?row=5&col=5").json()
        assert point["layers"][layer(view, "map")["key"]]["name"] in ("building", "land", "water")
        reply = client.get(f"/api/views/{view['key']}/attention?row=5&col=5")
        assert reply.status_code == 404

    def test_a_model_reads_no_image_that_is_not_there(self, two, live):
        client = TestClient(make_app(Collection(two[1]), live))
        (view,) = views(client).values()
        assert client.get(f"/api/views/{view['key']}/point?row=5&col=5").json()["model"] is None
        assert "without its image" in client.get(f"/api/views/{view['key']}/attention?row=5&col=5").json()["detail"]

    def test_a_map_beside_its_image_is_shown_with_it_alone(self, folder):
        shutil.copy(folder / "scene.tif", folder / "other.tif")
        found = self.listed(folder / "scene_map.tif")
        assert list(found) == ["scene.tif"]

    def test_folders_and_files_together(self, two, folder):
        titles = self.listed(folder, *two)
        assert {"ortho.tif", "shown/scene.tif", "shown/photo.png"} == set(titles)

    def test_sidecars_of_named_files_are_read_and_links_to_elsewhere_are_not(self, two, tmp_path):
        image = tmp_path / "images" / "ortho.tif"
        shutil.copy(image, tmp_path / "images" / "ortho.tif.ovr")
        assert list(self.listed(*two)) == ["ortho.tif"]
        (tmp_path / "images" / "ortho.tif.ovr").replace(tmp_path / "else.ovr")
        (tmp_path / "images" / "ortho.tif.ovr").symlink_to(tmp_path / "else.ovr")
        with pytest.raises(DataError, match=r"ortho\.tif\.ovr beside it is not a file"):
            Collection(two)

    def test_a_virtual_raster_of_a_neighbour_is_refused(self, two, tmp_path):
        virtual = tmp_path / "images" / "mosaic.vrt"
        rasterio_copy(tmp_path / "images" / "neighbour.png", virtual, driver="VRT")
        with pytest.raises(DataError, match="outside the folder"):
            Collection([virtual, two[1]])
        assert list(self.listed(tmp_path / "images" / "neighbour.png", virtual)) == ["neighbour.png", "mosaic.vrt"]

    @pytest.mark.parametrize("missing", [0, 1])
    def test_a_file_that_is_missing_is_said(self, two, missing):
        names = [str(two[0]), str(two[1])]
        names[missing] = "nowhere.tif"
        with pytest.raises(DataError, match=r"nowhere\.tif: no such"):
            Collection([Path(name) for name in names])


def test_hidden_classes_are_clear(client):
    scene = views(client)["scene.tif"]
    key = layer(scene, "map")["key"]
    both = tile(client, scene, "map")
    water = [int(part, 16) for part in ("e2", "a9", "29")]
    reply = client.get(f"/api/views/{scene['key']}/layers/{key}/tiles/0/0/0?hide=7,200")
    without = np.asarray(Image.open(io.BytesIO(reply.content)))
    of_class = (both[..., :3] == water).all(-1) & (both[..., 3] > 0)
    assert of_class.any()
    assert not without[of_class, 3].any()
    np.testing.assert_array_equal(without[~of_class], both[~of_class])
    for wrong in ("x", "1,", "-1", "1" * 300, "1,,2"):
        reply = client.get(f"/api/views/{scene['key']}/layers/{key}/tiles/0/0/0?hide={wrong}")
        assert reply.status_code == 422, wrong


class TestMeasures:
    @pytest.mark.parametrize("crs", ["EPSG:2154", "EPSG:3857", "EPSG:4326", "EPSG:32631"])
    def test_metres_are_those_of_the_ellipsoid(self, tmp_path, crs):
        gsd = 1e-5 if crs == "EPSG:4326" else 0.5
        origin = (3.0, 43.0) if crs == "EPSG:4326" else (700_000, 6_600_000)
        transform = Affine(gsd, 0, origin[0], 0, -gsd, origin[1])
        profile = {"driver": "GTiff", "height": 90, "width": 130, "count": 3, "dtype": "uint8"}
        with rasterio_open(tmp_path / "a.tif", "w", crs=crs, transform=transform, **profile) as dst:
            dst.write(picture(90, 130))
        client = TestClient(make_app(Collection(tmp_path)))
        places = [(5, 7.25), (80, 20), (60, 120), (-3, 60)]
        (key,) = (view["key"] for view in views(client).values())
        text = ",".join(str(number) for place in places for number in place)
        found = client.get(f"/api/views/{key}/measure?places={text}").json()
        to_degrees = Transformer.from_crs(crs, "OGC:CRS84", always_xy=True)
        lon, lat = to_degrees.transform(*zip(*(transform @ (c, r) for r, c in places), strict=True))
        earth = Geod(ellps="WGS84")
        area, perimeter = earth.polygon_area_perimeter(lon, lat)
        assert found["unit"] == "m"
        assert found["length"] == pytest.approx(earth.line_length(lon, lat), rel=1e-6)
        assert found["perimeter"] == pytest.approx(perimeter, rel=1e-6)
        assert found["area"] == pytest.approx(abs(area), rel=1e-6)

    def test_pixels_without_a_georeference(self, client):
        key = views(client)["photo.png"]["key"]
        found = client.get(f"/api/views/{key}/measure?places=0,0,0,30,40,30").json()
        assert found == {"unit": "px", "length": 70, "perimeter": 120, "area": 600}

    @pytest.mark.parametrize(
        "places", ["", "1", "1,2", "1,2,3", "nan,1,2,3", "1e9,1,1,1", "9" * 400 + ",1,1,1", "1,2,"]
    )
    def test_other_places_are_refused(self, client, places):
        key = views(client)["photo.png"]["key"]
        assert client.get(f"/api/views/{key}/measure?places={places}").status_code == 422


@pytest.fixture(scope="module")
def mapped(tmp_path_factory, model_folder):
    """A map whose polygons lie beside it, and what another library reads of them."""
    where = tmp_path_factory.mktemp("polygons")
    write_raster(where / "scene.tif", picture(90, 130), crs="EPSG:2154", gsd_m=0.5)
    outputs = OutputConfig(vector=where / "scene_map.gpkg")
    predict(where / "scene.tif", where / "scene_map.tif", model_folder, EXACT, outputs)
    _, _, geometry, fields = pyogrio.raw.read(where / "scene_map.gpkg", columns=["class"])
    matrix = [2, 0, 0, -2, -1_400_000, 13_200_000]  # of 0.5 m pixels
    shapes = np.array([affine_transform(shape, matrix) for shape in shapely.from_wkb(geometry)])
    return where, shapes, fields[0]


class TestPolygons:
    def asked(self, where, query="row=0&col=0&height=90&width=130&px=0.01"):
        client = TestClient(make_app(Collection(where)))
        (view,) = views(client).values()
        (polygons,) = view["polygons"]
        assert polygons["title"] == "scene_map.gpkg"
        return client, view, client.get(f"/api/views/{view['key']}/polygons/{polygons['key']}?{query}").json()

    def test_they_are_those_that_another_library_reads(self, mapped):
        where, shapes, ids = mapped
        _, _, found = self.asked(where)
        assert found["left_out"] == 0
        drawn = [shapely.Polygon(p[0], p[1:]) for f in found["polygons"] for p in f["rings"]]
        # Rings hold (row, column), shapes (column, row).
        drawn = shapely.transform(drawn, lambda xy: xy[:, ::-1])
        for number in set(ids):
            ours = shapely.union_all([d for d, f in zip(drawn, found["polygons"], strict=True) if f["id"] == number])
            theirs = shapely.union_all(shapes[ids == number])
            assert shapely.area(shapely.symmetric_difference(ours, theirs)) < 1

    def test_a_part_is_cut_off_at_its_edges(self, mapped):
        _, _, found = self.asked(mapped[0], "row=20&col=30&height=30&width=40&px=0.01")
        corners = np.array([c for f in found["polygons"] for p in f["rings"] for ring in p for c in ring])
        assert (corners.min(0).tolist(), corners.max(0).tolist()) == ([20, 30], [50, 70])

    def test_answers_are_bounded_and_say_what_is_missing(self, mapped, monkeypatch):
        everything = len(self.asked(mapped[0])[2]["polygons"])
        monkeypatch.setattr(geopackage, "MAX_POLYGONS", 3)
        found = self.asked(mapped[0])[2]
        assert (len(found["polygons"]), found["left_out"]) == (3, everything - 3)
        monkeypatch.setattr(geopackage, "MAX_POLYGONS", 4000)
        monkeypatch.setattr(geopackage, "MAX_CORNERS", 40)
        found = self.asked(mapped[0])[2]
        assert sum(len(ring) for f in found["polygons"] for p in f["rings"] for ring in p) <= 40
        assert found["left_out"] == everything - len(found["polygons"]) > 0

    def test_a_pixel_lies_in_the_polygon_of_its_class(self, mapped):
        client, view, _ = self.asked(mapped[0])
        for row, col in ((3, 4), (50, 100), (89, 129)):
            layers = client.get(f"/api/views/{view['key']}/point?row={row}&col={col}").json()["layers"]
            polygon = layers[view["polygons"][0]["key"]]
            assert polygon["id"] == layers[layer(view, "map")["key"]]["id"]
            assert polygon["area_m2"] > 0

    def test_polygons_elsewhere_are_not_shown(self, mapped, tmp_path):
        shutil.copy(mapped[0] / "scene_map.gpkg", tmp_path / "scene.gpkg")
        write_raster(tmp_path / "scene.tif", picture(90, 130), crs="EPSG:32631", gsd_m=0.5)
        (view,) = views(TestClient(make_app(Collection(tmp_path)))).values()
        assert view["polygons"] == []

    def test_those_of_a_named_map_come_with_it(self, mapped):
        where = mapped[0]
        client = TestClient(make_app(Collection([where / "scene.tif", where / "scene_map.tif"])))
        (view,) = views(client).values()
        assert [each["title"] for each in view["polygons"]] == ["scene_map.gpkg"]


class TestBasemap:
    def test_nobody_is_asked_unless_told(self, folder):
        client = TestClient(make_app(Collection(folder)))
        policy = client.get("/").headers["content-security-policy"]
        assert "http" not in policy
        assert client.get("/api/views").json()["basemap"] is None

    def test_only_its_host_is_let_in_and_only_pictures(self, folder):
        basemap = ServeConfig(basemap="https://tiles.example:8443/a/{z}/{x}/{y}.png?k=1").background
        client = TestClient(make_app(Collection(folder), basemap=basemap))
        policy = client.get("/").headers["content-security-policy"]
        (pictures,) = (part for part in policy.split(";") if "https" in part)
        assert pictures.split() == ["img-src", "'self'", "data:", "blob:", "https://tiles.example:8443"]
        assert client.get("/api/views").json()["basemap"]["credit"] == "tiles.example:8443"

    @pytest.mark.parametrize(
        "url",
        [
            "tiles.example/{z}/{x}/{y}.png",
            "https://tiles.example/{z}/{x}.png",
            "https://{s}.tiles.example/{z}/{x}/{y}.png",
            "https://*/{z}/{x}/{y}.png",
            "https://a.example https://b.example/{z}/{x}/{y}.png",
            "https://a.example/{z}/{x}/{y}.png; script-src *",
            "https://a.example/{z}/{x}/{y}.png\r\nSet-Cookie: a=b",
            "https://user@a.example/{z}/{x}/{y}.png",
            "javascript:{z}{x}{y}",
        ],
    )
    def test_what_is_no_address_is_refused(self, url):
        with pytest.raises(ConfigError, match="basemap must be one http or https address"):
            ServeConfig(basemap=url)

    @pytest.mark.parametrize("crs", ["EPSG:2154", "EPSG:3857", "EPSG:4326", "EPSG:32631"])
    def test_the_polynomial_is_the_projection(self, crs):
        gsd = 1e-5 if crs == "EPSG:4326" else 1.0
        origin = (3.0, 43.0) if crs == "EPSG:4326" else (700_000, 4_800_000) if crs == "EPSG:32631" else (7e5, 6.3e6)
        grid = Grid(9000, 12_000, CRS.from_string(crs), Affine(gsd, 0, origin[0], 0, -gsd, origin[1]), ([], None))
        fit = mercator_fit(grid)
        rows, cols = (
            each.ravel() for each in np.meshgrid(np.linspace(-2000, 11_000, 7), np.linspace(-2000, 14_000, 7))
        )
        world = Transformer.from_crs(crs, "EPSG:3857", always_xy=True)
        x, y = world.transform(origin[0] + gsd * cols, origin[1] - gsd * rows)
        side = 2 * np.pi * 6_378_137
        expected = np.stack([x / side + 0.5, 0.5 - y / side], -1)
        found = terms(cols / grid.width, rows / grid.height) @ np.transpose(fit.to_world) * fit.scale + fit.origin
        assert np.abs(found - expected).max() * side < 0.5  # metres of Web Mercator, which are longer than ours
        back = terms(*((expected - fit.origin) / fit.scale).T) @ np.transpose(fit.to_image)
        assert np.abs(back * [grid.width, grid.height] - np.stack([cols, rows], -1)).max() < 0.5


@pytest.mark.parametrize("crs", ["EPSG:2154", "EPSG:32631"])
def test_labels_of_another_grid_lie_on_the_image(tmp_path, crs):
    """As a training reads them: the class of the label's pixel under the centre of the image's."""
    ids = np.random.default_rng(0).integers(0, 3, (1, 70, 90)).astype(np.uint8).repeat(5, 1).repeat(5, 2)
    write_raster(tmp_path / "a.tif", picture(240, 250), crs="EPSG:2154", gsd_m=0.5)
    x, y = warp("EPSG:2154", crs, [700_010.2], [6_599_990.7])
    profile = {"driver": "GTiff", "height": 350, "width": 450, "count": 1, "dtype": "uint8"}
    with rasterio_open(
        tmp_path / "b.tif", "w", **profile, crs=crs, transform=Affine(0.3, 0, x[0], 0, -0.3, y[0])
    ) as dst:
        dst.write(ids)
    classes = {"land": 0, "roof": [1, 2]}
    scenes = [{"image": "a.tif", "label": "b.tif", "split": "test"}]
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"name": "n", "classes": classes, "scenes": scenes}))
    client = TestClient(make_app(Collection(tmp_path)))
    view = views(client)["a.tif"]
    data = load_dataset(tmp_path / "dataset.yaml")
    with open_dataset_scene(data, data.scenes[0]) as opened:
        expected = opened.labels(Window(0, 0, 240, 250), np.ones((240, 250), bool))
    truth = tile(client, view, "truth")[:240, :250]
    colors = np.array([(*c.rgb, 255) for c in data.classes.classes])
    for index in (0, 1):
        np.testing.assert_array_equal((truth == colors[index]).all(2), expected == index)
    np.testing.assert_array_equal(truth[..., 3] == 0, expected == 255)


def test_masks_of_0_and_255_are_shown(tmp_path):
    """And no label is opened before the gate has let it through."""
    mask = np.indices((1, 40, 50)).sum(0) % 10 >= 5
    write_raster(tmp_path / "a.tif", picture(40, 50), crs="EPSG:2154", gsd_m=0.5)
    write_raster(tmp_path / "b.tif", np.where(mask, 255, 0).astype(np.uint8), crs="EPSG:2154", gsd_m=0.5)
    scenes = [{"image": "a.tif", "label": "b.tif", "split": "test"}]
    content = {"name": "n", "classes": {"land": {"id": 0, "color": "#112233"}, "roof": {"id": 1, "color": "#ffcc00"}}}
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content | {"scenes": scenes}))
    assert load_dataset(tmp_path / "dataset.yaml", open_labels=False).scenes[0].label_values == "auto"
    client = TestClient(make_app(Collection(tmp_path)))
    truth = tile(client, views(client)["a.tif"], "truth")[:40, :50]
    np.testing.assert_array_equal((truth == (255, 204, 0, 255)).all(2), mask[0])
    np.testing.assert_array_equal((truth == (17, 34, 51, 255)).all(2), ~mask[0])
