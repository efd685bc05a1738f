"""The figure of an explanation: attention by stage and head, and what the class would be without context.

Pictures are (H, W, 3) uint8.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from caswit.config import ComputeConfig
from caswit.data.classes import ClassTable
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.explain.attention import AS_IT_IS, BLACK, Explanation, StageAttention, explain_pixel
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.raster.georef import pixel_at, pixel_at_lonlat
from caswit.raster.mosaic import Mosaic
from caswit.raster.reader import Raster
from caswit.raster.windows import slice_middle
from caswit.viz.pictures import (
    INK,
    PAPER,
    WRONG_COLOUR,
    Image,
    colourise,
    draw_box,
    legend,
    png_bytes,
    resize,
    stack,
    strip,
)
from caswit.weights.model_folder import load_model

PANEL_PX = 420
GAP_PX = 10
TEXT_PX = 22
MUTED = (96, 102, 112)


class Frame(NamedTuple):
    """How a tile and a pixel lie in a picture of the context."""

    side_px: int
    context_px: int
    """Side of the averaged context, in its pixels."""
    factor: int
    place: tuple[int, int]
    """The pixel, in the tile."""

    @property
    def scale(self) -> float:
        """Picture pixels per pixel of the averaged context."""
        return self.side_px / self.context_px

    def annotated(self, picture: Image, *, dot: bool = True) -> Image:
        """Outline the tile and mark the pixel."""
        inner = slice_middle(self.context_px, self.factor)
        first, side = round(inner.start * self.scale), round((inner.stop - inner.start) * self.scale)
        boxed = draw_box(picture, (first, first, side, side), line_px=2)
        if not dot:
            return boxed
        row, col = (self.scale * (inner.start + (at + 0.5) / self.factor) for at in self.place)
        return mark(boxed, row, col, max(3.0, self.side_px / 90))


def explanation_figure(found: Explanation, classes: ClassTable, context_factor: int, title: str) -> Image:
    """Everything about one pixel on one sheet."""
    frame = Frame(PANEL_PX, found.context.shape[-1], context_factor, found.place)
    context = scale_to(_picture(found.context), PANEL_PX, PANEL_PX)
    rows = [_heading(title), _evidence(found, classes, frame, context)]
    rows += _two_by_two([attention_row(stage, frame, context) for stage in found.stages])
    width = max(row.shape[1] for row in rows)
    rows.append(legend(classes.names, classes.colors, width=width, font_px=TEXT_PX - 2))
    sheet = stack(rows)
    return np.pad(sheet, ((GAP_PX, GAP_PX), (GAP_PX, GAP_PX), (0, 0)), constant_values=255)


def attention_row(stage: StageAttention, frame: Frame, context: Image) -> Image:
    """The mean over the heads, large, and every head, small."""
    heads, height, width = stage.heads.shape
    many = "one head" if heads == 1 else f"mean and {heads} heads"
    title = f"Stage {stage.stage}: {height} x {width} tokens, {many}; peak {times_even(stage.mean):.1f} x even"
    panels = [frame.annotated(over_image(context, stage.mean))]
    if heads > 1:
        panels.append(_heads(stage, frame, context))
    return stack([_text(title), _beside(panels)])


def attention_panels(found: Explanation, context_factor: int, side_px: int) -> list[tuple[str, Image]]:
    """Titled pictures, one for each stage: the mean attention over the context (figure 6)."""
    frame = Frame(side_px, found.context.shape[-1], context_factor, found.place)
    context = scale_to(_picture(found.context), side_px, side_px)
    return [(f"Stage {s.stage}", frame.annotated(over_image(context, s.mean))) for s in found.stages]


def _heads(stage: StageAttention, frame: Frame, context: Image) -> Image:
    """Every head in a grid as high as one panel."""
    count = len(stage.heads)
    rows = 1 if count <= 2 else 2 if count <= 8 else 4
    side = (frame.side_px - (rows - 1) * GAP_PX) // rows
    small = scale_to(context, side, side)
    cells = [frame._replace(side_px=side).annotated(over_image(small, head)) for head in stage.heads]
    columns = -(-count // rows)
    return np.concatenate(
        [
            _padded(_beside(cells[at : at + columns]), side + GAP_PX, columns * (side + GAP_PX))
            for at in range(0, count, columns)
        ]
    )[: frame.side_px]


def _evidence(found: Explanation, classes: ClassTable, frame: Frame, context: Image) -> Image:
    """Context, tile, both maps, what changes, and the probabilities."""
    side = frame.side_px
    tile = scale_to(_picture(found.image), side, side)
    row, col = ((at + 0.5) * side / found.image.shape[-1] for at in found.place)

    def panel(picture: Image) -> Image:
        return mark(picture, row, col, max(3.0, side / 90))

    maps = [panel(_grown(colourise(found.classes[name], classes.colors), side, side)) for name in (AS_IT_IS, BLACK)]
    changed = np.where(
        found.changed[..., None], np.array(WRONG_COLOUR, np.uint8), (0.35 * _picture(found.image)).astype(np.uint8)
    )
    share = f"changed: {100 * found.changed.mean():.1f} % of the tile"
    pictures = [
        ("context, tile outlined", frame.annotated(context)),
        ("tile", panel(tile)),
        ("class, surroundings as they are", maps[0]),
        ("class, surroundings black", maps[1]),
        (share, panel(_grown(changed, side, side))),
    ]
    return stack([strip(pictures), _probabilities(found, classes)])


def _probabilities(found: Explanation, classes: ClassTable) -> Image:
    """Bars of every class that matters, one for each kind of surroundings."""
    conditions = list(found.probabilities)
    values = np.stack([found.probabilities[name] for name in conditions])
    shown = [k for k in np.argsort(-values.max(0)) if values[:, k].max() >= 0.01][:6]
    line, label, bar = TEXT_PX + 10, 380, 300
    height = line * (len(conditions) + 1) + GAP_PX
    picture = Pillow.new("RGB", (label + len(shown) * (bar + 70), height), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_PX)
    draw.text((GAP_PX, line / 2), "Probability of the pixel", fill=INK, font=font, anchor="lm")
    for row, name in enumerate(conditions, 1):
        middle = row * line + line / 2
        draw.text((GAP_PX, middle), f"surroundings {name}", fill=MUTED, font=font, anchor="lm")
    for column, k in enumerate(shown):
        left = label + column * (bar + 70)
        draw.text((left, line / 2), classes.names[k], fill=INK, font=font, anchor="lm")
        for row, value in enumerate(values[:, k], 1):
            middle, end = row * line + line / 2, left + 2 + value * (bar - 80)
            rectangle = (left, middle - TEXT_PX / 2.6, end, middle + TEXT_PX / 2.6)
            draw.rectangle(rectangle, fill=tuple(map(int, classes.colors[k])), outline=INK)
            draw.text((end + 8, middle), f"{100 * value:.0f} %", fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def _two_by_two(pictures: Sequence[Image]) -> list[Image]:
    """Pairs of pictures of one height side by side."""
    return [np.concatenate(pictures[at : at + 2], axis=1) for at in range(0, len(pictures), 2)]


def _heading(text: str) -> Image:
    return _text(text, font_px=TEXT_PX + 6)


def _text(text: str, font_px: int = TEXT_PX) -> Image:
    """A line of text on white."""
    font = ImageFont.load_default(font_px)
    picture = Pillow.new("RGB", (round(font.getlength(text)) + 2 * GAP_PX, round(1.8 * font_px)), PAPER)
    ImageDraw.Draw(picture).text((GAP_PX, picture.height / 2), text, fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def _beside(pictures: Sequence[Image]) -> Image:
    """Join pictures of one height side by side, with gaps, on white."""
    gap = np.full((pictures[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)], axis=1)


def _padded(picture: Image, height: int, width: int) -> Image:
    rows, cols = height - picture.shape[0], max(0, width - picture.shape[1])
    return np.pad(picture, ((0, rows), (0, cols), (0, 0)), constant_values=255)


def _picture(image: Image) -> Image:
    """(3, H, W) to (H, W, 3)."""
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))


RAMP = np.array([[12, 8, 38], [84, 18, 109], [187, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""Dark to bright, even in lightness, and in order for colour-blind eyes too; equally spaced."""
PEAK_PERCENTILE = 99.5
"""What is drawn brightest; a single extreme token must not darken the rest."""
LEAST_PEAK = 3.0
"""A peak below this many times an even spread is not stretched to full brightness: even must look even."""


