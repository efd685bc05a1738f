"""WSDNet: the Haar transform and its inverse, the wavelet smooth loss, shapes, and that it learns."""

import numpy as np
import pytest
import torch
from torch import nn

from caswit.nn.baselines import wsdnet
from caswit.nn.baselines.wsdnet import InverseWavelet, WSDNet, haar, inverse_haar, wavelet_smooth_loss
from nn.baselines.toy import (
    NUM_CLASSES,
    check_batch,
    check_gradients,
    check_loss,
    check_only_trains,
    check_shapes,
    learned,
    noisy,
)

TRAINING_ONLY = ("heads", "rebuild")


def narrow():
    torch.manual_seed(0)
    return WSDNet(num_classes=NUM_CLASSES, width=0.125)


def test_interface():
    check_shapes(narrow(), [(32, 32), (64, 96)])
    check_gradients(narrow())
    check_loss(narrow())
    check_batch(narrow())


def test_parts_that_only_train_are_not_computed_in_evaluation():
    check_only_trains(narrow(), TRAINING_ONLY)


class TestHaar:
    @pytest.mark.parametrize("levels", [1, 2, 3])
    def test_the_inverse_gives_the_maps_back_and_squares_add_up_to_the_same(self, levels):
        image = torch.randn(2, 3, 16, 24, dtype=torch.float64)
        bands = image
        for _ in range(levels):
            bands = haar(bands)
        assert bands.shape == (2, 3 * 4**levels, 16 >> levels, 24 >> levels)
        torch.testing.assert_close((bands**2).sum(), (image**2).sum())
        for _ in range(levels):
            bands = inverse_haar(bands)
        torch.testing.assert_close(bands, image, rtol=0, atol=1e-14)

    @pytest.mark.equivalence
    def test_it_is_the_matrix_written_out(self):
        """Means and differences of pairs over the square root of 2, along rows and along columns."""
        image = torch.randn(1, 2, 6, 8, dtype=torch.float64)

        def matrices(size):
            low, high = np.zeros((2, size // 2, size))
            for i in range(size // 2):
                low[i, 2 * i : 2 * i + 2] = 1, 1
                high[i, 2 * i : 2 * i + 2] = 1, -1
            return low / np.sqrt(2), high / np.sqrt(2)

        (row_low, row_high), (col_low, col_high) = matrices(6), matrices(8)
        pairs = [(row_low, col_low), (row_high, col_low), (row_low, col_high), (row_high, col_high)]
        expected = [rows @ image[0, c].numpy() @ cols.T for rows, cols in pairs for c in range(2)]
        np.testing.assert_allclose(haar(image)[0].numpy(), expected, atol=1e-14)

    @pytest.mark.equivalence
    def test_it_is_pywavelets(self):
        pywt = pytest.importorskip("pywt")
        image = torch.randn(1, 1, 6, 8, dtype=torch.float64)
        mean, details = pywt.dwt2(image[0, 0].numpy(), "haar")
        np.testing.assert_allclose(haar(image)[0].numpy(), [mean, *details], atol=1e-14)

    def test_the_first_bands_of_two_levels_are_four_times_the_means_of_squares(self):
        image = torch.randn(1, 3, 8, 8)
        torch.testing.assert_close(haar(haar(image))[:, :3], 4 * nn.functional.avg_pool2d(image, 4))


@pytest.mark.equivalence
def test_the_wavelet_smooth_loss_is_that_of_the_bands():
    rebuilt, image = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16)
    expected, lows = 0.0, (rebuilt, image)
    for _ in range(2):
        ours, theirs = (haar(each).split(3, dim=1) for each in lows)
        for a, b in zip(ours, theirs, strict=True):
            d = (a - b).abs().numpy()
            expected += np.where(d < 1, d**2 / 2, d - 0.5).mean()
        lows = ours[0], theirs[0]
    assert wavelet_smooth_loss(rebuilt, image).item() == pytest.approx(expected, rel=1e-5)
    assert wavelet_smooth_loss(image, image) == 0


def test_the_deep_branch_reads_all_bands_and_inverse_transforms_enlarge():
    network = narrow().eval()
    seen = {}
    network.deep.register_forward_pre_hook(lambda _, args: seen.update(bands=args[0]))
    for name in ("up16", "up8"):
        getattr(network, name).register_forward_hook(lambda _, args, out, name=name: seen.update({name: out}))
    image = torch.randn(1, 3, 64, 96)
    network(image)
    torch.testing.assert_close(inverse_haar(inverse_haar(seen["bands"])), image)
    assert seen["up16"].shape[2:] == (4, 6)
    assert seen["up8"].shape[2:] == (8, 12)


@torch.no_grad()
def test_an_inverse_wavelet_step_is_convolution_norm_inverse_transform():
    step = noisy(InverseWavelet(8, 4, 1)).eval()
    x = torch.randn(2, 8, 3, 5)
    torch.testing.assert_close(step(x), inverse_haar(step[1](step[0](x))).relu())


@torch.no_grad()
def test_pretrained_it_starts_as_a_network_that_reads_the_mean_of_4_x_4_pixels():
    first = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
    convolution = wsdnet._reading_bands(first, pretrained=True)
    image = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(convolution(haar(haar(image))), first(nn.functional.avg_pool2d(image, 4)))


def test_it_learns():
    assert learned(narrow()) > 0.95
