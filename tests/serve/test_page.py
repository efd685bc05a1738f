"""The page of caswit serve in a headless Chromium."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import uvicorn
import yaml
from PIL import Image
from pyproj import Geod, Transformer

from caswit.config import OutputConfig, PredictConfig, ServeConfig
from caswit.mapping.run import predict
from caswit.raster.reader import write_raster
from caswit.raster.windows import Window, block_windows
from caswit.serve.app import make_app
from caswit.serve.collection import Collection
from conftest import CLASSES, picture

pytestmark = pytest.mark.e2e

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 120_000
SIZE = 300, 420


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments, timeout=WAIT_MS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder) -> Path:
    """A labelled scene with its map, and one whose map is still being computed."""
    where = tmp_path_factory.mktemp("shown")
    rows, cols = np.indices(SIZE)
    label = np.array([0, 1, 2, 7], np.uint8)[(3 * rows + 2 * cols) // 57 % 4]
    for name, pixels in (("scene.tif", picture(*SIZE)), ("scene_label.tif", label[None])):
        write_raster(where / name, pixels, crs="EPSG:2154", gsd_m=0.5)
    write_raster(where / "zweite.tif", picture(*SIZE, 5), crs="EPSG:2154", gsd_m=0.5)
    scenes = [{"image": "scene.tif", "label": "scene_label.tif", "split": "test"}]
    content = {"name": "stripes", "classes": CLASSES.to_dicts(), "scenes": scenes}
    (where / "dataset.yaml").write_text(yaml.safe_dump(content))
    predict(where / "scene.tif", where / "scene_map.tif", model_folder, PredictConfig(device="cpu", batch=8))
    parts = where / "zweite_map.tif.parts"
    parts.mkdir()
    manifest = {"images": f"{where / 'zweite.tif'} (abc)", "tile_px": "32", "overlap_px": "8", "block_px": "128"}
    (parts / "manifest.json").write_text(json.dumps(manifest))
    add_part(where, 0)
    return where


def add_part(folder: Path, index: int) -> int:
    """Write a finished block of the partial map; returns how many blocks there are."""
    windows = list(block_windows(*SIZE, 32, 8, 128))
    window: Window = windows[index]
    classes = np.full((window.height, window.width), 7, np.uint8)
    target = folder / "zweite_map.tif.parts" / f"{index:07}.tif"
    Image.fromarray(classes).save(target.with_suffix(".partial.tif"))
    target.with_suffix(".partial.tif").rename(target)
    return len(windows)


@pytest.fixture(scope="module")
def address(folder, model_folder):
    words = [sys.executable, "-m", "caswit", "serve", folder, "--port", "0", "--model", model_folder, "--device", "cpu"]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as server:
        line = server.stdout.readline()
        found = re.search(r"2 images: (http://127\.0\.0\.1:\d+)", line)
        assert found, line
        yield found[1]
        server.terminate()
        assert server.wait(30) in (0, 143)


@pytest.fixture
def page(browser, address):
    """The page, loaded; whatever it complains about fails the test."""
    # Playwright waits by evaluating text, which the page's policy forbids; one test below keeps to it.
    yield from _loaded(browser, address, bypass_csp=True)


@pytest.fixture
def strict_page(browser, address):
    """The page, loaded under its own content security policy."""
    yield from _loaded(browser, address, bypass_csp=False)


def _loaded(browser, address, *, bypass_csp=True, elsewhere=(), **options):
    settings = {"viewport": {"width": 1200, "height": 760}, "bypass_csp": bypass_csp} | options
    tab = browser.new_page(**settings)
    tab.set_default_timeout(WAIT_MS)
    tab.set_default_navigation_timeout(WAIT_MS)
    complaints = []
    tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    home = address.partition("#")[0]
    known = (home, "data:", "blob:", *elsewhere)
    tab.on("request", lambda r: r.url.startswith(known) or complaints.append(f"asked {r.url}"))
    tab.goto(address)
    tab.wait_for_selector("#panel[data-ready]")
    yield tab
    tab.close()
    assert complaints == []


def shown(page) -> np.ndarray:
    """(H, W, 3): what can be seen, once every tile is there."""
    ready = "[...document.querySelectorAll('.leaflet-tile')].every((t) => t.complete && t.naturalWidth)"
    page.wait_for_function(f"document.querySelectorAll('.leaflet-tile').length && {ready}")
    page.wait_for_timeout(400)  # tiles fade in
    return np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB")).astype(int)


def test_the_page_keeps_to_its_content_security_policy(strict_page):
    strict_page.wait_for_selector(".leaflet-tile-loaded")
    strict_page.wait_for_selector("#legend tr")
    strict_page.locator("#map").click(position={"x": 420, "y": 380})
    strict_page.wait_for_selector("#attention .stages button")
    strict_page.wait_for_selector(".leaflet-image-layer")  # the heat map, which is a data: picture


def test_layers_load_and_swipe_shows_image_and_map_side_by_side(page):
    assert page.locator("#view").evaluate("e => e.selectedOptions[0].text") == "scene.tif"
    assert page.locator("#layer").evaluate("e => e.selectedOptions[0].text") == "map: scene_map.tif"
    rows = page.locator("#legend tr").all_inner_texts()
    assert [row.split("\t")[0].strip() for row in rows] == ["building", "land", "water"]
    page.wait_for_function("document.querySelector('#legend tr').cells.length === 3")
    shares = [float(row.split("\t")[2].split()[0]) for row in page.locator("#legend tr").all_inner_texts()]
    assert sum(shares) == pytest.approx(100, abs=2)
    both = shown(page)
    page.select_option("#layer", "")
    image = shown(page)
    page.select_option("#layer", label="map: scene_map.tif")
    page.check("#swipe")
    swiped = shown(page)
    middle = both.shape[1] // 2
    inside = np.s_[200:560, 250 : middle - 40]
    beyond = np.s_[200:560, middle + 40 : 800]
    assert np.abs(both[inside] - image[inside]).mean() > 10  # the map is over the image
    assert np.abs(swiped[inside] - both[inside]).mean() < 2
    assert np.abs(swiped[beyond] - image[beyond]).mean() < 2
    page.focus("#divider")
    for _ in range(8):
        page.keyboard.press("ArrowLeft")
    moved = shown(page)
    between = np.s_[200:560, middle - 160 : middle - 40]
    assert np.abs(moved[between] - image[between]).mean() < 2
    page.locator("#opacity").fill("0")
    assert np.abs(shown(page)[between] - image[between]).mean() < 2


def test_a_click_draws_attention_for_every_stage(page):
    page.mouse.click(450, 380)
    page.wait_for_selector("img.heatmap")
    assert page.get_by_role("button", name="Stage").count() == 4
    pictures = set()
    for stage in (1, 2, 3, 4):
        page.get_by_role("button", name=f"Stage {stage}").click()
        pictures.add(page.locator("img.heatmap").get_attribute("src"))
        side = str(2 ** (4 - stage))
        assert re.match(rf"{side} . {side} tokens", page.locator("#peak").inner_text())
    assert len(pictures) == 4
    page.get_by_role("button", name="Stage 2").click()
    page.select_option("#head", label="head 2")
    assert page.locator("img.heatmap").get_attribute("src") not in pictures
    assert "context" in page.locator("#probabilities").inner_text()
    page.click("#clear")
    assert page.locator("img.heatmap").count() == 0


def test_hovering_says_class_and_confidence(page):
    page.mouse.move(450, 380)
    page.wait_for_selector("#hover table:not([hidden])")
    page.mouse.move(452, 382)
    page.wait_for_function("document.querySelector('#hover').innerText.includes('%')")
    text = page.locator("#hover").inner_text()
    assert all(word in text for word in ("truth", "map", "model", "row", "lon, lat"))


def test_what_lies_under_the_pointer_is_not_cut_off(page):
    """The place and the share of a polygon lay beside the panel where a class had a long name."""
    page.mouse.move(450, 380)
    page.wait_for_selector("#hover table:not([hidden])")
    wide = page.evaluate(
        """() => {
            const line = document.createElement("tr");
            for (const text of ["polygon", "herbaceous vegetation", "123,456 m² · 84 %"])
                line.append(Object.assign(document.createElement("td"), { textContent: text }));
            document.querySelector("#hover tbody").append(line);
            const panel = document.querySelector("#panel");
            return panel.scrollWidth - panel.clientWidth;
        }"""
    )
    assert wide <= 0


def test_errors_can_be_laid_over(page):
    page.select_option("#layer", label="errors: scene_map.tif")
    picture = shown(page)[200:560, 250:800]
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    assert 0.1 < red.mean() < 0.95


def test_sizes_of_classes_stay_on_one_line(page):
    page.wait_for_selector("#legend tbody td:nth-child(3)", state="attached")
    rows = "[...document.querySelectorAll('#legend tbody tr')]"
    heights = page.evaluate(
        f"""{rows}.map((row) => {{
            const before = row.offsetHeight;
            row.cells[1].textContent = "123,456 m²";
            row.cells[2].textContent = "64 %";
            row.cells[0].querySelector("span").textContent = "herbaceous vegetation";
            return [before, row.offsetHeight];
        }})"""
    )
    assert all(before == after for before, after in heights)


def test_a_map_still_being_computed_fills_in(page, folder):
    page.select_option("#view", label="zweite.tif")
    page.wait_for_selector("#progress:not([hidden])")
    before = page.locator("#progress span").inner_text()
    picture = shown(page)
    for index in range(1, add_part(folder, 0)):
        add_part(folder, index)
    page.wait_for_selector("#progress", state="hidden")
    assert before.endswith("% computed")
    assert np.abs(shown(page) - picture)[200:560, 250:800].mean() > 10


def test_it_can_be_used_on_a_phone(browser, address):
    tab = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
    tab.set_default_timeout(WAIT_MS)
    tab.goto(address)
    tab.wait_for_selector("#panel[data-ready]")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("#body").is_hidden()  # the map comes first
    tab.click("#fold")
    assert tab.locator("#panel").bounding_box()["height"] <= 0.56 * 844
    tab.close()


# ---- what needs no model: several images, tools, links --------------------------------------------------------------

STRIP = 120, 420
FREE = 1200 - 340
"""Columns of the window that the panel leaves free."""
CLEAR = FREE - 32
"""Columns that its shadow leaves free too, which moves where the panel's height changes."""
GROUND = np.array([0x15, 0x18, 0x1D])
LAMBERT_93 = Transformer.from_crs("EPSG:2154", "OGC:CRS84", always_xy=True)


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, model_folder) -> Path:
    """A strip with map and polygons, an upright image, and a photograph without a place on the ground."""
    where = tmp_path_factory.mktemp("gallery")
    write_raster(where / "strip.tif", picture(*STRIP), crs="EPSG:2154", gsd_m=0.5)
    write_raster(where / "upright.tif", picture(420, 200, 3), crs="EPSG:2154", gsd_m=0.5)
    Image.fromarray(np.moveaxis(picture(90, 130, 4), 0, -1)).save(where / "photo.png")
    outputs = OutputConfig(vector=where / "strip_map.gpkg")
    predict(where / "strip.tif", where / "strip_map.tif", model_folder, PredictConfig(device="cpu"), outputs)
    return where


