"""Relay Tokens: a SwinV2 on a tile and on its surroundings, with a few tokens that carry what one sees to the other.

Perron et al., "Adapting Vision Transformers to Ultra-High Resolution Semantic Segmentation with Relay Tokens" (2026,
arXiv 2601.05927). Both views go through the same SwinV2-S. In every block the relay tokens join the tokens of each
window in its attention, first in the windows of the global view, then in those of the local one, and go on to the next
block. A window so reads what all windows of both views have written. Only the tokens themselves, a linear layer where
channels double, and the patch embedding of the global view are added: under 2 % of the parameters.

From the paper and its public configuration: four tokens, windows of 8, the mean over windows as what relay tokens have
read, norms and MLP of the block for them too, a patch embedding for each view, a transposed convolution of stride 32 on
the deepest map as decoder, the losses and their weights. Our reading: the head is shared by both views (a second one
would break the 2 %) and follows SwinV2's last norm; padding of a map that does not divide into windows is masked.
Differs: the position bias between relay tokens and pixels is 8, the middle of its range, where the public code has 0,
the lowest. Started from random weights, with 0 nothing was learned through the tokens (the toy set of the tests).

Shapes: B batch, H/W rows and columns, C channels, K classes, R relay tokens, h heads, N tokens of a window, n windows.
"""

from itertools import pairwise
from typing import Any, ClassVar

import timm
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.nn.baselines.parts import downloaded
from caswit.nn.window_partition import kept

TOKENS = 4
"""Relay tokens."""
WINDOW = 8
"""Side of the windows, in tokens."""
CONTEXT_WEIGHT = CONSISTENCY_WEIGHT = 0.1
"""Weights of the global view's cross-entropy and of the agreement of both views, beside 1 for the local view."""


class RelayTokens(nn.Module):
    """SwinV2-S with relay tokens between a tile and its context.

    Args:
        num_classes: K.
        width: Share of SwinV2-S's channels, rounded to multiples of 8; below 1 also of the third stage's 18 blocks.
        pretrained: Start from timm's ImageNet weights; only for ``width`` 1.

    Raises:
        ConfigError: ``pretrained`` with another width, or the weights cannot be downloaded.
    """

    reads_context: ClassVar[bool] = True
    stride_px: ClassVar[int] = 32
    phases: ClassVar[dict[str, tuple[str, ...]]] = {}
    phase: str | None = None
    context_factor: int = 4
    """The context covers this many times the tile's side: where the losses find the tile in it. Set from outside."""

    def __init__(self, *, num_classes: int, width: float = 1.0, pretrained: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.backbone = _pretrained(width) if pretrained else _swin(width)
        widths = [info["num_chs"] for info in self.backbone.feature_info]
        # Pixels of the global view are coarser: the published networks embed them by weights of their own.
        self.context_embed = nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), nn.LayerNorm(widths[0]))
        if pretrained:
            self._copy_embedding()
        self.tokens = nn.Parameter(torch.randn(TOKENS, widths[0]) * 0.02)
        self.widen = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.head = nn.ConvTranspose2d(widths[-1], num_classes, self.stride_px, self.stride_px)

    def _copy_embedding(self) -> None:
        conv, norm = self.context_embed
        conv.load_state_dict(self.backbone.patch_embed.proj.state_dict())
        norm.load_state_dict(self.backbone.patch_embed.norm.state_dict())

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label a batch of tiles.

        Args:
            image: (B, 3, H, W) normalised tiles; sides are multiples of ``stride_px``.
            context: (B, 3, H', W'), the averaged context of each tile, normalised; of several, (B, N, 3, H', W'), the
                last, which is the widest.

        Returns:
            In evaluation mode logits (B, K, H, W); in training mode these as "logits", and "context" (B, K, H', W').
        """
        assert context is not None, "Relay Tokens read a context"
        local = self.backbone.patch_embed(image)
        embed, norm = self.context_embed
        wide = norm(embed(context if context.ndim == 4 else context[:, -1]).permute(0, 2, 3, 1))
        relay = self.tokens.expand(image.shape[0], -1, -1)
        for number, stage in enumerate(self.backbone.layers):
            wide, local = stage.downsample(wide), stage.downsample(local)
            if number > 0:
                relay = self.widen[number - 1](relay)
            for block in stage.blocks:
                wide, relay = relayed(block, wide, relay)
                local, relay = relayed(block, local, relay)
        logits = self._decode(local)
        return {"logits": logits, "context": self._decode(wide)} if self.training else logits

    def _decode(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.backbone.norm(x).permute(0, 3, 1, 2))
        return logits

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return cross-entropy of the tile, and a tenth each of that of the context's middle and of their agreement.

        Args:
            outputs: Of ``forward`` in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.

        Returns:
            A number: 0 where no pixel is labelled. The first term is a mean over labelled pixels, the second over
            pixels of the context that are labelled all over, the third over all pixels that cover the tile.
        """
        logits, label = outputs["logits"].float(), label.long()
        labelled = label != IGNORE_INDEX
        tile = F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX, reduction="sum") / labelled.sum().clamp(min=1)
        seen = centre(outputs["context"].float(), self.context_factor)
        shares = F.one_hot(label.where(labelled, 0), self.num_classes).permute(0, 3, 1, 2).float()
        size = int(seen.shape[-2]), int(seen.shape[-1])
        # A pixel of the context stands for several labels: its target are their shares (cross-entropy takes them so).
        whole = F.adaptive_avg_pool2d(labelled[:, None].float(), size)[:, 0] >= 1
        against_label = F.cross_entropy(seen, F.adaptive_avg_pool2d(shares, size), reduction="none")
        context = (against_label * whole).sum() / whole.sum().clamp(min=1)
        agreement = F.cross_entropy(seen, F.adaptive_avg_pool2d(logits.softmax(1), size))
        return tile + CONTEXT_WEIGHT * context + CONSISTENCY_WEIGHT * agreement * labelled.any()


