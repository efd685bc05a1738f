"""A dataset looked at before anything is trained on it: tiles, contexts, labels (paper, figures 3 and 4), figures."""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, InspectConfig, check
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import SceneReader, context_window, open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import DataError
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.files import atomic_write_bytes
from caswit.progress import Progress
from caswit.raster.windows import Tile, area_blocks
from caswit.viz.pictures import Image, draw_box, hatched, legend, overlay, png_bytes, stack, strip

log = logging.getLogger(__name__)
_BLOCK_PX = 2048
_ROWS = 40
"""Scenes listed in the report; the table of all is a file."""


class SceneFacts(NamedTuple):
    """What a scene is."""

    scene: Scene
    height: int
    width: int
    source_gsd_m: float | None
    crs: str
    areas: int
    pixels: NDArray[np.int64]
    """By class index, ignored pixels last; all zero without a label."""


def inspect(
    dataset: str | Path,
    out: Path,
    *,
    split: str = "train",
    tiles: int = 6,
    skip_broken: bool = False,
    settings: InspectConfig | None = None,
) -> Path:
    """Write pictures of tiles, a table of scenes and a summary of a split; every label is read once.

    Args:
        dataset: dataset.yaml.
        out: Folder to write.
        split: Split to look at, labelled or not.
        tiles: How many to show, spread over the split.
        skip_broken: Leave out what is missing or broken, and list it.
        settings: Geometry of the tiles.

    Returns:
        The summary, report.md.

    Raises:
        CaswitError: The dataset cannot be used.
    """
    check(tiles >= 0, f"n must be 0 or more, got {tiles}; try 6")
    settings = settings or InspectConfig()
    data = load_dataset(dataset, skip_broken=skip_broken).read_at(settings.read_gsd_m)
    scenes = data.split(split, labelled=False)
    out.mkdir(parents=True, exist_ok=True)
    broken = list(data.broken)
    facts = _all_facts(data, scenes, broken)
    for number, (scene, tile) in enumerate(spread_tiles(data, scenes, settings.tile_px, tiles), 1):
        try:
            with open_dataset_scene(data, scene) as opened:
                picture = _picture(data, opened, tile, settings.context_factor)
        except DataError as error:
            if not skip_broken:
                raise
            broken.append(str(error))
            continue
        atomic_write_bytes(out / f"tile-{number:02}.png", png_bytes(picture))
    atomic_write_bytes(out / "scenes.csv", _table(data, facts).encode())
    report = out / "report.md"
    atomic_write_bytes(report, _report(data, split, facts, list(dict.fromkeys(broken))).encode())
    return report


def _all_facts(data: Dataset, scenes: Sequence[Scene], broken: list[str]) -> list[SceneFacts]:
    facts = []
    with Progress(f"inspect {data.name}", len(scenes), "scenes") as progress:
        for scene in scenes:
            try:
                with open_dataset_scene(data, scene) as opened:
                    facts.append(_facts(data, opened, broken))
            except DataError as error:
                if not data.skip_broken:
                    raise
                broken.append(str(error))
            progress.advance(1)
    return facts


def _facts(data: Dataset, opened: SceneReader, broken: list[str]) -> SceneFacts:
    pixels = np.zeros(len(data.classes) + 1, np.int64)
    if opened.label is not None:
        for block in area_blocks(opened.areas, _BLOCK_PX, _BLOCK_PX):
            for tile in block.tiles:
                try:
                    pixels += _count(data, opened, tile)
                except DataError as error:
                    if not data.skip_broken:
                        raise
                    broken.append(str(error))
    grid = opened.image.grid
    crs = grid.crs.to_string()[:40] if grid.crs else ""
    size = opened.image.height, opened.image.width
    return SceneFacts(opened.scene, *size, grid.source_gsd_m, crs, len(opened.areas), pixels)


def _count(data: Dataset, opened: SceneReader, tile: Tile) -> NDArray[np.int64]:
    """Pixels of each class in what a tile owns, ignored ones last."""
    native = opened.native(tile.owned)
    labels = opened.native_labels(native, opened.native_image(native)[1])
    ids = np.where(labels == IGNORE_INDEX, len(data.classes), labels)
    return np.bincount(ids.ravel(), minlength=len(data.classes) + 1)


