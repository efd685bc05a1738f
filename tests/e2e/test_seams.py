"""Where tiles and blocks meet, a map is no worse than elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from caswit.config import AugmentConfig, DataConfig, ModelConfig, PredictConfig, Recipe, TileConfig, TrainConfig
from caswit.data.landscapes import write_landscapes
from caswit.mapping.run import predict
from caswit.raster.io import write_raster
from caswit.train import train

TILE_PX = 64
SIDE_PX = 384
NEAR_PX = 4
"""Pixels at most this far from where two tiles meet are near."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A drawn landscape, whole.tif, and a model that has learned from others.

    Random weights would not do: their maps follow the tiles more than the picture.
    """
    folder = tmp_path_factory.mktemp("seams")
    dataset = write_landscapes(folder / "data", seed=0)
    recipe = Recipe(
        data=DataConfig(dataset=str(dataset.path), val_split=None, sampling="random"),
        model=ModelConfig(size="pico"),
        tile=TileConfig(tile_px=TILE_PX, context_factor=2),
        augment=AugmentConfig(spatial=True),
        train=TrainConfig(batch=8, max_steps=80, lr=2e-3, min_lr=1e-4, warmup_steps=5, clip_norm=5.0, keep="last"),
    )
    train(recipe, folder / "run")
    write_raster(folder / "whole.tif", read(folder / "data" / "map.tif")[:, :SIDE_PX, :SIDE_PX])
    return folder


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


def disagreement(folder: Path, settings: PredictConfig, overlap_px: int) -> tuple[float, float]:
    """How much of a map changes when the grid of tiles is shifted: near borders of tiles, and elsewhere."""

    def mapped(image: np.ndarray) -> np.ndarray:
        write_raster(folder / "image.tif", image)
        predict(folder / "image.tif", folder / "out.tif", folder / "run" / "model", settings)
        return read(folder / "out.tif")[0]

    whole = read(folder / "whole.tif")
    step = TILE_PX - overlap_px
    shift = step // 2 // 4 * 4  # by whole tokens: else another cut of the same picture changes maps everywhere
    differs = mapped(whole)[shift:, shift:] != mapped(whole[:, shift:, shift:])
    meet = np.arange(step + overlap_px // 2, SIDE_PX, step)
    near = (np.abs(np.arange(SIDE_PX)[:, None] - meet + 0.5) < NEAR_PX).any(1)[shift:]
    near = near[:, None] | near
    inner = slice(TILE_PX, -TILE_PX)  # at the border of the raster a shift changes what there is to see
    differs, near = differs[inner, inner], near[inner, inner]
    return float(differs[near].mean()), float(differs[~near].mean())


@pytest.mark.parametrize("blend", [False, True])
def test_near_borders_of_tiles_and_blocks_a_map_is_as_stable_as_elsewhere(folder, blend):
    settings = PredictConfig(precision="fp32", block_px=2 * TILE_PX, blend=blend)
    near, elsewhere = disagreement(folder, settings, TILE_PX // 2 if blend else TILE_PX // 4)
    assert 0 < elsewhere < 0.1
    assert near <= 1.2 * elsewhere


def test_without_an_overlap_it_would_not_be(folder):
    """The measure sees seams where there are some."""
    near, elsewhere = disagreement(folder, PredictConfig(precision="fp32", overlap_px=0), 0)
    assert near > 1.5 * elsewhere