def colour_ramp(values: NDArray[Any]) -> Image:
    """Values 0..1 of any shape to (..., 3) colours of ``RAMP``."""
    stops = np.linspace(0, 1, len(RAMP))
    channels = [np.interp(values, stops, RAMP[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def normalised(heat: NDArray[Any]) -> NDArray[Any]:
    """Heat as 0..1; 1 is its peak, or ``LEAST_PEAK`` times its mean where it has no such peak."""
    peak = max(float(np.percentile(heat, PEAK_PERCENTILE)), LEAST_PEAK * float(heat.mean()))
    return np.clip(heat / max(peak, 1e-12), 0, 1)


def times_even(heat: NDArray[Any]) -> float:
    """How many times an even spread the drawn peak is."""
    return float(np.percentile(heat, PEAK_PERCENTILE) / max(float(heat.mean()), 1e-12))


def over_image(image: Image, heat: NDArray[Any]) -> Image:
    """Heat over the darkened grey image; tokens stay squares, since nothing is known between them."""
    height, width = image.shape[:2]
    share = normalised(heat)
    colours = _grown(colour_ramp(share), height, width).astype(np.float64)
    opacity = _grown(np.rint(255 * (0.1 + 0.75 * np.sqrt(share))).astype(np.uint8), height, width)[..., None] / 255
    grey = 0.75 * image.mean(axis=2, keepdims=True)
    return np.rint((1 - opacity) * grey + opacity * colours).astype(np.uint8)


def as_overlay(heat: NDArray[Any]) -> Image:
    """(h, w, 4): the same colours with opacity, to be laid over a map by someone else."""
    share = normalised(heat)
    opacity = np.rint(255 * (0.08 + 0.77 * np.sqrt(share))).astype(np.uint8)
    overlay: Image = np.concatenate([colour_ramp(share), opacity[..., None]], axis=-1)
    return overlay


def mark(image: Image, row: float, col: float, radius_px: float) -> Image:
    """A white dot with a dark rim at a place of the image."""
    picture = Pillow.fromarray(image)
    rim = radius_px + max(1.0, radius_px / 3)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((col - rim, row - rim, col + rim, row + rim), fill=INK)
    draw.ellipse((col - radius_px, row - radius_px, col + radius_px, row + radius_px), fill=PAPER)
    return np.asarray(picture)


def scale_to(image: Image, height: int, width: int) -> Image:
    """An image at another size: areas averaged on the way down, smooth on the way up."""
    if height <= image.shape[0]:
        return resize(image, height, width)
    return np.asarray(Pillow.fromarray(image).resize((width, height), Pillow.Resampling.BICUBIC))


def _grown(cells: Image, height: int, width: int) -> Image:
    return np.asarray(Pillow.fromarray(cells.astype(np.uint8)).resize((width, height), Pillow.Resampling.NEAREST))


def explain(
    image: Path, model: Path, out: Path, *, place: Mapping[str, float], settings: ComputeConfig | None = None
) -> list[str]:
    """Write the figure of one pixel.

    Args:
        image: Any three-band uint8 raster that GDAL opens.
        model: Model folder of a network that reads its context.
        out: PNG to write; its folder must exist.
        place: The pixel: row and col, x and y in the image's CRS, or lon and lat.
        settings: How to compute.

    Returns:
        Lines that say the same in words.

    Raises:
        CaswitError: The image, the place, the model or the file to write cannot be used.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: figures are PNG files; give a name that ends in .png")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist; create it first")
    loaded = load_model(model)
    tile = loaded.info.tile
    with SceneReader(Scene(image=image), bands=loaded.info.bands, read_gsd_m=tile.read_gsd_m) as scene:
        row, col = pixel_of(scene.image, place)
        found = explain_pixel(load_predictor(loaded, settings or ComputeConfig()), scene, row, col, tile.tile_px)
    title = f"{image.name}, row {row}, column {col}, labelled by {loaded.name}"
    figure = explanation_figure(found, loaded.info.classes, tile.context_factor, title)
    atomic_write_bytes(out, png_bytes(figure))
    return [title, *in_words(found, loaded.info.classes.names)]


def pixel_of(raster: Raster | Mosaic, place: Mapping[str, float]) -> tuple[int, int]:
    """(row, col) of a place named by pixel, coordinate or longitude and latitude."""
    if "row" in place:
        return int(place["row"]), int(place["col"])
    if "x" in place:
        return pixel_at(raster.grid, place["x"], place["y"], raster.path)
    return pixel_at_lonlat(raster.grid, place["lon"], place["lat"], raster.path)


def in_words(found: Explanation, names: tuple[str, ...]) -> list[str]:
    """A line for each kind of surroundings, and one on the tile."""
    lines = []
    for surroundings, probabilities in found.probabilities.items():
        best = int(probabilities.argmax())
        lines.append(f"surroundings {surroundings}: {names[best]} ({100 * probabilities[best]:.0f} %)")
    share = 100 * found.changed.mean()
    return [*lines, f"without surroundings {share:.1f} % of the tile's pixels have another class"]
