"""CASWiT: a dual-branch Swin whose high-resolution branch reads its context stage by stage.

``CASWiT.forward`` follows figure 1 of the paper. Two encoders share nothing but their shape (section 3.2). After each
chosen stage every hr token reads all context tokens, and the fused map feeds both the decoder and the next hr stage.
The context branch has a head of its own that exists in training only (section 3.3).

Shapes: B batch, H/W rows and columns, C channels, K classes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import NUM_STAGES, Decoder, ModelConfig, Norm, Size, Stem
from caswit.errors import ModelError
from caswit.nn.decoders import SegformerHead, UPerNetHead
from caswit.nn.fusion import FusionBlock
from caswit.nn.swin import SwinEncoder

# Tiny to large are Swin's own sizes (Liu et al. 2021, table 7), with the decoder width that is usual for UPerNet.
# Windows of 12 tokens are what base and large were pretrained with, at 384 px. Nano is ours, for two CPU cores; pico is
# to nano what tiny is to base: three quarters of the width and about half the blocks.
_COLUMNS = ("embed_dim", "depths", "num_heads", "window_size", "decoder_channels")
_ROWS: dict[Size, tuple[Any, ...]] = {
    "pico": (24, (2, 2, 2, 2), (1, 2, 4, 8), 8, 96),
    "nano": (32, (2, 2, 4, 2), (1, 2, 4, 8), 8, 96),
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24), 7, 512),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24), 7, 512),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32), 12, 512),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48), 12, 512),
}
SIZES: dict[Size, dict[str, Any]] = {size: dict(zip(_COLUMNS, row, strict=True)) for size, row in _ROWS.items()}

HEADS: dict[Decoder, Callable[..., nn.Module]] = {"upernet": UPerNetHead, "segformer": SegformerHead}


class TrainingLogits(NamedTuple):
    """What a network returns in training: logits of both heads, or its own loss."""

    hr: Tensor
    """(B, K, H, W), at the resolution of the tile."""
    context: Tensor | None
    """(B, K, H', W'), at the resolution of the averaged context; None without a context head."""
    loss: Tensor | None = None
    """The loss of a network that has its own, a mean over labelled pixels; None: cross-entropy of the logits."""


class CASWiT(nn.Module):
    """The network of the paper. Defaults are those of ``ModelConfig``.

    Args:
        num_classes: K, the number of predicted classes; 0 builds the encoders and fusion only, for pretraining.
        size: "pico", "nano", "tiny", "small", "base" or "large"; both branches have it.
        stem: "patch" (the paper) or "conv".
        decoder: "upernet" or "segformer".
        fusion_stages: Stages (from 1) after which hr reads the context. An empty tuple builds no context
            branch: the Swin + UPerNet baseline.
        gated: Scale what fusion reads by a learned gate.
        feed_forward: Feed fused maps to the next hr stage, not only to the decoder.
        context_head: Build the head of the context branch, which is used in training only.
        decoder_channels: Width of the decoder; None takes the size's own.
        decoder_norm: "batch" or "group".
        drop_path: Highest stochastic-depth rate.
        mean: Mean of the three bands, 0-255.
        std: Standard deviation of the three bands, 0-255.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        size: Size = ModelConfig.size,
        stem: Stem = ModelConfig.stem,
        decoder: Decoder = ModelConfig.decoder,
        fusion_stages: tuple[int, ...] = ModelConfig.fusion_stages,
        gated: bool = ModelConfig.gated,
        feed_forward: bool = ModelConfig.feed_forward,
        context_head: bool = True,
        decoder_channels: int | None = ModelConfig.decoder_channels,
        decoder_norm: Norm = ModelConfig.decoder_norm,
        drop_path: float = ModelConfig.drop_path,
        mean: tuple[float, float, float] = ModelConfig.mean,
        std: tuple[float, float, float] = ModelConfig.std,
    ) -> None:
        super().__init__()
        # The settings class holds all checks of allowed values, so that they are not repeated here.
        ModelConfig(
            size=size,
            stem=stem,
            decoder=decoder,
            fusion_stages=tuple(fusion_stages),
            decoder_channels=decoder_channels,
            decoder_norm=decoder_norm,
            drop_path=drop_path,
            mean=mean,
            std=std,
        )
        numbers = SIZES[size] | {"stem": stem, "norm": decoder_norm}
        own_width = numbers.pop("decoder_channels")
        head = partial(
            HEADS[decoder], channels=decoder_channels or own_width, num_classes=num_classes, norm=decoder_norm
        )
        self.num_classes = num_classes
        self.fusion_stages = tuple(fusion_stages)
        self.feed_forward = feed_forward
        self.hr_encoder = SwinEncoder(**numbers, drop_path=drop_path)
        channels = self.hr_encoder.channels
        if num_classes:
            # Blocks normalise their inputs, so that the output of a stage is not normalised. Swin's own dense
            # prediction models put a layer norm on each map before the decoder; the paper does not mention it.
            self.hr_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
            self.decoder = head(channels)
        context_head = context_head and num_classes > 0
        self.context_encoder: SwinEncoder | None = None
        self.context_norms: nn.ModuleList | None = None
        self.context_decoder: nn.Module | None = None
        self.fusion = nn.ModuleDict()
        if self.fusion_stages:
            heads = numbers["num_heads"]
            self.fusion.update(
                {str(s): FusionBlock(channels[s - 1], heads[s - 1], gated=gated) for s in self.fusion_stages}
            )
            # Without its head, nothing uses the context branch beyond the last stage that hr reads.
            deepest = NUM_STAGES if context_head else self.fusion_stages[-1]
            self.context_encoder = SwinEncoder(**_shallow(numbers, deepest, drop_path))
            if context_head:
                self.context_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
                self.context_decoder = head(channels)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)

    @property
    def reads_context(self) -> bool:
        """True for a network with a context branch; the baseline takes the tile alone."""
        return self.context_encoder is not None

    @property
    def gates(self) -> dict[int, float]:
        """The gates tanh(g) by fusion stage, -1..1, of which 0 is closed; empty where fusion is not gated."""
        gates = {stage: self.fusion[str(stage)].gate for stage in self.fusion_stages}
        return {stage: float(g.detach().tanh()) for stage, g in gates.items() if isinstance(g, Tensor)}

    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor | TrainingLogits:
        """Label a batch of tiles.

        Args:
            hr: (B, 3, H, W) tiles, uint8 or floating point on the 0-255 scale.
            context: (B, 3, H', W'), the averaged context of each tile on the same scale. Ignored by the baseline.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode ``TrainingLogits``.

        Raises:
            ModelError: Wrong shape, number of bands, batch or type, or a missing context.
        """
        assert self.num_classes, "built for pretraining: there is no decoder"
        check_images(hr, context, self.reads_context)
        if context is None or self.context_encoder is None:
            return self._tile_alone(hr)
        x = self.hr_encoder.embed(self.normalise(hr))
        c = self.context_encoder.embed(self.normalise(context))
        hr_maps, context_maps = self.stages(x, c)
        logits = _decode(self.decoder, self.hr_norms, hr_maps, hr)
        if not self.training:
            return logits
        if self.context_decoder is None or self.context_norms is None:
            return TrainingLogits(logits, None)
        return TrainingLogits(logits, _decode(self.context_decoder, self.context_norms, context_maps, context))

    def _tile_alone(self, hr: Tensor) -> Tensor | TrainingLogits:
        """Label tiles with the baseline: one encoder and one decoder."""
        logits = _decode(self.decoder, self.hr_norms, self.hr_encoder(self.normalise(hr)), hr)
        return TrainingLogits(logits, None) if self.training else logits

    def stages(self, x: Tensor, c: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Advance both branches stage by stage from their embedded tokens.

        Returns:
            The hr map of every stage, fused where there is fusion, and the context maps that were needed.
        """
        assert self.context_encoder is not None, "the baseline has no context branch"
        # Only the context head, which exists in training, uses the context beyond the last fusion.
        last = NUM_STAGES if self.training and self.context_decoder is not None else max(self.fusion_stages)
        hr_maps: list[Tensor] = []
        context_maps: list[Tensor] = []
        for stage in range(1, NUM_STAGES + 1):
            x = self.hr_encoder.stage(stage - 1, x)
            if stage <= last:
                c = self.context_encoder.stage(stage - 1, c)
                context_maps.append(c)
            fused = self.fusion[str(stage)](x, c) if stage in self.fusion_stages else x
            hr_maps.append(fused)
            # The paper does not say what the next stage reads. Only with the fused map is the fusion of the first
            # stages trained in pretraining, whose head sees the last map alone (docs/decisions/0004).
            x = fused if self.feed_forward else x
        return hr_maps, context_maps

    def normalise(self, image: Tensor) -> Tensor:
        """Scale pixels of 0-255 to zero mean and unit deviation, in which encoders and reconstruction work."""
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Recompute the encoders' activations in the backward pass."""
        self.hr_encoder.checkpoint_gradients(enable)
        if self.context_encoder is not None:
            self.context_encoder.checkpoint_gradients(enable)


def _shallow(numbers: dict[str, Any], stages: int, drop_path: float) -> dict[str, Any]:
    """Return the settings of an encoder that has only the first stages."""
    depths = numbers["depths"]
    # Drop rates rise linearly over the blocks of a whole encoder, up to drop_path. The blocks that are kept must have
    # the same rates as there, so the highest rate of the shorter encoder is the one its last block would have.
    ramp = (sum(depths[:stages]) - 1) / (sum(depths) - 1)
    kept = {"depths": depths[:stages], "num_heads": numbers["num_heads"][:stages]}
    return numbers | kept | {"drop_path": drop_path * ramp}


def _decode(decoder: nn.Module, norms: nn.ModuleList, maps: list[Tensor], image: Tensor) -> Tensor:
    """Turn the channels-last maps of one branch into logits at the resolution of its image."""
    normed = [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms, maps, strict=True)]
    return F.interpolate(decoder(normed), size=image.shape[-2:], mode="bilinear", align_corners=False)


