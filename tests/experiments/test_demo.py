"""The demonstration, with smaller landscapes and almost no training: that it learns is recorded in docs/log.md."""

import re

import pytest
import rasterio

import caswit.experiments.demo
from caswit.config import DemoConfig, ModelConfig, TileConfig
from caswit.data import synthetic
from caswit.data.synthetic import CONTEXT_CLASSES
from caswit.errors import ConfigError
from caswit.experiments.demo import demo

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(synthetic, "SCENE_PX", 256)
    monkeypatch.setattr(synthetic, "MAP_PX", 300)
    monkeypatch.setattr(caswit.experiments.demo, "TILE", TileConfig(tile_px=64))
    # The models of the package, which map their samples, are of size nano and stay as they are.
    monkeypatch.setattr(caswit.experiments.demo, "ModelConfig", lambda **given: ModelConfig(**given | {"size": "pico"}))


def test_the_demonstration_writes_a_page_a_map_and_models_and_continues(tmp_path, small, monkeypatch):
    out = tmp_path / "demo"
    result = demo(out, DemoConfig(steps=2))
    page = result.report.read_text()
    for name in (*CONTEXT_CLASSES, "Tile alone", "With context", "Mean IoU by group of classes"):
        assert name in page
    assert len(re.findall("<img ", page)) == 4 + 4 * 5 + 3 * 3  # landscape, tiles, the models of the package
    assert not re.findall(r'(?:src|href)="http', page)
    assert set(result.miou) == {"tile-only", "with-context"}
    with rasterio.open(out / "map.tif") as found, rasterio.open(out / "data" / "map.tif") as image:
        assert found.crs == image.crs == rasterio.CRS.from_epsg(2154)
        assert found.transform == image.transform
        assert found.res == (0.2, 0.2)
    assert (out / "runs" / "with-context" / "model" / "config.json").is_file()
    assert (out / "scores" / "tile-only" / "report.html").is_file()
    # Finished trainings are not repeated.
    monkeypatch.setattr(caswit.experiments.demo, "map_zoo_samples", lambda out: [])
    before = {f: f.stat().st_mtime_ns for f in out.glob("runs/*/model/model.safetensors")}
    assert len(before) == 2
    demo(out, DemoConfig(steps=2))
    assert {f: f.stat().st_mtime_ns for f in before} == before
    with pytest.raises(ConfigError, match="max_steps=2, got 3"):
        demo(out, DemoConfig(steps=3))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        demo(tmp_path / "demo")
