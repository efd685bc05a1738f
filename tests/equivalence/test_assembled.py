"""The network of the benchmarks, assembled from others' parts, against ours with the same weights."""

import pytest
import torch
from torch import nn

from assembled import Assembled
from caswit.model import CASWiT


def randomise(network):
    """No bias is 0 and no norm the identity, so that no weight can be forgotten."""
    torch.manual_seed(0)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif "relative_position_bias_table" in name or name.endswith("gate"):
            nn.init.normal_(value)
        elif value.is_floating_point() and value.ndim == 1:
            value += 0.2 * torch.randn_like(value)
    return network.eval()


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_assembled_network_has_our_weights_and_our_logits(gated):
    ours = randomise(CASWiT(num_classes=5, size="pico", gated=gated, drop_path=0))
    theirs = Assembled(ours).eval()
    hr, context = (torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8) for _ in range(2))
    logits = ours(hr, context)
    assert float((theirs(hr, context) - logits).abs().max() / logits.abs().max()) < 1e-4
    for a, b in zip(theirs.train()(hr, context), ours.train()(hr, context), strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4
    alike = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    unused = sum(p.numel() for branch in (theirs.hr, theirs.context) for p in branch.swin.layernorm.parameters())
    assert alike[1] - unused == alike[0]
