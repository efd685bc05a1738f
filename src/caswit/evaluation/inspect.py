"""Inspect a dataset before training: pictures of tiles with context and labels, class shares, scenes, what is odd.

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

from caswit import __version__
from caswit.config import IGNORE_INDEX, InspectConfig, check, context_factors
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import SceneReader, context_window, open_dataset_scene
from caswit.data.scene import Scene
from caswit.data.statistics import BandStatistics, measure
from caswit.errors import DataError
from caswit.evaluation.findings import Findings, LabelLook, Shifts, look_at
from caswit.evaluation.label_shift import Shift
from caswit.evaluation.report import PICTURE_PX, Panel
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.files import atomic_write_bytes
from caswit.progress import Progress
from caswit.raster.windows import Tile, area_tiles
from caswit.viz.pages import render
from caswit.viz.pictures import (
    Image,
    channels_last,
    data_uri,
    draw_tile,
    hatched,
    legend,
    overlay,
    png_bytes,
    shrink,
    stack,
    strip,
)

log = logging.getLogger(__name__)
_BLOCK_PX = 2048
_ROWS = 40
"""Scenes listed in the report; scenes.csv has all."""


class Drawing(NamedTuple):
    """Titled pictures of a tile, left to right."""

    title: str
    panels: list[tuple[str, Image]]
    labelled: bool


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
    look: LabelLook | None = None
    """How the labels fit the image; None without labels."""


def inspect(
    dataset: str | Path,
    out: Path,
    *,
    split: str = "train",
    tiles: int = 6,
    skip_broken: bool = False,
    settings: InspectConfig | None = None,
) -> Path:
    """Write pictures of tiles, a table of scenes and a summary of a split, and say what is odd. Labels are read once.

    Labels of other splits are read too, for the shares of their classes; what is broken there is listed.

    Args:
        dataset: dataset.yaml.
        out: Folder to write.
        split: Split to inspect, labelled or not.
        tiles: Number of tiles to draw, spread over the split.
        skip_broken: List missing and broken files in the report instead of raising an error.
        settings: Geometry of the tiles.

    Returns:
        The summary, report.md; report.html beside it has the same with the pictures.

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
    broken = list(data.broken)
    summaries, pooled = _summaries(data, scenes, broken)
    findings = _findings(data, split, summaries, pooled, broken)
    out.mkdir(parents=True, exist_ok=True)
    panels: list[tuple[str, list[Panel]]] = []
    drawn = spread_tiles(data, scenes, settings.tile_px, tiles)
    with Progress("pictures", len(drawn), "tiles") as progress:
        for number, (scene, tile) in enumerate(drawn, 1):
            try:
                with open_dataset_scene(data, scene) as opened:
                    drawing = _draw(data, opened, tile, context_factors(settings.context_factor))
                picture = _picture(data, drawing)
                panels.append((drawing.title, _panels(drawing)))
                atomic_write_bytes(out / f"tile-{number:02}.png", png_bytes(picture))
            except DataError as error:
                if not skip_broken:
                    raise
                broken.append(str(error))
            progress.advance(1)
    atomic_write_bytes(out / "scenes.csv", _scenes_csv(data, summaries).encode())
    page = _page(data, split, summaries, findings, bands, broken, panels)
    atomic_write_bytes(out / "report.html", page.encode())
    report = out / "report.md"
    text = _report(data, split, summaries, bands, list(dict.fromkeys(broken)))
    atomic_write_bytes(report, (text + findings.markdown()).encode())
    return report


def _summaries(data: Dataset, scenes: Sequence[Scene], broken: list[str]) -> tuple[list[SceneSummary], Shift | None]:
    """Read every label, and estimate the shift of small scenes together; errors of what is left out join ``broken``."""
    summaries = []
    shifts = Shifts(len(scenes))
    with Progress(f"inspect {data.name}", len(scenes), "scenes") as progress:
        for number, scene in enumerate(scenes):
            try:
                with open_dataset_scene(data, scene) as opened:
                    found = _summary(data, opened, broken)
                    summaries.append(found if scene.label is None else _looked_at(found, opened, shifts, number))
            except DataError as error:
                if not data.skip_broken:
                    raise
                broken.append(str(error))
            progress.advance(1)
    return summaries, shifts.pooled()


def _looked_at(found: SceneSummary, opened: SceneReader, shifts: Shifts, number: int) -> SceneSummary:
    labelled = bool(found.pixels[:-1].sum())
    return found._replace(look=look_at(opened, labelled, shifts.of(number, opened) if labelled else None))


