"""CASWiT as one would assemble it today: transformers' Swin and UPerNet head, torch's MultiheadAttention, same weights.

Only where windows divide every stage are its numbers ours: transformers pads before it shifts, timm after. The
arithmetic is the same at every size.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SwinConfig, SwinModel, UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetHead

from caswit.nn.caswit import CASWiT
from caswit.nn.decoders import POOL_SCALES


class Fusion(nn.Module):
    """The paper's fusion, around torch's own attention."""

    def __init__(self, channels: int, heads: int, gated: bool) -> None:
        super().__init__()
        self.norm_hr, self.norm_context = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.gate = nn.Parameter(torch.zeros(())) if gated else None
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, hr: Tensor, context: Tensor) -> Tensor:
        """(B, N, C), (B, M, C) -> (B, N, C)."""
        others = self.norm_context(context)
        read, _ = self.attention(self.norm_hr(hr), others, others, need_weights=False)
        hr = hr + (read if self.gate is None else self.gate.tanh() * read)
        return hr + self.mlp(hr)


class Branch(nn.Module):
    """A Swin that stops after every stage, the norms of its maps and a head."""

    def __init__(self, swin: SwinConfig, head: UperNetConfig, image_mean: Tensor, image_std: Tensor) -> None:
        super().__init__()
        channels = [swin.embed_dim * 2**i for i in range(len(swin.depths))]
        self.swin = SwinModel(swin, add_pooling_layer=False)
        self.norms = nn.ModuleList(nn.LayerNorm(c) for c in channels)
        self.head = UperNetHead(head, channels)
        self.register_buffer("mean", image_mean)
        self.register_buffer("std", image_std)

    def embed(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the tokens of an image, and the sides of their map."""
        tokens, sides = self.swin.embeddings((image.float() - self.mean) / self.std)
        return tokens, sides

    def stage(self, index: int, tokens: Tensor, sides: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Merge what the stage before left, then run the blocks."""
        layers = self.swin.encoder.layers
        if index:
            tokens = layers[index - 1].downsample(tokens, sides)
            sides = (sides[0] + 1) // 2, (sides[1] + 1) // 2
        for block in layers[index].blocks:
            tokens, _ = block(tokens, sides, always_partition=True)
        return tokens, sides

    def logits(self, maps: list[tuple[Tensor, tuple[int, int]]], image: Tensor) -> Tensor:
        """Return the logits of the stage maps, at the resolution of the image."""
        normed = [norm(x).transpose(1, 2).unflatten(2, s) for norm, (x, s) in zip(self.norms, maps, strict=True)]
        return F.interpolate(self.head(normed), size=image.shape[-2:], mode="bilinear", align_corners=False)


class Assembled(nn.Module):
    """The network of the paper with fusion after every stage that ``network`` fuses, and its weights.

    Args:
        network: A CASWiT with the patch stem, a UPerNet with batch norms, and fused maps that feed the next stage.
        attention: What transformers calls its implementations of attention: "sdpa" or "eager".
    """

    def __init__(self, network: CASWiT, attention: str = "sdpa") -> None:
        super().__init__()
        assert network.feed_forward
        assert network.context_encoder is not None
        assert network.context_decoder is not None
        blocks = [layer.blocks for layer in network.hr_encoder.layers]
        swin = SwinConfig(
            embed_dim=network.hr_encoder.channels[0],
            depths=[len(stage) for stage in blocks],
            num_heads=[stage[0].attn.num_heads for stage in blocks],
            window_size=blocks[0][0].window_size[0],
            drop_path_rate=0.0,
            attn_implementation=attention,
        )
        width = network.decoder.classify.in_channels
        head = UperNetConfig(hidden_size=width, pool_scales=POOL_SCALES, num_labels=network.num_classes)
        image = network.mean.clone(), network.std.clone()
        self.hr, self.context = Branch(swin, head, *image), Branch(swin, head, *image)
        self.stages = len(blocks)
        self.fusion = nn.ModuleDict(
            {
                name: Fusion(
                    block.attention.norm_hr.normalized_shape[0], block.attention.num_heads, block.gate is not None
                )
                for name, block in network.fusion.items()
            }
        )
        self._take(network)

    def _take(self, network: CASWiT) -> None:
        theirs: dict[str, Tensor] = {}
        for name, value in network.state_dict().items():
            theirs |= _renamed(name, value)
        for name in [name for name in theirs if name.endswith(".q")]:
            theirs[name.removesuffix(".q")] = torch.cat([theirs.pop(name), theirs.pop(f"{name[:-1]}kv")])
        fit = self.load_state_dict(theirs, strict=False)
        computed = re.compile(r"relative_position_index$|swin\.layernorm\.|\.(mean|std)$")
        forgotten = [name for name in fit.missing_keys if not computed.search(name)]
        assert not [*fit.unexpected_keys, *forgotten], (fit.unexpected_keys, forgotten)

    def forward(self, hr: Tensor, context: Tensor) -> Any:
        """Return the logits of the tiles; in training those of the contexts too."""
        (x, x_sides), (c, c_sides) = self.hr.embed(hr), self.context.embed(context)
        x_maps, c_maps = [], []
        for index in range(self.stages):
            x, x_sides = self.hr.stage(index, x, x_sides)
            c, c_sides = self.context.stage(index, c, c_sides)
            if str(index + 1) in self.fusion:
                x = self.fusion[str(index + 1)](x, c)
            x_maps.append((x, x_sides))
            c_maps.append((c, c_sides))
        logits = self.hr.logits(x_maps, hr)
        return (logits, self.context.logits(c_maps, context)) if self.training else logits

    def checkpoint_gradients(self) -> None:
        """Recompute every block of the encoders in the backward pass, transformers' way."""
        for branch in (self.hr, self.context):
            branch.swin.gradient_checkpointing_enable({"use_reentrant": False})


_SWIN = (
    (r"patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"patch_embed\.norm\.", "embeddings.norm."),
    (r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample"),
    (r"^layers", "encoder.layers"),
    (r"norm1", "layernorm_before"),
    (r"norm2", "layernorm_after"),
    (r"attn\.relative", "attention.relative_position_bias.relative"),
    (r"attn\.", "attention."),
    (r"attention\.proj\.", "attention.o_proj."),
)
_HEAD = (
    (r"^pools\.(\d)\.1\.", r"psp_modules.\1.1."),
    (r"^laterals", "lateral_convs"),
    (r"^smooths", "fpn_convs"),
    (r"^fuse", "fpn_bottleneck"),
    (r"^classify", "classifier"),
    (r"\.0\.(?=weight$)", ".conv."),
    (r"\.1\.(?=(weight|bias|running_mean|running_var|num_batches_tracked)$)", ".batch_norm."),
)


def _renamed(name: str, value: Tensor) -> dict[str, Tensor]:
    """Return a weight of ours under its name here; queries, keys and values apart or together as theirs are."""
    if name.startswith("fusion."):
        return _fusion(name, value)
    part, rest = name.split(".", 1)
    branch, what = part.split("_") if "_" in part else ("hr", part)
    for pattern, new in {"encoder": _SWIN, "norms": (), "decoder": _HEAD}[what]:
        rest = re.sub(pattern, new, rest)
    inside = {"encoder": "swin", "norms": "norms", "decoder": "head"}[what]
    theirs = f"{branch}.{inside}.{rest}"
    if ".qkv." not in theirs:
        return {theirs: value}
    return {theirs.replace(".qkv.", f".{x}_proj."): v for x, v in zip("qkv", value.chunk(3), strict=True)}


def _fusion(name: str, value: Tensor) -> dict[str, Tensor]:
    name = name.replace("attention.norm", "norm").replace("attention.proj.", "attention.out_proj.")
    if ".attention.to_" not in name:
        return {name: value}
    stage, kind = name.split(".attention.to_")
    which, parameter = kind.split(".")
    return {f"{stage}.attention.in_proj_{parameter}.{which}": value}
