"""caswit figures: the paper's figures 5, 6 and 8 for a user's data, at print quality.

Figure 5 shows one tile: context, tile, truth, baseline, CASWiT; figure 8 several; figure 6 the attention of one
pixel at each stage. Without a baseline model, the model itself with black surroundings stands in its place.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow

from caswit.config import IGNORE_INDEX, FiguresConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import ConfigError, ModelError
from caswit.evaluation.protocols import check_same_classes
from caswit.evaluation.tile_pictures import TilePicture, spread_tiles, tile_picture
from caswit.explain.attention import Explanation, check_reads_context, explain_pixel
from caswit.explain.figure import attention_panels, scale_to
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.raster.windows import Tile
from caswit.viz.pictures import Image, draw_box, legend, overlay, stack, strip
from caswit.weights.model_folder import LoadedModel, load_model

DOTS_PER_INCH = 300


class Pair(NamedTuple):
    """One tile as both networks map it."""

    scene: Scene
    tile: Tile
    ours: TilePicture
    baseline: TilePicture

    @property
    def gain(self) -> float:
        """Share of the labelled pixels that the context gets right, less those it gets wrong."""
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

    Tiles are those, of a fixed choice spread over the split, that the model maps better than the baseline by most;
    figures chosen so show what context can do, not what it does on average, which is what ``evaluate`` is for.

    Args:
        model: Model folder of a network that reads its context.
        dataset: dataset.yaml.
        out: Folder to write.
        baseline: Model folder; None takes the model with black surroundings.
        split: Split whose scenes are drawn.
        settings: How many, how large, and how to compute.

    Returns:
        The files.

    Raises:
        CaswitError: The models, the data or the folder cannot be used, or do not fit each other.
    """
    settings = settings or FiguresConfig()
    loaded = load_model(model)
    data = load_dataset(dataset).read_at(loaded.info.tile.read_gsd_m)
    check_same_classes(loaded.info.classes, data)
    ours = load_predictor(loaded, settings)
    check_reads_context(ours)
    other, title = ours.with_masked_context(), f"{loaded.name}, surroundings black"
    if baseline is not None:
        loaded_other = _baseline(loaded, baseline, data)
        other, title = load_predictor(loaded_other, settings), loaded_other.name
    pairs = _pairs(ours, other, data, split, loaded.info.tile.tile_px, settings.candidates)
    chosen = sorted(pairs, key=lambda pair: -pair.gain)[: settings.tiles]
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    captions = ("context", "tile", "truth", title, loaded.name)
    sheets = {
        "figure5.png": _comparison(chosen[:1], captions, data, ours.context_factor, settings),
        "figure6.png": _attention(ours, chosen[0], data, loaded.info.tile.tile_px, settings),
        "figure8.png": _comparison(chosen, captions, data, ours.context_factor, settings),
    }
    for name, sheet in sheets.items():
        atomic_write_bytes(out / name, _print_png(sheet))
    return [out / name for name in sheets]


def _baseline(loaded: LoadedModel, folder: Path, data: Dataset) -> LoadedModel:
    other = load_model(folder)
    check_same_classes(other.info.classes, data)
    theirs, ours = ((i.tile.tile_px, i.tile.read_gsd_m) for i in (other.info, loaded.info))
    if theirs != ours:
        raise ModelError(
            f"{folder}: has tiles of {theirs[0]} px (read_gsd_m {theirs[1]}), the model of {ours[0]} px "
            f"(read_gsd_m {ours[1]}); "
            "figures compare models with the same tiles"
        )
    return other


def _pairs(
    ours: Predictor, baseline: Predictor, data: Dataset, split: str, tile_px: int, candidates: int
) -> list[Pair]:
    pairs = []
    for scene, tile in spread_tiles(data, data.split(split), tile_px, candidates):
        with open_dataset_scene(data, scene) as opened:
            pictures = (tile_picture(model, opened, tile, ours.context_factor) for model in (ours, baseline))
            pairs.append(Pair(scene, tile, *pictures))
    labelled = [pair for pair in pairs if (pair.ours.truth != IGNORE_INDEX).any()]
    if not labelled:
        raise ConfigError(
            f"{data.path}: none of the tiles looked at in split {split!r} has a label; try more candidates"
        )
    return labelled


def _comparison(
    pairs: Sequence[Pair], captions: Sequence[str], data: Dataset, factor: int, settings: FiguresConfig
) -> Image:
    """A row for each tile: context, tile, truth, baseline, ours; the legend below."""
    rows = []
    for number, pair in enumerate(pairs):
        titles = captions if number == 0 else [""] * len(captions)
        rows.append(
            strip(list(zip(titles, _panels(pair, data, factor, settings), strict=True)), height=settings.panel_px)
        )
    return _with_legend(rows, data, settings)


def _panels(pair: Pair, data: Dataset, factor: int, settings: FiguresConfig) -> list[Image]:
    side, colors = settings.panel_px, data.classes.colors
    tile = _sized(pair.ours.tile, side)
    inner = round(side / factor)
    first = (side - inner) // 2
    context = draw_box(_sized(pair.ours.context, side), (first, first, inner, inner), line_px=max(2, side // 200))

    def over(classes: Image) -> Image:
        large = np.asarray(Pillow.fromarray(classes).resize((side, side), Pillow.Resampling.NEAREST))
        return overlay(tile, large, colors, settings.opacity)

    return [context, tile, *(over(c) for c in (pair.ours.truth, pair.baseline.prediction, pair.ours.prediction))]


def _attention(ours: Predictor, pair: Pair, data: Dataset, tile_px: int, settings: FiguresConfig) -> Image:
    """The pixel, of those the context puts right, that lies deepest among its like; attention at each stage."""
    with open_dataset_scene(data, pair.scene) as scene:
        row, col = (int((at + 0.5) * scene.ratio) for at in _telling_pixel(pair))
        found: Explanation = explain_pixel(ours, scene, row, col, tile_px)
    panels = attention_panels(found, ours.context_factor, settings.panel_px)
    context = _sized(found.context, settings.panel_px)
    name = f"{pair.scene.name}, row {row}, column {col}"
    return stack([strip([(name, context), *panels])])


def _telling_pixel(pair: Pair) -> tuple[int, int]:
    """(row, col), in pixels that are read, deepest inside what the context puts right; else the tile's middle."""
    ours, other = pair.ours, pair.baseline
    depth = ((ours.prediction == ours.truth) & (other.prediction != ours.truth)).astype(np.int64)
    owned = pair.tile.owned.inside(pair.tile.window)
    inside = np.zeros_like(depth)
    inside[owned] = 1
    mask = (depth & inside).astype(bool)
    place = len(mask) // 2, len(mask) // 2
    while mask.any():  # peel until nothing is left; what goes last lies deepest
        rows, cols = np.nonzero(mask)
        place = int(rows[len(rows) // 2]), int(cols[len(cols) // 2])
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    row, col = pair.tile.window.row + place[0], pair.tile.window.col + place[1]
    return row, col


def _with_legend(rows: Sequence[Image], data: Dataset, settings: FiguresConfig) -> Image:
    width = max(row.shape[1] for row in rows)
    font_px = max(12, settings.panel_px // 22)
    return stack([*rows, legend(data.classes.names, data.classes.colors, width=width, font_px=font_px)])


def _sized(image: Image, side: int) -> Image:
    return scale_to(np.ascontiguousarray(np.moveaxis(image, 0, -1)), side, side)


def _print_png(picture: Image) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(picture).save(file, format="PNG", compress_level=6, dpi=(DOTS_PER_INCH, DOTS_PER_INCH))
    return file.getvalue()
