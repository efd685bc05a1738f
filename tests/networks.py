"""Networks in which every weight shows in the logits, and a small one that stands for those of table 2."""

import sys
from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
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


class Toy(nn.Module):
    """What a network of table 2 has to offer, in some hundred weights; its loss is the mean cross-entropy.

    A far branch sees the image at a quarter, a near one at full resolution.
    """

    reads_context = False
    stride_px = 8
    phases = {"far": ("far.",), "near": ("near.", "weigh"), "all": ("far.", "near.", "weigh")}  # noqa: RUF012
    phase = None

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False, norm=nn.BatchNorm2d) -> None:
        super().__init__()
        self.pretrained, channels = pretrained, max(8, round(2 * width) * 8)
        for name in ("far", "near"):
            layers = (
                nn.Conv2d(3, channels, 3, padding=1),
                norm(channels),
                nn.ReLU(),
                nn.Conv2d(channels, num_classes, 1),
            )
            self.add_module(name, nn.Sequential(*layers))
        self.weigh = nn.Parameter(torch.ones(()))

    def forward(self, image, context=None):
        seen = F.avg_pool2d(image, 4) if context is None else context
        logits = F.interpolate(self.far(seen), image.shape[-2:])
        if self.phase != "far":
            logits = logits + self.weigh * self.near(image)
        return {"logits": logits} if self.training else logits

    def loss(self, outputs, label):
        total = F.cross_entropy(outputs["logits"], label, ignore_index=IGNORE_INDEX, reduction="sum")
        return total / (label != IGNORE_INDEX).sum().clamp(min=1)


class ToyOfGroups(Toy):
    """Without batch norm, so that a batch may be split."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings, norm=lambda channels: nn.GroupNorm(2, channels))


class ToyOfContext(ToyOfGroups):
    """The far branch sees the context."""

    reads_context = True


class ToyUncertain(ToyOfGroups):
    """Its loss has a weight of its own, which is not in the logits."""

    phases = {**Toy.phases, "all": ("",)}  # noqa: RUF012

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.doubt = nn.Parameter(torch.zeros(()))

    def loss(self, outputs, label):
        return super().loss(outputs, label) * torch.exp(-self.doubt) + self.doubt


def stands_for(monkeypatch, toy: type, arch: str = "isdnet", name: str = "ISDNet") -> None:
    """Let a toy take the place of a network of table 2."""
    monkeypatch.setitem(sys.modules, f"caswit.nn.baselines.{arch}", SimpleNamespace(**{name: toy}))
