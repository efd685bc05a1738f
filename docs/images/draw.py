"""Draw an image beside its map, and its labels, with a legend.

python docs/images/draw.py IMAGE MAP MODEL OUT.jpg [--truth LABEL] [--place ROW COL SIDE] [--side_px 640]
"""

import argparse
from pathlib import Path

from caswit.data.classes import ClassTable
from caswit.files import atomic_write_bytes
from caswit.raster.reader import Raster, UInt8
from caswit.raster.windows import Window
from caswit.viz.pictures import channels_last, colourise, jpeg_bytes, legend, shrink, stack, strip
from caswit.weights.model_folder import load_model


def painted(file: Path, classes: ClassTable, window: Window, side_px: int) -> UInt8:
    """Draw the class ids in a window of a raster."""
    with Raster(file) as raster:
        ids = raster.read_band(window, fill=255)
    return colourise(shrink(classes.indices(ids, str(file), ids == 255), side_px), classes.colors)


def main() -> None:
    """Write OUT.jpg."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("image", "map", "model", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--place", type=int, nargs=3)
    parser.add_argument("--side_px", type=int, default=640)
    given = parser.parse_args()
    classes = load_model(given.model).info.classes
    with Raster(given.image) as photo:
        row, col, side = given.place or (0, 0, max(photo.height, photo.width))
        window = Window(row, col, side, side).clipped(photo.height, photo.width)
        pixels = channels_last(photo.read_image(window)[0])
    panels = [("image", shrink(pixels, given.side_px)), ("map", painted(given.map, classes, window, given.side_px))]
    if given.truth:
        panels.append(("labels", painted(given.truth, classes, window, given.side_px)))
    picture = strip(panels)
    sheet = stack([picture, legend(classes.names, classes.colors, width=picture.shape[1])])
    atomic_write_bytes(given.out, jpeg_bytes(sheet))


if __name__ == "__main__":
    main()
