"""A network that gives NaN or infinity gives no map."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from caswit.config import PredictConfig
from caswit.errors import ModelError
from caswit.mapping.run import predict
from caswit.weights.model_folder import load_model
from conftest import georeference

pytestmark = pytest.mark.e2e

BLOCKS = PredictConfig(precision="fp32", batch=1, device="cpu", block_px=64)


@pytest.fixture
def model(model_folder, tmp_path):
    return shutil.copytree(model_folder, tmp_path / "model")


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_weights_that_are_not_finite_are_refused(make_raster, image, model, tmp_path, value):
    """Every pixel became the first class, with exit status 0."""
    weights = load_file(model / "model.safetensors")
    weights["decoder.classify.bias"][0] = float(value)
    save_file(weights, model / "model.safetensors")
    with pytest.raises(ModelError, match=r"decoder\.classify\.bias holds NaN or infinity; "):
        load_model(model)
    with pytest.raises(ModelError):
        predict(make_raster(image, **georeference()), tmp_path / "map.tif", model, BLOCKS)
    assert not list(tmp_path.glob("map*"))


@pytest.mark.parametrize(("tta", "blend"), [(1, False), (2, True)])
def test_scores_that_are_not_finite_are_refused(make_raster, image, model, tmp_path, tta, blend):
    """Finite weights may still overflow."""
    weights = load_file(model / "model.safetensors")
    for name in ("weight", "bias"):
        weights[f"decoder.classify.{name}"] = torch.full_like(weights[f"decoder.classify.{name}"], 3e38)
    save_file(weights, model / "model.safetensors")
    path = make_raster(image, **georeference())
    settings = replace(BLOCKS, tta=tta, blend=blend)
    with pytest.raises(ModelError, match=r"^rows 0-\d+, columns 0-\d+: the model's scores are NaN or infinite; .*try"):
        predict(path, tmp_path / "map.tif", model, settings)
    assert not list(tmp_path.glob("map*"))
