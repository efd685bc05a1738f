"""Swin blocks and fusion, arranged for inference.

Tokens stay (N, C) of one image from stage to stage. A block gathers queries, keys and values into windows by one table,
instead of rolling, padding and reordering maps, and back by another; position biases are looked up once, when the block
is made. The gate of a fusion is multiplied into the weights of the projection before it.

Shapes: N tokens, C channels, h heads, D = C / h, n windows of A slots.
"""

from collections.abc import Sequence
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
    """Layer norm with its weights ready."""

    def __init__(self, ops: Ops, norm: nn.LayerNorm) -> None:
        self.eps, self.affine = norm.eps, Affine(ops.ready(norm.weight), ops.ready(norm.bias))

    def __call__(self, ops: Ops, x: Value) -> Value:
        """Normalise tokens (N, C)."""
        return ops.layer_norm(x, self.affine, self.eps)


def linear(ops: Ops, layer: nn.Linear) -> Affine:
    """Return the weights of a linear layer, ready for ``Ops.linear``."""
    bias = cast("Tensor | None", layer.bias)
    return Affine(ops.ready(layer.weight), None if bias is None else ops.ready(bias))


class Block:
    """Swin block: attention in windows, then an MLP, each with its norm before and added to its input."""

    def __init__(self, ops: Ops, block: SwinBlock) -> None:
        attention = block.attn
        self.heads = attention.num_heads
        self.side, self.shift = block.window_size, block.shift_size
        self.norms = Norm(ops, block.norm1), Norm(ops, block.norm2)
        self.qkv, self.scale = linear(ops, attention.qkv), ops.ready(torch.tensor([attention.scale]))
        # timm pads with zeros after the norm: one such token, a third as wide as its queries, keys and values.
        self.padding = ops.ready(torch.zeros(1, attention.qkv.in_features))
        self.bias = ops.ready(attention._get_rel_pos_bias().detach())  # (1, h, A, A)
        self.proj = linear(ops, attention.proj)
        self.widen, self.narrow = linear(ops, block.mlp.fc1), linear(ops, block.mlp.fc2)

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """Advance tokens (N, C) of a map."""
        how = windows(sides, self.side, self.shift)
        area = self.side[0] * self.side[1]
        normed = self.norms[0](ops, x)
        if len(how.tokens) > sides[0] * sides[1]:
            normed = ops.cat([normed, self.padding])
        qkv = ops.linear(normed, self.qkv)
        heads = ops.reshape(ops.take(qkv, ops.table(how.tokens)), (len(how.tokens) // area, area, 3, self.heads, -1))
        q, k, v = ops.unbind(ops.permute(heads, (2, 0, 3, 1, 4)))  # (n, h, A, D)
        bias, apart = self.bias, how.mask
        if how.mask is not None and ops.kernels.joined_masks:
            # OpenVINO adds constants up beforehand: a table of every head in every window, which is large.
            bias, apart = ops.add(bias, ops.table(how.mask)), None
        scores = ops.add(ops.matmul(ops.multiply(q, self.scale), ops.permute(k, (0, 1, 3, 2))), bias)
        if apart is not None:
            # In another shape than the bias was added in, or OpenVINO would add these up too.
            flat = ops.reshape(scores, (len(apart), self.heads, -1))
            flat = ops.add(flat, ops.reshape(ops.table(apart), (len(apart), 1, -1)))
            scores = ops.reshape(flat, (len(apart), self.heads, area, area))
        read = ops.permute(ops.matmul(ops.softmax(scores), v), (0, 2, 1, 3))
        # Back to tokens before the projection, which timm computes for padding too.
        read = ops.take(ops.reshape(read, (len(how.tokens), -1)), ops.table(how.slots))
        x = ops.add(x, ops.linear(read, self.proj))
        hidden = ops.gelu(ops.linear(self.norms[1](ops, x), self.widen))
        return ops.add(x, ops.linear(hidden, self.narrow))


class Merging:
    """Patch merging: the four tokens of each 2 x 2 square become one token of twice the channels."""

    def __init__(self, ops: Ops, merging: PatchMerging) -> None:
        self.norm, self.channels = Norm(ops, merging.norm), merging.norm.normalized_shape[0] // 4
        self.reduction = linear(ops, merging.reduction)
        self.padding = ops.ready(torch.zeros(1, self.channels))

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> Value:
        """Merge a map (H * W, C) to (ceil(H / 2) * ceil(W / 2), 2 C)."""
        index = _neighbours(sides)
        if len(index) > sides[0] * sides[1]:
            x = ops.cat([x, self.padding])
        # As in timm, the norm runs over the four joined tokens, in which padding counts as zeros.
        four = ops.reshape(ops.take(x, ops.table(index)), (len(index) // 4, 4 * self.channels))
        return ops.linear(self.norm(ops, four), self.reduction)


@lru_cache(maxsize=64)
def _neighbours(sides: Sides) -> Tensor:
    """Return the tokens of every 2 x 2 square, column by column as timm orders them; H * W stands for padding."""
    height, width = sides
    tokens = torch.full((height + height % 2, width + width % 2), height * width)
    tokens[:height, :width] = torch.arange(height * width).view(sides)
    rows, cols = tokens.shape
    return tokens.view(rows // 2, 2, cols // 2, 2).permute(0, 2, 3, 1).flatten()


class Stage:
    """Stage of an encoder: patch merging, which the first stage lacks, and blocks."""

    def __init__(self, ops: Ops, stage: SwinTransformerStage) -> None:
        merging = stage.downsample
        self.merging = Merging(ops, merging) if isinstance(merging, PatchMerging) else None
        self.blocks = [Block(ops, block) for block in stage.blocks]

    def __call__(self, ops: Ops, x: Value, sides: Sides) -> tuple[Value, Sides]:
        """Advance tokens (N, C) of a map with these sides; return the tokens and sides after the stage."""
        if self.merging is not None:
            x, sides = self.merging(ops, x, sides), ((sides[0] + 1) // 2, (sides[1] + 1) // 2)
        for block in self.blocks:
            x = block(ops, x, sides)
        return x, sides


class Fusion:
    """Fusion block: hr tokens read all context tokens, then an MLP."""

    def __init__(self, ops: Ops, block: FusionBlock) -> None:
        attention = block.attention
        self.heads = attention.num_heads
        self.norms = Norm(ops, attention.norm_hr), Norm(ops, attention.norm_context)
        self.to_q, self.to_kv = linear(ops, attention.to_q), linear(ops, attention.to_kv)
        embedding = attention.context_embedding
        self.embedding = [] if embedding is None else [ops.ready(each) for each in embedding.split(1)]
        # g (W x + b) = (g W) x + g b: at inference the gate costs nothing.
        gate = 1.0 if block.gate is None else block.gate.tanh()
        self.proj = Affine(ops.ready(gate * attention.proj.weight), ops.ready(gate * attention.proj.bias))
        first, _, last = block.mlp
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self.widen, self.narrow = linear(ops, first), linear(ops, last)

    def __call__(self, ops: Ops, x: Value, contexts: Sequence[Value]) -> Value:
        """Fuse hr tokens (N, C) with tokens (M, C) of each context."""
        q = ops.linear(self.norms[0](ops, x), self.to_q)
        seen = [self.norms[1](ops, context) for context in contexts]
        if self.embedding:
            seen = [ops.cat([ops.add(*pair) for pair in zip(seen, self.embedding, strict=True)])]
        read = ops.attention(q, ops.linear(seen[0], self.to_kv), self.heads)
        x = ops.add(x, ops.linear(read, self.proj))
        return ops.add(x, ops.linear(ops.gelu(ops.linear(x, self.widen)), self.narrow))
