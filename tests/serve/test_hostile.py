"""Folders with files that nobody should make, and requests that nobody should send."""

import dataclasses
import json
import os
import shutil
import sqlite3
import struct
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
import yaml
from PIL import Image

from caswit.config import ComputeConfig
from caswit.errors import CaswitError
from caswit.raster import geopackage
from caswit.raster.overviews import Overviews
from caswit.raster.polygons import ClassPolygon
from caswit.raster.reader import write_raster
from caswit.raster.vector_files import Ground, PolygonWriter
from caswit.raster.windows import Window
from caswit.serve.app import READERS, WAITING, WAITING_READS, make_app
from caswit.serve.collection import Collection, View
from caswit.serve.live import LiveModel
from conftest import CLASSES, picture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

PARTS = {"images": "image.tif (abc)", "tile_px": "32", "overlap_px": "8", "block_px": "200"}


@pytest.fixture
def folder(tmp_path):
    where = tmp_path / "shown"
    where.mkdir()
    write_raster(where / "image.tif", picture(90, 90))
    write_raster(tmp_path / "secret.tif", picture(90, 90, 9))
    return where


def titles(where: Path) -> list[str]:
    client = TestClient(make_app(Collection(where, table=CLASSES)))
    return [layer["title"] for view in client.get("/api/views").json()["views"] for layer in view["layers"]]


def parts(where: Path, manifest: object) -> Path:
    made = where / "map.tif.parts"
    made.mkdir()
    (made / "manifest.json").write_text(json.dumps(manifest))
    return made


def _layout(**changed: object) -> dict[str, object]:
    layout = {"height": 90, "width": 90, "ratio": 1.0, "tile_px": 32, "overlap_px": 8, "block_px": 64}
    return {"images": "image.tif (abc)", "layout": layout | changed}


def _odd_transform(where: Path) -> None:
    write_raster(where / "odd.tif", picture(9, 9), crs="EPSG:2154")
    with rasterio.open(where / "odd.tif", "r+") as dst:
        dst.transform = rasterio.Affine(float("nan"), 0, float("inf"), 0, 0, 0)


def _scenes(where: Path, text: str) -> None:
    content = {"name": "x", "classes": CLASSES.to_dicts(), "scenes": [{"image": "PLACE", "split": "test"}]}
    (where / "dataset.yaml").write_text(yaml.safe_dump(content).replace("PLACE", text))


BAD = {
    "a manifest that is a list": lambda where: parts(where, []),
    "a manifest of null": lambda where: parts(where, None),
    "a layout of text": lambda where: parts(where, _layout(tile_px="many")),
    "a layout of a thousand million blocks": lambda where: parts(where, _layout(ratio=1e-9)),
    "a layout that never ends": lambda where: parts(where, _layout(overlap_px=32)),
    "a manifest that is a pipe": lambda where: (
        os.mkfifo(parts(where, _layout()).with_name("a.tif.parts"))
        or ((where / "map.tif.parts" / "manifest.json").unlink(), os.mkfifo(where / "map.tif.parts" / "manifest.json"))
    ),
    "a link to itself": lambda where: (where / "loop.tif").symlink_to("loop.tif"),
    "a folder that is a link to itself": lambda where: (where / "a.parts").symlink_to("a.parts"),
    "a dataset that is a link to itself": lambda where: (where / "dataset.yaml").symlink_to("dataset.yaml"),
    "a month of thirteen": lambda where: (where / "dataset.yaml").write_text("name: 2024-13-45\n"),
    "deep YAML": lambda where: (where / "dataset.yaml").write_text("[" * 5000),
    "a dataset of an image with a bad name": lambda where: _scenes(where, '"a\\0.tif"'),
    "a dataset that is a pipe": lambda where: os.mkfifo(where / "dataset.yaml"),
    "a name in Latin-1": lambda where: shutil.copy(where / "image.tif", os.fsencode(where) + b"/caf\xe9.tif"),
    "a folder in Latin-1": lambda where: shutil.copytree(
        parts(where, _layout()), os.fsdecode(os.fsencode(where) + b"/\xe9.parts")
    ),
    "a pipe": lambda where: os.mkfifo(where / "pipe.tif"),
    "a folder": lambda where: (where / "folder.tif").mkdir(),
    "an empty file": lambda where: (where / "empty.tif").touch(),
    "numbers that are no place": _odd_transform,
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.timeout(60)
def test_one_bad_file_hides_no_other(folder, case):
    BAD[case](folder)
    assert "image.tif" in titles(folder)


def test_a_dataset_of_another_folder_is_not_read(folder, caplog):
    source = {"kind": "flair_hub", "root": "..", "domains": ["D004"]}
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "x", "source": source}))
    assert titles(folder) == ["image.tif"]
    assert f"its source lies outside {folder}" in caplog.text


