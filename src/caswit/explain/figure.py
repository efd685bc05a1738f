"""caswit explain: the figure of one pixel, and the heatmaps of attention that it shares with the viewer.

The figure has the attention by stage and head (figure 6 of the paper), the class map as it is and with masked
context, and the probabilities of the pixel for every kind of context. Pictures are (H, W, 3) uint8; a heatmap is
(H, W) of attention weights, one per context token.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from caswit.config import ExplainConfig
from caswit.data.classes import ClassTable
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.explain.attention import AS_IS, MASKED, SWAPPED, Explanation, StageAttention, explain_pixel
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.nn.caswit import NEARLY_CLOSED, gates_in_words
from caswit.raster.georef import pixel_at, pixel_at_lonlat
from caswit.raster.stack import Image as SceneImage
from caswit.raster.windows import slice_middle
from caswit.viz.pictures import (
    INK,
    PAPER,
    WRONG_COLOUR,
    Image,
    channels_last,
    colourise,
    draw_tile,
    legend,
    png_bytes,
    resize,
    resize_nearest,
    stack,
    strip,
)
from caswit.weights.image_bands import bands_to_read, parse_also
from caswit.weights.model_folder import load_model
from caswit.weights.zoo import choose, zoo_models

log = logging.getLogger(__name__)

PANEL_PX = 420
GAP_PX = 10
TEXT_PX = 22
MUTED = (96, 102, 112)

COLOUR_RAMP = np.array([[12, 8, 38], [84, 18, 109], [187, 55, 84], [249, 142, 9], [252, 255, 164]], np.float64)
"""Equally spaced stops, even in lightness, so that their order also holds for colour-blind eyes and in grey."""
PEAK_PERCENTILE = 99.5
"""Percentile that is drawn brightest."""
LEAST_PEAK = 3.0
"""Least attention that is drawn brightest, relative to uniform attention."""
_LEAST, _GAIN = 0.1, 0.75
"""Opacity of a heatmap over the context: of no attention, and what the highest adds."""

# ---- the command ---------------------------------------------------------------------------------


def explain(
    image: Path,
    model: Path | str | None,
    out: Path,
    *,
    place: Mapping[str, float],
    gsd_m: float | None = None,
    settings: ExplainConfig | None = None,
) -> list[str]:
    """Write the figure of one pixel.

    Args:
        image: Any raster that GDAL opens and whose bands the model reads.
        model: Model folder of a network that reads its context, or its name; None chooses one of the zoo as ``predict``
            does, by the ground size of the image's pixels.
        out: PNG to write; its folder must exist.
        place: The pixel: row and col, x and y in the image's CRS, or lon and lat.
        gsd_m: Ground size of the image's pixels in metres; None takes it from the image.
        settings: Which bands to read, and how to compute.

    Returns:
        A summary of the figure, line by line.

    Raises:
        CaswitError: The image, the place, the model or the file to write cannot be used.
    """
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: figures are PNG files; give a name that ends in .png")
    if not out.resolve().parent.is_dir():
        raise ConfigError(f"{out}: its folder does not exist; create it first")
    settings = settings or ExplainConfig()
    further = parse_also(settings.also)
    loaded = load_model(_chosen(image, gsd_m) if model is None else model)
    tile = loaded.info.tile
    with SceneReader(
        Scene(image=image, also=further, gsd_m=gsd_m),
        bands=bands_to_read(image, loaded.info, settings.bands, further),
        read_gsd_m=tile.read_gsd_m,
        ranges=loaded.info.model.ranges,
    ) as scene:
        row, col = find_pixel(scene.image, place)
        explanation = explain_pixel(load_predictor(loaded, settings), scene, row, col, tile.tile_px)
    title = f"{image.name}, row {row}, column {col}, labelled by {loaded.name}"
    figure = explanation_figure(explanation, loaded.info.classes, title, loaded.info.model.band_names)
    atomic_write_bytes(out, png_bytes(figure))
    return [title, *summary(explanation, loaded.info.classes.names)]


def _chosen(image: Path, gsd_m: float | None) -> str:
    with SceneReader(Scene(image=image)) as scene:
        known = gsd_m or scene.image.grid.source_gsd_m
    model, reason = choose(known, image.name)
    if not model.reads_context:
        others = ", ".join(each.name for each in zoo_models() if each.reads_context)
        raise ConfigError(
            f"{image.name}: {model.name} is meant for pixels of {known:.3g} m, and reads no context that could be "
            f"explained; --model takes one that does: {others}, or your own"
        )
    log.info("model: %s (%s)", model.name, reason)
    return model.name


def find_pixel(raster: SceneImage, place: Mapping[str, float]) -> tuple[int, int]:
    """Return (row, col) of a place given as row and col, x and y, or lon and lat."""
    if "row" in place:
        return int(place["row"]), int(place["col"])
    if "x" in place:
        return pixel_at(raster.grid, place["x"], place["y"], raster.path)
    return pixel_at_lonlat(raster.grid, place["lon"], place["lat"], raster.path)


def summary(explanation: Explanation, names: tuple[str, ...]) -> list[str]:
    """Write the pixel's class for each kind of context, and how much of the tile changes with masked context."""
    lines = []
    for kind, probabilities in explanation.probabilities.items():
        best = int(probabilities.argmax())
        lines.append(f"context {kind}: {names[best]} ({100 * probabilities[best]:.0f} %)")
    if SWAPPED not in explanation.probabilities:
        lines.append(
            f"context {SWAPPED}: left out, since the image has no other tile that lies apart from this one and has "
            "half of its context inside the image"
        )
    changed = 100 * explanation.changed.mean()
    lines.append(f"with masked context {changed:.1f} % of the tile's pixels get another class")
    return [*lines, *_said_of_contexts(explanation), *_said_of_padding(explanation), *_said_of_gates(explanation)]


