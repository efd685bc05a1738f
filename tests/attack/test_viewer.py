"""Attack the viewer: folders of hostile files and hostile requests, made at random from a seed.

Nothing from outside the folder may be seen or asked for, and the server must go on answering. CASWIT_ATTACKS is the
number of files, and of requests; CASWIT_SEED the seed.
"""

import io
import json
import os
import random
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_from_bytes
from xml.sax.saxutils import escape

import numpy as np
import pytest
import rasterio
import shapely
from PIL import Image

from caswit.raster.gate import RASTERS, confined
from caswit.raster.overviews import Overviews
from caswit.raster.polygons import ClassPolygon
from caswit.raster.reader import write_raster
from caswit.raster.vector_files import Ground, PolygonWriter
from caswit.serve.app import make_app
from caswit.serve.collection import Collection
from conftest import CLASSES, picture

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

ATTACKS = int(os.environ.get("CASWIT_ATTACKS", "300"))
SEED = int(os.environ.get("CASWIT_SEED", "16"))
FILES_AT_ONCE = 100
SLOWEST_S = 30
SECRET = (201, 57, 133)
"""Colour of the rasters outside; those inside have even numbers only."""
SECRET_TEXT = "caswit-secret-text"


@pytest.fixture(scope="module")
def canary() -> Iterator[tuple[str, list[str]]]:
    """A web server that notes who asks for what: its address and its notes."""
    asked: list[str] = []

    class Note(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Note)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


