"""Patches cover the image and overlap; maps are cropped and merged as slow loops do it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from caswit.nn.baselines.patches import Merged, crop, cut, patch_corners


@pytest.mark.property
@given(st.data())
def test_patches_cover_the_image_overlap_and_are_the_fewest(data):
    overlap = data.draw(st.integers(0, 60))
    patch = tuple(data.draw(st.integers(overlap + 1, 600)) for _ in range(2))
    image = tuple(px + data.draw(st.integers(0, 10 * (px - overlap))) for px in patch)
    corners = patch_corners(image, patch, overlap)
    for axis in range(2):
        starts = corners[:, axis].unique().tolist()
        assert starts[0] == 0
        assert starts[-1] + patch[axis] == image[axis]
        steps = [b - a for a, b in itertools.pairwise(starts)]
        assert max(steps, default=0) <= patch[axis] - overlap
        assert max(steps, default=0) - min(steps, default=0) <= 1  # evenly spread
        fewer = len(starts) - 1
        assert fewer == 0 or patch[axis] + (fewer - 1) * (patch[axis] - overlap) < image[axis]
    assert len(corners) == len(corners.unique(dim=0)) == corners[:, 0].unique().numel() * corners[:, 1].unique().numel()


def test_the_papers_patches():
    """36 patches of an image of DeepGlobe, 144 of one of URUR."""
    assert len(patch_corners((2448, 2448), (508, 508), 50)) == 36
    assert len(patch_corners((5120, 5120), (508, 508), 50)) == 144
    assert patch_corners((508, 508), (508, 508), 50).tolist() == [[0, 0]]


def test_patches_are_cut_from_images_and_labels():
    image = torch.arange(2 * 5 * 6).view(2, 5, 6)
    corners = torch.tensor([[0, 0], [2, 3]])
    assert torch.equal(cut(image, corners, (3, 2))[1], image[:, 2:5, 3:5])
    assert torch.equal(cut(image[0], corners, (3, 2))[1], image[0, 2:5, 3:5])


def slow_crop(x, corner, patch, image, size):
    """Interpolate between cell centres, cell by cell."""
    out = torch.zeros(x.shape[0], *size)
    for i in range(size[0]):
        for j in range(size[1]):
            weights = torch.ones(x.shape[1:])
            for axis, cell in enumerate((i, j)):
                at = (corner[axis] + (cell + 0.5) * patch[axis] / size[axis]) * x.shape[1 + axis] / image[axis] - 0.5
                at = min(max(at, 0), x.shape[1 + axis] - 1)
                line = (1 - (torch.arange(x.shape[1 + axis]) - at).abs()).clamp(min=0)
                weights = weights * (line[:, None] if axis == 0 else line[None])
            out[:, i, j] = (x * weights).sum((1, 2))
    return out


@pytest.mark.equivalence
def test_a_crop_interpolates_at_the_patches_own_cells():
    torch.manual_seed(0)
    maps = torch.randn(1, 3, 9, 7)
    corners, patch, image, size = torch.tensor([[0, 0], [13, 31], [60, 52]]), (40, 28), (100, 80), (10, 7)
    ours = crop(maps, corners, patch, image, size)
    expected = [slow_crop(maps[0], corner, patch, image, size) for corner in corners.tolist()]
    torch.testing.assert_close(ours, torch.stack(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.equivalence
def test_the_crop_of_the_whole_image_is_an_enlargement():
    maps = torch.randn(1, 3, 9, 7)
    whole = crop(maps, torch.zeros(1, 2, dtype=torch.long), (90, 70), (90, 70), (36, 28))
    expected = F.interpolate(maps, size=(36, 28), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.equivalence
def test_merged_maps_are_means_by_area_over_all_patches():
    """Against an image of single pixels, on which maps are painted and averaged."""
    torch.manual_seed(0)
    image, patch = (48, 40), (24, 16)
    corners = patch_corners(image, patch, 5)
    maps = torch.randn(len(corners), 2, 6, 4)
    like = torch.zeros(1, 2, 12, 5)
    painted, count = torch.zeros(2, *image), torch.zeros(image)
    for (row, col), one in zip(corners.tolist(), maps, strict=True):
        place = slice(row, row + 24), slice(col, col + 16)
        painted[:, *place] += one.repeat_interleave(4, 1).repeat_interleave(4, 2)
        count[place] += 1
    sums, counts = (F.avg_pool2d(x[None], (4, 8))[0] for x in (painted, count[None]))
    merged = Merged([like], image)
    for group in range(0, len(corners), 2):
        merged.add([maps[group : group + 2]], corners[group : group + 2], patch)
    torch.testing.assert_close(merged.means()[0][0], sums / counts)


@pytest.mark.property
@given(st.data())
def test_merging_keeps_a_constant_whatever_the_sizes(data):
    """So no cell is without a patch, and no weights are lost at edges."""
    patch = tuple(data.draw(st.integers(8, 60)) for _ in range(2))
    image = tuple(px + data.draw(st.integers(0, 3 * px)) for px in patch)
    cells, parts = ([data.draw(st.integers(1, 20)) for _ in range(2)] for _ in range(2))
    corners = patch_corners(image, patch, 4)
    merged = Merged([torch.zeros(1, 1, *cells)], image)
    merged.add([torch.full((len(corners), 1, *parts), 3.0)], corners, patch)
    torch.testing.assert_close(merged.means()[0], torch.full((1, 1, *cells), 3.0))


def test_one_patch_that_is_the_image_is_merged_into_itself():
    maps = torch.randn(1, 4, 12, 9)
    merged = Merged([maps], (48, 36))
    merged.add([maps], torch.zeros(1, 2, dtype=torch.long), (48, 36))
    torch.testing.assert_close(merged.means()[0], maps)