def _said_of_contexts(explanation: Explanation) -> Iterator[str]:
    """Say how the attention is shared out, where there are several contexts."""
    if len(explanation.contexts) > 1:
        for number, context in enumerate(explanation.contexts):
            shares = (f"stage {s.stage} {100 * s.share:.0f} %" for s in explanation.stages if s.context == number)
            yield f"attention on context x {context.factor}: {', '.join(shares)}"


def _said_of_padding(explanation: Explanation) -> Iterator[str]:
    """Say how much of the attention lies where there is nothing to see."""
    for number, context in enumerate(explanation.contexts):
        padded = 100 * float(context.padding.mean())
        if padded:
            stages = ", ".join(
                f"stage {s.stage} {100 * s.on_padding:.0f} %" for s in explanation.stages if s.context == number
            )
            name = _name(explanation, number)
            where = "" if name == "context" else f" in {name}"
            yield (
                f"attention on padding{where}: {stages}; {padded:.0f} % of the context is padding (black: outside the "
                "image, or without data), where there is nothing to see"
            )


def _name(explanation: Explanation, number: int) -> str:
    """Return what a context is called, with its factor where there are several."""
    return "context" if len(explanation.contexts) == 1 else f"context x {explanation.contexts[number].factor}"


def _said_of_gates(explanation: Explanation) -> Iterator[str]:
    gates = {s.stage: s.gate for s in explanation.stages if s.gate is not None}
    yield gates_in_words(gates) if gates else "gates: none, each stage adds all that it reads"


# ---- the figure ----------------------------------------------------------------------------------


class Frame(NamedTuple):
    """The position of a tile and a pixel in a square picture of the context."""

    side_px: int
    context_px: int
    """Side of the averaged context, in its pixels."""
    factor: int
    pixel: tuple[int, int]
    """(row, column) in the tile."""
    padding: NDArray[np.bool_]
    """(T, T): pixels of the context that are padding, most of them."""

    def heatmap(self, context: Image, attention: NDArray[Any]) -> Image:
        """Lay attention over the context, hatch the padding, outline the tile and mark the pixel."""
        return self.annotated(self.hatched(heatmap_over(context, attention), 0.35))

    def hatched(self, picture: Image, opacity: float) -> Image:
        """Draw diagonals over the padding, through which the attention on it is still seen."""
        side = self.side_px
        row, col = np.indices((side, side))
        lines = resize_nearest(self.padding.astype(np.uint8), side, side).astype(bool) & ((row + col) % 14 < 2)
        drawn = picture.astype(np.float64)
        drawn[lines] += opacity * (255 - drawn[lines])
        return np.rint(drawn).astype(np.uint8)

    def annotated(self, picture: Image) -> Image:
        """Outline the tile and mark the pixel."""
        first = slice_middle(self.context_px, self.factor).start
        scale = self.side_px / self.context_px
        row, col = (scale * (first + (at + 0.5) / self.factor) for at in self.pixel)
        return mark_pixel(draw_tile(picture, self.factor), row, col, max(3.0, self.side_px / 90))


