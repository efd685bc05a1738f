"""Swin blocks and fusion, arranged for inference.

Shapes: N tokens, C channels, h heads, D = C / h, A tokens of a window, n windows.
"""

from functools import lru_cache
from typing import cast

import torch
from timm.models.swin_transformer import PatchMerging, SwinTransformerStage
from torch import Tensor, nn

from caswit.inference.cpu.ops import Affine, Ops, Value
from caswit.nn.fusion import FusionBlock
from caswit.nn.swin import Block as SwinBlock
from caswit.nn.window_partition import Sides, windows


class Norm:
    """A layer norm."""

    def __init__(self, ops: Ops, norm: nn.LayerNorm) -> None:
        self.eps, self.affine = norm.eps, Affine(ops.ready(norm.weight), ops.ready(norm.bias))

    def __call__(self, ops: Ops, x: Value) -> Value:
        """(N, C) -> (N, C)."""
        return ops.layer_norm(x, self.affine, self.eps)


def linear(ops: Ops, layer: nn.Linear) -> Affine:
    """A linear layer."""
    bias = cast("Tensor | None", layer.bias)
    return Affine(ops.ready(layer.weight), None if bias is None else ops.ready(bias))


class Block:
    """A Swin block."""

    def __init__(self, ops: Ops, block: SwinBlock) -> None:
        attention = block.attn
        self.heads = attention.num_heads
        self.side, self.shift = block.window_size, block.shift_size
        self.norms = Norm(ops, block.norm1), Norm(ops, block.norm2)
        self.qkv, self.scale = linear(ops, attention.qkv), ops.ready(torch.tensor([attention.scale]))
        # timm pads after the norm: a token that is not there is 0, and has these queries, keys and values.
        self.nowhere = ops.ready(attention.qkv.bias[None])
        self.bias = ops.ready(attention._get_rel_pos_bias().detach())  # (1, h, A, A)
        self.proj = linear(ops, attention.proj)
        self.widen, self.narrow = linear(ops, block.mlp.fc1), linear(ops, block.mlp.fc2)

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """(N, C) -> (N, C)."""
        cut = windows(sides, self.side, self.shift)
        area = self.side[0] * self.side[1]
        qkv = ops.linear(self.norms[0](ops, x), self.qkv)
        if len(cut.tokens) > sides[0] * sides[1]:
            qkv = ops.cat([qkv, self.nowhere])
        heads = ops.reshape(ops.take(qkv, ops.table(cut.tokens)), (len(cut.tokens) // area, area, 3, self.heads, -1))
        q, k, v = ops.unbind(ops.permute(heads, (2, 0, 3, 1, 4)))  # (n, h, A, D)
        scores = ops.add(ops.matmul(ops.multiply(q, self.scale), ops.permute(k, (0, 1, 3, 2))), self.bias)
        if cut.mask is not None:
            # Through another shape: OpenVINO would add up bias and mask, a table of every head in every window.
            flat = ops.reshape(scores, (len(cut.mask), self.heads, -1))
            flat = ops.add(flat, ops.reshape(ops.table(cut.mask), (len(cut.mask), 1, -1)))
            scores = ops.reshape(flat, (len(cut.mask), self.heads, area, area))
        read = ops.permute(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        read = ops.take(ops.reshape(read, (len(cut.tokens), -1)), ops.table(cut.places))
        x = ops.add(x, ops.linear(read, self.proj))
        hidden = ops.gelu(ops.linear(self.norms[1](ops, x), self.widen))
        return ops.add(x, ops.linear(hidden, self.narrow))


class Merging:
    """Patch merging: four neighbours become one token of twice the channels."""

    def __init__(self, ops: Ops, merging: PatchMerging) -> None:
        self.norm, self.channels = Norm(ops, merging.norm), merging.norm.normalized_shape[0] // 4
        self.reduction = linear(ops, merging.reduction)
        self.nowhere = ops.ready(torch.zeros(1, self.channels))

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """(H * W, C) -> (ceil(H / 2) * ceil(W / 2), 2 C)."""
        index = _neighbours(sides)
        if len(index) > sides[0] * sides[1]:
            x = ops.cat([x, self.nowhere])
        four = ops.reshape(ops.take(x, ops.table(index)), (len(index) // 4, 4 * self.channels))
        return ops.linear(self.norm(ops, four), self.reduction)


@lru_cache(maxsize=64)
def _neighbours(sides: Sides) -> Tensor:
    """Tokens of every square of four, column by column as timm has them; H * W where there is none."""
    height, width = sides
    tokens = torch.full((height + height % 2, width + width % 2), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(sides)
    rows, cols = tokens.shape
    return tokens.view(rows // 2, 2, cols // 2, 2).permute(0, 2, 3, 1).flatten()


class Stage:
    """Merging, where there is one, and the blocks of a stage."""

    def __init__(self, ops: Ops, stage: SwinTransformerStage) -> None:
        merging = stage.downsample
        self.merging = Merging(ops, merging) if isinstance(merging, PatchMerging) else None
        self.blocks = [Block(ops, block) for block in stage.blocks]

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> tuple[Value, Sides]:
        """Tokens and sides before and after the stage."""
        if self.merging is not None:
            x, sides = self.merging(ops, x, sides), ((sides[0] + 1) // 2, (sides[1] + 1) // 2)
        for block in self.blocks:
            x = block(ops, x, sides)
        return x, sides


class Fusion:
    """What hr tokens read from context tokens, and the MLP after it."""

    def __init__(self, ops: Ops, block: FusionBlock) -> None:
        attention = block.attention
        self.heads = attention.num_heads
        self.norms = Norm(ops, attention.norm_hr), Norm(ops, attention.norm_context)
        self.to_q, self.to_kv = linear(ops, attention.to_q), linear(ops, attention.to_kv)
        gate = 1.0 if block.gate is None else block.gate.tanh()
        self.proj = Affine(ops.ready(gate * attention.proj.weight), ops.ready(gate * attention.proj.bias))
        first, _, last = block.mlp
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.widen, self.narrow = linear(ops, first), linear(ops, last)

    def __call__(self, ops: Ops, x: Value, context: Value, sides: tuple[Sides, Sides]) -> Value:
        """(N, C), (M, C) -> (N, C)."""
        tokens, others = (height * width for height, width in sides)
        q = ops.linear(self.norms[0](ops, x), self.to_q)
        q = ops.permute(ops.reshape(q, (1, tokens, self.heads, -1)), (0, 2, 1, 3))
        kv = ops.linear(self.norms[1](ops, context), self.to_kv)
        k, v = ops.unbind(ops.permute(ops.reshape(kv, (1, others, 2, self.heads, -1)), (2, 0, 3, 1, 4)))
        read = ops.reshape(ops.permute(ops.attention(q, k, v), (0, 2, 1, 3)), (tokens, -1))
        x = ops.add(x, ops.linear(read, self.proj))
        return ops.add(x, ops.linear(ops.gelu(ops.linear(x, self.widen)), self.narrow))
