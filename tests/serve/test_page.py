"""The page of caswit serve in a headless Chromium."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from caswit.config import PredictConfig
from caswit.mapping.run import predict
from caswit.raster.reader import write_raster
from caswit.raster.windows import Window, block_windows
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


def _loaded(browser, address, *, bypass_csp):
    tab = browser.new_page(viewport={"width": 1200, "height": 760}, bypass_csp=bypass_csp)
    tab.set_default_timeout(WAIT_MS)
    tab.set_default_navigation_timeout(WAIT_MS)
    complaints = []
    tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("request", lambda r: r.url.startswith((address, "data:", "blob:")) or complaints.append(f"asked {r.url}"))
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
    assert [row.split("\t")[0] for row in rows] == ["building", "land", "water"]
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
    page.evaluate("document.getElementById('opacity').value = 0; setOpacity()")
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


def test_errors_can_be_laid_over(page):
    page.select_option("#layer", label="errors: scene_map.tif")
    picture = shown(page)[200:560, 250:800]
    red = (picture[..., 0] > 150) & (picture[..., 1] < 90) & (picture[..., 2] < 90)
    assert 0.1 < red.mean() < 0.95


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
    tab.click("#fold")
    assert tab.locator("#body").is_hidden()
    tab.close()
