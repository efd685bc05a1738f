"""GLNet: a small view of the whole image and patches of it at full size, which read each other's features.

Chen et al., "Collaborative Global-Local Networks for Memory-Efficient Segmentation of Ultra-High Resolution Images"
(CVPR 2019, figures 4 and 5). The image given to the network is the whole scene or a large crop of it. It is trained in
three steps, each with what was learned before held fixed:

1. ``global``: a branch (ResNet-50 and feature pyramid) on the view, that is the image reduced to 508 px.
2. ``local``: a branch on patches of 508 px. At each of four stages (backbone, pyramid, and two convolutions of it) and
   at each of four levels it reads its own maps beside what the maps of the view say of the patch. An ensemble
   convolution labels a patch from the features of both branches, and 0.15 times the mean squared difference keeps the
   local features near those of the view.
3. ``global_again``: the branch on the view learns again and reads, at the same stages and levels, the local maps
   of all patches put together. The ensemble reads its features then.

From the paper and its public configuration: the sizes, the three steps, the focal losses (gamma 3) on labels at a
quarter of the sides, and that step 3 starts from the backbone of step 1 while the local branch goes on reading the
branch as step 1 left it. The finished network therefore holds three ResNet-50: 79.2 M parameters in the two branches
that the authors count, and 23.5 M in the backbone that the local branch reads.

Our reading: maps are cropped at exact positions and merged by area, instead of rounding both to whole cells of the
view, and logits are enlarged by interpolation, not repeated; of images with more than six patches, a training pass
labels six drawn at random (the authors sum gradients over all, six at a time). Without a phase all three
steps' losses are learned at once, each with gradients to its own part only.

Shapes: B batch, H/W rows and columns, h/w the same at a quarter, K classes, P patches of an image.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError
from caswit.nn.baselines.backbones import ResNet50
from caswit.nn.baselines.focal import focal_loss, label_at
from caswit.nn.baselines.parts import resize, scaled
from caswit.nn.baselines.patches import Merged, Size, crop, cut, patch_corners

FEATURE_WEIGHT = 0.15
"""Weight of the squared difference between local features and those of the view."""
STEPS = ("global", "local", "global_again")


class Reading(NamedTuple):
    """What a branch makes of its images."""

    maps: list[Tensor]
    """What the other branch reads: four stages of four levels each, 1/4 to 1/32."""
    features: Tensor
    """(B, C, h, w), of which the logits are made."""
    logits: Tensor
    """(B, K, h, w)."""


class Branch(nn.Module):
    """ResNet-50 and a feature pyramid (figure 5).

    Args:
        num_classes: K.
        width: Factor on the channels.
        shared: Whether it reads the maps of another branch of its own width.
        pretrained: Start the backbone from ImageNet weights.
    """

    def __init__(self, num_classes: int, width: float, *, shared: bool, pretrained: bool) -> None:
        super().__init__()
        fold = 2 if shared else 1
        wide, narrow = scaled(256, width), scaled(128, width)
        self.resnet = ResNet50(width, pretrained=pretrained)
        channels = self.resnet.channels
        self.lateral = nn.ModuleList(nn.Conv2d(fold * c, wide, 1) for c in channels)
        self.smooth = nn.ModuleList(nn.Conv2d(fold * wide, wide, 3, padding=1) for _ in channels)
        self.reduce = nn.ModuleList(nn.Conv2d(fold * wide, narrow, 3, padding=1) for _ in channels)
        self.mix = nn.Conv2d(8 * narrow, 4 * narrow, 3, padding=1) if shared else nn.Identity()
        self.classify = nn.Conv2d(4 * narrow, num_classes, 3, padding=1)

    def forward(self, image: Tensor, other: list[Tensor] | None = None) -> Reading:
        """Read images (B, 3, H, W) beside the other branch's maps, of the same sizes as this one's."""
        maps: list[Tensor] = []

        def beside_other(stage: list[Tensor]) -> list[Tensor]:
            theirs = other[len(maps) : len(maps) + 4] if other is not None else []
            maps.extend(stage)
            return [torch.cat(pair, dim=1) for pair in zip(stage, theirs, strict=True)] if theirs else stage

        laterals = _each(self.lateral, beside_other(self.resnet(image)))
        pyramid = [laterals[3]]
        for lateral in laterals[2::-1]:
            pyramid.insert(0, lateral + resize(pyramid[0], lateral.shape[-2:]))
        smooth = _each(self.smooth, beside_other(pyramid))
        reduced = _each(self.reduce, beside_other(smooth))
        levels = [resize(x, reduced[0].shape[-2:]) for x in beside_other(reduced)]
        features = self.mix(torch.cat(levels, dim=1))
        return Reading(maps, features, self.classify(features))


class GLNet(nn.Module):
    """GLNet with its three branches and the ensemble.

    Args:
        num_classes: K.
        width: Factor on all channels.
        pretrained: Start the ResNet-50s from timm's ImageNet weights; only for ``width`` 1.
        global_px: Sides of the view; an image that is smaller is its own view.
        patch_px: Sides of the patches; an image that is smaller is its own patch.
        overlap_px: Neighbouring patches overlap by at least this.
        patch_batch: Patches that are read at once when nothing is learned, which bounds the memory.
        train_patches: Patches of an image that a training pass labels at most.

    Raises:
        ConfigError: ``overlap_px`` is not below ``patch_px``; ``pretrained`` with another width than 1, or the weights
            cannot be downloaded.
    """

    reads_context: ClassVar[bool] = False
    stride_px: ClassVar[int] = 4
    phases: ClassVar[dict[str, tuple[str, ...]]] = {
        "global": ("view.",),
        "local": ("local.", "ensemble."),
        "global_again": ("view_again.", "ensemble."),
    }
    phase: str | None = None

    def __init__(
        self,
        *,
        num_classes: int,
        width: float = 1.0,
        pretrained: bool = False,
        global_px: int = 508,
        patch_px: int = 508,
        overlap_px: int = 50,
        patch_batch: int = 2,
        train_patches: int = 6,
    ) -> None:
        super().__init__()
        if not 0 <= overlap_px < patch_px:
            raise ConfigError(f"overlap_px must be from 0 to below patch_px, {patch_px}, got {overlap_px}")
        self.num_classes = num_classes
        self.global_px, self.patch_px, self.overlap_px = global_px, patch_px, overlap_px
        self.patch_batch, self.train_patches = patch_batch, train_patches
        self.view = Branch(num_classes, width, shared=False, pretrained=pretrained)
        self.local = Branch(num_classes, width, shared=True, pretrained=pretrained)
        self.view_again = Branch(num_classes, width, shared=True, pretrained=pretrained)
        self.ensemble = nn.Conv2d(8 * scaled(128, width), num_classes, 3, padding=1)

    def forward(self, image: Tensor, context: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        """Label images.

        Args:
            image: (B, 3, H, W), normalised; sides are multiples of ``stride_px``.
            context: Ignored.

        Returns:
            In evaluation mode logits (B, K, H, W), those of the last step that ``phase`` knows. In training mode a dict
            with what the losses of ``phase`` need, and "logits" without a graph, for scores: those of the view where
            this pass has no patch.
        """
        if self.training:
            return self._training_outputs(image)
        # One by one: what patches need is bounded whatever the batch, and an image's logits do not depend on others.
        return torch.cat([self._labelled(one) for one in image.split(1)])

    def loss(self, outputs: dict[str, Tensor], label: Tensor) -> Tensor:
        """Return the focal losses of the outputs that learn, and of the local step also the features' difference.

        Args:
            outputs: Of ``forward`` in training mode.
            label: (B, H, W) class indices, IGNORE_INDEX where unlabelled.
        """
        truth = {"view": label, "view_again": label}
        if "corners" in outputs:
            size = self._patch_size((label.shape[-2], label.shape[-1]))
            patches = torch.cat([cut(one, at, size) for one, at in zip(label, outputs["corners"].long(), strict=True)])
            truth |= {"local": patches, "ensemble": patches, "ensemble_again": patches}
        learned = [(outputs[name], of) for name, of in truth.items() if name in outputs]
        losses = [focal_loss(logits, label_at(of, logits.shape[-2:])) for logits, of in learned]
        if "difference" in outputs:
            # Without labels nothing is learned, as in the other terms.
            losses.append(FEATURE_WEIGHT * outputs["difference"] * (label != IGNORE_INDEX).any())
        return torch.stack(losses).sum()

    def _labelled(self, image: Tensor) -> Tensor:
        """Return logits (1, K, H, W) of an image (1, 3, H, W)."""
        side = (image.shape[-2], image.shape[-1])
        small = self._view_of(image)
        view = self.view(small)
        if self.phase == "global":
            return resize(view.logits.float(), side)
        patch = self._patch_size(side)
        corners = patch_corners(side, patch, self.overlap_px)
        groups = corners.split(self.patch_batch)
        total = torch.zeros(self.num_classes, *side, device=image.device)
        count = torch.zeros(side, device=image.device)
        merged = Merged(view.maps, side)
        # The ensemble is linear: the parts of both branches are added up one after the other, so that no features of
        # patches need be kept until the view has been read again.
        weights = self.ensemble.weight.chunk(2, dim=1)
        for group in groups:
            local = self.local(cut(image[0], group, patch), self._crops(view, group, patch, side))
            _add(total, F.conv2d(local.features, weights[0], padding=1), group, patch)
            merged.add(local.maps, group, patch)
        reading = view if self.phase == "local" else self.view_again(small, merged.means())
        size = _map_sizes(patch)[0]
        for group in groups:
            features = crop(reading.features, group, patch, side, size)
            _add(total, F.conv2d(features, weights[1], self.ensemble.bias, padding=1), group, patch)
            for row, col in group.tolist():
                count[row : row + patch[0], col : col + patch[1]] += 1
        return (total / count)[None]

    def _training_outputs(self, image: Tensor) -> dict[str, Tensor]:
        side = (image.shape[-2], image.shape[-1])
        learned = STEPS if self.phase is None else (self.phase,)
        if self.phase in ("global", "local"):
            _copy(self.view.resnet, self.view_again.resnet)  # from which the third step starts
        small = self._view_of(image)
        with _learning("global" in learned, self.view):
            view = self.view(small)
        outputs = {"logits": resize(view.logits.detach().float(), side)}
        if "global" in learned:
            outputs["view"] = view.logits
        if self.phase == "global":
            return outputs
        patch = self._patch_size(side)
        every = patch_corners(side, patch, self.overlap_px)
        outputs["corners"] = torch.stack([_draw(every, self.train_patches) for _ in image]).to(image.device)
        fixed = [_part(view, i) for i in range(len(image))]
        if "local" in learned:
            outputs |= self._local_outputs(image, fixed, outputs["corners"], patch)
        if "global_again" in learned:
            outputs |= self._again_outputs(image, small, fixed, outputs["corners"], patch)
        with torch.no_grad():
            scores = outputs["ensemble" if self.phase == "local" else "ensemble_again"].float()
            for one, at, of_patches in zip(
                outputs["logits"], outputs["corners"], scores.chunk(len(image)), strict=True
            ):
                _put(one, of_patches, at, patch)
        return outputs

    def _local_outputs(self, image: Tensor, views: list[Reading], corners: Tensor, patch: Size) -> dict[str, Tensor]:
        """Label the patches at ``corners`` (B, P, 2) beside what the views say of them, which gets no gradients."""
        side = (image.shape[-2], image.shape[-1])
        crops = [self._crops(view, at, patch, side) for view, at in zip(views, corners, strict=True)]
        patches = torch.cat([cut(one, at, patch) for one, at in zip(image, corners, strict=True)])
        local = self.local(patches, [torch.cat(parts) for parts in zip(*crops, strict=True)])
        of_view = _features_of_patches(views, corners, patch, side)
        return {
            "local": local.logits,
            "ensemble": self.ensemble(torch.cat([local.features, of_view], dim=1)),
            "difference": F.mse_loss(local.features.float(), of_view.float()),
        }

    def _again_outputs(
        self, image: Tensor, small: Tensor, views: list[Reading], corners: Tensor, patch: Size
    ) -> dict[str, Tensor]:
        """Read the view again beside the local maps of all patches, and label the patches at ``corners``."""
        side = (image.shape[-2], image.shape[-1])
        maps, features = [], []
        for one, view, at in zip(image, views, corners, strict=True):
            merged = Merged(view.maps, side)
            drawn = {tuple(corner): i for i, corner in enumerate(at.tolist())}
            kept: dict[int, Tensor] = {}
            with _learning(False, self.local):
                for group in patch_corners(side, patch, self.overlap_px).split(self.patch_batch):
                    local = self.local(cut(one, group, patch), self._crops(view, group, patch, side))
                    merged.add(local.maps, group, patch)
                    numbers = [drawn.get(tuple(corner)) for corner in group.tolist()]
                    kept |= {n: x for n, x in zip(numbers, local.features, strict=True) if n is not None}
            maps.append(merged.means())
            features.append(torch.stack([kept[i] for i in range(len(at))]))
        again = self.view_again(small, [torch.cat(parts) for parts in zip(*maps, strict=True)])
        of_view = _features_of_patches([_part(again, i, fixed=False) for i in range(len(image))], corners, patch, side)
        return {
            "view_again": again.logits,
            "ensemble_again": self.ensemble(torch.cat([torch.cat(features), of_view], dim=1)),
        }

    def _view_of(self, image: Tensor) -> Tensor:
        size = [min(self.global_px, side) for side in image.shape[-2:]]
        # With antialiasing, as image libraries reduce images.
        return F.interpolate(image.float(), size=size, mode="bilinear", antialias=True)

    def _patch_size(self, side: Size) -> Size:
        return min(self.patch_px, side[0]), min(self.patch_px, side[1])

    def _crops(self, view: Reading, corners: Tensor, patch: Size, side: Size) -> list[Tensor]:
        """Return what the maps of one view say of patches, at the cells of the local branch's maps."""
        sizes = _map_sizes(patch) * 4
        return [crop(x, corners, patch, side, size) for x, size in zip(view.maps, sizes, strict=True)]