class Attacker:
    """Makes hostile files in ``shown`` that want what lies in ``outside``."""

    def __init__(self, where: Path, canary: str, chance: random.Random) -> None:
        self.chance, self.canary = chance, canary
        self.shown, self.outside = where / "shown", where / "outside"
        self.shown.mkdir()
        self.outside.mkdir()
        colours = np.broadcast_to(np.array(SECRET, np.uint8)[:, None, None], (3, 64, 64))
        write_raster(self.outside / "secret.tif", colours.copy(), crs="EPSG:2154")
        write_raster(self.outside / "small.tif", colours[:, ::2, ::2].copy(), crs="EPSG:2154")
        Image.fromarray(np.moveaxis(colours, 0, -1)).save(self.outside / "secret.png")
        (self.outside / "secret.txt").write_text(SECRET_TEXT)
        xml = self.virtual(self.bands(str(self.outside / "secret.tif")))
        (self.outside / "secret.vrt").write_text(xml)
        write_raster(self.shown / "honest.tif", self.honest(), crs="EPSG:2154")
        (self.shown / "up").symlink_to(self.outside)

    def honest(self) -> np.ndarray:
        return picture(64, 64) & 254

    def virtual(self, content: str, attributes: str = "") -> str:
        return f'<VRTDataset rasterXSize="64" rasterYSize="64"{attributes}>{content}</VRTDataset>'

    def bands(self, name: str, kind: str = "SimpleSource", flag: str = "0") -> str:
        text = f'<SourceFilename relativeToVRT="{flag}">{escape(name)}</SourceFilename>'
        sources = (f"<{kind}>{text}<SourceBand>{b}</SourceBand></{kind}>" for b in (1, 2, 3))
        return "".join(
            f'<VRTRasterBand dataType="Byte" band="{b}">{source}</VRTRasterBand>' for b, source in enumerate(sources, 1)
        )

    def target(self) -> tuple[str, str]:
        """Return a name for something outside, and the flag that says whether it is relative."""
        file = self.chance.choice(["secret.tif", "secret.png", "secret.vrt"])
        path = str(self.outside / file)
        absolute = [
            path,
            f" {path}",
            f"\t{path}\n",
            f"/{path}",
            f"{self.shown}/../outside/{file}",
            f"{self.shown}/up/{file}",
            f"{self.shown}/up/../outside/{file}",
            f"GTIFF_DIR:1:{path}",
            f"gtiff_dir:off:8:{path}",
            f"DERIVED_SUBDATASET:AMPLITUDE:{path}",
            f"vrt://{path}?bands=1,2,3",
            f"/vsisubfile/0_99999,{path}",
            f"/vsicached?file={path}",
            f"/vsisparse/{path}",
            f"/vsicurl/http://{self.canary}/x.tif",
            f"/vsicurl_streaming/http://{self.canary}/x.tif",
            f"/vsicurl?url=http://{self.canary}/x.tif",
            f"http://{self.canary}/x.tif",
            f"WMS:http://{self.canary}/wms?LAYERS=a",
            f"ZARR:/vsicurl/http://{self.canary}/x.zarr",
            f"{self.wms()}",
            self.virtual(self.bands(path)),
            self.virtual(self.bands(f"../outside/{file}", flag="1")),
            f"file://{path}",
        ]
        relative = [f"../outside/{file}", f"up/{file}", f"./up/../outside/{file}", f"GTIFF_DIR:1:../outside/{file}"]
        if self.chance.random() < 0.3:
            return self.chance.choice(relative), self.chance.choice(["1", "2", " 1", "1x", "0"])
        return self.chance.choice(absolute), self.chance.choice(["0", "1", ""])

    def wms(self) -> str:
        window = "<UpperLeftX>0</UpperLeftX><UpperLeftY>64</UpperLeftY><LowerRightX>64</LowerRightX>"
        window += "<LowerRightY>0</LowerRightY><TileLevel>1</TileLevel><TileCountX>1</TileCountX>"
        service = f'<Service name="TMS"><ServerUrl>http://{self.canary}/${{z}}/${{x}}/${{y}}.png</ServerUrl></Service>'
        window = f"<DataWindow>{window}<TileCountY>1</TileCountY></DataWindow><BandsCount>3</BandsCount>"
        return f"<GDAL_WMS>{service}{window}<BlockSizeX>32</BlockSizeX><BlockSizeY>32</BlockSizeY></GDAL_WMS>"

    def xml(self) -> str:
        """Return a virtual raster, or other XML that GDAL opens, of something outside."""
        name, flag = self.target()
        kinds = ["SimpleSource", "ComplexSource", "AveragedSource", "KernelFilteredSource", "NoDataFromMaskSource"]
        bands = self.bands(name, self.chance.choice(kinds), flag)
        file = f'<SourceFilename relativeToVRT="{flag}">{escape(name)}</SourceFilename>'
        empty = "".join(f'<VRTRasterBand dataType="Byte" band="{b}"/>' for b in (1, 2, 3))
        source = f'<SourceDataset relativeToVRT="{flag}">{escape(name)}</SourceDataset>'
        maps = "".join(f'<BandMapping src="{b}" dst="{b}"/>' for b in (1, 2, 3))
        raw = f"{file}<ImageOffset>8</ImageOffset><PixelOffset>3</PixelOffset><LineOffset>192</LineOffset>"
        inside = self.bands("honest.tif", flag="1")
        overview = f"<Overview>{file}<SourceBand>1</SourceBand></Overview></VRTRasterBand>"
        tag = f'<MDI key="OVERVIEW_FILE">{escape(name)}</MDI>'
        made = self.chance.choice(
            [
                *[self.virtual(bands)] * 5,
                self.virtual(
                    f"{empty}<GDALWarpOptions>{source}<BandList>{maps}</BandList></GDALWarpOptions>",
                    ' subClass="VRTWarpedDataset"',
                ),
                self.virtual(
                    f"<PansharpeningOptions><PanchroBand>{file}</PanchroBand><SpectralBand dstBand='1'>{file}"
                    "</SpectralBand></PansharpeningOptions>",
                    ' subClass="VRTPansharpenedDataset"',
                ),
                self.virtual(
                    empty.replace("/>", f' subClass="VRTRawRasterBand">{raw}</VRTRasterBand>'),
                ),
                self.virtual(inside.replace("</VRTRasterBand>", overview)),
                self.virtual(f'<Metadata domain="OVERVIEWS">{tag}</Metadata>{inside}'),
                self.virtual(f"{inside}<MaskBand>{self.bands(name, flag=flag)}</MaskBand>"),
                self.virtual(bands.replace("<SimpleSource>", f'<SimpleSource SourceFilename="{escape(name)}">')),
                f"<GDALTileIndexDataset><IndexDataset>{escape(name)}</IndexDataset></GDALTileIndexDataset>",
                self.wms(),
                f"<VRTDataset/>{self.virtual(bands)}",
            ]
        )
        return self.disguised(made)

    def disguised(self, xml: str) -> str:
        tricks: list[Callable[[str], str]] = [
            lambda x: x,
            lambda x: x,
            lambda x: x.lower() if self.chance.random() < 0.5 else x.replace("SourceFilename", "SOURCEFILENAME"),
            lambda x: x.replace("/outside", "&#47;outside").replace("secret", "s&#x65;cret"),
            lambda x: x.replace("<SourceBand", "<!-- > --><SourceBand"),
            lambda x: f'<?xml version="1.0" encoding="utf-8"?>{x}',
            lambda x: f"\ufeff{x}",
            lambda x: f"  \n{x}\n\0trailing",
            lambda x: f'<!DOCTYPE a [<!ENTITY s "{self.outside}/secret.tif">]>' + x,
            lambda x: x[: self.chance.randrange(len(x))],
            lambda x: x.replace(">/", "><![CDATA[/").replace("tif</Source", "tif]]></Source"),
            lambda x: x.replace("relativeToVRT", "relativetovrt"),
            lambda x: x.replace('64"', '2147483647"', 1),
        ]
        return self.chance.choice(tricks)(xml)

    def file(self, number: int) -> None:
        """Make one hostile file, or a few that belong together."""
        ending = self.chance.choice(RASTERS)
        path = self.shown / f"{number}{ending}"
        outside = self.outside / self.chance.choice(["secret.tif", "secret.png", "secret.vrt", "small.tif"])
        makers: list[Callable[[], object]] = [
            *[lambda: path.write_text(self.xml())] * 6,
            lambda: self._nested(number, path),
            lambda: path.symlink_to(outside),
            lambda: path.symlink_to(path.name),
            lambda: os.mkfifo(path),
            lambda: self._sidecar(path, outside),
            lambda: self._damaged(path),
            lambda: self._parts(number, outside),
            lambda: self._tags(number),
            lambda: self._dataset(number),
            lambda: self._polygons(number),
            lambda: Path(os.fsdecode(os.fsencode(self.shown) + b"/%d\xff.tif" % number)).symlink_to(outside),
        ]
        self.chance.choice(makers)()

    def _nested(self, number: int, path: Path) -> None:
        for k in range(depth := self.chance.randrange(1, 12)):
            (self.shown / f"{number}_{k}.vrt").write_text(self.virtual(self.bands(f"{number}_{k + 1}.vrt", flag="1")))
        (self.shown / f"{number}_{depth}.vrt").write_text(self.xml())
        path.write_text(self.virtual(self.bands(f"{number}_0.vrt", flag="1")))

    def _sidecar(self, path: Path, outside: Path) -> None:
        path = path.with_suffix(".tif")
        write_raster(path, self.honest(), crs="EPSG:2154")
        ending = self.chance.choice([".ovr", ".msk", ".aux.xml", ".OVR", ".ovr.ovr"])
        sidecar = path.with_name(path.name + ending)
        item = f'<MDI key="OVERVIEW_FILE">{outside}</MDI>'
        xml = self.chance.choice(
            [self.xml(), f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>']
        )
        choices: list[Callable[[], object]] = [
            lambda: sidecar.symlink_to(outside),
            lambda: os.mkfifo(sidecar),
            lambda: sidecar.write_text(xml),
        ]
        self.chance.choice(choices)()

    def _damaged(self, path: Path) -> None:
        content = bytearray((self.shown / "honest.tif").read_bytes())
        for _ in range(self.chance.randrange(1, 60)):
            content[self.chance.randrange(600)] = self.chance.randrange(256)
        path.write_bytes(content[: self.chance.choice([None, 8, 200, 2000])])

    def _parts(self, number: int, outside: Path) -> None:
        folder = self.shown / f"{number}.tif.parts"
        folder.mkdir()
        odd = [0, -1, 1, 32, 64, 2**31, 10**20, 1e-9, float("nan"), None, "x", [], {}]
        layout = {"height": 64, "width": 64, "ratio": 1.0, "tile_px": 32, "overlap_px": 8, "block_px": 200}
        if self.chance.random() < 0.6:
            layout[self.chance.choice([*layout])] = self.chance.choice(odd)
        manifest = self.chance.choice([{"images": "honest.tif (a)", "layout": layout}, [], None, 3, {"layout": odd}])
        (folder / "manifest.json").write_text(json.dumps(manifest))
        part = folder / "0000000.tif"
        choices: list[Callable[[], object]] = [
            lambda: part.symlink_to(outside),
            lambda: part.write_text(self.xml()),
            lambda: os.mkfifo(part),
            lambda: shutil.copy(self.shown / "honest.tif", part),
        ]
        self.chance.choice(choices)()

    def _polygons(self, number: int) -> None:
        """Make a map with polygons of which some bytes, statements or names are not as they should be."""
        ground = Ground(Overviews(self.shown / "honest.tif").info.grid)
        path = self.shown / f"honest_{number}.gpkg"
        with PolygonWriter(path, ".gpkg", ground, {1: "one"}, 0.0) as writer:
            for k in range(30):
                writer.add(ClassPolygon(1, shapely.box(k, k, k + 9, k + 5)))
        if self.chance.random() < 0.4:
            content = bytearray(path.read_bytes())
            for _ in range(self.chance.randrange(1, 60)):
                content[self.chance.randrange(len(content))] = self.chance.randrange(256)
            path.write_bytes(content[: self.chance.choice([None, 100, 5000])])
            return
        outside = self.outside / self.chance.choice(["secret.tif", "secret.txt", "small.tif"])
        odd = self.chance.choice(["'x'", "NULL", "9e999", "-1", "zeroblob(1e6)", f"'{outside}'", "'a\"b'"])
        tables = {
            "gpkg_contents": ["table_name", "srs_id", "min_x", "max_y", "data_type"],
            "gpkg_geometry_columns": ["column_name", "table_name"],
            "gpkg_spatial_ref_sys": ["organization", "organization_coordsys_id", "definition"],
            "landcover": ["geom", "class", "name", "area_m2"],
        }
        table = self.chance.choice([*tables])
        endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS fid, i AS class FROM n"
        statement = self.chance.choice(
            [
                f"UPDATE {table} SET {self.chance.choice(tables[table])} = {odd}",
                f"DROP TABLE {table}",
                f"DROP TABLE landcover; CREATE VIEW landcover AS {endless}",
                f"DROP TABLE gpkg_contents; CREATE VIEW gpkg_contents AS {endless}",
                "DROP TABLE rtree_landcover_geom; CREATE VIRTUAL TABLE rtree_landcover_geom USING fts5(id, minx)",
                "UPDATE rtree_landcover_geom_node SET data = randomblob(1200)",
            ]
        )
        triggers = "SELECT name FROM sqlite_master WHERE type = 'trigger'"
        with closing(sqlite3.connect(path)) as db, suppress(sqlite3.Error):
            for (name,) in db.execute(triggers).fetchall():
                db.execute(f"DROP TRIGGER {name}")
            db.executescript(statement)

    def _tags(self, number: int) -> None:
        path = self.shown / f"{number}.tif"
        write_raster(path, self.honest(), crs="EPSG:2154")
        numbers = [0.0, 1.0, -1.0, 1e-300, 1e300, float("nan"), float("inf")]
        with rasterio.open(path, "r+") as dst:
            if self.chance.random() < 0.5:
                name = self.chance.choice([str(self.outside / "small.tif"), f"/vsicurl/http://{self.canary}/o.tif"])
                dst.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=name)
            else:
                # Most of these place pixels nowhere, and are refused; some must be shown.
                sane = (0.5, 0.0, 7e5, 0.0, -0.5, 6e6)
                dst.transform = rasterio.Affine(*self.chance.choice([self.chance.choices(numbers, k=6), sane]))

    def _dataset(self, number: int) -> None:
        folder = self.shown / f"folder{number}"
        folder.mkdir()
        classes = "classes: [{id: 1, name: a, color: '#112233'}]\n"
        scenes = f"name: a\n{classes}scenes:\n"
        text = self.chance.choice(
            [
                "name: 2024-13-45\n",
                scenes + f"- {{image: {self.outside}/secret.tif, split: test, label: ../honest.tif}}\n",
                scenes + f"- {{image: ../honest.tif, split: test, label: {self.outside}/secret.tif}}\n",
                scenes + "- {image: ../honest.tif, split: test, label: ../honest.tif}\n",
                "name: a\nsource: {kind: flair_hub, root: ../..}\n",
                "name: a\nsource: {kind: [], root: .}\n",
                "[" * 3000,
                "\0",
                "- a\n- b\n",
                f"name: a\n{classes}scenes: 3\n",
            ]
        )
        file = folder / "dataset.yaml"
        if self.chance.random() < 0.2:
            file.symlink_to(self.outside / "secret.txt")
        else:
            file.write_text(text)