def _picture(data: Dataset, opened: SceneReader, tile: Tile, factor: int) -> Image:
    """Context with the tile outlined, tile, and the labels over both; what is missing is hatched."""
    window = tile.window
    sample = opened.read(window, factor)
    valid = opened.region(context_window(window, factor)).valid
    missing = ~valid[factor // 2 :: factor, factor // 2 :: factor]
    side = window.height
    inner = side // factor
    box = ((side - inner) // 2, (side - inner) // 2, inner, inner)
    context = hatched(np.moveaxis(sample.context, 0, -1), missing)
    rows, cols = window.inside(context_window(window, factor))
    image = hatched(np.moveaxis(sample.tile, 0, -1), ~valid[rows, cols])
    panels = [("context", draw_box(context, box)), ("tile", image)]
    name = f"{opened.scene.name} at row {window.row}, column {window.col}; hatched: no image"
    if sample.label.size:
        name += "; without colour: ignored"
        colors = data.classes.colors
        panels.insert(1, ("labels", draw_box(overlay(context, sample.context_label, colors, 0.6), box)))
        panels.append(("labels", overlay(image, sample.label, colors, 0.6)))
    pictures = [strip(panels)]
    if sample.label.size:
        pictures.append(legend(data.classes.names, data.classes.colors, width=max(600, pictures[0].shape[1])))
    title = strip([(name, np.full((1, pictures[0].shape[1] - 20, 3), 255, np.uint8))], height=1)
    return stack([title, *pictures])


def _table(data: Dataset, facts: Sequence[SceneFacts]) -> str:
    """CSV: a row per scene."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    shares = [f"share of {name}" for name in data.classes.names]
    rows.writerow(["scene", "height", "width", "gsd_m", "crs", "areas", "labelled pixels", *shares, "image", "label"])
    for f in facts:
        labelled = int(f.pixels[:-1].sum())
        each = [f"{n / labelled:.6f}" if labelled else "" for n in f.pixels[:-1]]
        gsd = "" if f.source_gsd_m is None else f"{f.source_gsd_m:.4g}"
        where = str(f.scene.image), str(f.scene.label or "")
        rows.writerow([f.scene.name, f.height, f.width, gsd, f.crs, f.areas, labelled, *each, *where])
    return text.getvalue()


def _report(data: Dataset, split: str, facts: Sequence[SceneFacts], broken: Sequence[str]) -> str:
    pixels = np.sum([f.pixels for f in facts], axis=0, initial=0)
    everything, labelled = int(np.sum(pixels)), int(np.sum(pixels[:-1])) if facts else 0
    areas = sum(f.areas for f in facts)
    lines = [
        f"# {data.name}, split {split}",
        "",
        f"{_count_of(len(facts), 'scene')}, {_count_of(areas, 'area')} to tile",
    ]
    if everything:
        lines += ["", "| class | pixels | share of labelled |", "|---|---:|---:|"]
        for name, count in zip(data.classes.names, pixels[:-1], strict=True):
            lines.append(f"| {name} | {count:,} | {100 * count / max(1, labelled):.2f} % |")
        ignored = 100 * (everything - labelled) / everything
        lines += ["", f"{labelled:,} pixels are labelled; {ignored:.1f} % are ignored or missing."]
    lines += ["", "| scene | rows x columns | ground pixel | CRS | areas |", "|---|---|---|---|---:|"]
    for f in facts[:_ROWS]:
        gsd = "unknown" if f.source_gsd_m is None else f"{f.source_gsd_m:.3g} m"
        lines.append(f"| {f.scene.name} | {f.height} x {f.width} | {gsd} | {f.crs or 'none'} | {f.areas} |")
    more = [f"{len(facts) - _ROWS} more scenes"] * (len(facts) > _ROWS) + ["class shares by scene"] * (everything > 0)
    lines += ["", f"scenes.csv has {' and '.join(more)}."] if more else []
    if broken:
        lines += ["", f"Left out, {len(broken)}:", "", *(f"- {line}" for line in broken)]
    return "\n".join(lines) + "\n"


def _count_of(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"
