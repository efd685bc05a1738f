"""Masked image modelling with two branches (paper section 3.5, after SimMIM by Xie et al. 2022).

Masked tokens of either branch are replaced by a learned token right after patch embedding, fusion stays active, and
the pixels under the masked tokens of the tile are reconstructed from the last fused hr map. In the context, the part
that the tile covers is masked: the network must not find there, at a lower resolution, what it is to reconstruct.

The first part of this module draws masks with numpy, in the workers that load data; the second is the network. Both
count in tokens of TOKEN_PX pixels. Shapes: B batch, H/W rows and columns, n bands, N tokens along a side, C channels.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import TOKEN_PX
from caswit.errors import ModelError
from caswit.nn.caswit import CASWiT
from caswit.nn.swin import SwinEncoder

STRIDE_PX = 32
"""Side of the area of the tile under one token of the last stage, in pixels."""


def random_cells(side_px: int, cell_px: int, ratio: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw a mask (N, N) in which exactly ceil(ratio * cells) cells of a grid over the tile are True.

    Cells at the lower and right border are cut off where the side is no multiple of the cell, and count as whole.
    """
    # SimMIM masks cells of several tokens: single tokens could be filled in from their neighbours.
    cells = -(-side_px // cell_px)
    masked = np.zeros(cells * cells, bool)
    # Rounded first: 0.07 * 100 is more than 7 in floating point.
    masked[rng.permutation(masked.size)[: math.ceil(round(ratio * masked.size, 9))]] = True
    tokens = -(-side_px // TOKEN_PX)
    per_cell = cell_px // TOKEN_PX
    return masked.reshape(cells, cells).repeat(per_cell, 0).repeat(per_cell, 1)[:tokens, :tokens]


def centre_square(side_px: int, ratio: float) -> NDArray[np.bool_]:
    """Return a mask (N, N) of the tokens that a centred square with ``ratio`` of the side touches."""
    tokens = -(-side_px // TOKEN_PX)
    masked = np.zeros((tokens, tokens), bool)
    first, last = side_px * (1 - ratio) / 2, side_px * (1 + ratio) / 2
    if last > first:
        inner = slice(math.floor(round(first / TOKEN_PX, 9)), math.ceil(round(last / TOKEN_PX, 9)))
        masked[inner, inner] = True
    return masked


class ReconstructionHead(nn.Sequential):
    """Predict the pixels under each token by a 1x1 convolution: (B, C, N, N) -> (B, n, 32 N, 32 N) of n bands."""

    def __init__(self, channels: int, bands: int = 3) -> None:
        super().__init__(nn.Conv2d(channels, bands * STRIDE_PX**2, 1), nn.PixelShuffle(STRIDE_PX))


class SimMIM(nn.Module):
    """CASWiT's encoders and fusion with mask tokens and a reconstruction head.

    Args:
        network: Built with ``num_classes=0``, which leaves out the decoders.
        context_ratio: Side of the masked square in the centre of the context, as a share of the context's side; of
            several contexts one for each.
    """

    def __init__(self, network: CASWiT, context_ratio: float | Sequence[float]) -> None:
        super().__init__()
        first, last = network.hr_encoder.channels[0], network.hr_encoder.channels[-1]
        self.network = network
        ratios = (context_ratio,) if isinstance(context_ratio, float) else tuple(context_ratio)
        assert len(ratios) == network.contexts, (ratios, network.contexts)
        self.context_ratios = ratios
        self.hr_token = nn.Parameter(torch.zeros(first))
        self.context_token = nn.Parameter(torch.zeros(first)) if network.reads_context else None
        # The paper does not mention a norm here; SimMIM has one, as Swin has before its classifier.
        self.norm = nn.LayerNorm(last)
        self.head = ReconstructionHead(last, network.bands)
        for token in (self.hr_token, self.context_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def forward(self, hr: Tensor, context: Tensor | None, mask: Tensor) -> Tensor:
        """Reconstruct tiles from what is not masked.

        Args:
            hr: (B, n, H, W), uint8 or floating point on the 0-255 scale.
            context: (B, n, H', W'), of several contexts (B, N, n, H', W'), on the same scale; None for the baseline.
            mask: (B, N, N), True where a token of the tile is masked.

        Returns:
            (B, n, H, W) normalised pixels.

        Raises:
            ModelError: The network has a context branch and no context is given.
        """
        network = self.network
        x = _embed_masked(network.hr_encoder, network.normalise(hr), mask, self.hr_token)
        if self.context_token is None or network.context_encoder is None:
            hr_maps = network.hr_encoder.stages(x)
        elif context is None:
            raise ModelError(f"this model needs a context image: give it a context (B, {network.bands}, H', W')")
        else:
            centres = self.context_masks(context).repeat(len(context), 1, 1)
            context = network.each_context(context)
            c = _embed_masked(network.context_encoder, network.normalise(context), centres, self.context_token)
            hr_maps, _ = network.stages(x, c)
        pixels = self.head(self.norm(hr_maps[-1]).permute(0, 3, 1, 2))
        # Stages round their sides up, so the head returns whole squares of 32 px, which may reach beyond the tile.
        return pixels[..., : hr.shape[-2], : hr.shape[-1]]

    def context_masks(self, context: Tensor) -> Tensor:
        """Return a mask (N, N) for each context of a tile, True where a token of it is masked."""
        side = context.shape[-1]
        assert context.shape[-2] == side, context.shape
        masks = np.stack([centre_square(side, ratio) for ratio in self.context_ratios])
        return torch.from_numpy(masks).to(context.device)


def _embed_masked(encoder: SwinEncoder, image: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Embed a normalised image, with ``token`` where the mask is True."""
    # The paper replaces tokens "with no zeroing" of pixels. A convolutional stem reads beyond the borders of a token,
    # so pixels are blanked too; with the patch stem this changes nothing, since their tokens are replaced anyway.
    visible = image.masked_fill(pixel_mask(mask, *image.shape[-2:]), 0.0)
    return torch.where(mask[..., None], token, encoder.embed(visible))


def pixel_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Enlarge masks of tokens (B, N, N) to masks of pixels (B, 1, H, W)."""
    pixels = mask.repeat_interleave(TOKEN_PX, -2).repeat_interleave(TOKEN_PX, -1)
    return pixels[:, None, :height, :width]


def masked_l1_sum(reconstruction: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Sum absolute errors over masked pixels and bands; the paper divides it by three times the masked pixels.

    Args:
        reconstruction: (B, n, H, W).
        target: (B, n, H, W) normalised pixels.
        pixels: (B, 1, H, W), True where masked.
    """
    return (F.l1_loss(reconstruction.float(), target.float(), reduction="none") * pixels).sum()
