"""CASWiT: a dual-branch Swin whose high-resolution branch reads its context stage by stage.

``CASWiT.forward`` follows figure 1 of the paper. Two encoders share nothing but their shape (section 3.2). After each
chosen stage every hr token reads all context tokens, and the fused map feeds both the decoder and the next hr stage.
The context branch has a head of its own that exists in training only (section 3.3).

The paper's network has one context. With several, of different width, one context encoder and one context head see them
all, each as an image of its own, and every hr token reads the tokens of all.

Shapes: B batch, n bands, N contexts, H/W rows and columns, C channels, K classes.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

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


def _mask2former(*args: Any, **settings: Any) -> nn.Module:
    from caswit.nn.mask2former import Mask2FormerHead  # takes transformers along, which few need

    return Mask2FormerHead(*args, **settings)


HEADS: dict[Decoder, Callable[..., nn.Module]] = {
    "upernet": UPerNetHead,
    "segformer": SegformerHead,
    "mask2former": _mask2former,
}


def decoder_width(settings: ModelConfig) -> int:
    """Return the width of the decoder: what the settings say, or the size's own."""
    if settings.decoder_channels is not None:
        return settings.decoder_channels
    if settings.decoder == "mask2former":
        return 64 if settings.size in ("pico", "nano") else 256  # the paper's, whatever the encoder
    width: int = SIZES[settings.size]["decoder_channels"]
    return width


NEARLY_CLOSED = 0.05
"""A gate tanh(g) below this, either way, adds next to nothing of what its stage reads."""


def gates_in_words(gates: Mapping[int, float]) -> str:
    """Return what is said of the gates tanh(g) by fusion stage, and of those that are nearly closed."""
    said = "gates tanh(g): " + ", ".join(f"stage {stage} {gate:.3f}" for stage, gate in gates.items())
    closed = [str(stage) for stage, gate in gates.items() if abs(gate) < NEARLY_CLOSED]
    if not closed:
        return said
    many = "s" if closed[1:] else ""
    return f"{said}; nearly closed: stage{many} {', '.join(closed)}; little of what is read there counts"


class TrainingLogits(NamedTuple):
    """What a network returns in training: logits of both heads, and the loss of the first one if it has its own."""

    hr: Tensor
    """(B, K, H, W), at the resolution of the tile."""
    context: Tensor | None
    """(B, K, H', W'), at the resolution of the averaged context, of several contexts (B, N, K, H', W'); None without a
    context head."""
    loss: Tensor | None = None
    """The loss of a network that has its own, a mean over labelled pixels; None: cross-entropy of the logits."""


