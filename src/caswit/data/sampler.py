"""Training samples as a function of (seed, number), so that resuming a run needs no loader state."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from caswit.config import RGB, AugmentConfig, DataConfig, TileConfig
from caswit.data.dataset import Dataset
from caswit.data.label_counts import ClassDraws, TileCounts
from caswit.data.labelled_windows import LabelledWindows
from caswit.data.loader import Loader, begin_worker
from caswit.data.reader import Sample, SceneReader, SceneReaders, scene_areas
from caswit.data.scene import Scene
from caswit.data.transforms import augment, only_labels, swap_context
from caswit.errors import DataError
from caswit.raster.windows import Window, area_tiles, bounds

log = logging.getLogger(__name__)
_MAX_BROKEN = 20
"""Samples in a row that may be broken before that is an error after all."""


class Samples(Protocol):
    """A source of samples: sample ``n`` of a run for any n from 0."""

    @property
    def tiles_per_epoch(self) -> int:
        """Number of tiles in the fixed grid."""

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return tensors by name, of the same shapes for every number."""

    def forget_files(self) -> None:
        """Drop open files, which must not be shared between processes."""


class TrainingSamples(TorchDataset[dict[str, torch.Tensor]]):
    """Augmented training samples: sample ``n`` of a run for any n from 0.

    Args:
        dataset: Its training split is used.
        data: Sampling settings.
        tile: Tile geometry.
        augmentation: Strength of each random change.
        seed: Fixes every sample.
        context: Read the context too.
        unlabelled: Scenes to take instead of the training split; their labels are not read.
    """

    def __init__(
        self,
        dataset: Dataset,
        data: DataConfig,
        tile: TileConfig,
        augmentation: AugmentConfig,
        *,
        seed: int,
        context: bool,
        unlabelled: Sequence[Scene] | None = None,
    ) -> None:
        self.dataset, self.tile, self.augmentation, self.seed = dataset, tile, augmentation, seed
        self.scenes = dataset.split(data.train_split) if unlabelled is None else tuple(unlabelled)
        self.random = data.sampling != "grid"
        self.factor = tile.context_factor if context else None
        areas = [scene_areas(dataset, scene) for scene in self.scenes]
        self.areas = [(i, area) for i, some in enumerate(areas) for area in some]
        sizes = np.array([area.height * area.width for _, area in self.areas], np.int64)
        self._shares = sizes / sizes.sum()
        self._bounds = [bounds(some) for some in areas]
        self.grid = [(i, t.window) for i, some in enumerate(areas) for t in area_tiles(some, tile.tile_px)]
        parts = any(scene.areas is not None and not scene.checked for scene in self.scenes)
        self.kept = areas if data.hold_out or parts else None
        """Areas by scene, whose labels alone are used: those around them are for validation, or for nothing. None where
        no label lies around them, as in a mosaic of the patches of one split."""
        self.labelled: list[tuple[int, Window]] | None = None
        if data.label_fraction < 1:
            # A second number of their own keeps these draws apart from those of samples and of epochs.
            picks = np.random.default_rng((seed, 1 << 33)).permutation(len(self.grid))
            # Rounded first: 0.07 * 100 is more than 7 in floating point.
            count = math.ceil(round(data.label_fraction * len(self.grid), 9))
            self.labelled = self.grid = [self.grid[i] for i in sorted(picks[:count])]
        self._draws: ClassDraws | None = None
        """Of sampling by class; ``balance`` sets it."""
        names = dataset.band_names
        self._rgb = [names.index(name) for name in RGB] if set(RGB) <= set(names) else None
        self._opened = SceneReaders(dataset, self.scenes, labels=unlabelled is None)
        self._where: LabelledWindows | None = None
        if data.sampling == "labelled":
            self._where = LabelledWindows(self._opened, self.grid, data.train_split)
            self.grid = self._where.grid
        self._epoch = -1
        self._order = np.zeros(0, np.int64)

    @property
    def tiles_per_epoch(self) -> int:
        """Number of tiles in the fixed grid."""
        return len(self.grid)

    def balance(self, counts: TileCounts) -> None:
        """From now on draw tiles so that every class comes first as often.

        Args:
            counts: Labelled pixels of each class in each tile of ``grid``.
        """
        assert len(counts) == len(self.grid), (len(counts), len(self.grid))
        self._draws = ClassDraws(counts)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        """Return the uint8 arrays of a ``Sample`` by field name.

        Where a file is broken and the recipe has ``skip_broken``, the next sample that can be read is returned.

        Raises:
            DataError: A file is broken, or too many in a row.
        """
        for other in range(number, number + (_MAX_BROKEN if self.dataset.skip_broken else 0)):
            try:
                return self._sample(other)
            except DataError as error:
                log.warning("skipped: %s", error)
        return self._sample(number)

    def _sample(self, number: int) -> dict[str, torch.Tensor]:
        # All that is random about a sample comes from here: which process reads it, and after which, is all the same.
        rng = np.random.default_rng((self.seed, number))
        index, window = self._window(number, rng)
        scene, factor = self._opened[index], 1.0
        if self.augmentation.scale:
            # Windows of labelled tiles are in pixels of the unscaled scene, ``factor`` times smaller than those read.
            whole = scene
            scene, window = _scaled(whole, window, self.augmentation.scale, rng)
            factor = scene.ratio / whole.ratio
        sample = self._read(index, scene, window, factor)
        swapped = self.augmentation.context_swap
        if swapped and self.factor is not None and rng.uniform() < swapped:
            elsewhere, other = self._random_window(rng)
            sample = swap_context(sample, self._read(elsewhere, self._opened[elsewhere], other), self.factor)
        sample = augment(sample, self.augmentation, rng, factor=self.factor or 1, rgb=self._rgb)
        return {name: torch.from_numpy(x) for name, x in zip(Sample._fields, sample, strict=True)}

    def _read(self, index: int, scene: SceneReader, window: Window, scale: float = 1.0) -> Sample:
        """Read a window of a scene, with the labels that may be used."""
        sample = scene.read(window, self.factor)
        if self.kept is not None:
            sample = only_labels(sample, window, self.factor, [_inner(w, scale) for w in self.kept[index]])
        if self.labelled is None:
            return sample
        return only_labels(sample, window, self.factor, [_inner(w, scale) for i, w in self.labelled if i == index])

    def _window(self, number: int, rng: np.random.Generator) -> tuple[int, Window]:
        """Return the scene of a sample, by its place, and the window in it."""
        if self._draws is not None:
            # Not as far as around a few labelled tiles: what the tile was drawn for should still be in it.
            return self._near(self.grid[self._draws.draw(rng)], rng, part=4)
        return self._random_window(rng) if self.random else self._grid_window(number)

    def _grid_window(self, number: int) -> tuple[int, Window]:
        epoch, position = divmod(number, len(self.grid))
        # Only the order of the current epoch is kept; that of another can be drawn again at any time.
        if epoch != self._epoch:
            # The number in the middle keeps these draws apart from those of sample number ``epoch``.
            rng = np.random.default_rng((self.seed, 1 << 32, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self.grid))
        return self.grid[self._order[position]]

    def _random_window(self, rng: np.random.Generator) -> tuple[int, Window]:
        """Draw a window inside an area of a scene, areas by their size."""
        if self._where is not None:
            return self._where.draw(rng, self._bounds)
        if self.labelled is not None:
            # With few labels, up to half a tile away from a labelled one: elsewhere there is nothing to learn.
            return self._near(self.labelled[rng.integers(len(self.labelled))], rng, part=2)
        scene, area = self.areas[int(rng.choice(len(self.areas), p=self._shares))]
        side = self.tile.tile_px
        row, col = (int(rng.integers(max(1, length - side + 1))) for length in (area.height, area.width))
        return scene, Window(area.row + row, area.col + col, side, side)

    def _near(self, tile: tuple[int, Window], rng: np.random.Generator, *, part: int) -> tuple[int, Window]:
        """Draw a window up to one ``part``-th of a tile away from it, either way, inside its scene."""
        scene, window = tile
        whole = self._bounds[scene]
        row, col = (
            int(np.clip(start + rng.integers(-(side // part), side // part + 1), first, first + max(0, length - side)))
            for start, side, first, length in zip(window[:2], window[2:], whole[:2], whole[2:], strict=True)
        )
        return scene, Window(row, col, window.height, window.width)

    def forget_files(self) -> None:
        """Drop open files, which must not be shared between processes."""
        self._opened.forget()


def _scaled(scene: SceneReader, window: Window, scale: float, rng: np.random.Generator) -> tuple[SceneReader, Window]:
    """Draw another ground size; return the scene read at it, and a window of as many pixels about the same centre."""
    # Even on a logarithmic scale: enlarging is as frequent as shrinking.
    factor = (1 + scale) ** rng.uniform(-1, 1)
    scene = scene.scaled(factor)
    side = window.height
    row, col = (
        max(min(round((start + side / 2) / factor - side / 2), int(axis.native / axis.ratio) - side), 0)
        for start, axis in ((window.row, scene.rows), (window.col, scene.cols))
    )
    return scene, Window(row, col, side, side)


def _inner(window: Window, factor: float) -> Window:
    """Return the window of those pixels, ``factor`` times as large, that lie wholly inside a window."""
    top, left = math.ceil(window.row / factor), math.ceil(window.col / factor)
    bottom, right = math.floor((window.row + window.height) / factor), math.floor((window.col + window.width) / factor)
    return Window(top, left, bottom - top, right - left)


class _Batches(Sampler[list[int]]):
    """The numbers of the samples in each pass of one device, from some step on."""

    def __init__(self, *, first_step: int, last_step: int, batch: int, passes: int, device: int, devices: int) -> None:
        self.steps = range(first_step, last_step)
        self.batch, self.passes, self.device, self.devices = batch, passes, device, devices

    def __len__(self) -> int:
        return len(self.steps) * self.passes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the numbers of each pass: pass p of device d takes its own consecutive part of the step's batch."""
        part = self.batch // (self.passes * self.devices)
        for step in self.steps:
            for each in range(self.passes):
                first = step * self.batch + (each * self.devices + self.device) * part
                yield list(range(first, first + part))


def training_loader(
    samples: Samples,
    *,
    steps: tuple[int, int],
    batch: int,
    passes: int = 1,
    device: tuple[int, int] = (0, 1),
    workers: int = 0,
    pinned: bool = False,
) -> Loader[dict[str, torch.Tensor]]:
    """Return the batches of steps[0] .. steps[1] - 1 in order, ``passes`` of them per step.

    Args:
        samples: Samples to draw from.
        steps: First step and the one after the last.
        batch: Samples per step over all devices and passes.
        passes: Forward passes per step on each device.
        device: (number of this device, number of devices).
        workers: Reading processes; 0 reads in this one.
        pinned: Put batches into memory that a GPU reads by itself.
    """
    batches = _Batches(
        first_step=steps[0], last_step=steps[1], batch=batch, passes=passes, device=device[0], devices=device[1]
    )
    # A forked worker would share the position in each open file with this process and with the other workers.
    samples.forget_files()
    return Loader(
        cast(TorchDataset[dict[str, torch.Tensor]], samples),
        batch_sampler=batches,
        num_workers=workers,
        worker_init_fn=begin_worker if workers else None,
        pin_memory=pinned,
    )
