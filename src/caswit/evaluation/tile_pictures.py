"""Draw labelled tiles: context, image, truth, prediction, errors."""

from collections.abc import Sequence
from typing import NamedTuple

from caswit.config import IGNORE_INDEX, ContextFactor
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReader, open_dataset_scene, scene_areas
from caswit.data.scene import Scene
from caswit.inference.predictor import Predictor
from caswit.raster.reader import UInt8
from caswit.raster.windows import Tile, area_tiles, some_of
from caswit.viz.pictures import channels_last, colourise, draw_tile, error_map, legend, stack, strip


class TilePicture(NamedTuple):
    """A tile with its context, labels and prediction."""

    title: str
    context: UInt8
    """(n, T, T) of n bands, averaged to the size of the tile; of several contexts (N, n, T, T)."""
    tile: UInt8
    """(n, T, T)."""
    truth: UInt8
    """(T, T) class indices."""
    prediction: UInt8
    """(T, T) class indices."""

    def panels(self, dataset: Dataset, context_factor: ContextFactor) -> list[tuple[str, UInt8]]:
        """Draw titled pictures, left to right."""
        colors, tile = dataset.classes.colors, channels_last(self.tile, dataset.band_names)
        ignored = self.truth == IGNORE_INDEX
        wrong = (self.truth != self.prediction) & ~ignored
        return [
            *context_panels(self.context, context_factor, dataset.band_names),
            ("tile", tile),
            ("truth", colourise(self.truth, colors)),
            ("prediction", colourise(self.prediction, colors)),
            ("errors", error_map(tile, wrong=wrong, ignored=ignored)),
        ]


def context_panels(context: UInt8, context_factor: ContextFactor, names: Sequence[str]) -> list[tuple[str, UInt8]]:
    """Draw each context with the tile outlined; ``names`` are those of its bands."""
    if isinstance(context_factor, int):
        return [("context", draw_tile(channels_last(context, names), context_factor))]
    return [
        (f"context x {factor}", draw_tile(channels_last(each, names), factor))
        for each, factor in zip(context, context_factor, strict=True)
    ]


def tile_picture(predictor: Predictor, scene: SceneReader, tile: Tile, context_factor: ContextFactor) -> TilePicture:
    """Read one tile with its context and labels, and predict it."""
    sample = scene.read(tile.window, context_factor)
    title = f"{scene.scene.name} at row {tile.window.row}, column {tile.window.col}"
    return TilePicture(title, sample.context, sample.tile, sample.label, predictor.tile(scene, tile.window))


def grid_tiles(dataset: Dataset, scenes: Sequence[Scene], tile_px: int) -> list[tuple[Scene, Tile]]:
    """Return the tiles of the grid without overlap, scene by scene."""
    return [(scene, tile) for scene in scenes for tile in area_tiles(scene_areas(dataset, scene), tile_px)]


def spread_tiles(dataset: Dataset, scenes: Sequence[Scene], tile_px: int, count: int) -> list[tuple[Scene, Tile]]:
    """Return at most ``count`` tiles of the grid without overlap, evenly spread over the scenes."""
    # Fixed places, not random ones: pictures of two runs or models show the same tiles.
    return some_of(grid_tiles(dataset, scenes, tile_px), count, ends=False)


def sheet(
    predictor: Predictor, dataset: Dataset, tiles: Sequence[tuple[Scene, Tile]], context_factor: ContextFactor
) -> UInt8:
    """Draw one picture (H, W, 3): a row for each tile, and the legend."""
    rows = []
    for scene, tile in tiles:
        with open_dataset_scene(dataset, scene) as opened:
            picture = tile_picture(predictor, opened, tile, context_factor)
        rows.append(strip(picture.panels(dataset, context_factor)))
    width = max(row.shape[1] for row in rows)
    return stack([*rows, legend(dataset.classes.names, dataset.classes.colors, width=width)])
