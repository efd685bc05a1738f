"""caswit figures: the paper's figures 5, 6 and 8 for a user's data, at print quality.

Figure 5 shows context, image, truth, baseline and CASWiT for one tile, figure 8 for several; figure 6 shows the
attention of one pixel at each stage. The paper's baseline is trained without context. Where no such model is given, its
place is taken by the model itself with masked context, and the title says so.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caswit.config import IGNORE_INDEX, FiguresConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import ConfigError, ModelError, brief
from caswit.evaluation.protocols import check_same_classes
from caswit.evaluation.tile_pictures import TilePicture, spread_tiles, tile_picture
from caswit.explain.attention import check_reads_context, explain_pixel
from caswit.explain.figure import attention_panels
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.raster.windows import Tile
from caswit.viz.pictures import (
    Image,
    channels_last,
    draw_tile,
    legend,
    overlay,
    png_bytes,
    resize,
    resize_nearest,
    stack,
    strip,
)
from caswit.weights.model_folder import LoadedModel, load_model

DOTS_PER_INCH = 300


class TilePair(NamedTuple):
    """One tile with the predictions of both networks."""

    scene: Scene
    tile: Tile
    ours: TilePicture
    baseline: TilePicture

    @property
    def gain(self) -> float:
        """Pixels that only our prediction gets right less those that only the baseline does, as a share of the tile."""
        truth = self.ours.truth
        right = (self.ours.prediction == truth).astype(int) - (self.baseline.prediction == truth)
        return float(right[truth != IGNORE_INDEX].sum() / truth.size)


def figures(
    model: Path,
    dataset: Path,
    out: Path,
    *,
    baseline: Path | None = None,
    split: str = "test",
    settings: FiguresConfig | None = None,
) -> list[Path]:
    """Write figure5.png, figure6.png and figure8.png.

    Of candidates spread over the split, those tiles are drawn that the model improves most over the baseline. Such
    figures show what context can do and not what it does on average; ``evaluate`` measures that.

    Args:
        model: Model folder of a network that reads its context.
        dataset: dataset.yaml.
        out: Folder to write.
        baseline: Model folder; None takes the model itself with masked context.
        split: Split whose scenes are drawn.
        settings: Number and size of the tiles, and how to compute.

    Returns:
        The files that were written.

    Raises:
        CaswitError: The models, the data or the folder cannot be used, or do not fit each other.
    """
    settings = settings or FiguresConfig()
    loaded = load_model(model)
    data = load_dataset(dataset).for_model(loaded.info.model, loaded.info.bands, loaded.info.tile.read_gsd_m)
    check_same_classes(loaded.info.classes, data)
    ours = load_predictor(loaded, settings)
    check_reads_context(ours)
    other, title = ours.with_masked_context(), f"{loaded.name}, masked context"
    if baseline is not None:
        loaded_other = _baseline(loaded, baseline, data)
        other, title = load_predictor(loaded_other, settings), loaded_other.name
    pairs = _pairs(ours, other, data, split, loaded.info.tile.tile_px, settings.candidates)
    chosen = sorted(pairs, key=lambda pair: -pair.gain)[: settings.tiles]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    factors = loaded.info.tile.context_factors
    contexts = ("context",) if len(factors) == 1 else tuple(f"context x {factor}" for factor in factors)
    captions = (*contexts, "tile", "truth", title, loaded.name)
    sheets = {
        "figure5.png": _comparison(chosen[:1], captions, data, factors, settings),
        "figure6.png": _attention(ours, chosen[0], data, loaded.info.tile.tile_px, settings),
        "figure8.png": _comparison(chosen, captions, data, factors, settings),
    }
    for name, sheet in sheets.items():
        atomic_write_bytes(out / name, png_bytes(sheet, dots_per_inch=DOTS_PER_INCH))
    return [out / name for name in sheets]


def _baseline(loaded: LoadedModel, folder: Path, data: Dataset) -> LoadedModel:
    other = load_model(folder)
    check_same_classes(other.info.classes, data)
    theirs, ours = ((i.tile.tile_px, i.tile.read_gsd_m) for i in (other.info, loaded.info))
    if theirs != ours:
        raise ModelError(
            f"{folder}: has tiles of {theirs[0]} px (read_gsd_m {theirs[1]}), the model of {ours[0]} px "
            f"(read_gsd_m {ours[1]}); figures compare models with the same tiles"
        )
    return other


def _pairs(
    ours: Predictor, baseline: Predictor, data: Dataset, split: str, tile_px: int, candidates: int
) -> list[TilePair]:
    pairs = []
    for scene, tile in spread_tiles(data, data.split(split), tile_px, candidates):
        with open_dataset_scene(data, scene) as opened:
            pictures = (tile_picture(model, opened, tile, ours.context_factor) for model in (ours, baseline))
            pairs.append(TilePair(scene, tile, *pictures))
    labelled = [pair for pair in pairs if (pair.ours.truth != IGNORE_INDEX).any()]
    if not labelled:
        raise ConfigError(
            f"{data.path}: no label in the {candidates} candidate tiles of split {brief(split)}; try more candidates"
        )
    return labelled


def _comparison(
    pairs: Sequence[TilePair], captions: Sequence[str], data: Dataset, factors: tuple[int, ...], settings: FiguresConfig
) -> Image:
    """Draw a row for each tile: context, tile, truth, baseline, ours; and the legend below."""
    rows = []
    for number, pair in enumerate(pairs):
        titles = captions if number == 0 else [""] * len(captions)
        panels = zip(titles, _panels(pair, data, factors, settings), strict=True)
        rows.append(strip(list(panels), height=settings.panel_px))
    width, font_px = max(row.shape[1] for row in rows), max(12, settings.panel_px // 22)
    return stack([*rows, legend(data.classes.names, data.classes.colors, width=width, font_px=font_px)])


def _panels(pair: TilePair, data: Dataset, factors: tuple[int, ...], settings: FiguresConfig) -> list[Image]:
    side = settings.panel_px
    tile = _resized(pair.ours.tile, side, data.band_names)
    context = pair.ours.context
    each = zip(context if context.ndim == 4 else [context], factors, strict=True)
    contexts = [
        draw_tile(_resized(x, side, data.band_names), factor, line_px=max(2, side // 200)) for x, factor in each
    ]

    def over(classes: Image) -> Image:
        return overlay(tile, resize_nearest(classes, side, side), data.classes.colors, settings.opacity)

    return [*contexts, tile, *(over(c) for c in (pair.ours.truth, pair.baseline.prediction, pair.ours.prediction))]


def _attention(ours: Predictor, pair: TilePair, data: Dataset, tile_px: int, settings: FiguresConfig) -> Image:
    """Draw the attention at each stage of a pixel that the context puts right."""
    with open_dataset_scene(data, pair.scene) as scene:
        row, col = (int((at + 0.5) * scene.ratio) for at in _innermost_gain(pair))
        explanation = explain_pixel(ours, scene, row, col, tile_px)
    name = f"{pair.scene.name}, row {row}, column {col}"
    contexts = [(name, _resized(context.image, settings.panel_px, data.band_names)) for context in explanation.contexts]
    return strip([*contexts, *attention_panels(explanation, settings.panel_px, data.band_names)])


def _innermost_gain(pair: TilePair) -> tuple[int, int]:
    """Return (row, col), in pixels that are read, deepest inside what only our prediction gets right, or the centre."""
    # At the edge of such an area the two models differ by where they draw an outline, which says little about context.
    # Outside the owned part the pixel would be explained in another tile than the one that is shown.
    ours, other = pair.ours, pair.baseline
    mask = np.zeros(ours.truth.shape, bool)
    owned = pair.tile.owned.inside(pair.tile.window)
    mask[owned] = ((ours.prediction == ours.truth) & (other.prediction != ours.truth))[owned]
    pixel = len(mask) // 2, len(mask) // 2
    while mask.any():  # peel layer by layer: what is left last lies deepest
        rows, cols = np.nonzero(mask)
        pixel = int(rows[len(rows) // 2]), int(cols[len(cols) // 2])
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return pair.tile.window.row + pixel[0], pair.tile.window.col + pixel[1]


def _resized(image: Image, side: int, names: Sequence[str]) -> Image:
    return resize(channels_last(image, names), side, side, smooth=True)