def _findings(
    data: Dataset, split: str, summaries: Sequence[SceneSummary], pooled: Shift | None, broken: list[str]
) -> Findings:
    """Collect what is odd; the labels of other splits are read for their class shares."""
    pixels = {split: _pixels(data, summaries)}
    others = [s for s in data.scenes if s.split != split and s.label is not None]
    with Progress("labels of other splits", len(others), "scenes", quiet=not others) as progress:
        for scene in others:
            try:
                with open_dataset_scene(data, scene) as opened:
                    counted = _summary(data, opened, broken).pixels
                pixels[scene.split] = counted + pixels.get(scene.split, 0)
            except DataError as error:
                broken.append(str(error))
            progress.advance(1)
    return Findings(
        classes=data.classes,
        split=split,
        looks=[s.look for s in summaries if s.look is not None],
        without_crs=[s.scene.name for s in summaries if not s.crs],
        shares={name: each[:-1] / each[:-1].sum() for name, each in pixels.items() if each[:-1].sum()},
        scenes=len(summaries),
        pooled=pooled,
        broken=broken,
    )


def _pixels(data: Dataset, summaries: Sequence[SceneSummary]) -> NDArray[np.int64]:
    return np.sum([s.pixels for s in summaries], axis=0, initial=0) + np.zeros(len(data.classes) + 1, np.int64)


def _summary(data: Dataset, opened: SceneReader, broken: list[str]) -> SceneSummary:
    pixels = np.zeros(len(data.classes) + 1, np.int64)
    tiles = area_tiles(opened.areas, _BLOCK_PX) if opened.has_labels else []
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
    return SceneSummary(opened.scene, *size, opened.source_gsd_m, crs, len(opened.areas), pixels)


def _count(data: Dataset, opened: SceneReader, tile: Tile) -> NDArray[np.int64]:
    """Count the pixels of each class in what a tile owns, ignored ones last."""
    native = opened.native(tile.owned)
    labels = opened.native_labels(native, opened.native_image(native)[1])
    ids = np.where(labels == IGNORE_INDEX, len(data.classes), labels)
    return np.bincount(ids.ravel(), minlength=len(data.classes) + 1)


def _draw(data: Dataset, opened: SceneReader, tile: Tile, factors: tuple[int, ...]) -> Drawing:
    """Draw each context with the tile outlined, the tile, and the labels over all; missing pixels are hatched."""
    window, around = tile.window, context_window(tile.window, factors)
    sample, valid = opened.read(window, factors), opened.region(around).valid
    colors, panels = data.classes.colors, []
    for number, factor in enumerate(factors):
        # One pixel from the middle of each cell stands for the cell: the mean of a mask is no mask.
        missing = ~valid[context_window(window, factor).inside(around)][factor // 2 :: factor, factor // 2 :: factor]
        context = hatched(channels_last(sample.context[number], data.band_names), missing)
        panels.append(("context" if len(factors) == 1 else f"context x {factor}", draw_tile(context, factor)))
        if sample.label.size:
            labels = overlay(context, sample.context_label[number], colors, 0.6)
            panels.append(("labels", draw_tile(labels, factor)))
    image = hatched(channels_last(sample.tile, data.band_names), ~valid[window.inside(around)])
    panels.append(("tile", image))
    if sample.label.size:
        panels.append(("labels", overlay(image, sample.label, colors, 0.6)))
    return Drawing(f"{opened.scene.name} at row {window.row}, column {window.col}", panels, bool(sample.label.size))


def _picture(data: Dataset, drawing: Drawing) -> Image:
    """Join the pictures of a tile with their legend."""
    name = f"{drawing.title}; hatched: no image{'; without colour: ignored' * drawing.labelled}"
    pictures = [strip(drawing.panels)]
    if drawing.labelled:
        pictures.append(legend(data.classes.names, data.classes.colors, width=max(600, pictures[0].shape[1])))
    title = strip([(name, np.full((1, pictures[0].shape[1] - 20, 3), 255, np.uint8))], height=1)
    return stack([title, *pictures])


def _panels(drawing: Drawing) -> list[Panel]:
    """Return the pictures of a tile for the page."""
    return [
        Panel(caption.capitalize(), f"{caption}: {drawing.title}", data_uri(shrink(image, PICTURE_PX), photo=True))
        for caption, image in drawing.panels
    ]


def _page(
    data: Dataset,
    split: str,
    summaries: Sequence[SceneSummary],
    findings: Findings,
    bands: BandStatistics,
    broken: Sequence[str],
    tiles: Sequence[tuple[str, list[Panel]]],
) -> str:
    pixels = _pixels(data, summaries)
    labelled = f"; {pixels[:-1].sum():,} pixels are labelled" if pixels.any() else ""
    return render(
        "inspect.html.j2",
        name=data.name,
        split=split,
        summary=f"{_plural(len(summaries), 'scene')}, {_plural(sum(s.areas for s in summaries), 'area')}{labelled}.",
        found=findings.values(),
        broken=list(dict.fromkeys(broken)),
        scenes=summaries,
        bands=list(zip(*bands, strict=True)),
        most=_ROWS,
        tiles=tiles,
        legend=data.classes.predicted if any(s.look for s in summaries) else (),
        version=__version__,
    )


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