def test_a_link_that_is_named_is_followed(folder):
    (folder / "link.tif").symlink_to(folder.parent / "secret.tif")
    assert titles(folder) == ["image.tif"]
    assert titles(folder / "link.tif") == ["secret.tif"]


@pytest.mark.parametrize("kind", ["link", "virtual raster", "sidecar"])
def test_parts_lie_in_the_folder(folder, kind):
    made = parts(folder, PARTS)
    secret = folder.parent / "secret_map.tif"
    Image.fromarray(np.full((90, 90), 7, np.uint8)).save(secret)
    part = made / "0000000.tif"
    if kind == "link":
        part.symlink_to(secret)
    elif kind == "sidecar":
        shutil.copy(secret, part)
        (made / "0000000.tif.ovr").symlink_to(secret)
    else:
        rasterio.shutil.copy(secret, part, driver="VRT")
    assert titles(folder) == ["image.tif"]
    for file in made.glob("0000000*"):
        file.unlink()
    shutil.copy(secret, part)
    assert titles(folder) == ["image.tif", "map.tif"]


def test_more_rasters_than_file_handles(folder):
    import resource

    for k in range(150):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"{k}.png")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 60  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 80, before[1]))
    try:
        assert len(titles(folder)) == 151
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class TestPagesElsewhere:
    @pytest.mark.parametrize("site", ["cross-site", "same-site", "nonsense"])
    @pytest.mark.parametrize("address", ["/api/views", "/page/app.js", "/openapi.json", "/none"])
    def test_their_requests_are_refused(self, folder, site, address):
        client = TestClient(make_app(Collection(folder)))
        assert client.get(address, headers={"Sec-Fetch-Site": site}).status_code == 403
        assert client.get(address, headers={"Sec-Fetch-Site": "same-origin"}).status_code in (200, 404)

    def test_a_link_may_be_followed(self, folder):
        client = TestClient(make_app(Collection(folder)))
        headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Dest": "document"}
        assert client.get("/", headers=headers).status_code == 200
        assert client.get("/", headers=headers | {"Sec-Fetch-Dest": "iframe"}).status_code == 403
        assert client.get("/api/views", headers=headers).status_code == 403

    @pytest.mark.parametrize("address", ["/", "/api/views", "/none", "/api/views/none/point?row=x"])
    def test_browsers_keep_answers_from_them(self, folder, address):
        reply = TestClient(make_app(Collection(folder))).get(address)
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]


class _SlowModel:
    """A model whose answer takes until it is let go."""

    explains = True

    def __init__(self) -> None:
        self.go = threading.Event()
        self.started = threading.Semaphore(0)

    def attention(self, *_place: object) -> dict[str, int]:
        self.started.release()
        self.go.wait(30)
        return {"row": 1}

    def confidence(self, *_place: object) -> None:
        return None


def test_few_questions_wait_and_the_rest_is_told_to_come_later(folder):
    model = _SlowModel()
    client = TestClient(make_app(Collection(folder), model))
    key = next(iter(Collection(folder).views()))
    address = f"/api/views/{key}/attention?row=1&col=1"
    replies = []
    threads = [threading.Thread(target=lambda: replies.append(client.get(address))) for _ in range(1 + WAITING)]
    for thread in threads:
        thread.start()
        assert model.started.acquire(timeout=30)
    refused = [client.get(address) for _ in range(60)]
    assert {reply.status_code for reply in refused} == {503}
    assert refused[0].headers["retry-after"] == "2"
    assert client.get(f"/api/views/{key}/point?row=1&col=1").status_code == 200
    model.go.set()
    for thread in threads:
        thread.join()
    assert [reply.status_code for reply in replies] == [200] * (1 + WAITING)
    assert client.get(address).status_code == 200