def shows_secret(content: bytes) -> bool:
    """Return whether a picture has pixels of the colour that exists outside only."""
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGBA")).astype(int)
    # JPEG changes colours a little.
    near = (np.abs(pixels[..., :3] - SECRET) <= (0 if content.startswith(b"\x89PNG") else 3)).all(-1)
    return int((near & (pixels[..., 3] > 0)).sum()) > 8


@pytest.mark.timeout(1800)
def test_nothing_from_outside_is_seen(tmp_path, canary):
    chance = random.Random(SEED)
    address, asked = canary
    seen = 0
    for batch in range(0, ATTACKS, FILES_AT_ONCE):
        where = tmp_path / str(batch)
        where.mkdir()
        attacker = Attacker(where, address, chance)
        for number in range(min(FILES_AT_ONCE, ATTACKS - batch)):
            attacker.file(number)
        with confined():
            client = TestClient(make_app(Collection(attacker.shown, table=CLASSES)), raise_server_exceptions=False)
            seen += _look_at_everything(client)
    assert seen > ATTACKS / FILES_AT_ONCE  # beside the honest image of each folder, harmless files are shown
    assert asked == []


def _look_at_everything(client: TestClient) -> int:
    begun = time.monotonic()
    reply = client.get("/api/views")
    assert reply.status_code == 200
    assert SECRET_TEXT not in reply.text
    views = reply.json()["views"]
    assert "honest.tif" in [view["title"] for view in views]
    layers = 0
    for view in views:
        base = f"/api/views/{view['key']}"
        replies = [client.get(f"{base}/point?row=1&col=1")]
        for layer in view["layers"]:
            layers += 1
            zooms = {layer["min_zoom"], view["max_zoom"]}
            replies += [client.get(f"{base}/layers/{layer['key']}/tiles/{zoom}/0/0") for zoom in zooms]
            replies.append(client.get(f"{base}/layers/{layer['key']}/areas"))
        for each in view["polygons"]:
            replies.append(client.get(f"{base}/polygons/{each['key']}?row=0&col=0&height=64&width=64"))
        replies.append(client.get(f"{base}/measure?places=0,0,64,64,3,9"))
        for reply in replies:
            assert reply.status_code < 500 or reply.status_code == 503, (view["title"], reply.url, reply.text)
            assert SECRET_TEXT not in reply.text
            if reply.headers["content-type"].startswith("image/"):
                assert not shows_secret(reply.content), view["title"]
    assert time.monotonic() - begun < SLOWEST_S
    return layers