def explanation_figure(explanation: Explanation, classes: ClassTable, title: str, names: Sequence[str] = ()) -> Image:
    """Draw the whole explanation of one pixel; ``names`` are those of the bands, of which red, green and blue show."""
    framed = _framed_contexts(explanation, PANEL_PX, names)
    stages = [attention_row(stage, *framed[stage.context], _share(explanation, stage)) for stage in explanation.stages]
    rows = [_text(title, TEXT_PX + 6), _input_and_classes(explanation, classes, framed, names)]
    rows += [np.concatenate(stages[at : at + 2], axis=1) for at in range(0, len(stages), 2)]
    width = max(row.shape[1] for row in rows)
    rows.append(legend(classes.names, classes.colors, width=width, font_px=TEXT_PX - 2))
    return np.pad(stack(rows), ((GAP_PX, GAP_PX), (GAP_PX, GAP_PX), (0, 0)), constant_values=255)


def _share(explanation: Explanation, stage: StageAttention) -> str:
    """Say how much of a stage's attention lies on one of several contexts; nothing where there is one."""
    name = _name(explanation, stage.context)
    return "" if name == "context" else f", {100 * stage.share:.0f} % on {name}"


def attention_row(stage: StageAttention, frame: Frame, context: Image, share: str = "") -> Image:
    """Draw the mean over the heads, large, and every head, small."""
    heads, height, width = stage.heads.shape
    count = "one head" if heads == 1 else f"mean and {heads} heads"
    peak = f"peak {peak_over_uniform(stage.mean):.1f} x uniform"
    panels = [frame.heatmap(context, stage.mean), colour_bar(stage.mean, frame.side_px)]
    if heads > 1:
        panels.append(_heads(stage, frame, context))
    notes = [f"{100 * stage.on_padding:.0f} % on padding (hatched)"] if frame.padding.any() else []
    closed = ", nearly closed" if stage.gate is not None and abs(stage.gate) < NEARLY_CLOSED else ""
    notes.append("not gated" if stage.gate is None else f"gate {stage.gate:.3f}{closed}")
    if heads > 1:
        notes.append("heads: colours to their own peaks")
    title = _text(f"Stage {stage.stage}{share}: {height} x {width} tokens, {count}; {peak}")
    lines = [title, _text("; ".join(notes), TEXT_PX - 4, MUTED)]
    return stack([*lines, _beside(panels)])


def attention_panels(explanation: Explanation, side_px: int, names: Sequence[str] = ()) -> list[tuple[str, Image]]:
    """Draw the mean attention over each context for each stage, with titles (figure 6)."""
    framed, panels = _framed_contexts(explanation, side_px, names), []
    for s in explanation.stages:
        frame, context = framed[s.context]
        padded = f", {100 * s.on_padding:.0f} % on padding" if frame.padding.any() else ""
        picture = np.concatenate((frame.heatmap(context, s.mean), colour_bar(s.mean, side_px)), axis=1)
        panels.append((f"Stage {s.stage}{_share(explanation, s)}{padded}", picture))
    return panels


def _framed_contexts(explanation: Explanation, side_px: int, names: Sequence[str]) -> list[tuple[Frame, Image]]:
    return [
        (
            Frame(side_px, context.image.shape[-1], context.factor, explanation.pixel, context.padding > 0.5),
            resize(channels_last(context.image, names), side_px, side_px, smooth=True),
        )
        for context in explanation.contexts
    ]