class _SlowPixels:
    """Pixels that come when they are let go."""

    def __init__(self) -> None:
        self.go, self.asked = threading.Event(), threading.Semaphore(0)

    def read(self, window: Window, height: int, width: int, bands=(1,), *, average: bool = False):
        self.asked.release()
        self.go.wait(30)
        return np.zeros((len(bands), height, width), np.uint8), np.ones((height, width), bool)


def test_few_tiles_wait_and_the_rest_is_told_to_come_later(folder, monkeypatch):
    """A thread of the server waits for each, so without a bound 40 slow tiles would stop all other answers."""
    collection, pixels = Collection(folder), _SlowPixels()
    (view,) = collection.views().values()
    layers = {str(n): dataclasses.replace(view.image, source=pixels, path=Path(str(n))) for n in range(60)}
    monkeypatch.setattr(View, "layer", lambda self, key: layers.get(key))
    client = TestClient(make_app(collection))

    def ask(number: int):
        return client.get(f"/api/views/{view.key}/layers/{number}/tiles/0/0/0")

    with ThreadPoolExecutor(READERS + WAITING_READS) as pool:
        waiting = [pool.submit(ask, number) for number in range(READERS + WAITING_READS)]
        for _ in range(READERS):
            assert pixels.asked.acquire(timeout=30)
        time.sleep(1)  # the others are waiting by then
        refused = ask(59)
        areas = client.get(f"/api/views/{view.key}/layers/59/areas")
        pixels.go.set()
        assert [reply.result().status_code for reply in waiting] == [200] * (READERS + WAITING_READS)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
    assert areas.status_code == 404  # an image has no classes; nothing was read to find out
    assert ask(59).status_code == 200


def test_the_model_reads_no_image_that_was_exchanged(folder, model_folder):
    live = LiveModel(model_folder, ComputeConfig(device="cpu", precision="fp32"))
    collection = Collection(folder)
    client = TestClient(make_app(collection, live))
    key = next(iter(collection.views()))
    rasterio.shutil.copy(folder.parent / "secret.tif", folder / "new.tif", driver="VRT")
    (folder / "new.tif").replace(folder / "image.tif")
    for question in ("attention", "point"):
        reply = client.get(f"/api/views/{key}/{question}?row=1&col=1")
        assert (reply.status_code, "files outside the folder" in reply.text) == (422, True), question
    with pytest.raises(CaswitError):
        live.confidence(folder / "image.tif", 1, 1)


def _polygons(where: Path) -> Path:
    """Write a map of the image with its polygons, as ``caswit predict --vector`` does."""
    Image.fromarray(np.ones((90, 90), np.uint8)).save(where / "image_map.png")
    file = where / "image_map.gpkg"
    ground = Ground(Overviews(where / "image.tif").info.grid)
    with PolygonWriter(file, ".gpkg", ground, {1: "one"}, 0.0) as writer:
        writer.add(ClassPolygon(1, shapely.box(5, 5, 60, 60)))
    return file


def _changed(file: Path, *statements: str) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript("PRAGMA writable_schema = ON;" + ";".join(statements))
        db.commit()


