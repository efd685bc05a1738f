"""Averaging over the symmetries of the square."""

import numpy as np
import pytest
import torch
from torch import nn

from caswit.cli.main import main
from caswit.config import EvaluateConfig, PredictConfig
from caswit.data.transforms import turned
from caswit.errors import ConfigError
from caswit.inference import predictor
from caswit.raster.reader import Raster
from caswit.raster.windows import Window
from conftest import georeference, picture

apply, undo = predictor.TestTimeAugmentation.apply, predictor.TestTimeAugmentation.undo


class Slanted(nn.Module):
    """Depends on where it looks: a convolution without symmetry over tile and context."""

    reads_context = True

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layer = nn.Conv2d(6, 3, 3, padding=1)

    def forward(self, hr, context=None):
        return self.layer(torch.cat([hr, context], 1))


def images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, 3, 16, 16, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("quarter", range(4))
def test_turning_back_undoes_a_turn(quarter, mirror):
    image = images()[0]
    assert torch.equal(undo(apply(image, quarter, mirror), quarter, mirror), image)


def test_the_symmetries_are_those_of_the_augmentation():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    symmetries = predictor.TestTimeAugmentation(8).symmetries
    seen = {apply(torch.from_numpy(image), *symmetry).numpy().tobytes() for symmetry in symmetries}
    assert seen == {turned(image, number).tobytes() for number in range(8)}


@torch.no_grad()
@pytest.mark.parametrize("count", [2, 4, 8])
def test_it_is_the_mean_of_probabilities(count):
    network, (hr, context) = Slanted(), images()
    tta = predictor.TestTimeAugmentation(count)
    each = []
    for symmetry in tta.symmetries:
        logits = network(apply(hr, *symmetry), apply(context, *symmetry))
        each.append(undo(logits.softmax(1), *symmetry))
    assert len(each) == count
    torch.testing.assert_close(tta(network, hr, context).exp(), torch.stack(each).mean(0))


@torch.no_grad()
def test_predictions_turn_with_the_image():
    """The map of a turned image is the turned map, which is not so without averaging."""
    network, tta, (hr, context) = Slanted(), predictor.TestTimeAugmentation(8), images()
    straight = tta(network, hr, context)
    for symmetry in tta.symmetries:
        found = tta(network, apply(hr, *symmetry), apply(context, *symmetry))
        torch.testing.assert_close(found, apply(straight, *symmetry))


@pytest.mark.parametrize("precision", ["fp32", "auto"])  # the network itself, and arranged for inference
def test_a_map_of_a_turned_image_is_the_turned_map(model_folder, make_raster, tmp_path, precision):
    pixels, maps = picture(32, 32), []
    for name, image in (("straight", pixels), ("turned", turned(pixels, 5))):
        file = make_raster(image, f"{name}.tif", **georeference())
        out = tmp_path / f"{name}-map.tif"
        main(["predict", str(file), str(out), "--model", str(model_folder), "--tta", "8", "--precision", precision])
        with Raster(out) as found:
            maps.append(found.read_band(Window(0, 0, 32, 32), fill=255))
    assert (turned(maps[0], 5) == maps[1]).mean() > 0.99  # ties may fall either way
    assert len(np.unique(maps[0])) > 1


@pytest.mark.parametrize("kind", [EvaluateConfig, PredictConfig])
def test_other_numbers_are_refused(kind):
    with pytest.raises(ConfigError, match="tta must be 1, 2, 4 or 8, got 3"):
        kind(tta=3)
