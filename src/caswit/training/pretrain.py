"""Self-supervised pretraining (paper section 3.5): the task that the loop of ``caswit.training.loop`` learns."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from caswit.config import DataConfig, ModelConfig, PretrainRecipe
from caswit.data.dataset import Dataset
from caswit.data.reader import band_layout, check_scenes, ground_size_m
from caswit.data.sampler import TrainingSamples
from caswit.data.scene import Scene
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.files import atomic_write_bytes
from caswit.inference.devices import uses_bf16
from caswit.nn.caswit import CASWiT
from caswit.nn.simmim import SimMIM, masked_l1_sum, pixel_mask, random_cells
from caswit.training.fabric import folder_for, launch, repeatable
from caswit.training.loggers import check_loggers
from caswit.training.loop import Batch, fit, length, load_data, settle_bands
from caswit.training.reconstruct import Reconstructor, sheet
from caswit.training.run_folder import LOOP_COLUMNS, RunFolder
from caswit.viz.pictures import png_bytes
from caswit.weights.initialize import info_of_start, start_from
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
        Stopped: A signal or ``stop_minutes`` ended it early; ``resume`` goes on there.
    """
    folder = folder_for(recipe, out, LOOP_COLUMNS, resume=resume)
    check_loggers(recipe.train.loggers)
    dataset = load_data(recipe)
    scenes = _scenes(recipe, dataset)
    dataset, model = settle_bands(recipe, dataset, scenes, info_of_start(recipe.start))
    check_scenes(dataset, scenes)
    samples = MaskedSamples(recipe, dataset, scenes)
    # Resolved here only to refuse a warm-up that is too long before there is a folder.
    recipe.train.resolve_schedule(*length(recipe.train, samples.tiles_per_epoch))
    with launch(recipe, folder, resume=resume) as fabric, repeatable(recipe.train, fabric.device):
        task = PretrainTask(fabric, recipe, samples, folder, model)
        fit(fabric, recipe, folder, task, _network(recipe, task.info, new=not folder.last.exists()))
    return folder.model


class MaskedSamples(TorchDataset[dict[str, Tensor]]):
    """Tiles and their context as functions of (seed, number), with the tokens of the tile that are masked.

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
        """Number of tiles in the fixed grid."""
        return self.tiles.tiles_per_epoch

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """Return tile, context and mask."""
        sample = self.tiles[number]
        return {"tile": sample["tile"], "context": sample["context"], "mask": self.hidden(number)}

    def hidden(self, number: int) -> Tensor:
        """(N, N), True for the tokens of the tile that are masked."""
        # A seed of their own keeps these draws apart from those of the tiles, which begin with the same two numbers.
        rng = np.random.default_rng((self.seed, 1 << 34, number))
        return torch.from_numpy(random_cells(self.tile_px, self.mask.mask_cell_px, self.mask.ratio, rng))

    def forget_files(self) -> None:
        """Drop open files, which must not be shared between processes."""
        self.tiles.forget_files()


class PretrainTask:
    """Learn to reconstruct the masked part of tiles from the rest and from their context.

    Args:
        fabric: Launched.
        recipe: Of the run.
        samples: To learn from.
        folder: Of the run; pictures and the finished weights are written there.
        model: Settings of the network with the numbers of its bands.
    """

    def __init__(
        self,
        fabric: Fabric,
        recipe: PretrainRecipe,
        samples: MaskedSamples,
        folder: RunFolder,
        model: ModelConfig | None = None,
    ) -> None:
        self.fabric, self.recipe, self.samples, self.folder = fabric, recipe, samples, folder
        dataset = samples.dataset
        self.info = PretrainedInfo(
            model=model or recipe.model,
            tile=recipe.tile,
            mask=recipe.mask,
            bands=dataset.bands,
            layout=band_layout(dataset, samples.scenes[0]),
            trained_gsd_m=ground_size_m(dataset, samples.scenes[0]),
        )

    def loss_normalizer(self, batch: Batch) -> Tensor:
        """Return (1,) the numbers to reconstruct: one of each band for each masked pixel."""
        return batch["tile"].shape[1] * _masked(batch).sum().float()[None]

    def loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Return the mean absolute error over the masked pixels of the whole batch."""
        found = model(batch["tile"], batch["context"] if batch["context"].numel() else None, batch["mask"])
        caswit: CASWiT = model.network  # type: ignore[assignment]  # Fabric's wrapper hands attributes through
        return masked_l1_sum(found, caswit.normalise(batch["tile"]), _masked(batch)) / normalizer[0]

    def validate(self, network: SimMIM, step: int) -> dict[str, float]:
        """Draw the same tiles with the same cells masked; there is nothing to score."""
        recipe, device, dataset = self.recipe, self.fabric.device, self.samples.dataset
        if self.fabric.is_global_zero and recipe.train.pictures:
            bf16 = uses_bf16(recipe.train.precision, device)
            make = Reconstructor(network, recipe.tile, recipe.mask, device, bf16)
            tiles = spread_tiles(dataset, self.samples.scenes, recipe.tile.tile_px, recipe.train.pictures)
            picture = sheet(make, dataset, [(scene, tile.window) for scene, tile in tiles])
            atomic_write_bytes(self.folder.pictures / f"step_{step:07}.png", png_bytes(picture))
        return {}

    def save(self, network: SimMIM, provenance: dict[str, Any]) -> None:
        """Write the folder of weights."""
        provenance = {"dataset": self.samples.dataset.name, **provenance}
        save_pretrained(network, dataclasses.replace(self.info, provenance=provenance), self.folder.model)


def _masked(batch: Batch) -> Tensor:
    """(B, 1, H, W), True for the pixels to reconstruct."""
    return pixel_mask(batch["mask"], *batch["tile"].shape[-2:])


def _network(recipe: PretrainRecipe, info: PretrainedInfo, *, new: bool) -> SimMIM:
    """Return the network that is trained; a new run begins with the weights that the recipe names, if any."""
    torch.manual_seed(recipe.train.seed)
    network = build_simmim(info)
    network.network.checkpoint_gradients(recipe.train.checkpoint_gradients)
    if new and recipe.start is not None:
        settings = info.model
        start_from(network.network, recipe.start, settings.size, recipe.tile.tile_px, settings.band_names)
    return network


def _scenes(recipe: PretrainRecipe, dataset: Dataset) -> tuple[Scene, ...]:
    """Return the scenes of the splits, or all; an image that is whole in several splits counts once."""
    splits = recipe.data.splits
    found = [s for name in splits for s in dataset.split(name, labelled=False)] if splits else list(dataset.scenes)
    # Two splits may have different areas of one mosaic.
    return tuple({(scene.image, scene.areas): scene for scene in found}.values())