SLOW = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS fid, i AS geom, 1 AS class FROM n"
HOSTILE = {
    "no database": lambda file: file.write_bytes(b"SQLite format 3\0" + bytes(3000)),
    "empty": lambda file: file.write_bytes(b""),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a view without end": lambda file: _changed(
        file, "DROP TABLE landcover", f"CREATE VIEW landcover AS {SLOW}", "DELETE FROM sqlite_master WHERE 0"
    ),
    "a name of a table that is code": lambda file: _changed(
        file, "UPDATE gpkg_contents SET table_name = 'landcover\"; ATTACH ''/etc/passwd'' AS x; --'"
    ),
    "an index that is no tree": lambda file: _changed(
        file, "DROP TABLE rtree_landcover_geom", f"CREATE VIEW rtree_landcover_geom AS {SLOW}"
    ),
    "extents that are no numbers": lambda file: _changed(file, "UPDATE gpkg_contents SET min_x = 'x', max_x = 9e999"),
    "a CRS from elsewhere": lambda file: _changed(
        file, "UPDATE gpkg_spatial_ref_sys SET organization = 'x', definition = '+proj=utm +nadgrids=/etc/passwd'"
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.timeout(60)
def test_hostile_polygons_are_left_out(folder, case):
    HOSTILE[case](_polygons(folder))
    client = TestClient(make_app(Collection(folder)), raise_server_exceptions=False)
    (view,) = client.get("/api/views").json()["views"]
    for each in view["polygons"]:  # only their extent is wrong, or a CRS that an image without one does not ask about
        address = f"/api/views/{view['key']}/polygons/{each['key']}?row=0&col=0&height=90&width=90"
        assert client.get(address).status_code in (200, 422)
    assert client.get(f"/api/views/{view['key']}/point?row=20&col=20").status_code in (200, 422)


GEOMETRY = {
    "nothing": b"",
    "text": b"GP",
    "a polygon of four thousand million rings": b"GP\0\1\0\0\0\0\1\3\0\0\0\xff\xff\xff\xff",
    "points nowhere": b"GP\0\1\0\0\0\0"
    + shapely.to_wkb(shapely.Polygon([(5, 5), (60, 5), (5, 60)])).replace(struct.pack("<d", 60), b"\xff" * 8),
    "a ring that crosses itself": b"GP\0\1\0\0\0\0"
    + shapely.to_wkb(shapely.Polygon([(0, 0), (80, 80), (80, 0), (0, 80), (0, 0)])),
    "a header that is too long": b"GP\0\x0f\0\0\0\0\1",
}


@pytest.mark.parametrize("case", GEOMETRY)
def test_damaged_geometry_is_left_out(folder, case):
    file = _polygons(folder)
    with closing(sqlite3.connect(file)) as db:
        db.execute("INSERT INTO rtree_landcover_geom VALUES (7, 5, 60, 5, 60)")
        db.executescript("DROP TRIGGER IF EXISTS rtree_landcover_geom_insert;" + _NO_TRIGGERS)
        db.execute("INSERT INTO landcover (fid, geom, class, name) VALUES (7, ?, 1, 'one')", (GEOMETRY[case],))
        db.commit()
    client = TestClient(make_app(Collection(folder)))
    (view,) = client.get("/api/views").json()["views"]
    address = f"/api/views/{view['key']}/polygons/{view['polygons'][0]['key']}?row=0&col=0&height=90&width=90"
    reply = client.get(address)
    assert reply.status_code == 200
    assert [5.0, 5.0] in reply.json()["polygons"][0]["rings"][0][0]
    assert client.get(f"/api/views/{view['key']}/point?row=20&col=20").status_code == 200


_NO_TRIGGERS = "".join(
    f"DROP TRIGGER IF EXISTS {name};"
    for name in ("trigger_insert_feature_count_landcover", "trigger_delete_feature_count_landcover")
)


def test_a_question_about_polygons_ends_in_time(folder, monkeypatch):
    monkeypatch.setattr(geopackage, "_MOST_S", 0.0)
    monkeypatch.setattr(geopackage, "_STEPS", 1)
    assert titles(folder) == ["image.tif"]
    _polygons(folder)
    client = TestClient(make_app(Collection(folder)))
    (view,) = client.get("/api/views").json()["views"]
    assert view["polygons"] == []


def test_polygons_that_are_a_link_to_the_outside_are_not_read(folder):
    file = _polygons(folder)
    file.rename(folder.parent / "secret.gpkg")
    file.symlink_to(folder.parent / "secret.gpkg")
    (view,) = TestClient(make_app(Collection(folder))).get("/api/views").json()["views"]
    assert view["polygons"] == []


def test_a_journal_beside_polygons_is_neither_read_nor_made(folder):
    file = _polygons(folder)
    (folder / "image_map.gpkg-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    before = sorted(path.name for path in folder.iterdir()), file.read_bytes()
    (view,) = TestClient(make_app(Collection(folder))).get("/api/views").json()["views"]
    assert len(view["polygons"]) == 1
    assert (sorted(path.name for path in folder.iterdir()), file.read_bytes()) == before
