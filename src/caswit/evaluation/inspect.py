"""Inspect a dataset before training: pictures of tiles with context and labels, class shares, a table of scenes.

The paper inspects URUR this way and finds labels that do not match the image (section 4.1, figures 4 and 7).
"""

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, InspectConfig, check, context_factors
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import SceneReader, context_window, open_dataset_scene
from caswit.data.scene import Scene
from caswit.data.statistics import BandStatistics, measure
from caswit.errors import DataError
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.files import atomic_write_bytes
from caswit.progress import Progress
from caswit.raster.windows import Tile, area_tiles
from caswit.viz.pictures import Image, channels_last, draw_tile, hatched, legend, overlay, png_bytes, stack, strip

log = logging.getLogger(__name__)
_BLOCK_PX = 2048
_ROWS = 40
"""Scenes listed in the report; scenes.csv has all."""


class SceneSummary(NamedTuple):
    """Size, georeference and class counts of a scene."""

    scene: Scene
    height: int
    width: int
    source_gsd_m: float | None
    crs: str
    areas: int
    pixels: NDArray[np.int64]
    """Pixels of each class index, ignored pixels last; all zero without a label."""


def inspect(
    dataset: str | Path,
    out: Path,
    *,
    split: str = "train",
    tiles: int = 6,
    skip_broken: bool = False,
    settings: InspectConfig | None = None,
) -> Path:
    """Write pictures of tiles, a table of scenes and a summary of a split. Every label is read once.

    Args:
        dataset: dataset.yaml.
        out: Folder to write.
        split: Split to inspect, labelled or not.
        tiles: Number of tiles to draw, spread over the split.
        skip_broken: List missing and broken files in the report instead of raising an error.
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
    bands = measure(data, scenes)
    data = data.with_bands(data.band_names, bands.ranges if any(bands.ranges) else ())
    for line in bands.lines():
        log.info("%s", line)
    out.mkdir(parents=True, exist_ok=True)
    broken = list(data.broken)
    summaries = _summaries(data, scenes, broken)
    drawn = spread_tiles(data, scenes, settings.tile_px, tiles)
    with Progress("pictures", len(drawn), "tiles") as progress:
        for number, (scene, tile) in enumerate(drawn, 1):
            try:
                with open_dataset_scene(data, scene) as opened:
                    picture = _picture(data, opened, tile, context_factors(settings.context_factor))
                atomic_write_bytes(out / f"tile-{number:02}.png", png_bytes(picture))
            except DataError as error:
                if not skip_broken:
                    raise
                broken.append(str(error))
            progress.advance(1)
    atomic_write_bytes(out / "scenes.csv", _scenes_csv(data, summaries).encode())
    report = out / "report.md"
    atomic_write_bytes(report, _report(data, split, summaries, bands, list(dict.fromkeys(broken))).encode())
    return report


def _summaries(data: Dataset, scenes: Sequence[Scene], broken: list[str]) -> list[SceneSummary]:
    """Read every label; the errors of files that are left out are appended to ``broken``."""
    summaries = []
    with Progress(f"inspect {data.name}", len(scenes), "scenes") as progress:
        for scene in scenes:
            try:
                with open_dataset_scene(data, scene) as opened:
                    summaries.append(_summary(data, opened, broken))
            except DataError as error:
                if not data.skip_broken:
                    raise
                broken.append(str(error))
            progress.advance(1)
    return summaries


def _summary(data: Dataset, opened: SceneReader, broken: list[str]) -> SceneSummary:
    pixels = np.zeros(len(data.classes) + 1, np.int64)
    tiles = [] if opened.label is None else area_tiles(opened.areas, _BLOCK_PX)
    for tile in tiles:
        try:
            pixels += _count(data, opened, tile)
        except DataError as error:
            if not data.skip_broken:
                raise
            broken.append(str(error))
    grid = opened.image.grid
    crs = grid.crs.to_string()[:40] if grid.crs else ""
    size = opened.image.height, opened.image.width
    return SceneSummary(opened.scene, *size, grid.source_gsd_m, crs, len(opened.areas), pixels)


def _count(data: Dataset, opened: SceneReader, tile: Tile) -> NDArray[np.int64]:
    """Count the pixels of each class in what a tile owns, ignored ones last."""
    native = opened.native(tile.owned)
    labels = opened.native_labels(native, opened.native_image(native)[1])
    ids = np.where(labels == IGNORE_INDEX, len(data.classes), labels)
    return np.bincount(ids.ravel(), minlength=len(data.classes) + 1)


def _picture(data: Dataset, opened: SceneReader, tile: Tile, factors: tuple[int, ...]) -> Image:
    """Draw each context with the tile outlined, the tile, and the labels over all; missing pixels are hatched."""
    window, around = tile.window, context_window(tile.window, factors)
    sample, valid = opened.read(window, factors), opened.region(around).valid
    colors, panels = data.classes.colors, []
    for number, factor in enumerate(factors):
        # One pixel from the middle of each cell stands for the cell: the mean of a mask is no mask.
        missing = ~valid[context_window(window, factor).inside(around)][factor // 2 :: factor, factor // 2 :: factor]
        context = hatched(channels_last(sample.context[number]), missing)
        panels.append(("context" if len(factors) == 1 else f"context x {factor}", draw_tile(context, factor)))
        if sample.label.size:
            labels = overlay(context, sample.context_label[number], colors, 0.6)
            panels.append(("labels", draw_tile(labels, factor)))
    image = hatched(channels_last(sample.tile), ~valid[window.inside(around)])
    panels.append(("tile", image))
    name = f"{opened.scene.name} at row {window.row}, column {window.col}; hatched: no image"
    if sample.label.size:
        name += "; without colour: ignored"
        panels.append(("labels", overlay(image, sample.label, colors, 0.6)))
    pictures = [strip(panels)]
    if sample.label.size:
        pictures.append(legend(data.classes.names, data.classes.colors, width=max(600, pictures[0].shape[1])))
    title = strip([(name, np.full((1, pictures[0].shape[1] - 20, 3), 255, np.uint8))], height=1)
    return stack([title, *pictures])


def _scenes_csv(data: Dataset, summaries: Sequence[SceneSummary]) -> str:
    """Write a CSV line for each scene."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    shares = [f"share of {name}" for name in data.classes.names]
    rows.writerow(["scene", "height", "width", "gsd_m", "crs", "areas", "labelled pixels", *shares, "image", "label"])
    for s in summaries:
        labelled = int(s.pixels[:-1].sum())
        each = [f"{n / labelled:.6f}" if labelled else "" for n in s.pixels[:-1]]
        gsd = "" if s.source_gsd_m is None else f"{s.source_gsd_m:.4g}"
        where = str(s.scene.image), str(s.scene.label or "")
        rows.writerow([s.scene.name, s.height, s.width, gsd, s.crs, s.areas, labelled, *each, *where])
    return text.getvalue()