def centre(x: Tensor, factor: int) -> Tensor:
    """Return the middle of (B, C, H, W) that covers the tile: a ``factor``th of its sides."""
    height, width = (max(1, round(side / factor)) for side in x.shape[-2:])
    top, left = (x.shape[-2] - height) // 2, (x.shape[-1] - width) // 2
    return x[..., top : top + height, left : left + width]


def relayed(block: Any, x: Tensor, relay: Tensor) -> tuple[Tensor, Tensor]:
    """Run a block of timm's SwinV2 with relay tokens in each of its windows.

    Args:
        block: ``SwinTransformerV2Block``. Without relay tokens the result is its own.
        x: (B, H, W, C).
        relay: (B, R, C).

    Returns:
        Both anew. What the relay tokens read is the mean over windows.
    """
    batch, height, width, channels = x.shape
    shift = [s if side > WINDOW else 0 for s, side in zip(block.target_shift_size, (height, width), strict=True)]
    pad = -height % WINDOW, -width % WINDOW
    shifted = F.pad(x.roll((-shift[0], -shift[1]), (1, 2)), (0, 0, 0, pad[1], 0, pad[0]))
    rows, cols = shifted.shape[1] // WINDOW, shifted.shape[2] // WINDOW
    windows = shifted.view(batch, rows, WINDOW, cols, WINDOW, channels).transpose(2, 3).reshape(-1, WINDOW**2, channels)
    tokens = torch.cat([windows, relay.repeat_interleave(rows * cols, 0)], 1)
    mask = visible((height, width), (shift[0], shift[1]), relay.shape[1]).to(x.device)
    tokens = _attention(block.attn, tokens, mask)
    windows, read = tokens.split([WINDOW**2, relay.shape[1]], 1)
    shifted = windows.reshape(batch, rows, cols, WINDOW, WINDOW, channels).transpose(2, 3)
    shifted = shifted.reshape(batch, rows * WINDOW, cols * WINDOW, channels)[:, :height, :width]
    read = read.unflatten(0, (batch, -1)).mean(1)
    attended = shifted.roll((shift[0], shift[1]), (1, 2))
    both = torch.cat([x.flatten(1, 2), relay], 1)
    both = both + block.drop_path1(block.norm1(torch.cat([attended.flatten(1, 2), read], 1)))
    both = both + block.drop_path2(block.norm2(block.mlp(both)))
    pixels, relay = both.split([height * width, relay.shape[1]], 1)
    return pixels.view(x.shape), relay


