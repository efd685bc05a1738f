"""Test-time augmentation: the mean over flips and quarter turns of what the network sees.

Shapes: B batch, K classes, H/W rows and columns.
"""

import torch
from torch import Tensor, nn

from caswit.inference.predictor import Predictor

_LEAST = 1e-12
"""Probability below which nothing is told apart; its logarithm is still a number."""


class Turned(nn.Module):
    """A network that averages its probabilities over symmetries of the square.

    Args:
        network: In evaluation mode.
        turns: How many: 2 adds the mirror image, 4 are the quarter turns, 8 both.
    """

    def __init__(self, network: nn.Module, turns: int) -> None:
        super().__init__()
        self.network = network
        self.reads_context = bool(network.reads_context)
        quarters = range(4) if turns >= 4 else range(1)
        self.symmetries = [
            (quarter, mirror) for mirror in ((False, True) if turns != 4 else (False,)) for quarter in quarters
        ]
        assert len(self.symmetries) == turns, turns

    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor:
        """As the network's; logarithms of the mean probabilities (B, K, H, W), fp32."""
        total: Tensor | None = None
        for quarter, mirror in self.symmetries:
            seen = [turn(x, quarter, mirror) for x in (hr, context) if x is not None]
            found = turn_back(self.network(*seen).float().softmax(1), quarter, mirror)
            total = found if total is None else total + found
        assert total is not None
        return (total / len(self.symmetries)).clamp(min=_LEAST).log()


def averaged(model: Predictor, turns: int) -> Predictor:
    """The classifier, whose predictions from now on are means over so many symmetries; 1 leaves it as it is."""
    if turns > 1:
        model.network = Turned(model.network, turns)  # type: ignore[assignment]
        if model.fast is not None:
            model.fast = Turned(model.fast, turns)
    return model


def turn(image: Tensor, quarter: int, mirror: bool) -> Tensor:
    """Mirror over the last axis where asked, then turn by quarters; the last two axes are rows and columns."""
    return torch.rot90(image.flip(-1) if mirror else image, quarter, (-2, -1))


def turn_back(image: Tensor, quarter: int, mirror: bool) -> Tensor:
    """Undo ``turn``."""
    straight = torch.rot90(image, -quarter, (-2, -1))
    return straight.flip(-1) if mirror else straight
