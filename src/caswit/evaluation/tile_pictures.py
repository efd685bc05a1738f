"""Pictures of labelled tiles: what the model saw, what is true, what it said."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from caswit.config import IGNORE_INDEX
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReader, open_dataset_scene, scene_areas
from caswit.data.scene import Scene
from caswit.inference.predictor import Predictor
from caswit.raster.reader import UInt8
from caswit.raster.windows import Tile, area_tiles
from caswit.viz.pictures import colourise, draw_box, error_map, legend, stack, strip


class TilePicture(NamedTuple):
    """A tile with its surroundings, labels and prediction."""

    title: str
    context: UInt8
    """(3, T, T), averaged."""
    tile: UInt8
    """(3, T, T)."""
    truth: UInt8
    """(T, T) class indices."""
    prediction: UInt8
    """(T, T) class indices."""

    def panels(self, dataset: Dataset, context_factor: int) -> list[tuple[str, UInt8]]:
        """Titled pictures, left to right."""
        side = len(self.truth)
        inner = side // context_factor
        first = (side - inner) // 2
        colors, tile = dataset.classes.colors, np.moveaxis(self.tile, 0, -1)
        surroundings = draw_box(np.moveaxis(self.context, 0, -1).copy(), (first, first, inner, inner))
        ignored = self.truth == IGNORE_INDEX
        wrong = (self.truth != self.prediction) & ~ignored
        return [
            ("context", surroundings),
            ("tile", tile),
            ("truth", colourise(self.truth, colors)),
            ("prediction", colourise(self.prediction, colors)),
            ("errors", error_map(tile, wrong=wrong, ignored=ignored)),
        ]


def tile_picture(predictor: Predictor, scene: SceneReader, tile: Tile, context_factor: int) -> TilePicture:
    """Predict one tile and read what belongs beside it."""
    sample = scene.read(tile.window, context_factor)
    title = f"{scene.scene.name} at row {tile.window.row}, column {tile.window.col}"
    return TilePicture(title, sample.context, sample.tile, sample.label, predictor.tile(scene, tile.window))


def spread_tiles(dataset: Dataset, scenes: Sequence[Scene], tile_px: int, count: int) -> list[tuple[Scene, Tile]]:
    """At most ``count`` tiles of the fixed grid, evenly spread over the scenes."""
    everything = []
    for scene in scenes:
        everything += [(scene, t) for t in area_tiles(scene_areas(dataset, scene), tile_px)]
    picks = np.linspace(0, len(everything) - 1, num=min(count, len(everything)) + 2)[1:-1]
    return [everything[round(i)] for i in picks]


def sheet(predictor: Predictor, dataset: Dataset, tiles: Sequence[tuple[Scene, Tile]], context_factor: int) -> UInt8:
    """One picture (H, W, 3): a row for each tile, and the legend."""
    rows = []
    for scene, tile in tiles:
        with open_dataset_scene(dataset, scene) as opened:
            picture = tile_picture(predictor, opened, tile, context_factor)
        rows.append(strip(picture.panels(dataset, context_factor)))
    width = max(row.shape[1] for row in rows)
    return stack([*rows, legend(dataset.classes.names, dataset.classes.colors, width=width)])