PIECES = ["../", "..%2f", "%2e%2e/", "//", "%00", "%0a", "%ff", "\\", "/etc/passwd", "outside/secret.txt", "secret.tif"]
PIECES += ["<script>", "'", '"', "{{7*7}}", "%25", "é", ""]
NUMBERS = ["0", "1", "-1", "63", "64", "99999999999999999999", "1e9", "nan", "inf", "0x10", "", " 1", "1" * 5000, "%00"]
METHODS = [*["GET"] * 8, "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]
HEADERS = {
    "Host": ["localhost", "elsewhere.example", "127.0.0.1:1", "[::1", ""],
    "Sec-Fetch-Site": ["cross-site", "same-site", "same-origin", "none", "x" * 3000],
    "Origin": ["null", "http://elsewhere.example"],
    "Range": ["bytes=0-", "bytes=9-1", "x"],
    "Content-Type": ["application/json", "\x01"],
    "Accept-Encoding": ["gzip;q=x"],
}


@pytest.mark.timeout(1800)
def test_any_request_is_answered(tmp_path, canary):
    chance = random.Random(SEED + 1)
    attacker = Attacker(tmp_path, canary[0], chance)
    collection = Collection(attacker.shown)
    app = make_app(collection, hosts=("localhost", "127.0.0.1"))
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    (view,) = collection.views().values()
    for _ in range(ATTACKS):
        request = _request(chance, view.key, view.image.key)
        headers = {name: chance.choice(values) for name, values in HEADERS.items() if chance.random() < 0.1}
        reply = client.request(chance.choice(METHODS), f"http://localhost{request}", headers=headers)
        assert reply.status_code < 500 or reply.status_code == 503, (request, headers, reply.text)
        assert SECRET_TEXT not in reply.text
        assert "root:" not in reply.text
        assert reply.headers["cross-origin-resource-policy"] == "same-origin"
        foreign = headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none")
        assert reply.status_code == 403 or not foreign, request
    assert client.get(f"/api/views/{view.key}/point?row=1&col=1").status_code == 200
    assert canary[1] == []


def _request(chance: random.Random, view: str, layer: str) -> str:
    def number() -> str:
        return chance.choice(NUMBERS)

    def key(true: str) -> str:
        return true if chance.random() < 0.7 else "".join(chance.choices(PIECES, k=chance.randrange(1, 5)))

    raw = quote_from_bytes(chance.randbytes(chance.randrange(1, 40)))
    return chance.choice(
        [
            f"/api/views/{key(view)}/layers/{key(layer)}/tiles/{number()}/{number()}/{number()}",
            f"/api/views/{key(view)}/layers/{key(layer)}/areas",
            f"/api/views/{key(view)}/layers/{key(layer)}/tiles/0/0/0?hide={number()},{number()}",
            f"/api/views/{key(view)}/polygons/{key(layer)}?row={number()}&col={number()}&height={number()}&width=1",
            f"/api/views/{key(view)}/measure?places={number()},{number()},{number()},{number()}",
            f"/api/views/{key(view)}/point?row={number()}&col={number()}",
            f"/api/views/{key(view)}/attention?row={number()}&col={number()}&row={number()}",
            f"/page/{''.join(chance.choices(PIECES, k=3))}",
            f"/{''.join(chance.choices(PIECES, k=4))}",
            f"/{raw}?{raw}={raw}",
            f"/api/views?{'a=b&' * chance.randrange(2000)}",
        ]
    )
