"""CASWiT: a dual-branch Swin whose high-resolution branch reads its surroundings stage by stage.

What is unusual here: two encoders that share nothing but their shape; after each chosen stage every hr token
reads all context tokens; the fused map feeds the next hr stage; the context branch has a head of its own in
training only. ``forward`` reads like the paper's figure 1.

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

# Swin's own sizes (Liu et al. 2021, table 7); nano is ours, for two CPU cores; pico is to
# nano what tiny is to base (three quarters of the width, about half the blocks). Window 12 is what base and
# large were pretrained with at 384 px. decoder_channels 512 is UPerNet's usual width.
SIZES: dict[Size, dict[str, Any]] = {
    "pico": {
        "embed_dim": 24,
        "depths": (2, 2, 2, 2),
        "num_heads": (1, 2, 4, 8),
        "window_size": 8,
        "decoder_channels": 96,
    },
    "nano": {
        "embed_dim": 32,
        "depths": (2, 2, 4, 2),
        "num_heads": (1, 2, 4, 8),
        "window_size": 8,
        "decoder_channels": 96,
    },
    "tiny": {
        "embed_dim": 96,
        "depths": (2, 2, 6, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
        "decoder_channels": 512,
    },
    "small": {
        "embed_dim": 96,
        "depths": (2, 2, 18, 2),
        "num_heads": (3, 6, 12, 24),
        "window_size": 7,
        "decoder_channels": 512,
    },
    "base": {
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
        "window_size": 12,
        "decoder_channels": 512,
    },
    "large": {
        "embed_dim": 192,
        "depths": (2, 2, 18, 2),
        "num_heads": (6, 12, 24, 48),
        "window_size": 12,
        "decoder_channels": 512,
    },
}

HEADS: dict[Decoder, Callable[..., nn.Module]] = {"upernet": UPerNetHead, "segformer": SegformerHead}


class TrainingLogits(NamedTuple):
    """What the network returns in training."""

    hr: Tensor
    """(B, K, H, W), at the resolution of the tile."""
    context: Tensor | None
    """(B, K, H', W'), at the resolution of the averaged context; None without a context head."""


class CASWiT(nn.Module):
    """The network of the paper. Defaults are those of ``ModelConfig``.

    Args:
        num_classes: K, the classes it can predict; 0 builds the encoders and fusion only, for pretraining.
        size: "pico", "nano", "tiny", "small", "base" or "large"; both branches have it.
        stem: "patch" (the paper) or "conv".
        decoder: "upernet" or "segformer".
        fusion_stages: Stages (from 1) after which hr reads the context. None at all means no context
            branch: the Swin + UPerNet baseline.
        gated: Scale what is read by a learned gate.
        feed_forward: Fused maps feed the next hr stage, not only the decoder.
        context_head: Build the context branch's own head, which exists for training only.
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
        # One place knows which settings there are; asking it refuses the others.
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
            # Stage outputs of a pre-norm transformer are not normalised; the decoder wants them so.
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
            # Without its head, the context branch is needed only as deep as hr reads from it.
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
        """False for the baseline, which takes the tile alone."""
        return self.context_encoder is not None

    def forward(self, hr: Tensor, context: Tensor | None = None) -> Tensor | TrainingLogits:
        """Label a batch of tiles.

        Args:
            hr: (B, 3, H, W), uint8 or floating point on the 0-255 scale.
            context: (B, 3, H', W'), likewise: the surroundings, averaged. Ignored by the baseline.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode ``TrainingLogits``.

        Raises:
            ModelError: Wrong shape, number of bands, batch or type, or a missing context.
        """
        assert self.num_classes, "built for pretraining: there is no decoder"
        check_images(hr, context, self.reads_context)
        x = self.hr_encoder.embed(self.normalise(hr))
        c = None
        if self.context_encoder is not None:
            assert context is not None  # checked
            c = self.context_encoder.embed(self.normalise(context))
        hr_maps, context_maps = self.stages(x, c)
        logits = _upsample(self.decoder(_normed(self.hr_norms, hr_maps)), hr)
        if not self.training:
            return logits
        if context is None or self.context_decoder is None or self.context_norms is None:
            return TrainingLogits(logits, None)
        context_logits = self.context_decoder(_normed(self.context_norms, context_maps))
        return TrainingLogits(logits, _upsample(context_logits, context))

    def stages(self, x: Tensor, c: Tensor | None) -> tuple[list[Tensor], list[Tensor]]:
        """Advance both branches stage by stage; returns the fused hr maps and the context maps."""
        hr_maps: list[Tensor] = []
        context_maps: list[Tensor] = []
        # At inference nothing looks at the context beyond the last fusion.
        heads_needed = self.training and self.context_decoder is not None
        last_context = NUM_STAGES if heads_needed else max(self.fusion_stages, default=0)
        for stage in range(1, NUM_STAGES + 1):
            x = self.hr_encoder.stage(stage - 1, x)
            fused = x
            if self.context_encoder is not None and c is not None and stage <= last_context:
                c = self.context_encoder.stage(stage - 1, c)
                context_maps.append(c)
                if stage in self.fusion_stages:
                    fused = self.fusion[str(stage)](x, c)
            hr_maps.append(fused)
            x = fused if self.feed_forward else x
        return hr_maps, context_maps

    def normalise(self, image: Tensor) -> Tensor:
        """Pixels on the 0-255 scale -> what the encoders and the reconstruction work with, same shape."""
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Recompute the encoders' activations in the backward pass."""
        self.hr_encoder.checkpoint_gradients(enable)
        if self.context_encoder is not None:
            self.context_encoder.checkpoint_gradients(enable)


def _shallow(numbers: dict[str, Any], stages: int, drop_path: float) -> dict[str, Any]:
    """Settings of an encoder of the first stages only, whose blocks drop as often as in the whole one."""
    depths = numbers["depths"]
    ramp = (sum(depths[:stages]) - 1) / (sum(depths) - 1)
    kept = {"depths": depths[:stages], "num_heads": numbers["num_heads"][:stages]}
    return numbers | kept | {"drop_path": drop_path * ramp}


def _normed(norms: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    """Channels-last maps -> layer-normed (B, C, H, W) maps for the decoder."""
    return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms, maps, strict=True)]


def _upsample(logits: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


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
    """Raise ModelError unless a network can be called with these."""
    check_image("hr", hr)
    if not reads_context:
        return
    if context is None:
        raise ModelError(
            "this model reads its surroundings: call model(hr, context) with a context image "
            "(B, 3, H', W'); a model built with fusion_stages=() takes the tile alone"
        )
    check_image("context", context)
    if context.shape[0] != hr.shape[0]:  # len() would make the batch a constant where the network is exported
        raise ModelError(f"hr and context must be one batch, got {len(hr)} and {len(context)} images")
