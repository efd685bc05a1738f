"""The end of a map: areas, where the model learned, how sure it is."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.inference.confidence import Confidence
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.run import predict
from caswit.mapping.summary import add_areas, area_table
from caswit.raster.ground import ClassArea
from conftest import georeference

EXACT = {"precision": "fp32", "batch": 1, "device": "cpu"}
NAMES = ("building", "land", "water")


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read(1)


def learned(folder: Path, out: Path, **provenance) -> Path:
    """Copy a model folder, with more in its provenance."""
    shutil.copytree(folder, out)  # which all tests of a process share
    file = out / "config.json"
    content = json.loads(file.read_text())
    content["provenance"] |= provenance
    file.write_text(json.dumps(content))
    return out


@pytest.mark.parametrize("settings", [{}, {"blend": True}, {"tta": 2}, {"min_confidence": 60}])
def test_mean_confidence_is_that_of_the_confidence_file_over_all_pixels_with_data(
    make_raster, image, model_folder, tmp_path, settings
):
    mask = np.full((90, 130), 255, np.uint8)
    mask[:40, :70] = 0
    path, outputs = make_raster(image, mask=mask, **georeference()), OutputConfig(confidence=str(tmp_path / "c.tif"))
    with_file = predict(path, tmp_path / "a.tif", model_folder, PredictConfig(**EXACT, **settings), outputs)
    without = predict(path, tmp_path / "b.tif", model_folder, PredictConfig(**EXACT, **settings))
    expected = read(tmp_path / "c.tif")[mask > 0].mean()
    assert with_file.trust.confidence == pytest.approx(expected, rel=1e-9)
    assert without.trust.confidence == with_file.trust.confidence


def test_a_run_that_goes_on_gives_the_same_numbers(make_raster, image, model_folder, tmp_path, monkeypatch):
    path, settings = make_raster(image, **georeference()), PredictConfig(**EXACT, block_px=64)
    at_once = predict(path, tmp_path / "a.tif", model_folder, settings)
    compute, calls = BlockMapper.begin, []

    def dies(self, block, pixels):
        calls.append(block)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return compute(self, block, pixels)

    monkeypatch.setattr(BlockMapper, "begin", dies)
    with pytest.raises(KeyboardInterrupt):
        predict(path, tmp_path / "b.tif", model_folder, settings)
    calls += [None] * 10
    again = predict(path, tmp_path / "b.tif", model_folder, settings)
    assert len(calls) < 13 + 6  # of six blocks, some came from the journal
    assert again.trust == at_once.trust
    assert again.areas == at_once.areas
    assert again.trust.confidence is not None


def test_areas_are_those_of_the_map_and_add_up_to_the_image(make_raster, image, model_folder, tmp_path):
    result = predict(
        make_raster(image, **georeference(0.5)), tmp_path / "map.tif", model_folder, PredictConfig(**EXACT)
    )
    classes = read(tmp_path / "map.tif")
    assert tuple(result.areas) == NAMES
    assert [area.pixels for area in result.areas.values()] == [(classes == i).sum() for i in (1, 2, 7)]
    assert sum(area.area_m2 for area in result.areas.values()) == pytest.approx(90 * 130 * 0.25)
    told = predict(
        make_raster(image, **georeference(0.5)), tmp_path / "map.tif", model_folder, PredictConfig(**EXACT, gsd_m=1.0)
    )
    assert sum(area.area_m2 for area in told.areas.values()) == pytest.approx(90 * 130)


def test_the_files_are_listed_as_the_user_wrote_them(make_raster, image, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_raster(image, **georeference())
    outputs = OutputConfig(confidence="c.tif", vector="v.gpkg")
    files = predict("image.tif", Path("map.tif"), model_folder, PredictConfig(**EXACT), outputs).files
    assert str(files[0]) == "map.tif"
    assert {str(file) for file in files} == {"map.tif", "map.qml", "map.stac.json", "c.tif", "c.qml", "v.gpkg"}
    assert all(file.is_file() for file in files)


def test_a_model_far_from_home_and_unsure_is_said_to_be(make_raster, image, model_folder, tmp_path):
    sure = {"mean": 99.0, "classes": dict.fromkeys(NAMES, 99.0)}
    model = learned(
        model_folder,
        tmp_path / "model",
        learned={"name": "Banepa, Nepal", "area": [85.52, 27.63, 85.53, 27.64]},
        validation_confidence=sure,
    )
    path = make_raster(image, **georeference(x=720_000, y=6_250_000))  # near Beziers
    result = predict(path, tmp_path / "map.tif", model, PredictConfig(**EXACT), run=MapRunConfig(restart=True))
    assert 6500 < result.trust.distance_km < 7500
    assert "learned in Banepa, Nepal, " in result.trust.line
    assert "(99 % on its validation data)" in result.trust.line
    assert "low confidence here" in result.trust.warning
    assert "far from where it learned" in result.trust.warning


def test_a_model_at_home_and_sure_gets_no_warning(make_raster, image, model_folder, tmp_path):
    sure = {"mean": 40.0, "classes": dict.fromkeys(NAMES, 30.0)}
    nepal, here = [85.52, 27.63, 85.53, 27.64], [2.0, 43.0, 4.0, 44.0]
    model = learned(model_folder, tmp_path / "model", learned={"areas": [nepal, here]}, validation_confidence=sure)
    path = make_raster(image, **georeference(x=720_000, y=6_250_000))
    trust = predict(path, tmp_path / "map.tif", model, PredictConfig(**EXACT)).trust
    assert trust.warning is None
    assert trust.distance_km == 0


@pytest.mark.parametrize("provenance", [{}, {"learned": 3, "validation_confidence": "high"}])
def test_a_model_that_says_nothing_of_itself_is_used_without_a_word(
    make_raster, image, model_folder, tmp_path, provenance
):
    trust = predict(
        make_raster(image, **georeference()),
        tmp_path / "m.tif",
        learned(model_folder, tmp_path / "model", **provenance),
        PredictConfig(**EXACT),
    ).trust
    assert trust.warning is None
    assert trust.line.startswith("model: ")


def test_a_sure_background_does_not_hide_an_unsure_class():
    """The mean over all pixels did not tell: a model of buildings is surer of a lagoon than of its own town."""
    here = Confidence(pixels=np.array([9000, 900, 10]), percent=np.array([9000 * 96, 900 * 77, 10]))
    home = {"background": 93.0, "building": 88.7, "other": 90.0}
    assert here.mean > 93
    assert here.unsure(("background", "building", "other"), home) == {"building": (77.0, 88.7)}  # "other" is too few


def test_confidence_adds_up_and_survives_its_text():
    rng = np.random.default_rng(0)
    indices, percent = rng.integers(0, 3, (40, 50), np.uint8), rng.integers(30, 101, (40, 50), np.uint8)
    valid = rng.random((40, 50)) < 0.7
    whole = Confidence.count(indices, percent, valid, 3)
    halves = [Confidence.count(indices[s], percent[s], valid[s], 3) for s in (slice(0, 13), slice(13, None))]
    assert (halves[0] + halves[1]).text() == whole.text()
    assert Confidence.from_text(whole.text(), 3).text() == whole.text()
    assert whole.mean == pytest.approx(percent[valid].mean())
    assert whole.of_classes(NAMES)["land"] == pytest.approx(percent[valid & (indices == 1)].mean())
    for text in (None, "", "{}", '{"pixels": [1], "percent": [1]}', '{"pixels": 3, "percent": "x"}'):
        assert Confidence.from_text(text, 3) is None


def test_the_table_of_areas():
    areas = {"water": ClassArea(400, 100.0), "land": ClassArea(1_200_000, 300_000.0), "road": ClassArea(0, 0.0)}
    assert area_table(areas) == [
        "class     ha       m2      %",
        "water   0.01      100    0.0",
        "land   30.00  300,000  100.0",
        "road    0.00        0    0.0",
    ]
    both = add_areas([areas, {"land": ClassArea(3, 1.0)}])
    assert both["land"] == ClassArea(1_200_003, 300_001.0)
    unknown = add_areas([areas, {"land": ClassArea(3, None), "water": ClassArea(0, None), "road": ClassArea(0, None)}])
    assert area_table(unknown)[0].split() == ["class", "pixels", "%"]
    assert area_table(unknown)[2].split() == ["land", "1,200,003", "100.0"]
