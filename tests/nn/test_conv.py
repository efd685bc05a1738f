"""The convolution that never enlarges its maps against the plain one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from caswit.nn.conv import conv3x3_of_upsampled

pytestmark = pytest.mark.equivalence

sides = st.tuples(st.integers(1, 20), st.integers(1, 20))


def plainly(maps, weight):
    size = maps[0].shape[-2:]
    enlarged = [F.interpolate(x, size=size, mode="bilinear", align_corners=False) for x in maps]
    return F.conv2d(torch.cat(enlarged, dim=1), weight, padding=1)


@settings(deadline=None)
@given(st.lists(st.tuples(sides, st.integers(1, 3)), min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_equals_enlarging_concatenating_and_convolving(shapes, seed):
    torch.manual_seed(seed)
    maps = [torch.randn(2, channels, *side, dtype=torch.double, requires_grad=True) for side, channels in shapes]
    weight = torch.randn(5, sum(c for _, c in shapes), 3, 3, dtype=torch.double, requires_grad=True)
    ours, plain = conv3x3_of_upsampled(maps, weight), plainly(maps, weight)
    torch.testing.assert_close(ours, plain)
    upstream = torch.randn_like(plain)
    gradients = [torch.autograd.grad(out, [*maps, weight], upstream) for out in (ours, plain)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_worse_than_of_the_plain_convolution(dtype):
    torch.manual_seed(0)
    maps = [torch.randn(1, 48, 64 >> i, 64 >> i) for i in range(4)]
    weight = 0.02 * torch.randn(48, 192, 3, 3)
    truth = plainly([x.double() for x in maps], weight.double())
    errors = []
    for convolve in (conv3x3_of_upsampled, plainly):
        found = convolve([x.to(dtype) for x in maps], weight.to(dtype))
        errors.append(float((found.double() - truth).square().mean().sqrt()))
    assert errors[0] < 1.5 * errors[1]


def test_training_after_inference():
    """A tensor that inference caches must not be a tensor that training cannot use."""
    maps, weight = [torch.randn(1, 2, 9, 9), torch.randn(1, 2, 3, 3)], torch.randn(4, 4, 3, 3)
    with torch.inference_mode():
        conv3x3_of_upsampled(maps, weight)
    conv3x3_of_upsampled([x.requires_grad_() for x in maps], weight).sum().backward()
    assert maps[1].grad is not None
