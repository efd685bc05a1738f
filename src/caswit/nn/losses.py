"""The supervised loss (paper section 3.4): L = L_hr + alpha * L_context, both cross-entropies.

The paper divides by all pixels. Here pixels without a label are left out of the sum and of its divisor, which are
computed apart: a batch that is split over devices and passes then has exactly the loss of the whole batch, whatever
share of the pixels of each part is labelled.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.caswit import TrainingLogits


def cross_entropy_sum(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy summed over labelled pixels.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        weights: (K,) class weights, or None.
    """
    # Under autocast logits are bf16, in which a sum over all pixels of a batch would lose most of its digits.
    return F.cross_entropy(logits.float(), label.long(), weights, ignore_index=IGNORE_INDEX, reduction="sum")


def loss_normalizer(label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the divisor of a cross-entropy sum: labelled pixels, or the sum of their weights."""
    labelled = label != IGNORE_INDEX
    if weights is None:
        return labelled.sum().float()
    # Dividing by the weights, as torch's weighted mean does, keeps the scale of the loss.
    return weights[label[labelled].long()].sum()


def supervised_loss(
    logits: TrainingLogits,
    labels: tuple[Tensor, Tensor],
    normalizers: tuple[Tensor, Tensor],
    *,
    alpha: float,
    weights: Tensor | None = None,
) -> Tensor:
    """The paper's loss, or one device's part of it; with the network's own in place of L_hr where it has one.

    Args:
        logits: What the network returns in training.
        labels: hr labels (B, H, W) and context labels (B, H', W'), of several contexts (B, N, H', W').
        normalizers: ``loss_normalizer`` of both over the whole batch, of several contexts (N,) of each; 0 stands for no
            labelled pixel and gives loss 0.
        alpha: Weight of the context head.
        weights: (K,) class weights, or None.
    """
    # Without a labelled pixel the sum is 0, and so must be the loss: 0 / 0 would make every weight NaN.
    if logits.loss is None:
        total = cross_entropy_sum(logits.hr, labels[0], weights)
    else:
        # A mean over this pass, which counts in the batch by its share of the labelled pixels.
        total = logits.loss * loss_normalizer(labels[0])
    loss = total / normalizers[0].clamp(min=torch.finfo().tiny)
    if logits.context is None or alpha == 0:
        return loss
    below = normalizers[1].clamp(min=torch.finfo().tiny)
    if logits.context.ndim == 4:
        return loss + alpha * cross_entropy_sum(logits.context, labels[1], weights) / below
    # The mean over contexts of the mean of each. One mean over all pixels would count least what reaches furthest out
    # of the scene, where labels end.
    each = zip(logits.context.unbind(1), labels[1].unbind(1), strict=True)
    sums = torch.stack([cross_entropy_sum(*one, weights) for one in each])
    return loss + alpha * (sums / below).mean()