def _features_of_patches(views: list[Reading], corners: Tensor, patch: Size, side: Size) -> Tensor:
    size = _map_sizes(patch)[0]
    parts = zip(views, corners, strict=True)
    return torch.cat([crop(view.features, at, patch, side, size) for view, at in parts])


def _map_sizes(image: Size) -> list[Size]:
    """Return the sizes of a ResNet's four maps, each half of the one before, rounded up."""
    return [(-(-image[0] // n), -(-image[1] // n)) for n in (4, 8, 16, 32)]


def _part(reading: Reading, index: int, *, fixed: bool = True) -> Reading:
    """Return one image's part of a reading, without a graph if it is ``fixed``."""
    maps, features, logits = reading
    parts = [x[index : index + 1].detach() if fixed else x[index : index + 1] for x in (*maps, features, logits)]
    return Reading(parts[:-2], parts[-2], parts[-1])


def _draw(corners: Tensor, most: int) -> Tensor:
    """Return ``most`` of the patches at random, or all if they are no more."""
    # From torch's generator on the CPU: the same patches for a seed on every device.
    return corners if len(corners) <= most else corners[torch.randperm(len(corners))[:most]]


def _add(total: Tensor, logits: Tensor, corners: Tensor, patch: Size) -> None:
    """Add the enlarged logits (P, K, h, w) of patches to those (K, H, W) of the image."""
    for (row, col), one in zip(corners.tolist(), resize(logits.float(), patch), strict=True):
        total[:, row : row + patch[0], col : col + patch[1]] += one


def _put(image: Tensor, logits: Tensor, corners: Tensor, patch: Size) -> None:
    """Replace logits (K, H, W) of an image by the mean of those (P, K, h, w) of patches, where there are any."""
    total, count = torch.zeros_like(image), torch.zeros_like(image[:1])
    _add(total, logits, corners, patch)
    for row, col in corners.tolist():
        count[:, row : row + patch[0], col : col + patch[1]] += 1
    image.copy_(torch.where(count > 0, total / count.clamp(min=1), image))


def _each(layers: nn.ModuleList, maps: list[Tensor]) -> list[Tensor]:
    return [layer(x) for layer, x in zip(layers, maps, strict=True)]


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    for ours, theirs in zip(target.state_dict().values(), source.state_dict().values(), strict=True):
        ours.copy_(theirs)


@contextmanager
def _learning(learns: bool, branch: nn.Module) -> Iterator[None]:
    """Within this, a branch that does not learn has no graph and leaves its running statistics as they are."""
    if learns:
        yield
        return
    training = branch.training
    branch.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        branch.train(training)