def check_image(name: str, image: Tensor) -> None:
    """Raise ModelError unless an image is (B, 3, H, W), uint8 or floating point."""
    shape = tuple(image.shape)
    if image.ndim != 4:
        raise ModelError(f"{name} must be (B, 3, H, W), got {shape}; one image (3, H, W) becomes a batch with [None]")
    if shape[1] != 3:
        hint = "move the bands to axis 1 with permute(0, 3, 1, 2)" if shape[3] == 3 else "select three bands"
        raise ModelError(f"{name} must have 3 bands on axis 1, got {shape}; {hint}")
    if 0 in shape:
        raise ModelError(f"{name} is empty: {shape}; every side must be at least 1")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ModelError(
            f"{name} must be uint8 or floating point on the 0-255 scale, got {image.dtype}; "
            "16-bit imagery must be rescaled to 0-255 first"
        )


def check_images(hr: Tensor, context: Tensor | None, reads_context: bool) -> None:
    """Raise ModelError unless a network can be called with these images."""
    check_image("hr", hr)
    if not reads_context:
        return
    if context is None:
        raise ModelError(
            "this model needs a context image: call model(hr, context) with a context (B, 3, H', W'); "
            "a model built with fusion_stages=() takes the tile alone"
        )
    check_image("context", context)
    if context.shape[0] != hr.shape[0]:  # len() would make the batch a constant where the network is exported
        raise ModelError(f"hr and context must be one batch, got {len(hr)} and {len(context)} images")
