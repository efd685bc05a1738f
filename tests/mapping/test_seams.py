"""Where tiles and blocks meet, a map is no worse than elsewhere."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import yaml

from caswit.config import AugmentConfig, DataConfig, ModelConfig, PredictConfig, Recipe, TileConfig, TrainConfig
from caswit.data.synthetic import landscape
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.mapping import blocks
from caswit.mapping.run import predict
from caswit.raster.reader import write_raster
from caswit.training.supervised import train
from caswit.weights.model_folder import load_model

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

TILE_PX = 64
SIDE_PX = 384
NEAR_PX = 4
"""Pixels at most this far from where two tiles meet are near."""


LOOKS = {"building": (0,), "tree": (1,), "road": (2,), "water": (3,), "grass": (4, 5), "soil": (6, 7)}
"""Classes that look like themselves, from the ids of a drawn landscape."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A drawn landscape, whole.tif, and a model that has learned from another.

    Random weights would not do: their maps follow the tiles more than the picture. Nor would classes that only the
    context tells apart: after so few steps they are a guess, and a guess changes with everything.
    """
    folder = tmp_path_factory.mktemp("seams")
    drawn = landscape(1, 1024, 1024)
    label = np.zeros_like(drawn.label)
    for index, ids in enumerate(LOOKS.values()):
        label[np.isin(drawn.label, ids)] = index
    write_raster(folder / "scene.tif", drawn.image)
    write_raster(folder / "label.tif", label[None])
    dataset = {
        "name": "looks",
        "classes": [{"id": index, "name": name} for index, name in enumerate(LOOKS)],
        "scenes": [{"image": "scene.tif", "label": "label.tif", "split": "train"}],
    }
    (folder / "dataset.yaml").write_text(yaml.safe_dump(dataset))
    recipe = Recipe(
        data=DataConfig(dataset=str(folder / "dataset.yaml"), val_split=None, sampling="random"),
        model=ModelConfig(size="pico"),
        tile=TileConfig(tile_px=TILE_PX, context_factor=2),
        augment=AugmentConfig(spatial=True),
        train=TrainConfig(batch=8, max_steps=60, lr=2e-3, min_lr=1e-4, warmup_steps=5, clip_norm=5.0, keep="last"),
    )
    train(recipe, folder / "run")
    write_raster(folder / "whole.tif", landscape(2, SIDE_PX, SIDE_PX).image)
    return folder


def read(path: Path) -> np.ndarray:
    with rasterio.open(path) as src:
        return src.read()


def disagreement(folder: Path, model: Path, settings: PredictConfig, overlap_px: int) -> tuple[float, float]:
    """Share of a map that changes when the grid of tiles is shifted: near borders of tiles, and elsewhere."""
    tile_px = load_model(model).info.tile.tile_px

    def mapped(image: np.ndarray) -> np.ndarray:
        write_raster(folder / "image.tif", image)
        predict(folder / "image.tif", folder / "out.tif", model, settings)
        return read(folder / "out.tif")[0]

    whole = read(folder / "whole.tif")
    step = tile_px - overlap_px
    shift = step // 2 // 4 * 4  # by whole tokens: another cut of the same picture changes maps everywhere
    differs = mapped(whole)[shift:, shift:] != mapped(whole[:, shift:, shift:])
    meet = np.arange(step + overlap_px // 2, SIDE_PX, step)
    near = (np.abs(np.arange(SIDE_PX)[:, None] - meet + 0.5) < NEAR_PX).any(1)[shift:]
    near = near[:, None] | near
    inner = slice(tile_px, -tile_px)  # at the border of the raster a shift changes what there is to see
    differs, near = differs[inner, inner], near[inner, inner]
    return float(differs[near].mean()), float(differs[~near].mean())


@pytest.mark.parametrize("blend", [False, True])
def test_near_borders_of_tiles_and_blocks_a_map_is_as_stable_as_elsewhere(folder, blend):
    settings = PredictConfig(precision="fp32", block_px=2 * TILE_PX, blend=blend)
    near, elsewhere = disagreement(folder, folder / "run" / "model", settings, TILE_PX // 2 if blend else TILE_PX // 4)
    assert elsewhere > 0
    assert near <= 1.2 * elsewhere


def test_the_measure_sees_seams_where_there_are_some(folder, monkeypatch):
    """A network that errs along the border of its tile, without an overlap to hide it."""

    class Frames(torch.nn.Module):
        reads_context = True

        def forward(self, tiles: torch.Tensor, _context: torch.Tensor) -> torch.Tensor:
            logits = torch.zeros(len(tiles), len(LOOKS), *tiles.shape[2:])
            logits[:, 0, NEAR_PX:-NEAR_PX, NEAR_PX:-NEAR_PX] = 1
            logits[:, 1] = 0.5
            return logits

    def frames(*args: object) -> Predictor:
        found = load_predictor(*args)
        found.network, found.arranged = Frames(), None
        return found

    monkeypatch.setattr(blocks, "load_predictor", frames)
    near, elsewhere = disagreement(folder, folder / "run" / "model", PredictConfig(overlap_px=0), 0)
    assert near > 1.5 * elsewhere
