"""Self-supervised pretraining (paper section 3.5): the objective that the loop of ``caswit.training.loop`` learns."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from caswit import __version__
from caswit.config import DataConfig, MaskConfig, PretrainRecipe
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import check_scenes, ground_size_m
from caswit.data.sampler import TrainingSamples
from caswit.data.scene import Scene
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.files import atomic_write_bytes
from caswit.inference.devices import uses_bf16
from caswit.nn.simmim import masked_l1_sum, pixel_mask, random_cells
from caswit.progress import Progress
from caswit.training.fabric import is_first_process, repeatable
from caswit.training.loop import Batch, Loop, launched, length
from caswit.training.reconstruct import Reconstructor, sheet
from caswit.training.run_folder import LOOP_COLUMNS, RunFolder
from caswit.viz.pictures import png_bytes
from caswit.weights.initialize import start_from
from caswit.weights.model_folder import PretrainedInfo, build_simmim, save_pretrained


def pretrain(recipe: PretrainRecipe, out: Path, *, resume: bool = False) -> Path:
    """Pretrain encoders and fusion on imagery without labels.

    Args:
        recipe: Every setting.
        out: Run folder to make, or to continue.
        resume: Continue the run in ``out`` where its last checkpoint is.

    Returns:
        The finished folder of weights, ``out / "model"``.

    Raises:
        CaswitError: The recipe, the data or the folder cannot be used.
    """
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken).read_at(recipe.tile.read_gsd_m)
    if is_first_process():
        dataset.list_broken()
    scenes = _scenes(recipe, dataset)
    check_scenes(dataset, scenes)
    folder = RunFolder(out, LOOP_COLUMNS)
    samples = MaskedSamples(recipe, dataset, scenes)
    recipe.train.absolute(*length(recipe.train, samples.tiles_per_epoch))  # refused before there is a folder
    fabric = launched(recipe, folder, resume=resume)
    with repeatable(recipe.train, fabric.device):
        objective = _Reconstruction(fabric, recipe, samples, folder)
        Loop(fabric, recipe, recipe.train, folder, objective).fit()
    return folder.model


class MaskedSamples(TorchDataset[dict[str, Tensor]]):
    """Tiles and their surroundings as functions of (seed, number), with the tokens of the tile that are hidden.

    Args:
        recipe: Of the run.
        dataset: Of the scenes.
        scenes: To learn from; labels are not read.
    """

    def __init__(self, recipe: PretrainRecipe, dataset: Dataset, scenes: tuple[Scene, ...]) -> None:
        data, settings = recipe.data, recipe.train
        self.seed, self.tile_px, self.mask = settings.seed, recipe.tile.tile_px, recipe.mask
        self.dataset, self.scenes = dataset, scenes
        self.tiles = TrainingSamples(
            dataset,
            DataConfig(dataset=data.dataset, sampling=data.sampling, workers=data.workers),
            recipe.tile,
            recipe.augment,
            seed=settings.seed,
            context=bool(recipe.model.fusion_stages),
            unlabelled=scenes,
        )

    @property
    def tiles_per_epoch(self) -> int:
        """Tiles of the fixed grid."""
        return self.tiles.tiles_per_epoch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Tile, context and mask."""
        sample = self.tiles[number]
        return {"tile": sample["tile"], "context": sample["context"], "mask": self.hidden(number)}

    def hidden(self, number: int) -> Tensor:
        """(N, N), True for the tokens of the tile that are masked."""
        # 1 << 34 keeps these draws apart from those of the tiles.
        rng = np.random.default_rng((self.seed, 1 << 34, number))
        return torch.from_numpy(random_cells(self.tile_px, self.mask.mask_cell_px, self.mask.ratio, rng))

    def forget_files(self) -> None:
        """Drop open files, which must not be shared between processes."""
        self.tiles.forget_files()


class _Reconstruction:
    """Learn to reconstruct what is hidden of tiles, from the rest and their surroundings."""

    label = "pretrain"

    def __init__(self, fabric: Fabric, recipe: PretrainRecipe, samples: MaskedSamples, folder: RunFolder) -> None:
        self.fabric, self.recipe, self.samples, self.folder = fabric, recipe, samples, folder
        self.settings = recipe.train
        dataset = samples.dataset
        self.info = PretrainedInfo(
            model=recipe.model,
            tile=recipe.tile,
            mask=recipe.mask,
            bands=dataset.bands,
            trained_gsd_m=ground_size_m(dataset, samples.scenes[0]),
        )
        torch.manual_seed(self.settings.seed)
        self.network = build_simmim(self.info)
        self.network.network.checkpoint_gradients(self.settings.checkpoint_gradients)
        self.memory: dict[str, Any] = {}

    def begin(self) -> None:
        """Start from the weights that the recipe names, if any."""
        recipe = self.recipe
        if recipe.start is not None:
            start_from(self.network.network, recipe.start, recipe.model.size, recipe.tile.tile_px)

    def masses(self, batch: Batch) -> Tensor:
        """Numbers to reconstruct: three for each masked pixel."""
        return 3 * self._pixels(batch).sum().float()[None]

    def loss(self, model: nn.Module, batch: Batch, masses: Tensor) -> Tensor:
        """Mean absolute error over the masked pixels of the whole batch."""
        found = model(batch["tile"], batch["context"] if batch["context"].numel() else None, batch["mask"])
        target = self.network.network.normalise(batch["tile"])
        return masked_l1_sum(found, target, self._pixels(batch)) / masses[0]

    @staticmethod
    def _pixels(batch: Batch) -> Tensor:
        return pixel_mask(batch["mask"], *batch["tile"].shape[-2:])

    def stepped(self, step: int) -> None:
        """Nothing depends on it."""

    def look_every(self, steps_per_epoch: int) -> int:
        """Draw once an epoch unless told otherwise."""
        return self.settings.picture_every_steps or steps_per_epoch

    def look(self, step: int, progress: Progress) -> dict[str, float]:
        """Draw the same tiles with the same cells hidden."""
        _ = progress
        if self.fabric.is_global_zero and self.settings.pictures:
            bf16 = uses_bf16(self.settings.precision, self.fabric.device)
            mask: MaskConfig = self.recipe.mask
            make = Reconstructor(self.network, self.recipe.tile, mask, self.fabric.device, bf16)
            dataset, side = self.samples.dataset, self.recipe.tile.tile_px
            tiles = spread_tiles(dataset, self.samples.scenes, side, self.settings.pictures)
            picture = sheet(make, dataset, [(scene, tile.window) for scene, tile in tiles])
            atomic_write_bytes(self.folder.pictures / f"step_{step:07}.png", png_bytes(picture))
        return {}

    def finish(self, step: int) -> None:
        """Write the folder of weights."""
        provenance = {
            "dataset": self.samples.dataset.name,
            "step": step,
            "recipe": dataclasses.asdict(self.recipe),
            "versions": {"caswit": __version__, "torch": torch.__version__},
        }
        save_pretrained(self.network, dataclasses.replace(self.info, provenance=provenance), self.folder.model)


def _scenes(recipe: PretrainRecipe, dataset: Dataset) -> tuple[Scene, ...]:
    """The scenes of the splits, or all; one image that is in several splits counts once."""
    splits = recipe.data.splits
    found = [s for name in splits for s in dataset.split(name, labelled=False)] if splits else list(dataset.scenes)
    return tuple({scene.image: scene for scene in found}.values())
