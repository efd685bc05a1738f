"""A Swin encoder that can be advanced one stage at a time.

The stages are timm's. Advancing them one by one is what lets fusion change the feature map between two stages
(paper section 3.2). Shapes: B batch, H/W rows and columns of tokens, C channels; maps are channels-last.
"""

from collections.abc import Sequence

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn

from caswit.config import Norm, Stem
from caswit.nn.conv import ConvNormReLU

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
