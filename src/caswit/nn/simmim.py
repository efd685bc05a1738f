"""Masked image modelling with two branches (paper section 3.5, after SimMIM).

Masked tokens of either branch become a learned token right after patch embedding, fusion stays active, and what is
under the masked part of the tile is reconstructed from the last fused hr map. What is masked in the context is what
the tile covers, so that nothing but its surroundings can help.

Shapes: B batch, H/W rows and columns of the tile, N tokens along a side, C channels.
"""

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import TOKEN_PX
from caswit.errors import ModelError
from caswit.nn.caswit import CASWiT
from caswit.nn.swin import SwinEncoder
from caswit.raster.reader import Bool

STRIDE_PX = 32
"""Pixels of the tile under one token of the last stage."""


class ReconstructionHead(nn.Sequential):
    """(B, C, N, N) -> (B, 3, 32 N, 32 N): a 1x1 convolution to the pixels under each token."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Conv2d(channels, 3 * STRIDE_PX**2, 1), nn.PixelShuffle(STRIDE_PX))


class SimMIM(nn.Module):
    """CASWiT's encoders and fusion with mask tokens and a reconstruction head.

    Args:
        network: Built for no classes: without decoders.
        context_ratio: Side of the masked middle of the context, as a share of its side.
    """

    def __init__(self, network: CASWiT, context_ratio: float) -> None:
        super().__init__()
        first, last = network.hr_encoder.channels[0], network.hr_encoder.channels[-1]
        self.network = network
        self.context_ratio = context_ratio
        self.hr_token = nn.Parameter(torch.zeros(first))
        self.context_token = nn.Parameter(torch.zeros(first)) if network.reads_context else None
        # SimMIM normalises the last map before its head, as Swin does before its classifier.
        self.norm = nn.LayerNorm(last)
        self.head = ReconstructionHead(last)
        for token in (self.hr_token, self.context_token):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)

    def forward(self, hr: Tensor, context: Tensor | None, mask: Tensor) -> Tensor:
        """Reconstruct tiles from what is not masked.

        Args:
            hr: (B, 3, H, W), uint8 or floating point on the 0-255 scale.
            context: (B, 3, H', W'), likewise; None without a context branch.
            mask: (B, N, N), True where a token of the tile is masked.

        Returns:
            (B, 3, H, W) normalised pixels.

        Raises:
            ModelError: The network reads its surroundings and none are given.
        """
        network = self.network
        x = _hidden(network.hr_encoder, network.normalise(hr), mask, self.hr_token)
        c = None
        if self.context_token is not None and network.context_encoder is not None:
            if context is None:
                raise ModelError("this model reads its surroundings: give it a context (B, 3, H', W')")
            middle_mask = self.context_mask(context)[None]
            c = _hidden(network.context_encoder, network.normalise(context), middle_mask, self.context_token)
        hr_maps, _ = network.stages(x, c)
        pixels = self.head(self.norm(hr_maps[-1]).permute(0, 3, 1, 2))
        return pixels[..., : hr.shape[-2], : hr.shape[-1]]

    def context_mask(self, context: Tensor) -> Tensor:
        """(N, N), True where a token of the context is masked."""
        assert context.shape[-2] == context.shape[-1], context.shape
        return torch.from_numpy(middle(context.shape[-1], self.context_ratio)).to(context.device)


def _hidden(encoder: SwinEncoder, image: Tensor, mask: Tensor, token: Tensor) -> Tensor:
    """Tokens of a normalised image, ``token`` where the mask is True."""
    # A convolutional stem sees beyond its token: what is hidden must be gone from the pixels too.
    visible = image.masked_fill(pixel_mask(mask, *image.shape[-2:]), 0.0)
    return torch.where(mask[..., None], token, encoder.embed(visible))


def pixel_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """(B, N, N) tokens -> (B, 1, H, W) pixels."""
    pixels = mask.repeat_interleave(TOKEN_PX, -2).repeat_interleave(TOKEN_PX, -1)
    return pixels[:, None, :height, :width]


def masked_l1_sum(reconstruction: Tensor, target: Tensor, pixels: Tensor) -> Tensor:
    """Absolute errors summed over masked pixels and bands; the paper divides by three times the masked pixels.

    Args:
        reconstruction: (B, 3, H, W).
        target: (B, 3, H, W) normalised pixels.
        pixels: (B, 1, H, W), True where masked.
    """
    return (F.l1_loss(reconstruction.float(), target.float(), reduction="none") * pixels).sum()


def random_cells(side_px: int, cell_px: int, ratio: float, rng: np.random.Generator) -> Bool:
    """(N, N): exactly ceil(ratio * cells) cells of a grid over the tile are True.

    Cells at the lower and right border are cut off where the side is no multiple of the cell, and count as whole.
    """
    cells = -(-side_px // cell_px)
    masked = np.zeros(cells * cells, bool)
    # Rounded first: 0.07 * 100 is more than 7 in floating point.
    masked[rng.permutation(masked.size)[: math.ceil(round(ratio * masked.size, 9))]] = True
    tokens = -(-side_px // TOKEN_PX)
    per_cell = cell_px // TOKEN_PX
    return masked.reshape(cells, cells).repeat(per_cell, 0).repeat(per_cell, 1)[:tokens, :tokens]


def middle(side_px: int, ratio: float) -> Bool:
    """(N, N): True for the tokens that the centred square with ``ratio`` of the side touches."""
    tokens = -(-side_px // TOKEN_PX)
    masked = np.zeros((tokens, tokens), bool)
    first, last = side_px * (1 - ratio) / 2, side_px * (1 + ratio) / 2
    if last > first:
        inner = slice(math.floor(round(first / TOKEN_PX, 9)), math.ceil(round(last / TOKEN_PX, 9)))
        masked[inner, inner] = True
    return masked
