"""The network of the benchmarks, assembled from others' parts, against ours with the same weights."""

import pytest
import torch

from common.assembled import Assembled
from networks import random_network

pytestmark = pytest.mark.equivalence


@pytest.mark.parametrize("gated", [False, True])
@torch.no_grad()
def test_assembled_network_has_our_weights_and_our_logits(gated):
    ours = random_network(gated=gated, drop_path=0)
    theirs = Assembled(ours).eval()
    hr, context = (torch.randint(0, 256, (2, 3, 256, 256), dtype=torch.uint8) for _ in range(2))
    logits = ours(hr, context)
    assert float((theirs(hr, context) - logits).abs().max() / logits.abs().max()) < 1e-4
    for a, b in zip(theirs.train()(hr, context), ours.train()(hr, context)[:2], strict=True):
        assert float((a - b).abs().max() / b.abs().max()) < 1e-4
    alike = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    unused = sum(p.numel() for branch in (theirs.hr, theirs.context) for p in branch.swin.layernorm.parameters())
    assert alike[1] - unused == alike[0]
