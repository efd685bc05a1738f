"""The demonstration, with smaller landscapes and almost no training: that it learns is recorded in docs/log.md."""

import re

import pytest
import rasterio

from caswit.config import DemoConfig
from caswit.data import synthetic
from caswit.data.synthetic import CONTEXT_CLASSES
from caswit.errors import ConfigError
from caswit.experiments.demo import demo

pytestmark = pytest.mark.e2e


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(synthetic, "SCENE_PX", 256)
    monkeypatch.setattr(synthetic, "MAP_PX", 300)


def test_the_demonstration_writes_a_page_a_map_and_models(tmp_path, small):
    out = tmp_path / "demo"
    result = demo(out, DemoConfig(steps=2))
    page = result.report.read_text()
    for name in (*CONTEXT_CLASSES, "Tile alone", "With context", "Mean IoU by group of classes"):
        assert name in page
    assert len(re.findall("<img ", page)) == 4 + 4 * 5 + 2 * 3  # landscape, tiles, the models of the package
    assert not re.findall(r'(?:src|href)="http', page)
    assert set(result.miou) == {"tile-only", "with-context"}
    with rasterio.open(out / "map.tif") as found, rasterio.open(out / "data" / "map.tif") as image:
        assert found.crs == image.crs == rasterio.CRS.from_epsg(2154)
        assert found.transform == image.transform
        assert found.res == (0.2, 0.2)
    assert (out / "runs" / "with-context" / "model" / "config.json").is_file()
    assert (out / "scores" / "tile-only" / "report.html").is_file()


def test_it_continues_where_it_was_interrupted(tmp_path, small, monkeypatch):
    """Finished trainings are not repeated."""
    out = tmp_path / "demo"
    demo(out, DemoConfig(steps=1))
    before = {f: f.stat().st_mtime_ns for f in out.glob("runs/*/model/model.safetensors")}
    assert len(before) == 2
    demo(out, DemoConfig(steps=1))
    assert {f: f.stat().st_mtime_ns for f in before} == before
    with pytest.raises(ConfigError, match="max_steps=1, got 3"):
        demo(out, DemoConfig(steps=3))


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "demo").write_text("")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        demo(tmp_path / "demo")
