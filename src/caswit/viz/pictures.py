"""Pictures of images and class maps, made with numpy and Pillow.

An image is (H, W, 3) uint8. A class map is (H, W) class indices; any value outside 0..C-1 is
treated as unlabelled. Colours are (C, 3) uint8, one row per class. No function changes its input.
"""

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

Image = NDArray[np.uint8]
ClassMap = NDArray[Any]
Mask = NDArray[np.bool_]
Colour = tuple[int, int, int]

IGNORED_COLOUR: Colour = (78, 80, 84)
WRONG_COLOUR: Colour = (226, 38, 38)
PAPER: Colour = (255, 255, 255)
INK: Colour = (28, 30, 34)
SOFTWARE = "caswit"


def colourise(classes: ClassMap, colours: Image, ignore_colour: Colour = IGNORED_COLOUR) -> Image:
    """Paint a class map: (H, W) indices to (H, W, 3). Unlabelled pixels get ``ignore_colour``."""
    palette = np.concatenate([colours, np.asarray([ignore_colour])]).astype(np.uint8)
    known = (classes >= 0) & (classes < len(colours))
    picture: Image = palette[np.where(known, classes, len(colours))]
    return picture


def overlay(image: Image, classes: ClassMap, colours: Image, opacity: float = 0.5) -> Image:
    """Blend a class map over its image with an opacity of 0..1. Unlabelled pixels show the image."""
    known = (classes >= 0) & (classes < len(colours))
    blended = _blend(image, colourise(classes, colours), opacity)
    return np.where(known[..., None], blended, image)


def error_map(image: Image, *, wrong: Mask, ignored: Mask) -> Image:
    """Draw wrong pixels in red on the dimmed grey image and hatch ignored ones. Both masks are (H, W)."""
    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    picture = _blend(grey, (0, 0, 0), 0.4)
    picture[wrong] = _blend(grey, WRONG_COLOUR, 0.75)[wrong]
    picture[ignored] = _hatched(ignored.shape)[ignored]
    return picture


def hatched(image: Image, where: Mask) -> Image:
    """Hatch the pixels of a mask (H, W), so that missing data are not taken for a dark part of the image."""
    picture = image.copy()
    picture[where] = _hatched(where.shape)[where]
    return picture


def draw_box(
    image: Image,
    window: tuple[int, int, int, int],
    colour: Colour = PAPER,
    line_px: int = 2,
) -> Image:
    """Outline a window (row, col, height, width) from the inside; it may reach outside the image."""
    row, col, height, width = window
    picture = Pillow.fromarray(image)
    corners = (col, row, col + width - 1, row + height - 1)
    draw = ImageDraw.Draw(picture)
    draw.rectangle(corners, outline=INK, width=line_px + 1)  # a dark rim shows on bright ground
    draw.rectangle(corners, outline=colour, width=line_px)
    return np.asarray(picture)


def draw_tile(context: Image, context_factor: float, line_px: int = 2) -> Image:
    """Outline the tile in a square picture of its context, of which it is the central part."""
    side = round(len(context) / context_factor)
    first = (len(context) - side) // 2
    return draw_box(context, (first, first, side, side), line_px=line_px)


def shrink(picture: NDArray[Any], max_side: int) -> NDArray[Any]:
    """Reduce the longer side to at most ``max_side``; smaller pictures are returned as they are.

    (H, W, 3) images are averaged over areas. (H, W) class maps take the nearest pixel, because the mean of
    two class indices is a third class.
    """
    height, width = picture.shape[:2]
    scale = min(1.0, max_side / max(height, width))
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    if picture.ndim == 2:
        rows = (2 * np.arange(new_height) + 1) * height // (2 * new_height)  # pixel centres
        columns = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
        return picture[np.ix_(rows, columns)]
    return resize(picture, new_height, new_width)