def _report(
    data: Dataset, split: str, summaries: Sequence[SceneSummary], bands: BandStatistics, broken: Sequence[str]
) -> str:
    pixels = np.sum([s.pixels for s in summaries], axis=0, initial=0)
    everything, labelled = int(np.sum(pixels)), int(np.sum(pixels[:-1])) if summaries else 0
    areas = sum(s.areas for s in summaries)
    lines = [
        f"# {data.name}, split {split}",
        "",
        f"{_plural(len(summaries), 'scene')}, {_plural(areas, 'area')} to tile",
    ]
    if everything:
        lines += ["", "| class | pixels | share of labelled |", "|---|---:|---:|"]
        for name, count in zip(data.classes.names, pixels[:-1], strict=True):
            lines.append(f"| {name} | {count:,} | {100 * count / max(1, labelled):.2f} % |")
        ignored = 100 * (everything - labelled) / everything
        lines += ["", f"{labelled:,} pixels are labelled; {ignored:.1f} % are ignored or missing."]
    lines += ["", "| band | values that become 0 to 255 | mean | standard deviation | pixels of the sample |"]
    lines += ["|---|---|---:|---:|---:|"]
    for name, limits, mean, std, count in zip(*bands, strict=True):
        become = "uint8, as they are" if limits is None else f"{limits[0]:g} to {limits[1]:g}"
        lines.append(f"| {name} | {become} | {mean:.2f} | {std:.2f} | {count:,} |")
    lines += ["", "| scene | rows x columns | ground pixel | CRS | areas |", "|---|---|---|---|---:|"]
    for s in summaries[:_ROWS]:
        gsd = "unknown" if s.source_gsd_m is None else f"{s.source_gsd_m:.3g} m"
        lines.append(f"| {s.scene.name} | {s.height} x {s.width} | {gsd} | {s.crs or 'none'} | {s.areas} |")
    more = [f"{len(summaries) - _ROWS} more scenes"] * (len(summaries) > _ROWS)
    more += ["class shares by scene"] * (everything > 0)
    lines += ["", f"scenes.csv has {' and '.join(more)}."] if more else []
    if broken:
        lines += ["", f"Left out, {len(broken)}:", "", *(f"- {line}" for line in broken)]
    return "\n".join(lines) + "\n"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
