"""A Swin encoder that can be advanced one stage at a time.

The stages are timm's, with its blocks rearranged for speed. Advancing them one by one is what lets fusion change the
feature map between two stages (paper section 3.2). Shapes: B batch, H/W rows and columns of tokens, C channels; maps
are channels-last.
"""

from collections.abc import Sequence

import torch
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import Tensor, nn
from torch.amp.autocast_mode import is_autocast_available

from caswit.config import Norm, Stem
from caswit.nn.conv import ConvNormReLU
from caswit.nn.window_partition import Sides, cut, joined, windows

PATCH_PX = 4


class ConvStem(nn.Module):
    """Tokens of 4 px from 3x3 convolutions instead of one linear layer (Xiao et al. 2021, "Early convolutions").

    From scratch and with few labels a transformer learns edges and textures slowly; four small convolutions
    know from the start that neighbouring pixels belong together.
    """

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            ConvNormReLU(3, channels, 3, norm, stride=2),
            ConvNormReLU(channels, channels, 3, norm),
            ConvNormReLU(channels, 2 * channels, 3, norm, stride=2),
            nn.Conv2d(2 * channels, channels, 1),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, H / 4, W / 4, C); sides are multiples of 4."""
        return self.norm(self.layers(image).permute(0, 2, 3, 1))


class Block(nn.Module):
    """The parts of timm's block, and its numbers, in another order of moving things about.

    timm rolls, pads and cuts what the norm returns, which under autocast is fp32, and undoes that afterwards. Here
    queries, keys and values are cut, once and by a table, and scores stay in the type of the queries.
    """

    def __init__(self, block: SwinTransformerBlock) -> None:
        super().__init__()
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2
        self.window_size: Sides = block.window_size
        self.shift_size: Sides = block.shift_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        sides = x.shape[1], x.shape[2]
        tokens = x.flatten(1, 2)
        tokens = tokens + self.drop_path1(self._attend(self.norm1(tokens), sides))
        tokens = tokens + self.drop_path2(self.mlp(self.norm2(tokens)))
        return tokens.view(x.shape)

    def _attend(self, tokens: Tensor, sides: Sides) -> Tensor:
        attention = self.attn
        how = windows(sides, self.window_size, self.shift_size, tokens.device)
        # timm pads after the norm: a token that is not there is 0, and has the bias for queries, keys and values.
        qkv = cut(attention.qkv(tokens), attention.qkv.bias, how)
        heads = qkv.unflatten(2, (3, attention.num_heads, -1)).unflatten(1, (-1, attention.window_area))
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5)  # (B, n, h, A, D)
        device = tokens.device.type
        with torch.autocast(device if is_autocast_available(device) else "cpu", enabled=False):
            bias = attention._get_rel_pos_bias().to(q.dtype)  # (1, h, A, A)
            if how.mask is not None:
                bias = bias + how.mask.to(q.dtype)
            scores = (q * attention.scale) @ k.transpose(-1, -2)
            read = (scores + bias).softmax(-1) @ v
        # Not len(qkv), here and in cut: it would make the batch a constant where the network is exported.
        return attention.proj(joined(read.transpose(2, 3).reshape(qkv.shape[0], len(how.tokens), -1), how))


class SwinEncoder(nn.Module):
    """timm's Swin Transformer without its classifier, for images of any size.

    Args:
        embed_dim: Channels of stage 1; each later stage doubles them.
        depths: Blocks per stage. Fewer than four entries build only those stages.
        num_heads: Attention heads per stage.
        window_size: Side of the attention windows, in tokens.
        drop_path: Highest stochastic-depth rate; it grows linearly from 0 over the blocks.
        stem: "patch" (Swin's own) or "conv".
        norm: Normalisation in a "conv" stem.
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
    ) -> None:
        super().__init__()
        # always_partition keeps windows whole at every input size, so that no parameter's shape
        # depends on the tile size a model was first built for.
        swin = SwinTransformer(
            patch_size=PATCH_PX,
            embed_dim=embed_dim,
            depths=tuple(depths),
            num_heads=tuple(num_heads),
            window_size=window_size,
            drop_path_rate=drop_path,
            num_classes=0,
            strict_img_size=False,
            always_partition=True,
        )
        self.patch_embed = swin.patch_embed if stem == "patch" else ConvStem(embed_dim, norm)
        self.layers = nn.ModuleList(swin.layers)
        for stage in self.layers:
            stage.blocks = nn.Sequential(*map(Block, stage.blocks))  # type: ignore[arg-type]
        self.channels = [embed_dim * 2**i for i in range(len(depths))]

    def embed(self, image: Tensor) -> Tensor:
        """Turn an image into tokens of 4 px: (B, 3, H, W) -> (B, ceil(H/4), ceil(W/4), C)."""
        height, width = image.shape[-2:]
        pad = (0, -width % PATCH_PX, 0, -height % PATCH_PX)
        return self.patch_embed(nn.functional.pad(image, pad))

    def stage(self, index: int, tokens: Tensor) -> Tensor:
        """Run stage ``index`` (from 0): (B, H, W, C) -> (B, H', W', C').

        Stages after the first halve the sides, rounding up, and double the channels.
        """
        return self.layers[index](tokens)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the map after every stage, channels last."""
        maps = []
        tokens = self.embed(image)
        for index in range(len(self.layers)):
            tokens = self.stage(index, tokens)
            maps.append(tokens)
        return maps

    def checkpoint_gradients(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass: less memory, about a third more time."""
        for layer in self.layers:
            layer.grad_checkpointing = enable  # type: ignore[assignment]