def _attention(attn: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Cosine attention of timm's ``WindowAttention``: (B * n, N + R, C) with a mask (n, N + R, N + R), True: seen."""
    bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    heads = F.linear(tokens, attn.qkv.weight, bias).unflatten(-1, (3, attn.num_heads, -1))
    q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B * n, h, N + R, D)
    q = F.normalize(q, dim=-1) * attn.logit_scale.clamp(max=4.6052).exp()  # at most 100, as in the paper of SwinV2
    table = attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)
    position = 16 * table[attn.relative_position_index].permute(2, 0, 1).sigmoid()  # (h, N, N)
    more = tokens.shape[1] - WINDOW**2
    scores = F.pad(position, (0, more, 0, more), value=8.0).where(mask[:, None], float("-inf"))  # (n, h, N + R, N + R)
    # Windows beside heads: scores that all images share need not be repeated for each.
    q, k, v = (x.unflatten(0, (-1, len(mask))).flatten(1, 2) for x in (q, F.normalize(k, dim=-1), v))
    read = F.scaled_dot_product_attention(q, k, v, scores.flatten(0, 1)[None].to(q.dtype), scale=1.0)
    read = read.unflatten(1, (len(mask), -1)).flatten(0, 1)  # (B * n, h, N + R, D)
    return attn.proj(read.transpose(1, 2).flatten(2))


@kept
def visible(sides: tuple[int, int], shift: tuple[int, int], relay: int) -> Tensor:
    """Return which tokens of a window see which: (n, N + R, N + R), for a map of these sides.

    Pixels see those of their own part of the map, not those that the shift brought from its other end, nor padding.
    Relay tokens see all but padding, and are seen by all.
    """
    axes = []
    for side, step in zip(sides, shift, strict=True):
        part = torch.full((-(-side // WINDOW) * WINDOW,), 2)
        part[:side] = (torch.arange(side) + step >= side).long()
        axes.append(part)
    parts = 3 * axes[0][:, None] + axes[1][None]
    padded = (axes[0][:, None] == 2) | (axes[1][None] == 2)
    parts, padded = (
        m.unflatten(0, (-1, WINDOW)).unflatten(2, (-1, WINDOW)).transpose(1, 2).reshape(-1, WINDOW**2)
        for m in (parts, padded)
    )
    seen = torch.ones(len(parts), WINDOW**2 + relay, WINDOW**2 + relay, dtype=torch.bool)
    seen[:, : WINDOW**2, : WINDOW**2] = parts[:, :, None] == parts[:, None, :]
    seen[:, WINDOW**2 :, : WINDOW**2] = ~padded[:, None]
    return seen


def _swin(width: float) -> SwinTransformerV2:
    """Return SwinV2-S, or a narrower and shallower one, with random weights."""
    channels = max(8, round(96 * width / 8) * 8)
    # Heads of 32 channels as in SwinV2-S, or as near above as divides them.
    heads = max(n for n in range(1, max(1, channels // 32) + 1) if channels % n == 0)
    depths = (2, 2, max(2, 2 * round(9 * min(width, 1.0))), 2)
    return SwinTransformerV2(
        img_size=32 * WINDOW,  # windows are whole in every stage
        window_size=WINDOW,
        embed_dim=channels,
        depths=depths,
        num_heads=tuple(heads * 2**stage for stage in range(4)),
        num_classes=0,
        strict_img_size=False,
    )


def _pretrained(width: float) -> SwinTransformerV2:
    name, options = "swinv2_small_window8_256", {"num_classes": 0, "strict_img_size": False}
    return downloaded("SwinV2-S", width, lambda: timm.create_model(name, pretrained=True, **options))
