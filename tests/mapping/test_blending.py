"""Tiles of models that lean on their context are blended unless the user says otherwise."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.mapping.blending import blending
from caswit.mapping.journal import Begun
from caswit.mapping.plan import make_plan
from caswit.mapping.run import predict
from caswit.raster.cog import read_tags
from caswit.weights.model_folder import build, load_model, save_model
from conftest import georeference

LINES = {"own": 0.50, "masked": 0.45, "swapped": 0.30}
NONE = {"own": 0.50, "masked": 0.495, "swapped": 0.49}


@pytest.fixture
def model(make_model, tmp_path):
    """Return a function that makes a folder of a model with fusion stages, gates and a context report."""

    def make(stages=(3, 4), gates=None, report=None) -> Path:
        folder = tmp_path / f"model-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(make_model(stages), folder)
        loaded = load_model(folder)
        if gates is not None:
            info = replace(loaded.info, model=replace(loaded.info.model, gated=True))
            network = build(info)
            for block, gate in zip(network.fusion.values(), gates, strict=True):
                torch.nn.init.constant_(block.gate, float(np.arctanh(gate)))
            save_model(network, info, folder)
        config = json.loads((folder / "config.json").read_text())
        config["provenance"] |= {} if report is None else {"context_report": report}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return make


@pytest.mark.parametrize(
    ("made", "asked", "expected"),
    [
        ({"stages": ()}, {}, False),
        ({}, {}, True),
        ({"gates": (0.02, -0.03)}, {}, False),
        ({"gates": (0.02, 0.5)}, {}, True),
        ({"report": LINES}, {}, True),
        ({"report": NONE}, {}, False),
        ({"gates": (0.02, -0.03), "report": LINES}, {}, True),  # what was measured counts first
        ({"report": {"own": "high"}}, {}, True),
        ({}, {"blend": False}, False),
        ({}, {"overlap_px": 0}, False),
        ({"stages": ()}, {"blend": True}, True),
    ],
)
def test_who_leans_on_its_context_is_blended(model, made, asked, expected):
    assert blending(load_model(model(**made)), PredictConfig(**asked)).blend is expected


def test_a_run_that_an_earlier_version_began_goes_on_without_blending(model, make_raster, image):
    """Its manifest says blend: False, which nobody had asked for."""
    path, folder = make_raster(image, **georeference()), model(report=LINES)
    begun = Begun.of(path.with_name("nothing.tif"))._replace(blend=False)
    asked = {each: PredictConfig(blend=each) for each in (None, True)}
    others = OutputConfig(), MapRunConfig()
    plans = {each: make_plan([str(path)], str(folder), asked[each], *others)[0] for each in asked}
    assert plans[None].settings.blend
    assert plans[None].going_on(begun, asked[None]).settings.blend is False
    assert plans[True].going_on(begun, asked[True]).settings.blend is True


def test_nobody_asks_and_the_map_is_the_one_that_is_blended_over_a_quarter(model, make_raster, image, tmp_path, caplog):
    path, folder = make_raster(image, **georeference()), model(report=LINES)
    tile_px = load_model(folder).info.tile.tile_px
    made = {}
    for name, settings in {
        "auto": {}, "blended": {"blend": True, "overlap_px": tile_px // 4}, "plain": {"blend": False},
    }.items():  # fmt: skip
        caplog.clear()
        with caplog.at_level(logging.INFO):
            predict(path, tmp_path / f"{name}.tif", folder, PredictConfig(precision="fp32", device="cpu", **settings))
        with rasterio.open(tmp_path / f"{name}.tif") as done:
            made[name] = done.read(1)
        said = "masking its context costs it 5.0 points of mIoU (--blend false: each keeps its part)"
        assert (said in caplog.text) is (name == "auto")
    np.testing.assert_array_equal(made["auto"], made["blended"])
    assert not np.array_equal(made["auto"], made["plain"])
    assert read_tags(tmp_path / "auto.tif")["CASWIT_BLEND"] == "true"
