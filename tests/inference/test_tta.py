"""Averaging over the symmetries of the square."""

import numpy as np
import pytest
import torch
from torch import nn

from caswit.cli.main import main
from caswit.config import EvaluateConfig, PredictConfig
from caswit.data.transforms import turned
from caswit.errors import ConfigError
from caswit.inference.tta import Turned, turn, turn_back
from caswit.raster.reader import Raster
from caswit.raster.windows import Window
from conftest import georeference, picture


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
    assert torch.equal(turn_back(turn(image, quarter, mirror), quarter, mirror), image)


def test_the_turns_are_those_of_the_augmentation():
    image = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    seen = {turn(torch.from_numpy(image), q, m).numpy().tobytes() for q, m in Turned(Slanted(), 8).symmetries}
    assert seen == {turned(image, number).tobytes() for number in range(8)}


@torch.no_grad()
@pytest.mark.parametrize("turns", [2, 4, 8])
def test_it_is_the_mean_of_probabilities(turns):
    network, (hr, context) = Slanted(), images()
    model = Turned(network, turns)
    each = []
    for quarter, mirror in model.symmetries:
        logits = network(turn(hr, quarter, mirror), turn(context, quarter, mirror))
        each.append(turn_back(logits.softmax(1), quarter, mirror))
    assert len(each) == turns
    torch.testing.assert_close(model(hr, context).exp(), torch.stack(each).mean(0))


@torch.no_grad()
def test_what_it_says_turns_with_the_image():
    """The map of a turned image is the turned map, which is not so for one look."""
    model, (hr, context) = Turned(Slanted(), 8), images()
    straight = model(hr, context)
    for quarter, mirror in model.symmetries:
        torch.testing.assert_close(
            model(turn(hr, quarter, mirror), turn(context, quarter, mirror)), turn(straight, quarter, mirror)
        )


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
