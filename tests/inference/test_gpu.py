"""Maps, scores and pictures on a GPU that is not there: everything is on the right device, and they are the CPU's."""

import numpy as np
import pytest
import rasterio

from caswit.config import EvaluateConfig, OutputConfig, PredictConfig, TileConfig
from caswit.evaluation.run import evaluate
from caswit.mapping.run import predict
from conftest import georeference
from pretend_gpu import Graph, late_copies, pretend_gpu

pytestmark = pytest.mark.equivalence


def read(path):
    with rasterio.open(path) as src:
        return src.read()


@pytest.mark.parametrize(
    "settings",
    [{"precision": "auto", "block_px": 64}, {"tta": 2, "blend": True}, {"gsd_m": 0.7, "fill": "mirror"}],
    ids=["prepared network, blocks", "blended, turned", "resampled, mirrored"],
)
def test_a_map_is_that_of_the_cpu(make_raster, image, model_folder, tmp_path, settings):
    image[:, 20:60, 30:50] = 0
    path = make_raster(image, nodata=0, **georeference())
    maps, prepared = [], "precision" in settings
    for device in ("cpu", "cuda:0"):
        how = {"batch": 3, **settings, "precision": "auto" if prepared and device != "cpu" else "fp32"}
        out, sure = tmp_path / f"{device[:4]}.tif", tmp_path / f"{device[:4]}-confidence.tif"
        outputs = OutputConfig(confidence=str(sure))
        with pretend_gpu():
            predict(path, out, model_folder, PredictConfig(device=device, **how), outputs)
            # The pixels of a block went up, and its values came down, beside what was computed.
            assert bool(late_copies) == (device != "cpu")
            assert bool(Graph.replays) == (prepared and device != "cpu")
        maps.append([read(out), read(sure)])
    for ours, theirs in zip(*maps, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert len(np.unique(maps[0][0])) > 2


@pytest.mark.parametrize("contexts", [2, (2, 4)], ids=["one context", "two contexts"])
def test_scores_are_those_of_the_cpu(dataset_file, make_model, contexts):
    model = make_model((2, 4), TileConfig(tile_px=32, context_factor=contexts))
    found = []
    for device in ("cpu", "cuda:0"):
        settings = EvaluateConfig(device=device, precision="fp32", masked_context=True, context_report=True, pictures=2)
        with pretend_gpu():
            found.append(evaluate(model, dataset_file, None, split="test", settings=settings))
    theirs, ours = found
    np.testing.assert_array_equal(ours.counts.confusion, theirs.counts.confusion)
    np.testing.assert_array_equal(ours.masked_context_counts.confusion, theirs.masked_context_counts.confusion)