def strip(panels: Sequence[tuple[str, Image]], *, height: int | None = None) -> Image:
    """Join titled images side by side on white, scaled to one height in pixels (default: the tallest)."""
    height = height or max(image.shape[0] for _, image in panels)
    font_px, gap = max(12, height // 22), max(6, height // 60)
    font, header = ImageFont.load_default(font_px), round(1.6 * font_px)
    scaled = [resize(image, height, max(1, round(image.shape[1] * height / image.shape[0]))) for _, image in panels]
    # A column is as wide as its image or its title, so no title is ever cut.
    widths = [
        max(image.shape[1], round(font.getlength(title))) for (title, _), image in zip(panels, scaled, strict=True)
    ]
    picture = Pillow.new("RGB", (sum(widths) + gap * (len(panels) + 1), header + height + gap), PAPER)
    draw = ImageDraw.Draw(picture)
    left = gap
    for (title, _), image, width in zip(panels, scaled, widths, strict=True):
        draw.text((left, header / 2), title, fill=INK, font=font, anchor="lm")
        picture.paste(Pillow.fromarray(image), (left, header))
        left += width + gap
    return np.asarray(picture)


def stack(pictures: Sequence[Image]) -> Image:
    """Join pictures from top to bottom, left-aligned on white."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(picture, ((0, 0), (0, width - picture.shape[1]), (0, 0)), constant_values=255) for picture in pictures
    ]
    return np.concatenate(padded)


def legend(names: Sequence[str], colours: Image, *, width: int = 900, font_px: int = 16) -> Image:
    """Draw colour swatches with class names on white, wrapped to a width in pixels."""
    font = ImageFont.load_default(font_px)
    line = round(1.8 * font_px)
    places, left, top = [], font_px, 0
    for name in names:
        advance = round(font.getlength(name)) + 3 * font_px
        if left > font_px and left + advance > width:
            left, top = font_px, top + line
        places.append((left, top))
        left += advance
    picture = Pillow.new("RGB", (width, top + line), PAPER)
    draw = ImageDraw.Draw(picture)
    for name, colour, (left, top) in zip(names, colours, places, strict=True):
        middle = top + line / 2
        square = (left, middle - font_px / 2, left + font_px, middle + font_px / 2)
        draw.rectangle(square, fill=tuple(map(int, colour)), outline=INK)
        draw.text((left + 1.5 * font_px, middle), name, fill=INK, font=font, anchor="lm")
    return np.asarray(picture)


def png_bytes(image: Image, *, dots_per_inch: int | None = None) -> bytes:
    """Encode as PNG, without loss: for class maps and drawings.

    The file names caswit as its software, by which the viewer tells drawings from images to be shown.
    """
    file, about = io.BytesIO(), PngInfo()
    about.add_text("Software", SOFTWARE)
    dpi = {} if dots_per_inch is None else {"dpi": (dots_per_inch, dots_per_inch)}
    Pillow.fromarray(image).save(file, format="PNG", optimize=True, pnginfo=about, **dpi)
    return file.getvalue()


def jpeg_bytes(image: Image) -> bytes:
    """Encode as JPEG, about a tenth of the size of a PNG: for photographs."""
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, format="JPEG", quality=85)
    return file.getvalue()


def data_uri(image: Image, *, photo: bool = False) -> str:
    """Encode an image as the text of an HTML ``src``, so that a page is one file: PNG, or JPEG for a photograph."""
    kind, content = ("jpeg", jpeg_bytes(image)) if photo else ("png", png_bytes(image))
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _blend(below: NDArray[Any], above: Any, opacity: float) -> Image:
    """Lay ``above`` over ``below`` (H, W, 3) with an opacity of 0..1."""
    mixed = (1 - opacity) * below + opacity * np.asarray(above)
    return np.rint(mixed).astype(np.uint8)


def _hatched(shape: tuple[int, ...]) -> Image:
    """Return dark grey with lighter diagonals, a pattern that no photograph has."""
    row, column = np.indices(shape)
    colours = np.asarray([(44, 46, 50), IGNORED_COLOUR], np.uint8)
    picture: Image = colours[((row + column) % 8 < 2).astype(np.intp)]
    return picture


def resize(image: Image, height: int, width: int, *, smooth: bool = False) -> Image:
    """Resize an image: average areas on the way down; on the way up repeat pixels or, if ``smooth``, interpolate."""
    filters = Pillow.Resampling
    enlarging = filters.BICUBIC if smooth else filters.NEAREST
    chosen = filters.BOX if height < image.shape[0] else enlarging
    return np.asarray(Pillow.fromarray(image).resize((width, height), chosen))


def resize_nearest(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize a picture whose values must not mix, such as a class map or the tokens of a heatmap."""
    return np.asarray(Pillow.fromarray(picture).resize((width, height), Pillow.Resampling.NEAREST))


_CHANNELS = ("red", "green", "blue")


def channels_last(image: NDArray[np.uint8], names: Sequence[str] = ()) -> Image:
    """Turn the (n, H, W) of a raster into the (H, W, 3) of a picture.

    Args:
        image: Its n bands.
        names: Of the bands. Those called red, green and blue are shown, without them the first three, or the first as
            grey.
    """
    if set(_CHANNELS) <= set(names):
        image = image[[names.index(name) for name in _CHANNELS]]
    image = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    return np.ascontiguousarray(np.moveaxis(image, 0, -1))
