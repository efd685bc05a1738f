"""Networks in which every weight shows in the logits."""

import torch
from torch import nn

from caswit.nn.caswit import CASWiT


def random_network(size: str = "pico", **settings) -> CASWiT:
    """No bias is 0, no norm the identity and no gate closed, so that nothing can be forgotten; in evaluation mode."""
    torch.manual_seed(0)
    network = CASWiT(num_classes=5, size=size, **settings)
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith(("relative_position_bias_table", "gate", "context_embedding")):
            nn.init.normal_(value)
        elif value.is_floating_point() and value.ndim == 1:
            value += 0.2 * torch.randn_like(value)
    return network.eval()
