"""Networks of any number of bands: the first convolution by names, the fast network equal to the plain one."""

import pytest
import torch

from caswit.config import RGB, ModelConfig
from caswit.errors import ConfigError, ModelError
from caswit.inference.cpu.network import ArrangedCASWiT
from caswit.nn.bands import for_bands, said
from caswit.nn.baselines.smp import Baseline
from caswit.nn.simmim import SimMIM
from networks import random_network

STATISTICS = (50.0, 100.0, 110.0, 120.0, 130.0, 140.0), (20.0, 30.0, 40.0, 50.0, 60.0, 70.0)


def network_of(bands, **settings):
    return random_network(mean=STATISTICS[0][:bands], std=STATISTICS[1][:bands], **settings)


def noise(bands, side=64, batch=2):
    return torch.randint(0, 256, (batch, bands, side, side), dtype=torch.uint8)


@pytest.mark.equivalence
@pytest.mark.parametrize("bands", [1, 4, 6])
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("way", ["torch", "openvino"])
@torch.no_grad()
def test_the_fast_network_is_the_plain_one(bands, stem, way):
    if way == "openvino":
        pytest.importorskip("openvino", reason="OpenVINO is not installed")
    network = network_of(bands, stem=stem)
    images = noise(bands), noise(bands)
    plain, fast = network(*images), ArrangedCASWiT(network, bf16=False, openvino=way == "openvino")(*images)
    assert (plain - fast).abs().max() < 1e-4 * plain.abs().max()
    # Every band shows in the result.
    for band in range(bands):
        changed = [x.clone() for x in images]
        changed[0][:, band] = 0
        assert (network(*changed) - plain).abs().max() > 1e-4


@torch.no_grad()
def test_a_band_of_nothing_but_its_mean_changes_nothing():
    """Four bands whose fourth is its mean are the three others, with weights copied by name."""
    three = network_of(3)
    four = random_network(mean=(*STATISTICS[0][:3], 128.0), std=(*STATISTICS[1][:3], 9.0))
    state = {
        name: for_bands(x, RGB, (*RGB, "nir")) if name.endswith("patch_embed.proj.weight") else x
        for name, x in three.state_dict().items()
    }
    four.load_state_dict(state)
    images = noise(3), noise(3)
    wider = [torch.cat([x, torch.full_like(x[:, :1], 128)], 1) for x in images]
    torch.testing.assert_close(four(*wider), three(*images), rtol=1e-4, atol=1e-4)


def test_the_first_convolution_is_copied_by_name_and_new_bands_are_the_mean():
    weight = torch.randn(5, 3, 2, 2)
    found = for_bands(weight, RGB, ("nir", "blue", "red"))
    assert torch.equal(found[:, 1], weight[:, 2])
    assert torch.equal(found[:, 2], weight[:, 0])
    torch.testing.assert_close(found[:, 0], (weight[:, 0] + weight[:, 1] + weight[:, 2]) / 3)
    assert said(RGB, ("nir", "blue", "red")) == (
        "blue, red by name; nir from the mean of red, green, blue; green not used"
    )


def test_the_wrong_number_of_bands_is_one_line():
    with pytest.raises(ModelError, match=r"hr must have 4 bands on axis 1, got \(2, 3, 64, 64\)"):
        network_of(4)(noise(3), noise(4))
    with pytest.raises(ModelError, match=r"context must have 4 bands"):
        network_of(4)(noise(4), noise(3))
    with pytest.raises(ConfigError, match="arch stdc1 reads three bands, got 4"):
        ModelConfig(arch="stdc1", bands=(*RGB, "nir"))
    with pytest.raises(ConfigError, match="mean must have 4 numbers, or three for red, green and blue"):
        ModelConfig(bands=(*RGB, "nir"), mean=(1.0, 2.0), std=(1.0, 2.0))
    with pytest.raises(ConfigError, match="bands must be different names"):
        ModelConfig(bands=("red", "red"))
    with pytest.raises(ConfigError, match="ranges must be"):
        ModelConfig(ranges=((5.0, 1.0),))


def test_pretraining_and_baselines_read_any_bands():
    network = network_of(2)
    network.num_classes = 0
    found = SimMIM(network, 0.5)(noise(2), noise(2), torch.zeros(2, 16, 16, dtype=torch.bool))
    assert found.shape == (2, 2, 64, 64)
    unet = Baseline(num_classes=3, settings=ModelConfig(arch="unet", encoder="resnet18", bands=(*RGB, "nir", "dsm")))
    assert unet.eval()(noise(5)).shape == (2, 3, 64, 64)
