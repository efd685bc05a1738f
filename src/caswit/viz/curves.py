"""A curve over a logarithmic axis, drawn with Pillow."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from caswit.viz.pictures import INK, PAPER, Colour, Image

_GREY, _PALE = (150, 152, 156), (226, 227, 230)
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 52, 64
_FONT_PX, _TICKS = 15, 6


class Mark(NamedTuple):
    """A vertical line at a value of the axis, with its name."""

    at: float
    name: str
    colour: Colour


def log_curve(
    x: Sequence[float],
    points: Sequence[float],
    curve: Sequence[float],
    *,
    title: str,
    names: tuple[str, str],
    marks: Sequence[Mark] = (),
    size: tuple[int, int] = (960, 540),
) -> Image:
    """Draw points and a curve over an axis of powers of ten.

    Args:
        x: Values above 0, rising.
        points: A value at each, drawn as dots; those above the picture are left out.
        curve: A value at each, drawn as a line; its range is that of the picture.
        title: Above the picture.
        names: Of the two axes: x, y.
        marks: Vertical lines.
        size: Width and height in pixels.
    """
    width, height = size
    picture = Pillow.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT_PX)
    low, high = min(curve), max(curve)
    room = 0.08 * ((high - low) or max(abs(high), 1.0))
    low, high = low - room, high + room
    first, last = math.log10(x[0]), math.log10(x[-1])

    def place(at: float, value: float) -> tuple[float, float]:
        share = (math.log10(at) - first) / ((last - first) or 1.0)
        up = (value - low) / (high - low)
        return _LEFT + share * (width - _LEFT - _RIGHT), height - _BOTTOM - up * (height - _TOP - _BOTTOM)

    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        across = place(10.0**power, low)[0]
        draw.line((across, _TOP, across, height - _BOTTOM), fill=_PALE)
        draw.text((across, height - _BOTTOM + 8), f"1e{power}", fill=INK, font=font, anchor="mt")
    for value in np.linspace(low, high, _TICKS):
        down = place(x[0], float(value))[1]
        draw.line((_LEFT, down, width - _RIGHT, down), fill=_PALE)
        draw.text((_LEFT - 8, down), f"{value:.3g}", fill=INK, font=font, anchor="rm")
    for at, value in zip(x, points, strict=True):
        if low <= value <= high:
            across, down = place(at, value)
            draw.ellipse((across - 2, down - 2, across + 2, down + 2), fill=_GREY)
    draw.line([place(at, value) for at, value in zip(x, curve, strict=True)], fill=INK, width=3, joint="curve")
    # Each name a line lower than the one before, so that marks close to each other can be read.
    for number, mark in enumerate(marks):
        across, down = place(mark.at, high)[0], _TOP + 6 + number * (_FONT_PX + 6)
        draw.line((across, _TOP, across, height - _BOTTOM), fill=mark.colour, width=2)
        reach = draw.textlength(mark.name, font) + 14
        # To the left where a line would go through the name, or the picture ends.
        crossed = any(0 < place(other.at, high)[0] - across < reach for other in marks)
        right = across + reach < width - _RIGHT and not crossed
        draw.text((across + (7 if right else -7), down), mark.name, mark.colour, font, anchor="lt" if right else "rt")
    draw.rectangle((_LEFT, _TOP, width - _RIGHT, height - _BOTTOM), outline=INK)
    draw.text((_LEFT, _TOP / 2), title, fill=INK, font=ImageFont.load_default(_FONT_PX + 2), anchor="lm")
    draw.text((_LEFT + (width - _LEFT - _RIGHT) / 2, height - 14), names[0], fill=INK, font=font, anchor="mb")
    draw.text((_LEFT - 8, _TOP - 8), names[1], fill=INK, font=font, anchor="rb")
    return np.asarray(picture)
