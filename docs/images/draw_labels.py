"""Draw the cases of docs/labels.md: an image, what the label file holds, and what is read of it.

python docs/images/draw_labels.py $CASWIT_DATA/banepa/south.tif $CASWIT_DATA/banepa/south_label.tif 340 830 640

Each picture is made from the dataset.yaml that the page shows, by the code that a training reads with.
"""

import re
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pyogrio
import rasterio
import shapely
from label_files import write_label_files
from numpy.typing import NDArray

from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.scene import VectorLabel
from caswit.files import atomic_write_bytes
from caswit.raster.windows import Window
from caswit.viz.pictures import channels_last, jpeg_bytes, legend, overlay, shrink, stack, strip

HERE = Path(__file__).parent
PANEL_PX = 400
EXAMPLES = re.compile(r'```yaml title="my/(labels-[\w-]+).yaml"\n(.*?)```', re.DOTALL)
VALUES = {0: (225, 225, 225), 1: (120, 120, 120), 2: (70, 110, 180), 5: (200, 120, 60)}


def cropped(image: Path, mask: Path, window: Window, out: Path) -> NDArray[np.bool_]:
    """Write a part of the image, and return that of the mask."""
    where = ((window.row, window.row + window.height), (window.col, window.col + window.width))
    with rasterio.open(image) as src:
        profile = {"driver": "GTiff", "dtype": "uint8", "count": 3, "height": window.height, "width": window.width}
        place = {"crs": src.crs, "transform": src.transform @ rasterio.Affine.translation(window.col, window.row)}
        with rasterio.open(out, "w", **profile, **place) as dst:
            dst.write(src.read((1, 2, 3), window=where))
    with rasterio.open(mask) as src:
        found: NDArray[np.bool_] = src.read(1, window=where) > 0
    return found


def raster_panel(file: Path) -> NDArray[np.uint8]:
    """Draw the values of a raster on its own grid, a colour for each; nodata is dark grey, a mask black and white."""
    with rasterio.open(file) as src:
        values, nodata = src.read(1), src.nodata
    picture = np.full((*values.shape, 3), 90, np.uint8)
    if nodata is None and 255 in values:
        return np.repeat(values[..., None], 3, axis=2)
    for value, colour in VALUES.items():
        picture[values == value] = colour
    return picture


def vector_panel(label: VectorLabel, image: NDArray[np.uint8], transform: rasterio.Affine) -> NDArray[np.uint8]:
    """Draw shapes over the dimmed image: those of the file bright, annotated areas black."""
    picture = (image * 0.55 + 80).astype(np.uint8)
    for file, colour in ((label.file, (216, 27, 96)), (label.annotated, (20, 20, 20))):
        if file is None:
            continue
        for geometry in shapely.from_wkb(pyogrio.raw.read(file)[2]):
            for ring in shapely.get_parts(shapely.boundary(geometry) if geometry.area else geometry):
                places = np.array([~transform * tuple(p) for p in shapely.get_coordinates(ring)])
                if len(places) == 1:
                    cv2.circle(picture, tuple(int(v) for v in places[0]), 7, colour, -1, cv2.LINE_AA)
                else:
                    cv2.polylines(picture, [places.astype(np.int32)], False, colour, 3, cv2.LINE_AA)
    return picture


def main() -> None:
    """Write docs/images/labels-*.jpg."""
    image, mask, *place = sys.argv[1:]
    row, col, side = map(int, place)
    page = (HERE.parent / "labels.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        my = Path(folder)
        buildings = cropped(Path(image), Path(mask), Window(row, col, side, side), my / "north.tif")
        write_label_files(my, my / "north.tif", buildings)
        for name, content in EXAMPLES.findall(page):
            (my / f"{name}.yaml").write_text(content)
            data = load_dataset(my / f"{name}.yaml")
            with open_dataset_scene(data, data.scenes[0]) as opened:
                region = opened.region(Window(0, 0, opened.height, opened.width))
                labels = opened.labels(region.window, region.valid)
            photo = channels_last(region.image)
            label = data.scenes[0].label
            if isinstance(label, VectorLabel):
                held = vector_panel(label, photo, opened.image.grid.transform)
            else:
                held = raster_panel(label)
            read = overlay(photo, labels, data.classes.colors, 0.6)
            panels = [("image", photo), ("the label file", held), ("what is read", read)]
            drawn = strip([(title, shrink(panel, PANEL_PX)) for title, panel in panels], height=PANEL_PX)
            key = legend(data.classes.names, data.classes.colors, width=drawn.shape[1])
            atomic_write_bytes(HERE / f"{name}.jpg", jpeg_bytes(stack([drawn, key])))


if __name__ == "__main__":
    main()
