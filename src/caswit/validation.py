"""Validation during training: scores over the whole split, and pictures of a few tiles."""

from pathlib import Path

import torch
from lightning.fabric import Fabric

from caswit.baselines import Network
from caswit.config import Recipe
from caswit.data.scene import Dataset
from caswit.devices import uses_bf16
from caswit.files import atomic_write_bytes
from caswit.launch import all_sum
from caswit.metrics import Counts, Scores, boundary_band_px, score
from caswit.pictures import sheet, spread_tiles
from caswit.predict import Classifier
from caswit.scoring import count_scenes
from caswit.viz import png_bytes


class Validator:
    """Scores a network on the validation split, shared out over the devices of a run.

    Args:
        fabric: Launched.
        recipe: Of the run.
        dataset: Holds the validation split.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, dataset: Dataset) -> None:
        self.fabric, self.recipe, self.dataset = fabric, recipe, dataset
        self.scenes = dataset.split(recipe.data.val_split) if recipe.data.val_split else ()

    def scores(self, network: Network) -> Scores:
        """Scores over the split; every device gets the same."""
        tile_px = self.recipe.tile.tile_px
        counts = count_scenes(
            self._classifier(network),
            self.dataset,
            self.scenes,
            tile_px=tile_px,
            band_px=boundary_band_px(tile_px, tile_px),
            part=(self.fabric.global_rank, self.fabric.world_size),
        )
        network.train()
        return score(_sum_over_devices(self.fabric, counts))

    def write_picture(self, network: Network, file: Path) -> None:
        """Draw a few tiles spread over the split: context, tile, truth, prediction, errors."""
        tile = self.recipe.tile
        tiles = spread_tiles(self.dataset, self.scenes, tile.tile_px, self.recipe.train.pictures)
        if tiles:
            picture = sheet(self._classifier(network), self.dataset, tiles, tile.context_factor)
            atomic_write_bytes(file, png_bytes(picture))
        network.train()

    def _classifier(self, network: Network) -> Classifier:
        settings, device = self.recipe.train, self.fabric.device
        return Classifier(
            network.eval(),
            context_factor=self.recipe.tile.context_factor,
            batch=settings.batch // (settings.accumulate * settings.devices),
            device=device,
            bf16=uses_bf16(settings.precision, device),
        )


def _sum_over_devices(fabric: Fabric, counts: Counts) -> Counts:
    parts = (counts.confusion, counts.boundary_intersection, counts.boundary_union)
    confusion, intersection, union = (all_sum(fabric, torch.from_numpy(p)).cpu().numpy() for p in parts)
    return Counts(confusion=confusion, boundary_intersection=intersection, boundary_union=union)
