"""Draws an image beside its map, with a legend: python docs/images/draw.py IMAGE MAP MODEL OUT.jpg [ROW COL SIDE]."""

import sys
from pathlib import Path

import numpy as np

from caswit.checkpoint import load_model
from caswit.files import atomic_write_bytes
from caswit.raster.io import Raster
from caswit.raster.windows import Window
from caswit.viz import colourise, jpeg_bytes, legend, shrink, stack, strip

SIDE_PX = 640


def main(image: Path, found: Path, model: Path, out: Path, place: list[int]) -> None:
    """Write OUT.jpg; ROW COL SIDE cut out a square."""
    classes = load_model(model).info.classes
    with Raster(image) as photo, Raster(found) as ids:
        row, col, side = place or (0, 0, max(photo.height, photo.width))
        window = Window(row, col, side, side).clipped(photo.height, photo.width)
        pixels = np.moveaxis(photo.read_image(window)[0], 0, -1)
        indices = classes.indices(ids.read_band(window, fill=255), str(found), ids.read_band(window, fill=255) == 255)
    panels = [("image", shrink(pixels, SIDE_PX)), ("map", colourise(shrink(indices, SIDE_PX), classes.colors))]
    picture = strip(panels)
    atomic_write_bytes(out, jpeg_bytes(stack([picture, legend(classes.names, classes.colors, width=picture.shape[1])])))


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:5]), [int(word) for word in sys.argv[5:8]])