class _Tiles(BaseHTTPRequestHandler):
    """Web map tiles whose red and green tell the column and row within the tile."""

    asked: ClassVar[list[tuple[int, int, int]]] = []

    def do_GET(self) -> None:
        self.asked.append(tuple(int(part) for part in self.path.removesuffix(".png").split("/")[-3:]))
        rows, cols = np.indices((256, 256), np.uint8)
        content = io.BytesIO()
        Image.fromarray(np.stack([cols, rows, np.full_like(rows, 7)], -1)).save(content, "PNG")
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.end_headers()
        self.wfile.write(content.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def web_map():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tiles)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def gallery_address(gallery, web_map):
    basemap = ServeConfig(basemap=f"{web_map}/{{z}}/{{x}}/{{y}}.png", basemap_credit="Test tiles").background
    server = uvicorn.Server(
        uvicorn.Config(make_app(Collection(gallery), None, basemap=basemap), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def tab(browser, gallery_address, web_map):
    yield from _loaded(browser, gallery_address, elsewhere=(web_map,))


def middle(seen: np.ndarray) -> tuple[float, float]:
    """Return the middle (x, y) of what lies on the dark ground, left of the panel."""
    there = (np.abs(seen[:, : FREE - 2] - GROUND) > 6).any(-1)
    rows, cols = np.flatnonzero(there.any(1)), np.flatnonzero(there.any(0))
    return (cols[0] + cols[-1] + 1) / 2, (rows[0] + rows[-1] + 1) / 2


@pytest.mark.parametrize(
    "names", [("strip", "upright"), ("upright", "strip"), ("upright", "photo"), ("photo", "upright")]
)
def test_every_image_is_shown_in_the_middle(tab, names):
    for name in names:
        tab.select_option("#view", label=f"{name}.{'png' if name == 'photo' else 'tif'}")
        shown(tab)
    tab.select_option("#layer", "")
    tab.add_style_tag(content=".leaflet-control-container { display: none }")
    assert middle(shown(tab)) == pytest.approx((FREE / 2, 380), abs=3)


def test_after_a_click_other_layers_and_the_swipe_are_shown(page):
    page.select_option("#layer", label="truth: scene_label.tif")
    truth = shown(page)
    page.select_option("#layer", label="map: scene_map.tif")
    mapped = shown(page)
    page.mouse.click(450, 380)
    page.wait_for_selector("img.heatmap")
    attended = shown(page)
    # The marks of tile and context are drawn over everything.
    free = np.s_[200:560:7, 250:560:7]

    def differ(a, b):
        return (np.abs(a[free] - b[free]).max(-1) > 8).mean()

    assert differ(attended, mapped) > 0.5
    page.select_option("#layer", label="truth: scene_label.tif")
    assert differ(shown(page), truth) < 0.1
    page.check("#heat")
    assert differ(shown(page), truth) > 0.5
    page.check("#swipe")
    assert differ(shown(page), truth) < 0.1
    page.check("#heat")
    page.locator("#opacity").fill("69")
    assert differ(shown(page), truth) < 0.1
    page.get_by_role("button", name="Stage 2").click()
    assert page.locator("#heat").is_checked()
    assert "m" in page.get_by_role("button", name="Stage 2").inner_text()
    page.click("#clear")
    assert differ(shown(page), truth) < 0.1


def test_classes_are_turned_off_and_on(tab):
    tab.select_option("#view", label="strip.tif")
    tab.wait_for_function("document.querySelector('#legend tr').cells.length === 3")
    tab.locator("#opacity").fill("100")
    both = shown(tab)
    boxes = tab.locator("#legend input")
    for k in range(boxes.count()):
        boxes.nth(k).uncheck()
    none = shown(tab)
    tab.select_option("#layer", "")
    assert np.abs(shown(tab) - none)[:, :CLEAR].max() < 6  # clear tiles change the last bits
    assert np.abs(both - none)[:, : FREE - 4].max() > 50
    tab.select_option("#layer", label="map: strip_map.tif")
    tab.wait_for_function("document.querySelector('#legend tr')?.cells.length === 3")
    tab.locator("#legend input").first.uncheck()
    assert np.abs(shown(tab) - both)[:, : FREE - 4].max() > 50
    tab.get_by_role("button", name="Show all").click()
    assert np.abs(shown(tab) - both)[:, : FREE - 4].max() == 0


def test_a_link_brings_back_what_was_shown(browser, page):
    page.select_option("#layer", label="truth: scene_label.tif")
    page.wait_for_function("document.querySelector('#legend tr')?.cells.length === 3")
    page.mouse.move(500, 400)
    page.mouse.wheel(0, -300)
    page.wait_for_timeout(800)
    page.mouse.click(450, 380)
    page.wait_for_selector("img.heatmap")
    page.get_by_role("button", name="Stage 2").click()
    page.select_option("#head", label="head 2")
    page.locator("#legend input").nth(1).uncheck()
    page.locator("#opacity").fill("55")
    page.check("#swipe")
    page.focus("#divider")
    page.keyboard.press("ArrowLeft")
    page.locator("#divider").blur()
    page.wait_for_timeout(500)
    before, link = shown(page), page.url
    names = {part.split("=")[0] for part in link.partition("#")[2].split("&")}
    assert names == {"image", "layer", "center", "zoom", "opacity", "swipe", "off", "point", "stage", "head"}
    for other in _loaded(browser, link):
        other.wait_for_selector("img.heatmap", state="attached")
        assert other.locator("#layer").evaluate("e => e.selectedOptions[0].text") == "truth: scene_label.tif"
        assert other.locator("[aria-pressed=true][data-stage]").get_attribute("data-stage") == "2"
        assert other.locator("#head").evaluate("e => e.selectedOptions[0].text") == "head 2"
        other.wait_for_function("document.querySelector('#legend tr')?.cells.length === 3")
        assert not other.locator("#legend input").nth(1).is_checked()
        other.uncheck("#heat")
        assert np.abs(shown(other) - before)[:, :860].max() <= 2
        assert other.url == link


@pytest.mark.parametrize(
    "hash", ["image=none&layer=x", "zoom=1e999&center=NaN,1", "off=%00&point=a,b", "=&&=&swipe=-9"]
)
def test_any_link_opens_the_page(browser, gallery_address, hash):
    for tab in _loaded(browser, f"{gallery_address}/#{hash}"):
        assert shown(tab).shape == (760, 1200, 3)


def clicked(tab, name: str, pixels: list[tuple[float, float]]) -> str:
    """Measure through places given as (row, column); returns what the page says, and where the clicks were."""
    tab.click(f"#{name}")
    for row, col in pixels:
        x, y = tab.evaluate(
            "([row, col]) => import('/page/base.js').then(({ map, place }) => "
            "map.latLngToContainerPoint(place(row, col))).then((p) => [p.x, p.y])",
            [row, col],
        )
        tab.mouse.click(x, y)
    tab.wait_for_function("/\\d/.test(document.querySelector('#measured').textContent)")
    tab.wait_for_timeout(400)
    return tab.locator("#measured").inner_text()


def test_lengths_and_areas_are_those_of_the_ellipsoid(tab):
    tab.select_option("#view", label="strip.tif")
    shown(tab)
    places = [(20, 60), (20, 300), (100, 300), (100, 60)]
    lonlat = [LAMBERT_93.transform(700_000 + 0.5 * col, 6_600_000 - 0.5 * row) for row, col in places]
    earth = Geod(ellps="WGS84")
    # A click falls on a whole pixel of the screen: half a metre on 240.
    said = clicked(tab, "length", places[:3])
    assert float(re.search(r"Length ([\d.]+) m", said)[1]) == pytest.approx(
        earth.line_length(*zip(*lonlat[:3], strict=True)), rel=3e-3
    )
    said = clicked(tab, "area", places)
    area, perimeter = earth.polygon_area_perimeter(*zip(*lonlat, strict=True))
    found = re.search(r"Area ([\d,]+) m² \(([\d.]+) ha\), perimeter ([\d.]+) m", said)
    assert float(found[1].replace(",", "")) == pytest.approx(abs(area), rel=5e-3)
    assert float(found[2]) == pytest.approx(abs(area) / 1e4, rel=5e-3)
    assert float(found[3]) == pytest.approx(perimeter, rel=3e-3)
    tab.keyboard.press("Backspace")
    tab.wait_for_function(f"document.querySelector('#measured').textContent !== {json.dumps(said)}")
    tab.keyboard.press("Escape")
    assert tab.locator("#measure").is_hidden()


def test_a_photograph_is_measured_in_pixels_by_keyboard_too(tab):
    tab.select_option("#view", label="photo.png")
    shown(tab)
    said = re.fullmatch(r"Length (\d+\.\d) px", clicked(tab, "length", [(10, 10), (10, 110)]))
    # Clicks are at whole pixels of the screen, which are 0.18 of the photograph's here.
    assert float(said[1]) == pytest.approx(100, abs=0.2)
    tab.keyboard.press("Escape")
    tab.click("#length")
    tab.focus("#map")
    tab.keyboard.press("Enter")
    tab.keyboard.press("ArrowRight")
    tab.wait_for_timeout(600)
    tab.keyboard.press("Enter")
    tab.wait_for_function("/Length \\d+.\\d px/.test(document.querySelector('#measured').textContent)")


def test_polygons_are_drawn_and_follow_the_classes(tab):
    tab.select_option("#view", label="strip.tif")
    tab.select_option("#layer", "")
    plain = shown(tab)
    tab.get_by_label("Polygons: strip_map.gpkg").check()
    tab.wait_for_timeout(1500)
    outlined = shown(tab)
    changed = (np.abs(outlined - plain)[:, : FREE - 4].max(-1) > 40).mean()
    assert 0.02 < changed < 0.9
    tab.select_option("#layer", label="map: strip_map.tif")
    tab.wait_for_function("document.querySelector('#legend tr')?.cells.length === 3")
    tab.locator("#opacity").fill("0")
    for k in range(tab.locator("#legend input").count()):
        tab.locator("#legend input").nth(k).uncheck()
    tab.wait_for_timeout(800)
    assert np.abs(shown(tab) - plain)[:, :CLEAR].max() < 6
    assert "polygons=" in tab.url


def test_the_view_is_saved_as_it_is_seen(tab):
    tab.select_option("#view", label="upright.tif")
    tab.select_option("#view", label="strip.tif")
    tab.check("#swipe")
    seen = shown(tab)
    with tab.expect_download() as plain:
        tab.get_by_role("button", name="Save view").click()
    assert plain.value.suggested_filename == "strip_view.png"
    saved = np.asarray(Image.open(plain.value.path()).convert("RGB")).astype(int)
    assert abs(saved.shape[1] - FREE) < 6
    # The bar of the swipe belongs to the page. Where a pixel of the image ends within one of the screen, the two are
    # rounded differently, so means of 10 x 10 are compared.
    for inside in (np.s_[285:475, 60:560], np.s_[285:475, 640:860]):
        off = np.abs(saved[inside] - seen[inside])
        means = (saved[inside] - seen[inside]).reshape(19, 10, off.shape[1] // 10, 10, 3).mean((1, 3))
        assert np.median(off) <= 8
        assert np.abs(means).mean() < 6
    with tab.expect_download() as with_legend:
        tab.get_by_role("button", name="Save with legend").click()
    larger = np.asarray(Image.open(with_legend.value.path()).convert("RGB"))
    assert larger.shape == (saved.shape[0], saved.shape[1] + 300, 3)
    assert (larger[:, saved.shape[1] :] < 100).any()


def test_a_basemap_lies_where_it_belongs_and_only_when_asked_for(browser, gallery_address, web_map):
    _Tiles.asked.clear()
    # Under the page's own policy, which lets in pictures of this server.
    for tab in _loaded(browser, gallery_address, bypass_csp=False, elsewhere=(web_map,)):
        tab.select_option("#view", label="strip.tif")
        tab.wait_for_timeout(500)
        assert _Tiles.asked == []
        tab.check("#basemap")
        tab.wait_for_timeout(1500)
        assert _Tiles.asked
        assert "Basemap: Test tiles" in tab.locator(".credit").inner_text()
        seen = np.asarray(Image.open(io.BytesIO(tab.screenshot())).convert("RGB")).astype(int)
        zoom = _Tiles.asked[-1][0]
        off = []
        for x in range(100, 800, 50):
            for y in (200, 600):  # above and below the strip
                red, green, blue = seen[y, x]
                assert blue == 7
                row, col = tab.evaluate(
                    "([x, y]) => import('/page/base.js').then(({ map, exactPixel }) => "
                    "exactPixel(map.containerPointToLatLng([x, y])))",
                    [x + 0.5, y + 0.5],
                )
                world = Transformer.from_crs("EPSG:2154", "EPSG:3857", always_xy=True)
                place = np.array(world.transform(700_000 + 0.5 * col, 6_600_000 - 0.5 * row)) / 40_075_016.685578488
                at = (place * [1, -1] + 0.5) * 2**zoom % 1 * 256
                off.append(np.abs(at - [red + 0.5, green + 0.5]))
        off = np.minimum(np.array(off), 256 - np.array(off))
        assert off.max() < 2.5
        assert tab.locator(".credit").count() == 1
        tab.select_option("#view", label="photo.png")
        assert tab.locator("#basemap-field").is_hidden()


def test_a_phone_is_filled_with_the_map(browser, gallery_address):
    for tab in _loaded(browser, gallery_address, viewport={"width": 390, "height": 844}, has_touch=True):
        for name in ("strip.tif", "upright.tif"):
            tab.evaluate(
                "name => { const e = document.querySelector('#view'); e.value = [...e.options]"
                ".find((o) => o.text === name).value; e.onchange(); }",
                name,
            )
            seen = shown(tab)[:760]
            assert (np.abs(seen - GROUND).max(-1) < 6).mean() < 0.05, name
            # Both images have other sides than the screen, so a part of each is seen; the header says so until asked.
            assert tab.locator("#brief").inner_text() == "a part: drag it, or zoom out", name
        tab.click("#fold")
        assert tab.locator("#panel").bounding_box()["height"] <= 0.56 * 844
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        tab.click("#whole")
        assert tab.locator("#brief").inner_text() == ""


def test_every_control_has_a_name(page):
    page.mouse.click(450, 380)
    page.wait_for_selector("img.heatmap")
    nameless = page.evaluate(
        "[...document.querySelectorAll('button, input, select, [role=slider]')].filter((e) => "
        "!(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length)).map((e) => e.outerHTML)"
    )
    assert nameless == []
