"""The focal loss of GLNet and FCtL, and labels at the size of small logits."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX

GAMMA = 3.0
"""How fast the weight of a pixel falls as the network gets sure of it; both networks use 3."""


def focal_loss(logits: Tensor, label: Tensor, gamma: float = GAMMA) -> Tensor:
    """Cross-entropy times (1 - p) ** gamma, p the probability of the true class (Lin et al. 2017, equation 4).

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        gamma: 0 gives the cross-entropy.

    Returns:
        The mean over labelled pixels; 0, with a graph, where none is labelled.
    """
    # Under autocast logits are bf16, too coarse for sums over pixels and for 1 - p of a p near 1.
    entropy = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
    weighted = (1 - torch.exp(-entropy)) ** gamma * entropy
    return weighted.sum() / (label != IGNORE_INDEX).sum().clamp(min=1)


def label_at(label: Tensor, size: Sequence[int]) -> Tensor:
    """Return labels (B, H, W) at another size, (rows, columns): each takes the class at its centre."""
    rows, cols = (
        ((torch.arange(n, device=label.device) * 2 + 1) * side) // (2 * n)
        for n, side in zip(size, label.shape[-2:], strict=True)
    )
    return label[:, rows[:, None], cols]
