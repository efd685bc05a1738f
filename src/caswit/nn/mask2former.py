"""Mask2Former as a decoder (Cheng et al. 2022): queries find masks and their classes, instead of a class per pixel.

The pixel decoder, the transformer and the loss are those of transformers, on the maps of the four stages. In training
each class of an image is one mask, matched with the query that fits it best, after every layer of the transformer.
Pixels without a label are left out: no point of theirs is looked at, neither in the matching nor in the loss.

The rest of caswit wants logits of classes. The score of a class at a pixel is the sum over queries of its probability
times that of the mask there, as in the paper; normalised over classes and as logarithms these are logits, whose softmax
are the normalised scores.

Shapes: B batch, H/W rows and columns, K classes, Q queries, L layers with their own masks and classes, M masks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from transformers import Mask2FormerConfig
from transformers.models.mask2former import modeling_mask2former as parts

from caswit.config import IGNORE_INDEX, Norm
from caswit.config.nn import MASK2FORMER_STEP

EPS = 1e-6
"""Added to each score, so that a pixel that no mask claims has finite logits, all nearly the same."""


class Mask2FormerHead(nn.Module):
    """Pixel decoder, transformer and class predictor of Mask2Former.

    Args:
        in_channels: Channels of the stage maps, shallow to deep.
        channels: Width of the decoder, a multiple of 32; the paper's is 256.
        num_classes: K.
        norm: Has no effect: Mask2Former has group and layer norms only.
    """

    def __init__(self, in_channels: Sequence[int], *, channels: int, num_classes: int, norm: Norm = "group") -> None:
        super().__init__()
        config = mask2former_config(channels, num_classes)
        self.pixel_decoder = parts.Mask2FormerPixelDecoder(config, list(in_channels))
        self.transformer = parts.Mask2FormerTransformerModule(in_features=channels, config=config)
        self.class_predictor = nn.Linear(channels, num_classes + 1)  # the last one: no object
        # Some weights have no values yet: the library's models give them theirs.
        self.apply(parts.Mask2FormerPreTrainedModel(config)._init_weights)
        self.criterion = LabelledPointsLoss(config)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Merge the four stage maps, shallow to deep, into logits at the resolution of the first one."""
        masks, classes = self.predict(maps)
        return semantic_logits(masks[-1], classes[-1])

    def predict(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return for each of L layers the masks' logits (B, Q, h, w) and the classes' logits (B, Q, K + 1)."""
        # Positions that are sampled need more digits than bf16 has; the authors' pixel decoder is in fp32 too.
        device = maps[0].device.type
        with torch.autocast("cpu" if device == "meta" else device, enabled=False):
            pixels = self.pixel_decoder([x.float() for x in maps], output_hidden_states=False)
        found = self.transformer(pixels.multi_scale_features, pixels.mask_features, output_hidden_states=True)
        classes = [self.class_predictor(x.transpose(0, 1)) for x in found.intermediate_hidden_states]
        return list(found.masks_queries_logits), classes

    def with_loss(self, maps: Sequence[Tensor], label: Tensor) -> tuple[Tensor, Tensor]:
        """Return what ``forward`` does and the loss against labels (B, H, W): 0 where no pixel is labelled."""
        masks, classes = self.predict(maps)
        with torch.autocast(label.device.type, enabled=False):
            loss = self.criterion.of_layers([x.float() for x in masks], [x.float() for x in classes], label.long())
        return semantic_logits(masks[-1], classes[-1]), loss


def mask2former_config(channels: int, num_classes: int) -> Mask2FormerConfig:
    """Return the paper's settings at some width: 100 queries, six layers of pixel decoder, nine of transformer."""
    return Mask2FormerConfig(
        feature_size=channels,
        mask_feature_size=channels,
        hidden_dim=channels,
        encoder_feedforward_dim=4 * channels,
        dim_feedforward=8 * channels,
        num_attention_heads=channels // MASK2FORMER_STEP,
        num_labels=num_classes,
    )


def semantic_logits(masks: Tensor, classes: Tensor) -> Tensor:
    """Turn masks (B, Q, h, w) and classes (B, Q, K + 1), both logits, into logits (B, K, h, w) of the classes."""
    of_class = classes.float().softmax(-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", of_class, masks.float().sigmoid()) + EPS
    return scores.log() - scores.sum(1, keepdim=True).log()


class Points:
    """Where the images of a batch are looked at: anywhere, or at centres of labelled pixels if some have no label."""

    def __init__(self) -> None:
        self.labelled: list[Tensor | None] = []
        """Of each image (P, 2), x before y, 0..1; None: anywhere, as the library does."""

    def take(self, labels: Sequence[Tensor]) -> None:
        """Take the labels (H, W) of a batch."""
        self.labelled = [_centres(label) for label in labels]

    def draw(self, image: int, count: int, device: torch.device) -> Tensor:
        """Draw points (1, count, 2) of an image."""
        among = self.labelled[image]
        if among is None:
            return torch.rand(1, count, 2, device=device)
        return among[torch.randint(len(among), (1, count), device=device)]


def _centres(label: Tensor) -> Tensor | None:
    labelled = label != IGNORE_INDEX
    if bool(labelled.all()):
        return None
    rows, cols = labelled.nonzero(as_tuple=True)
    return torch.stack([(cols + 0.5) / label.shape[1], (rows + 0.5) / label.shape[0]], dim=1)


class LabelledMatcher(parts.Mask2FormerHungarianMatcher):  # type: ignore[misc]
    """The Hungarian matching of transformers, on points that have a label."""

    def __init__(self, points: Points, *, costs: Mapping[str, float], num_points: int) -> None:
        super().__init__(**{f"cost_{name}": cost for name, cost in costs.items()}, num_points=num_points)
        self.points = points

    @torch.no_grad()
    def forward(
        self, masks: Tensor, classes: Tensor, mask_labels: list[Tensor], class_labels: list[Tensor]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each image the queries that fit its masks best, and these masks."""
        pairs = []
        for i, targets in enumerate(mask_labels):
            at = self.points.draw(i, self.num_points, masks.device)
            wanted, given = (
                parts.sample_point(x[:, None], at.expand(len(x), -1, -1), align_corners=False).squeeze(1)
                for x in (targets, masks[i])
            )
            cost = (
                self.cost_mask * parts.pair_wise_sigmoid_cross_entropy_loss(given, wanted)
                - self.cost_class * classes[i].softmax(-1)[:, class_labels[i]]
                + self.cost_dice * parts.pair_wise_dice_loss(given, wanted)
            )
            # A loss that is no number is reported after the step; the matching must not fail before.
            rows, cols = linear_sum_assignment(cost.nan_to_num(1e9, 1e9, -1e9).cpu())
            pairs.append((torch.as_tensor(rows), torch.as_tensor(cols)))
        return pairs


class LabelledPointsLoss(parts.Mask2FormerLoss):  # type: ignore[misc]
    """The loss of transformers, on points that have a label. It has no weights that a model keeps."""

    def __init__(self, config: Mask2FormerConfig) -> None:
        costs = {"class": config.class_weight, "mask": config.mask_weight, "dice": config.dice_weight}
        super().__init__(config, {f"loss_{name}".replace("class", "cross_entropy"): w for name, w in costs.items()})
        self.register_buffer("empty_weight", self.empty_weight, persistent=False)
        self.points = Points()
        self.matcher = LabelledMatcher(self.points, costs=costs, num_points=config.train_num_points)
        self._image_of_mask: list[int] = []
        self._most_points = config.train_num_points

    def of_layers(self, masks: list[Tensor], classes: list[Tensor], label: Tensor) -> Tensor:
        """Return the weighted sum of the losses of all layers.

        Args:
            masks: L times (B, Q, h, w), logits.
            classes: L times (B, Q, K + 1), logits.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled; images without a label are left out.
        """
        used = [i for i, labels in enumerate(label) if bool((labels != IGNORE_INDEX).any())]
        if not used:
            return torch.stack([0 * x.sum() for x in (*masks, *classes)]).sum()
        found = [label[i].unique() for i in used]
        targets = [ids[ids != IGNORE_INDEX] for ids in found]
        target_masks = [(label[i] == ids[:, None, None]).float() for i, ids in zip(used, targets, strict=True)]
        self.points.take([label[i] for i in used])
        # The paper's 12544 points are 49/64 of a mask of its tiles, 512 px. Smaller tiles need no more than that share.
        height, width = masks[0].shape[-2:]
        self.num_points = self.matcher.num_points = min(self._most_points, max(1, height * width * 49 // 64))
        *layers, last = (
            {"masks_queries_logits": m[used], "class_queries_logits": c[used]}
            for m, c in zip(masks, classes, strict=True)
        )
        losses = self(**last, mask_labels=target_masks, class_labels=targets, auxiliary_predictions=layers)
        return torch.stack(
            [w * loss for name, loss in losses.items() for key, w in self.weight_dict.items() if key in name]
        ).sum()

    def loss_masks(self, masks_queries_logits: Tensor, mask_labels: Any, indices: Any, num_masks: Any) -> Any:
        """Return the losses of the matched masks, as the library does."""
        self._image_of_mask = [i for i, (queries, _) in enumerate(indices) for _ in queries]
        return super().loss_masks(masks_queries_logits, mask_labels, indices, num_masks)

    def sample_points_using_uncertainty(
        self,
        logits: Tensor,
        uncertainty_function: Any,
        num_points: int,
        oversample_ratio: float,
        importance_sample_ratio: float,
    ) -> Tensor:
        """Return (M, P, 2) points for masks (M, 1, h, w): most where a mask is undecided, the others at random."""
        if all(points is None for points in self.points.labelled):
            found: Tensor = super().sample_points_using_uncertainty(
                logits, uncertainty_function, num_points, oversample_ratio, importance_sample_ratio
            )
            return found
        undecided = int(importance_sample_ratio * num_points)

        def draw(count: int) -> Tensor:
            return torch.cat([self.points.draw(i, count, logits.device) for i in self._image_of_mask])

        offered = draw(int(num_points * oversample_ratio))
        doubt = uncertainty_function(parts.sample_point(logits, offered, align_corners=False))[:, 0]
        chosen = doubt.topk(undecided, dim=1).indices[..., None].expand(-1, -1, 2)
        return torch.cat([offered.gather(1, chosen), draw(num_points - undecided)], dim=1)