class CASWiT(nn.Module):
    """The network of the paper. Defaults are those of ``ModelConfig``.

    Args:
        num_classes: K, the number of predicted classes; 0 builds the encoders and fusion only, for pretraining.
        size: "pico", "nano", "tiny", "small", "base" or "large"; both branches have it.
        stem: "patch" (the paper) or "conv".
        decoder: "upernet", "segformer" or "mask2former", which has a loss of its own.
        fusion_stages: Stages (from 1) after which hr reads the context. An empty tuple builds no context
            branch: the Swin + UPerNet baseline.
        gated: Scale what fusion reads by a learned gate.
        feed_forward: Feed fused maps to the next hr stage, not only to the decoder.
        context_head: Build the head of the context branch, which is used in training only.
        contexts: N, the number of contexts that it reads.
        decoder_channels: Width of the decoder; None takes the size's own.
        decoder_norm: "batch" or "group".
        drop_path: Highest stochastic-depth rate.
        mean: Mean of each band, 0-255; it has n numbers for images of n bands.
        std: Standard deviation of each band, 0-255.
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
        contexts: int = 1,
        decoder_channels: int | None = ModelConfig.decoder_channels,
        decoder_norm: Norm = ModelConfig.decoder_norm,
        drop_path: float = ModelConfig.drop_path,
        mean: tuple[float, ...] = ModelConfig.mean,
        std: tuple[float, ...] = ModelConfig.std,
    ) -> None:
        super().__init__()
        # The settings class holds all checks of allowed values, so that they are not repeated here.
        settings = ModelConfig(
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
        self.bands = len(mean)
        numbers = SIZES[size] | {"stem": stem, "norm": decoder_norm, "bands": self.bands}
        del numbers["decoder_channels"]
        head = {"channels": decoder_width(settings), "num_classes": num_classes, "norm": decoder_norm}
        self.num_classes = num_classes
        self.fusion_stages = tuple(fusion_stages)
        self.feed_forward = feed_forward
        self.contexts = contexts
        self.frozen_stages, self.frozen_norms = 0, False
        self.hr_encoder = SwinEncoder(**numbers, drop_path=drop_path)
        channels = self.hr_encoder.channels
        if num_classes:
            # Blocks normalise their inputs, so that the output of a stage is not normalised. Swin's own dense
            # prediction models put a layer norm on each map before the decoder; the paper does not mention it.
            self.hr_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
            self.decoder = HEADS[decoder](channels, **head)
        context_head = context_head and num_classes > 0
        self.context_encoder: SwinEncoder | None = None
        self.context_norms: nn.ModuleList | None = None
        self.context_decoder: nn.Module | None = None
        self.fusion = nn.ModuleDict()
        if self.fusion_stages:
            heads = numbers["num_heads"]
            fused = partial(FusionBlock, gated=gated, contexts=contexts)
            self.fusion.update({str(s): fused(channels[s - 1], heads[s - 1]) for s in self.fusion_stages})
            # Without its head, nothing uses the context branch beyond the last stage that hr reads.
            deepest = NUM_STAGES if context_head else self.fusion_stages[-1]
            self.context_encoder = SwinEncoder(**_shallow(numbers, deepest, drop_path))
            if context_head:
                self.context_norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
                # Matching masks takes as long again for a head that only helps training: UPerNet learns by the
                # cross-entropy that the paper has for it, and takes less memory than ten layers of masks.
                self.context_decoder = HEADS["upernet" if decoder == "mask2former" else decoder](channels, **head)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1), persistent=False)

    @property
    def reads_context(self) -> bool:
        """True for a network with a context branch; the baseline takes the tile alone."""
        return self.context_encoder is not None

    @property
    def gates(self) -> dict[int, float]:
        """The gates tanh(g) by fusion stage, -1..1, of which 0 is closed; empty where fusion is not gated."""
        gates = {stage: self.fusion[str(stage)].gate for stage in self.fusion_stages}
        return {stage: float(g.detach().tanh()) for stage, g in gates.items() if isinstance(g, Tensor)}

    def forward(
        self, hr: Tensor, context: Tensor | None = None, label: Tensor | None = None
    ) -> Tensor | TrainingLogits:
        """Label a batch of tiles.

        Args:
            hr: (B, n, H, W) tiles of n bands, uint8 or floating point on the 0-255 scale.
            context: (B, n, H', W'), the averaged context of each tile on the same scale; several contexts, narrowest
                first, are (B, N, n, H', W'). Ignored by the baseline.
            label: (B, H, W) class indices to learn, for a decoder with a loss of its own; None outside of training.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode ``TrainingLogits``.

        Raises:
            ModelError: Wrong shape, number of bands, batch or type, or a missing context.
        """
        assert self.num_classes, "built for pretraining: there is no decoder"
        check_images(hr, context, self.contexts if self.reads_context else 0, self.bands)
        if context is None or self.context_encoder is None:
            return self._tile_alone(hr, label)
        context = self.each_context(context)
        x = self.hr_encoder.embed(self.normalise(hr))
        c = self.context_encoder.embed(self.normalise(context))
        hr_maps, context_maps = self.stages(x, c)
        if not self.training:
            return _decode(self.decoder, self.hr_norms, hr_maps, hr)
        logits, loss = self._learn(hr_maps, hr, label)
        if self.context_decoder is None or self.context_norms is None:
            return TrainingLogits(logits, None, loss)
        seen = _decode(self.context_decoder, self.context_norms, context_maps, context)
        return TrainingLogits(logits, seen.unflatten(0, (-1, self.contexts)) if self.contexts > 1 else seen, loss)

    def _tile_alone(self, hr: Tensor, label: Tensor | None) -> Tensor | TrainingLogits:
        """Label tiles with the baseline: one encoder and one decoder."""
        maps = self.hr_encoder(self.normalise(hr))
        if not self.training:
            return _decode(self.decoder, self.hr_norms, maps, hr)
        logits, loss = self._learn(maps, hr, label)
        return TrainingLogits(logits, None, loss)

    def _learn(self, maps: list[Tensor], hr: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Decode in training: logits, and the loss of a decoder that has its own."""
        # Here and not in the task: data parallelism must see every weight that the loss reads.
        learn = getattr(self.decoder, "with_loss", None)
        if learn is None or label is None:
            return _decode(self.decoder, self.hr_norms, maps, hr), None
        logits, loss = learn(_normed(self.hr_norms, maps), label)
        return _enlarged(logits, hr), loss

    def each_context(self, context: Tensor) -> Tensor:
        """Return contexts as a batch of images: (B, N, n, H', W') -> (B N, n, H', W'); of one context as they are."""
        return context.flatten(0, 1) if self.contexts > 1 else context

    def stages(self, x: Tensor, c: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Advance both branches stage by stage from their embedded tokens.

        Args:
            x: (B, H, W, C) of tiles.
            c: (B N, H', W', C) of the batch that ``each_context`` returns.

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
            fused = self.fusion[str(stage)](x, self._stacked(c)) if stage in self.fusion_stages else x
            hr_maps.append(fused)
            # The paper does not say what the next stage reads. Only with the fused map is the fusion of the first
            # stages trained in pretraining, whose head sees the last map alone (docs/decisions/0004).
            x = fused if self.feed_forward else x
        return hr_maps, context_maps

    def _stacked(self, c: Tensor) -> Tensor:
        """Put the maps of a tile's contexts one under another: (B N, H', W', C) -> (B, N H', W', C)."""
        return c.unflatten(0, (-1, self.contexts)).flatten(1, 2) if self.contexts > 1 else c

    def normalise(self, image: Tensor) -> Tensor:
        """Scale pixels of 0-255 to zero mean and unit deviation, in which encoders and reconstruction work."""
        return (image.to(self.mean.dtype) - self.mean) / self.std

    def freeze(self, stages: int, *, norms: bool = False) -> None:
        """Keep the weights of the stem and of the first stages of both encoders, and their batch norms, as they are.

        Args:
            stages: Number of stages; 0 keeps none, and no stem.
            norms: Keep the running statistics of all batch norms too.
        """
        self.frozen_stages, self.frozen_norms = stages, norms
        for part in self._frozen():
            part.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        # Otherwise batch norms of a stem would follow the images, and stochastic depth would drop what cannot adapt.
        for part in self._frozen():
            part.eval()
        for part in self.modules() if self.frozen_norms else ():
            if isinstance(part, _BatchNorm):
                part.eval()
        return self

    def _frozen(self) -> Iterator[nn.Module]:
        encoders = [e for e in (self.hr_encoder, self.context_encoder) if e is not None and self.frozen_stages]
        for encoder in encoders:
            yield encoder.patch_embed
            yield from encoder.layers[: self.frozen_stages]

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
    return _enlarged(decoder(_normed(norms, maps)), image)


def _normed(norms: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    return [norm(x).permute(0, 3, 1, 2) for norm, x in zip(norms, maps, strict=True)]


def _enlarged(logits: Tensor, image: Tensor) -> Tensor:
    return F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)


def check_image(name: str, image: Tensor, bands: int = 3) -> None:
    """Raise ModelError unless an image is (B, n, H, W) of so many bands, uint8 or floating point."""
    shape = tuple(image.shape)
    if image.ndim != 4:
        raise ModelError(
            f"{name} must be (B, {bands}, H, W), got {shape}; one image ({bands}, H, W) becomes a batch with [None]"
        )
    if shape[1] != bands:
        count = {1: "one", 2: "two", 3: "three"}.get(bands, bands)
        select = f"select {count} band{'s' * (bands != 1)}"
        hint = "move the bands to axis 1 with permute(0, 3, 1, 2)" if shape[3] == bands else select
        raise ModelError(f"{name} must have {bands} band{'s' * (bands != 1)} on axis 1, got {shape}; {hint}")
    if 0 in shape:
        raise ModelError(f"{name} is empty: {shape}; every side must be at least 1")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ModelError(
            f"{name} must be uint8 or floating point on the 0-255 scale, got {image.dtype}; "
            "16-bit imagery must be rescaled to 0-255 first"
        )


def check_images(hr: Tensor, context: Tensor | None, contexts: int, bands: int = 3) -> None:
    """Raise ModelError unless a network that reads so many contexts and bands can be called with these images."""
    check_image("hr", hr, bands)
    if not contexts:
        return
    expected = f"(B, {bands}, H', W')" if contexts == 1 else f"(B, {contexts}, {bands}, H', W')"
    if context is None:
        raise ModelError(
            f"this model needs a context image: call model(hr, context) with a context {expected}; "
            "a model built with fusion_stages=() takes the tile alone"
        )
    if contexts > 1 and (context.ndim != 5 or context.shape[1] != contexts):
        raise ModelError(
            f"this model reads {contexts} contexts, narrowest first: context must be {expected}, "
            f"got {tuple(context.shape)}"
        )
    check_image("context", context[:, 0] if contexts > 1 else context, bands)
    if context.shape[0] != hr.shape[0]:  # len() would make the batch a constant where the network is exported
        raise ModelError(f"hr and context must be one batch, got {len(hr)} and {len(context)} images")
