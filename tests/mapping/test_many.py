"""Many images to many maps."""

import os

import numpy as np
import pytest
import rasterio

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import CaswitError, ConfigError
from caswit.mapping import many
from caswit.mapping.many import predict_each
from caswit.mapping.run import MapResult, predict
from conftest import georeference, picture

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}


@pytest.fixture
def images(make_raster, tmp_path):
    """A folder of two images, a broken one and one of 16 bits."""
    (tmp_path / "in").mkdir()
    for name, seed in (("a.tif", 1), ("d.tif", 2)):
        make_raster(picture(40, 50, seed), f"in/{name}", **georeference(x=700_000 + 1000 * seed))
    (tmp_path / "in" / "b.tif").write_bytes(b"junk")
    make_raster(picture(40, 50).astype(np.uint16), "in/c.tif", **georeference())
    return tmp_path / "in"


def maps(folder, out, model, **more):
    settings = PredictConfig(**EXACT, **more.pop("settings", {}))
    return dict(predict_each([str(folder)], out, str(model), settings, **more))


def read(path):
    with rasterio.open(path) as src:
        return src.read(1)


def test_each_image_gets_the_map_it_would_get_alone_and_failures_stop_nobody(images, model_folder, tmp_path):
    found = maps(images, tmp_path / "maps", model_folder, outputs=OutputConfig(confidence="sure.tif"))
    kinds = {name.rpartition("/")[2]: type(result) for name, result in found.items()}
    assert list(kinds) == ["a.tif", "b.tif", "c.tif", "d.tif"]
    assert all(issubclass(kinds[name], CaswitError) for name in ("b.tif", "c.tif"))
    for name in ("a", "d"):
        predict(images / f"{name}.tif", tmp_path / "alone.tif", model_folder, PredictConfig(**EXACT))
        np.testing.assert_array_equal(read(tmp_path / "maps" / f"{name}.tif"), read(tmp_path / "alone.tif"))
    there = sorted(file.name for file in (tmp_path / "maps").iterdir())
    assert there == [f"{name}.{end}" for name in "ad" for end in ("qml", "stac.json", "sure.qml", "sure.tif", "tif")]


def test_finished_maps_are_kept_unless_something_changed(images, model_folder, tmp_path, caplog):
    def times():
        return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "maps").glob("?.tif")}

    first = maps(images, tmp_path / "maps", model_folder)
    before = times()
    with caplog.at_level("INFO"):
        again = maps(images, tmp_path / "maps", model_folder)
    assert times() == before
    assert caplog.text.count(": kept, since the same call has finished it before") == len(before)
    for name, result in first.items():
        if isinstance(result, MapResult):
            assert again[name] == result  # areas and confidence as well
    os.utime(images / "a.tif", (1, 1))
    maps(images, tmp_path / "maps", model_folder)
    changed = times()
    assert changed["a.tif"] != before["a.tif"]
    assert changed["d.tif"] == before["d.tif"]
    maps(images, tmp_path / "maps", model_folder, outputs=OutputConfig(confidence="c.tif"))  # a file is missing
    assert times()["d.tif"] != before["d.tif"]
    before = times()
    maps(
        images,
        tmp_path / "maps",
        model_folder,
        outputs=OutputConfig(confidence="c.tif"),
        run=MapRunConfig(restart=True),
    )
    assert not set(times().values()) & set(before.values())


def test_the_model_is_loaded_once(images, model_folder, tmp_path, monkeypatch):
    loads, load = [], many.load_model
    monkeypatch.setattr(many, "load_model", lambda name: loads.append(name) or load(name))
    maps(images, tmp_path / "maps", model_folder)
    assert loads == [str(model_folder)]


def test_maps_that_cannot_all_be_there_are_refused_at_once(images, make_raster, model_folder, tmp_path):
    with pytest.raises(ConfigError, match="is the folder of the images"):
        maps(images, images, model_folder)
    with pytest.raises(ConfigError, match="--confidence with --out-dir must be a name without folder"):
        maps(images, tmp_path / "maps", model_folder, outputs=OutputConfig(confidence="x/c.tif"))
    (images / "a.png").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a.png and .*a.tif: both maps would be .*a.tif"):
        maps(images, tmp_path / "maps", model_folder)
    assert not (tmp_path / "maps").exists()
