"""Patches of an image: where they lie, and how maps of the whole image and of its patches are read from each other.

A map of an image has fewer cells than the image has pixels; cells are equal parts of its sides. Corners are the first
(row, column) of patches in pixels of the image; sizes are (rows, columns).

Shapes: P patches, C channels, H/W rows and columns of maps.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]


def patch_corners(image: Size, patch: Size, overlap_px: int) -> Tensor:
    """Return the corners (P, 2) of the fewest patches that cover an image, evenly spread, row by row.

    Args:
        image: Size of the image.
        patch: Size of the patches, no larger than the image.
        overlap_px: Neighbours overlap by at least so many pixels.
    """
    rows, cols = (_starts(side, px, overlap_px) for side, px in zip(image, patch, strict=True))
    return torch.cartesian_prod(torch.tensor(rows), torch.tensor(cols)).view(-1, 2)


def _starts(side: int, patch: int, overlap: int) -> list[int]:
    if side <= patch:
        return [0]
    steps = -((patch - side) // (patch - overlap))  # rounded up
    return [i * (side - patch) // steps for i in range(steps + 1)]


def cut(images: Tensor, corners: Tensor, patch: Size) -> Tensor:
    """Return the patches (P, ..., rows, columns) of one image or label (..., H, W)."""
    return torch.stack([images[..., r : r + patch[0], c : c + patch[1]] for r, c in corners.tolist()])


def crop(maps: Tensor, corners: Tensor, patch: Size, image: Size, size: Sequence[int]) -> Tensor:
    """Read what a map of the whole image says of patches, at the cells of the patches' own maps (bilinear).

    Args:
        maps: (1, C, H, W), of an image.
        corners: (P, 2).
        patch: Size of the patches.
        image: Size of the image.
        size: Size of the patches' maps.

    Returns:
        (P, C, *size).
    """
    # affine_grid's coordinates are (x, y), and -1 to 1 over the image.
    side, shape = torch.tensor(patch) / torch.tensor(image), torch.tensor(image)
    centres = (2 * corners.cpu() + torch.tensor(patch)) / shape - 1
    boxes = torch.cat([torch.diag(side.flip(0)).expand(len(corners), 2, 2), centres.flip(1)[..., None]], dim=2)
    grid = F.affine_grid(boxes.to(maps.device), [len(corners), maps.shape[1], *size], align_corners=False)
    # In floats under autocast too: bf16 cannot tell positions apart that differ by less than a 256th of the image.
    every = maps.float().expand(len(corners), -1, -1, -1)
    return F.grid_sample(every, grid, padding_mode="border", align_corners=False).to(maps.dtype)


class Merged:
    """Maps of patches put together at the cells of maps of the whole image.

    Each cell is the mean of what lies in it, by area, over all patches that cover it.

    Args:
        like: Maps (1, C, H, W) of the whole image: how many cells the merged ones shall have.
        image: Size of the image.
    """

    def __init__(self, like: Sequence[Tensor], image: Size) -> None:
        self.image = image
        self.dtypes = [x.dtype for x in like]
        self.sums = [torch.zeros_like(x[0], dtype=torch.float32) for x in like]
        self.areas = [torch.zeros_like(x[0, 0], dtype=torch.float32) for x in like]

    def add(self, maps: Sequence[Tensor], corners: Tensor, patch: Size) -> None:
        """Add the maps (P, C, h, w) of some patches, in the order of ``like``."""
        for x, total, area in zip(maps, self.sums, self.areas, strict=True):
            for one, corner in zip(x, corners.tolist(), strict=True):
                (rows, down), (cols, across) = (
                    _shares(cells, side, start, px, parts)
                    for cells, side, start, px, parts in zip(
                        total.shape[-2:], self.image, corner, patch, one.shape[-2:], strict=True
                    )
                )
                down, across = down.to(one.device), across.to(one.device)
                with torch.autocast(one.device.type, enabled=False):
                    total[:, rows, cols] += down @ one.float() @ across.T
                area[rows, cols] += down.sum(1)[:, None] * across.sum(1)

    def means(self) -> list[Tensor]:
        """Return the merged maps (1, C, H, W)."""
        parts = zip(self.sums, self.areas, self.dtypes, strict=True)
        return [(total / area)[None].to(dtype) for total, area, dtype in parts]


def _shares(cells: int, side: int, start: int, patch: int, parts: int) -> tuple[slice, Tensor]:
    """Return how many pixels of each cell of a side lie in each part of a patch: the cells, and (cells, parts)."""
    first, last = start * cells // side, -(-(start + patch) * cells // side)
    edges = torch.arange(first, last + 1) * (side / cells)
    inner = start + torch.arange(parts + 1) * (patch / parts)
    begin = torch.maximum(edges[:-1, None], inner[:-1])
    end = torch.minimum(edges[1:, None], inner[1:])
    return slice(first, last), (end - begin).clamp(min=0)
