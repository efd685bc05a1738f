"""A Swin encoder that can be advanced one stage at a time.

The stages are timm's, with its blocks rearranged for speed. They are advanced one by one because fusion changes the
feature map between two stages (paper section 3.2).

Shapes: B batch, H/W rows and columns of tokens, C channels, n windows of A slots, h heads, D = C / h. Maps are
channels-last.
"""

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from caswit.config import Norm, Stem
from caswit.nn.conv import ConvNormReLU
from caswit.nn.window_partition import Sides, merge, partition, windows

PATCH_PX = 4


class ConvStem(nn.Module):
    """Tokens of 4 px from 3x3 convolutions instead of one linear layer (Xiao et al. 2021, "Early convolutions").

    Ours, not the paper's: from scratch and with few labels a transformer learns edges and textures slowly, and small
    convolutions assume from the start that neighbouring pixels belong together.
    """

    def __init__(self, channels: int, norm: Norm, bands: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormReLU(bands, channels, 3, norm, stride=2),
            ConvNormReLU(channels, channels, 3, norm),
            ConvNormReLU(channels, 2 * channels, 3, norm, stride=2),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Embed an image whose sides are multiples of 4: (B, n, H, W) -> (B, H / 4, W / 4, C)."""
        return self.norm(self.layers(image).permute(0, 2, 3, 1))


class Block(nn.Module):
    """A block of timm's Swin with the same parts and results, whose data is moved about less.

    timm rolls, pads and partitions what the first norm returns, which under autocast is fp32, and undoes each step
    afterwards. Here queries, keys and values are partitioned, in one step by a table (``window_partition``).
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window_size: Sides = block.window_size
        self.shift_size: Sides = block.shift_size

    def forward(self, x: Tensor) -> Tensor:
        """Attend within windows, then apply the MLP: (B, H, W, C) -> (B, H, W, C)."""
        sides = x.shape[1], x.shape[2]
        tokens = x.flatten(1, 2)
        tokens = tokens + self.drop_path1(self._attend(self.norm1(tokens), sides))
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return tokens.view(x.shape)

    def _attend(self, tokens: Tensor, sides: Sides) -> Tensor:
        attention = self.attn
        how = windows(sides, self.window_size, self.shift_size, tokens.device)
        # timm pads with zeros between the norm and this linear layer, so that padding has queries, keys and values
        # too: the layer's bias. Attention does not mask it.
        qkv = partition(attention.qkv(tokens), attention.qkv.bias, how)
        heads = qkv.unflatten(2, (3, attention.num_heads, -1)).unflatten(1, (-1, attention.window_area))
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)  # (B, n, h, A, D)
        # Without autocast, or it would widen the softmax to fp32: scores are the largest tensors of a block, and their
        # sums are accumulated in fp32 anyway.
        device = tokens.device.type
        with torch.autocast(device if is_autocast_available(device) else "cpu", enabled=False):
            bias = attention._get_rel_pos_bias().to(q.dtype)  # (1, h, A, A)
            if how.mask is not None:
                bias = bias + how.mask.to(q.dtype)
            scores = (q * attention.scale) @ k.transpose(-1, -2)
            read = (scores + bias).softmax(-1) @ v
        # shape[0], here and in partition, since len() would make the batch a constant in an exported network.
        return attention.proj(merge(read.transpose(2, 3).reshape(qkv.shape[0], len(how.tokens), -1), how))


class SwinEncoder(nn.Module):
    """timm's Swin Transformer without its classifier, for images of any size.

    Args:
        embed_dim: Channels of stage 1; each later stage doubles them.
        depths: Blocks per stage. Fewer than four entries build only the first stages.
        num_heads: Attention heads per stage.
        window_size: Side of the attention windows, in tokens.
        drop_path: Highest stochastic-depth rate; it grows linearly from 0 over the blocks.
        stem: "patch" (Swin's own) or "conv".
        norm: Normalisation in a "conv" stem.
        bands: n, the number of bands of an image.
    """

    def __init__(
        self,
        *,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path: float = 0.0,
        stem: Stem = "patch",
        norm: Norm = "batch",
        bands: int = 3,
    ) -> None:
        super().__init__()
        # timm shrinks windows that are larger than the map of a stage, and their position biases with them.
        # always_partition prevents it, so that no parameter's shape depends on the size of the tiles.
        swin = SwinTransformer(
            patch_size=PATCH_PX,
            in_chans=bands,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path,
            num_classes=0,
            strict_img_size=False,
            always_partition=True,
        )
        self.patch_embed = swin.patch_embed if stem == "patch" else ConvStem(embed_dim, norm, bands)
        self.layers = nn.ModuleList(swin.layers)
        for stage in self.layers:
            stage.blocks = nn.Sequential(*map(Block, stage.blocks))  # type: ignore[arg-type]
        self.channels = [embed_dim * 2**i for i in range(len(depths))]

    def embed(self, image: Tensor) -> Tensor:
        """Embed an image as tokens of 4 px: (B, n, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""
        height, width = image.shape[-2:]
        pad = (0, -width % PATCH_PX, 0, -height % PATCH_PX)
        return self.patch_embed(nn.functional.pad(image, pad))

    def stage(self, index: int, tokens: Tensor) -> Tensor:
        """Run stage ``index`` (from 0): (B, H, W, C) -> (B, H', W', C').

        Stages after the first halve the sides, rounding up, and double the channels.
        """
        return self.layers[index](tokens)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the map after every stage of an image."""
        return self.stages(self.embed(image))

    def stages(self, tokens: Tensor) -> list[Tensor]:
        """Return the map after every stage of embedded tokens."""
        maps = []
        for index in range(len(self.layers)):
            tokens = self.stage(index, tokens)
            maps.append(tokens)
        return maps

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass, which takes less memory and about a third more time."""
        for layer in self.layers:
            layer.grad_checkpointing = enable  # type: ignore[assignment]