def _heads(stage: StageAttention, frame: Frame, context: Image) -> Image:
    """Draw every head, in a grid as high as one panel."""
    count = len(stage.heads)
    rows = 1 if count <= 2 else 2 if count <= 8 else 4
    side = (frame.side_px - (rows - 1) * GAP_PX) // rows
    small = resize(context, side, side, smooth=True)
    cells = [frame._replace(side_px=side).heatmap(small, head) for head in stage.heads]
    columns = -(-count // rows)
    lines = [_beside(cells[at : at + columns]) for at in range(0, count, columns)]
    width = columns * (side + GAP_PX)
    padded = [np.pad(x, ((0, GAP_PX), (0, width - x.shape[1]), (0, 0)), constant_values=255) for x in lines]
    return np.concatenate(padded)[: frame.side_px]


def _input_and_classes(
    explanation: Explanation, classes: ClassTable, framed: Sequence[tuple[Frame, Image]], names: Sequence[str]
) -> Image:
    """Draw contexts, tile, class maps with context as is and masked, their difference, and the probabilities."""
    side = framed[0][0].side_px
    tile = channels_last(explanation.image, names)
    row, col = ((at + 0.5) * side / len(tile) for at in explanation.pixel)

    def panel(picture: Image) -> Image:
        return mark_pixel(picture, row, col, max(3.0, side / 90))

    as_is, masked = (colourise(explanation.classes[kind], classes.colors) for kind in (AS_IS, MASKED))
    dark = (0.35 * tile).astype(np.uint8)
    changed = np.where(explanation.changed[..., None], np.array(WRONG_COLOUR, np.uint8), dark)
    pictures = [
        (
            f"{_name(explanation, number)}, tile outlined{', padding hatched' if frame.padding.any() else ''}",
            frame.annotated(frame.hatched(context, 0.35)),
        )
        for number, (frame, context) in enumerate(framed)
    ]
    pictures += [
        ("tile", panel(resize(tile, side, side, smooth=True))),
        ("class, context as is", panel(resize_nearest(as_is, side, side))),
        ("class, context masked", panel(resize_nearest(masked, side, side))),
        (f"changed: {100 * explanation.changed.mean():.1f} % of the tile", panel(resize_nearest(changed, side, side))),
    ]
    return stack([strip(pictures), _probabilities(explanation, classes)])


def _probabilities(explanation: Explanation, classes: ClassTable) -> Image:
    """Draw a bar for each kind of context and each of the most probable classes."""
    kinds = list(explanation.probabilities)
    values = np.stack([explanation.probabilities[kind] for kind in kinds])
    probable = [k for k in np.argsort(-values.max(0)) if values[:, k].max() >= 0.01][:6]
    line, label, bar = TEXT_PX + 10, 380, 300
    height = line * (len(kinds) + 1) + GAP_PX
    picture = Pillow.new("RGB", (label + len(probable) * (bar + 70), height), PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(TEXT_PX)
    draw.text((GAP_PX, line / 2), "Probability of the pixel", fill=INK, font=font, anchor="lm")
    for row, kind in enumerate(kinds, 1):
        draw.text((GAP_PX, row * line + line / 2), f"context {kind}", fill=MUTED, font=font, anchor="lm")
    for column, k in enumerate(probable):
        left = label + column * (bar + 70)
        draw.text((left, line / 2), classes.names[k], fill=INK, font=font, anchor="lm")
        for row, value in enumerate(values[:, k], 1):
            middle, end = row * line + line / 2, left + 2 + value * (bar - 80)
            rectangle = (left, middle - TEXT_PX / 2.6, end, middle + TEXT_PX / 2.6)
            draw.rectangle(rectangle, fill=tuple(map(int, classes.colors[k])), outline=INK)
            draw.text((end + 8, middle), f"{100 * value:.0f} %", fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def mark_pixel(image: Image, row: float, col: float, radius_px: float) -> Image:
    """Draw a white dot with a dark rim, as in figure 6."""
    picture = Pillow.fromarray(image)
    draw = ImageDraw.Draw(picture)
    for radius, colour in ((radius_px + max(1.0, radius_px / 3), INK), (radius_px, PAPER)):
        draw.ellipse((col - radius, row - radius, col + radius, row + radius), fill=colour)
    return np.asarray(picture)


def colour_bar(heatmap: NDArray[Any], height: int) -> Image:
    """Draw the scale of a heatmap: its colours over mid-grey, from no attention to what is drawn brightest."""
    font_px = max(12, height // 24)
    font = ImageFont.load_default(font_px)
    brightest = _peak(heatmap) / max(float(heatmap.mean()), 1e-12)
    labels = (f"{brightest:.1f} x", "uniform"), ("0",)
    width = round(max(font.getlength(line) for lines in labels for line in lines))
    bar, gap = max(8, height // 28), font_px // 2
    brightness = np.repeat(np.linspace(1, 0, height)[:, None], bar, axis=1)
    rgba = _coloured(brightness, _LEAST, _GAIN).astype(np.float64)
    opacity = rgba[..., 3:] / 255
    drawn = Pillow.new("RGB", (gap + bar + gap + width + gap, height), PAPER)
    drawn.paste(Pillow.fromarray(np.rint((1 - opacity) * 96 + opacity * rgba[..., :3]).astype(np.uint8)), (gap, 0))
    draw, left = ImageDraw.Draw(drawn), gap + bar + gap
    for number, line in enumerate(labels[0]):
        draw.text((left, number * 1.2 * font_px), line, fill=INK, font=font, anchor="lt")
    draw.text((left, height - 1), labels[1][0], fill=INK, font=font, anchor="lb")
    return np.asarray(drawn)


def _text(text: str, font_px: int = TEXT_PX, colour: tuple[int, int, int] = INK) -> Image:
    """Draw a line of text on white."""
    font = ImageFont.load_default(font_px)
    picture = Pillow.new("RGB", (round(font.getlength(text)) + 2 * GAP_PX, round(1.8 * font_px)), PAPER)
    ImageDraw.Draw(picture).text((GAP_PX, picture.height / 2), text, fill=colour, font=font, anchor="lm")
    return np.asarray(picture)


def _beside(pictures: Sequence[Image]) -> Image:
    """Join pictures of one height side by side, each after a white gap."""
    gap = np.full((pictures[0].shape[0], GAP_PX, 3), 255, np.uint8)
    return np.concatenate([part for picture in pictures for part in (gap, picture)], axis=1)


# ---- heatmaps ------------------------------------------------------------------------------------


def heatmap_over(image: Image, heatmap: NDArray[Any]) -> Image:
    """Lay a heatmap over the darkened grey image."""
    height, width = image.shape[:2]
    # Tokens stay squares: a smooth heatmap would show places between tokens at which nothing was computed.
    rgba = resize_nearest(heatmap_overlay(heatmap, _LEAST, _GAIN), height, width).astype(np.float64)
    opacity = rgba[..., 3:] / 255
    grey = 0.75 * image.mean(axis=2, keepdims=True)
    return np.rint((1 - opacity) * grey + opacity * rgba[..., :3]).astype(np.uint8)


def heatmap_overlay(heatmap: NDArray[Any], least: float = 0.08, gain: float = 0.77) -> Image:
    """Colour a heatmap as (H, W, 4), with opacities from ``least`` to ``least + gain``, for laying over a map."""
    return _coloured(normalise_heatmap(heatmap), least, gain)


def _coloured(brightness: NDArray[Any], least: float, gain: float) -> Image:
    """Colour values of 0..1 as (H, W, 4)."""
    # The root lets weak attention show: it is spread over most of the context, and adds up.
    opacity = np.rint(255 * (least + gain * np.sqrt(brightness))).astype(np.uint8)
    overlay: Image = np.concatenate([ramp_colours(brightness), opacity[..., None]], axis=-1)
    return overlay


def normalise_heatmap(heatmap: NDArray[Any]) -> NDArray[Any]:
    """Scale a heatmap to 0..1."""
    # Each stage has its own scale, because weights of more tokens are smaller. A percentile keeps one extreme token
    # from darkening all others, and the least peak keeps the noise of nearly uniform attention from looking like peaks.
    return np.clip(heatmap / max(_peak(heatmap), 1e-12), 0, 1)


def _peak(heatmap: NDArray[Any]) -> float:
    """Return the weight that is drawn brightest."""
    return max(float(np.percentile(heatmap, PEAK_PERCENTILE)), LEAST_PEAK * float(heatmap.mean()))


def peak_over_uniform(heatmap: NDArray[Any]) -> float:
    """Return the peak of a heatmap relative to uniform attention, to compare stages whose colours are scaled apart."""
    return float(np.percentile(heatmap, PEAK_PERCENTILE) / max(float(heatmap.mean()), 1e-12))


def ramp_colours(values: NDArray[Any]) -> Image:
    """Map values of 0..1 and any shape to the (..., 3) colours of ``COLOUR_RAMP``."""
    stops = np.linspace(0, 1, len(COLOUR_RAMP))
    channels = [np.interp(values, stops, COLOUR_RAMP[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)
