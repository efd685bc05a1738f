"""The supervised loss (paper section 3.4): L = L_hr + alpha * L_context, both cross-entropies, or what takes its place.

The paper divides by all pixels. Here pixels without a label are left out of the sum and of its divisor, which are
computed apart: a batch that is split over devices and passes then has exactly the loss of the whole batch, whatever
share of the pixels of each part is labelled. So every loss here is a mean over something that the labels alone decide:
over labelled pixels (``CrossEntropy``, ``Focal``), over the hardest of them in each tile (``Ohem``), or over the tiles
that have a label (``Dice``, ``Lovasz``). A Dice loss of a whole batch could not be shared out: it is no sum over parts.

Shapes: B tiles, K classes, H/W rows and columns.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import naming_extras
from caswit.nn.caswit import TrainingLogits


class Loss(Protocol):
    """A mean over a batch that may come in parts: sums of the parts, by the sum of their divisors."""

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over a part of a batch: logits (B, K, H, W), class indices (B, H, W), some IGNORE_INDEX."""

    def divisor(self, label: Tensor) -> Tensor:
        """Return what the sum of a part adds to the divisor: a number that follows from the labels (B, H, W) alone."""


def cross_entropy_sum(
    logits: Tensor, label: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy summed over labelled pixels.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        weights: (K,) class weights, or None.
        label_smoothing: Share of each pixel that is spread over all classes.
    """
    # Under autocast logits are bf16, in which a sum over all pixels of a batch would lose most of its digits.
    return F.cross_entropy(
        logits.float(),
        label.long(),
        weights,
        ignore_index=IGNORE_INDEX,
        reduction="sum",
        label_smoothing=label_smoothing,
    )


def loss_normalizer(label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the divisor of a cross-entropy sum: labelled pixels, or the sum of their weights."""
    labelled = label != IGNORE_INDEX
    if weights is None:
        return labelled.sum().float()
    # Dividing by the weights, as torch's weighted mean does, keeps the scale of the loss.
    return weights[label[labelled].long()].sum()


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross-entropy of labelled pixels, each with the weight of its class."""

    weights: Tensor | None = None
    """(K,) class weights."""
    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over labelled pixels."""
        return cross_entropy_sum(logits, label, self.weights, self.label_smoothing)

    def divisor(self, label: Tensor) -> Tensor:
        """Return the labelled pixels, or the sum of their weights."""
        return loss_normalizer(label, self.weights)


@dataclass(frozen=True)
class Focal:
    """The focal loss (arXiv 1708.02002): cross-entropy times (1 - p)^gamma, p the probability of the true class."""

    gamma: float
    weights: Tensor | None = None

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over labelled pixels."""
        # That of segmentation_models_pytorch knows no ignored pixels, or takes each class apart by a sigmoid.
        entropy = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE_INDEX, reduction="none")
        # Where p is 1 the power's slope is infinite for gamma below 1, and times 0 it is no number.
        missing = (1 - (-entropy).exp()).clamp(min=torch.finfo().eps)
        loss = missing**self.gamma * entropy  # 0 where there is no label
        if self.weights is not None:
            loss = loss * self.weights[label.long().where(label != IGNORE_INDEX, 0)]
        return loss.sum()

    def divisor(self, label: Tensor) -> Tensor:
        """Return the labelled pixels, or the sum of their weights."""
        return loss_normalizer(label, self.weights)


@dataclass(frozen=True)
class Ohem:
    """The mean cross-entropy of the hardest pixels of each tile (online hard example mining).

    A share of the labelled pixels and not those above a threshold, whose number is known only once all parts of a
    batch are computed.
    """

    share: float
    """Part of a tile's labelled pixels that counts, rounded up to whole pixels."""
    weights: Tensor | None = None
    label_smoothing: float = 0.0

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the hardest pixels of each tile."""
        total = 0 * logits.float().sum()
        for scores, truth in zip(logits, label, strict=True):
            labelled = truth != IGNORE_INDEX
            if not labelled.any():
                continue
            loss = F.cross_entropy(
                scores.float()[:, labelled].T,
                truth[labelled].long(),
                self.weights,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            total = total + loss.topk(self._kept(len(loss))).values.sum()
        return total

    def divisor(self, label: Tensor) -> Tensor:
        """Return the pixels that are kept, or the sum of weights of as many average ones."""
        total = torch.zeros((), device=label.device)
        for truth in label:
            pixels = int((truth != IGNORE_INDEX).sum())
            if pixels:
                total = total + loss_normalizer(truth, self.weights) * (self._kept(pixels) / pixels)
        return total

    def _kept(self, pixels: int) -> int:
        # Rounded first: 0.07 * 100 is more than 7 in floating point.
        return math.ceil(round(self.share * pixels, 6))


class _OfTiles:
    """A mean over the tiles that have a label, of a loss of segmentation_models_pytorch."""

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum over the tiles that have a label."""
        total = 0 * logits.float().sum()
        for scores, truth in zip(logits.float(), label.long(), strict=True):
            present = truth[truth != IGNORE_INDEX].unique()
            if len(present):
                total = total + self.of_tile(scores[None], truth[None], present)
        return total

    def divisor(self, label: Tensor) -> Tensor:
        """Return the number of tiles that have a label."""
        return (label != IGNORE_INDEX).flatten(1).any(1).sum().float()

    def of_tile(self, logits: Tensor, label: Tensor, present: Tensor) -> Tensor:
        """Return the loss of a tile: logits (1, K, H, W), labels (1, H, W), the classes that it has."""
        raise NotImplementedError


class Dice(_OfTiles):
    """The Dice loss of a tile: 1 - 2 |P T| / (|P| + |T|), the mean over the classes that it has."""

    def __init__(self) -> None:
        self._losses = _losses_of_smp("dice")

    def of_tile(self, logits: Tensor, label: Tensor, present: Tensor) -> Tensor:
        """Return the loss of a tile."""
        loss: Tensor = self._losses.DiceLoss("multiclass", classes=present, ignore_index=IGNORE_INDEX)(logits, label)
        return loss


class Lovasz(_OfTiles):
    """The Lovasz-softmax loss of a tile (arXiv 1705.08790), which stands for its IoU: the mean over its classes."""

    def __init__(self) -> None:
        self._loss = _losses_of_smp("lovasz").LovaszLoss("multiclass", ignore_index=IGNORE_INDEX)

    def of_tile(self, logits: Tensor, label: Tensor, present: Tensor) -> Tensor:
        """Return the loss of a tile."""
        loss: Tensor = self._loss(logits, label)
        return loss


@dataclass(frozen=True)
class Adjusted:
    """A loss of logits to which something is added: by it a network learns from labels of other class shares.

    Logit adjustment (Menon et al. 2021, arXiv 2007.07314, equation 10).
    """

    loss: Loss
    offsets: Tensor
    """(K,) added to the logits."""

    def total(self, logits: Tensor, label: Tensor) -> Tensor:
        """Return the sum of the loss over a part of a batch."""
        return self.loss.total(logits.float() + self.offsets[:, None, None], label)

    def divisor(self, label: Tensor) -> Tensor:
        """Return what the sum of a part adds to the divisor."""
        return self.loss.divisor(label)


def _losses_of_smp(name: str) -> Any:
    with naming_extras(f"train.loss: {name}"):
        from segmentation_models_pytorch import losses
    return losses


def named_losses(
    wanted: Mapping[str, float],
    *,
    weights: Tensor | None = None,
    offsets: Tensor | None = None,
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_share: float = 0.25,
) -> tuple[tuple[float, Loss], ...]:
    """Return losses by their names, each with its weight in the sum.

    Args:
        wanted: Name of a loss -> its weight.
        weights: (K,) class weights, or None. Dice and Lovasz, which are means over classes, do not take them.
        offsets: (K,) added to the logits, or None.
        label_smoothing: Of cross-entropy and of that of the hardest pixels.
        focal_gamma: Power of the focal loss.
        ohem_share: Part of the pixels that are the hardest.

    Raises:
        CaswitError: A package that has a loss is not installed.
    """

    def made(name: str) -> Loss:
        match name:
            case "cross_entropy":
                return CrossEntropy(weights, label_smoothing)
            case "focal":
                return Focal(focal_gamma, weights)
            case "ohem":
                return Ohem(ohem_share, weights, label_smoothing)
            case "dice":
                return Dice()
            case "lovasz":
                return Lovasz()
        raise AssertionError(name)

    def adjusted(loss: Loss) -> Loss:
        return loss if offsets is None else Adjusted(loss, offsets)

    return tuple((share, adjusted(made(name))) for name, share in wanted.items())


def supervised_loss(
    logits: TrainingLogits,
    labels: tuple[Tensor, Tensor],
    normalizers: tuple[Tensor, Tensor],
    *,
    alpha: float,
    loss: Loss | None = None,
) -> Tensor:
    """The paper's loss, or one device's part of it; with the network's own in place of L_hr where it has one.

    Args:
        logits: What the network returns in training.
        labels: hr labels (B, H, W) and context labels (B, H', W'), of several contexts (B, N, H', W').
        normalizers: Divisors of both over the whole batch, of several contexts (N,) of each; 0 stands for no labelled
            pixel and gives loss 0.
        alpha: Weight of the context head, which learns by the same loss.
        loss: What both heads learn by; None: the paper's cross-entropy, without weights.
    """
    term = CrossEntropy() if loss is None else loss
    # Without a labelled pixel the sum is 0, and so must be the loss: 0 / 0 would make every weight NaN.
    if logits.loss is None:
        total = term.total(logits.hr, labels[0])
    else:
        # A mean over this pass, which counts in the batch by its share of the labelled pixels.
        total = logits.loss * loss_normalizer(labels[0])
    of_tile = total / normalizers[0].clamp(min=torch.finfo().tiny)
    if logits.context is None or alpha == 0:
        return of_tile
    below = normalizers[1].clamp(min=torch.finfo().tiny)
    if logits.context.ndim == 4:
        return of_tile + alpha * term.total(logits.context, labels[1]) / below
    # The mean over contexts of the mean of each. One mean over all pixels would count least what reaches furthest out
    # of the scene, where labels end.
    each: Iterator[Any] = zip(logits.context.unbind(1), labels[1].unbind(1), strict=True)
    sums = torch.stack([term.total(*one) for one in each])
    return of_tile + alpha * (sums / below).mean()
