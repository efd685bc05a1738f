"""Attention of windows and of fusions by kernels that never store the scores.

Shapes: B batch, n windows of A slots, h heads, D channels of a head, N tokens, M context tokens.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from caswit.nn.caswit import CASWiT
from caswit.nn.swin import Block
from caswit.nn.window_partition import Sides, Windows, merge, partition, windows

FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
"""The kernels that never store the scores. torch chooses among them; flash takes no additive mask."""
_ALIGNED = 16
_TOKENS = 256
"""Tokens that a kernel is tried with."""


class SDPABlock(Block):
    """A block whose windows attend by ``scaled_dot_product_attention``; its weights must not change afterwards.

    Position bias and the mask of rolled windows are one additive mask, made once for each size of map.
    """

    def __init__(self, block: Block) -> None:
        super().__init__(block)
        self._masks: dict[Sides, tuple[Windows, Tensor]] = {}

    def _attend(self, tokens: Tensor, sides: Sides) -> Tensor:
        attention = self.attn
        qkv = attention.qkv(tokens)
        how, mask = self._mask(sides, qkv)
        slots = partition(qkv, attention.qkv.bias, how)
        # Windows of all images are one axis, which takes no copy: (3, B * n, h, A, D).
        heads = slots.unflatten(1, (-1, attention.window_area)).flatten(0, 1)
        q, k, v = heads.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        # One mask for all windows, or one for each window of an image: then only batches take a copy of it.
        several = mask.expand(len(slots), -1, -1, -1, -1).flatten(0, 1) if len(mask) > 1 else mask
        mask = several.expand(len(q), -1, -1, -1)
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
        return attention.proj(merge(read.transpose(1, 2).reshape(len(slots), len(how.tokens), -1), how))

    def _mask(self, sides: Sides, like: Tensor) -> tuple[Windows, Tensor]:
        """Return the tables of a map, and what is added to scores: (1, h, A, A), of rolled windows (n, h, A, A)."""
        if sides not in self._masks:
            how = windows(sides, self.window_size, self.shift_size, like.device)
            bias = self.attn._get_rel_pos_bias()  # fp32
            mask = bias if how.mask is None else bias + how.mask
            # Kernels want rows that begin at multiples of 16 numbers, and would copy others in every pass.
            area = mask.shape[-1]
            self._masks = {sides: (how, F.pad(mask.to(like.dtype), (0, -area % _ALIGNED))[..., :area])}
        return self._masks[sides]


def attend_by_sdpa(network: CASWiT) -> None:
    """Give the encoders of a network blocks that attend by fused kernels."""
    for encoder in (network.hr_encoder, network.context_encoder):
        for stage in () if encoder is None else encoder.layers:
            stage.blocks = torch.nn.Sequential(*map(SDPABlock, stage.blocks))  # type: ignore[arg-type]


class Kernels(NamedTuple):
    """The fused kernels that this GPU can use."""

    windows: tuple[SDPBackend, ...]
    fusion: tuple[SDPBackend, ...]

    @staticmethod
    def found(network: CASWiT, device: torch.device, dtype: torch.dtype) -> "Kernels":
        """Try every kernel on the device with heads and windows of a network."""
        attention = network.hr_encoder.layers[0].blocks[0].attn  # type: ignore[index, union-attr]
        heads, width = attention.num_heads, network.hr_encoder.channels[0] // attention.num_heads
        tokens = torch.zeros(1, heads, _TOKENS, width, dtype=dtype, device=device)
        slots = torch.zeros(2, heads, attention.window_area, width, dtype=dtype, device=device)
        mask = slots.new_zeros(1, heads, attention.window_area, attention.window_area).expand(2, -1, -1, -1)
        return Kernels(tuple(k for k in FUSED if _works(k, slots, mask)), tuple(k for k in FUSED if _works(k, tokens)))

    def asserted(self) -> AbstractContextManager[None]:
        """Return a context in which attention uses these kernels, or fails; any where there is none for one of both."""
        if not (self.windows and self.fusion):
            return sdpa_kernel([*FUSED, SDPBackend.MATH])
        return sdpa_kernel([k for k in FUSED if k in self.windows or k in self.fusion])

    def said(self) -> str:
        """Return what attends, for a line."""
        return f"attention in windows by {_named(self.windows)}, of fusions by {_named(self.fusion)}"


def _named(kernels: Sequence[SDPBackend]) -> str:
    """Return the names of kernels as people say them."""
    names = [kernel.name.removesuffix("_ATTENTION").lower() for kernel in kernels]
    return " or ".join(names) or "no fused kernel, so that scores are stored (more memory and time)"


@torch.inference_mode()
def _works(kernel: SDPBackend, q: Tensor, mask: Tensor | None = None) -> bool:
    """Return whether a kernel takes such tensors on this device: asked by running it, for no version says it alike."""
    with sdpa_kernel(kernel), _quiet():
        try:
            F.scaled_dot_product_attention(q, q, q, attn_mask=mask)
        except RuntimeError:
            return False
    return True


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning why a kernel cannot be used: which ones can is said in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
