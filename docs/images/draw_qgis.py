"""Draw docs/images/layers.jpg: the files of a map in the colours of the styles that caswit writes. No QGIS is involved.

caswit predict town.tif map.tif --confidence confidence.tif --vector map.gpkg --simplify 0.4 --min-area 4 --model MODEL
python docs/images/draw_qgis.py town.tif map.tif confidence.tif map.gpkg MODEL docs/images/layers.jpg
"""

import sys
from pathlib import Path

import numpy as np
import pyogrio
import shapely
from PIL import Image, ImageDraw

from caswit.files import atomic_write_bytes
from caswit.raster.reader import Raster, UInt8
from caswit.raster.windows import Window
from caswit.viz.pictures import channels_last, jpeg_bytes, legend, overlay, stack, strip
from caswit.weights.model_folder import load_model

VIRIDIS = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)])
BACKGROUND = "background"


def confidence_colours(percent: UInt8) -> UInt8:
    """Return (H, W, 3) from dark (0) to bright (100)."""
    stops = np.linspace(0, 100, len(VIRIDIS))
    return np.stack([np.interp(percent, stops, VIRIDIS[:, band]) for band in range(3)], -1).astype(np.uint8)


def main() -> None:
    """Write OUT.jpg."""
    image, classes_file, confidence, vectors, model, out = map(Path, sys.argv[1:])
    classes = load_model(model if model.exists() else model.name).info.classes
    with Raster(image) as raster, Raster(classes_file) as of_map, Raster(confidence) as percent:
        window = Window(0, 0, raster.height, raster.width)
        photo = channels_last(raster.read_image(window)[0])
        indices = classes.indices(of_map.read_band(window, fill=255), str(classes_file))
        sure = confidence_colours(percent.read_band(window, fill=0))
        to_pixel = ~raster.grid.transform
    shown = np.where(np.isin(indices, [i for i, name in enumerate(classes.names) if name == BACKGROUND]), 255, indices)
    over = np.where(shown[..., None] == 255, photo, overlay(photo, shown, classes.colors, opacity=1))
    drawn = Image.fromarray(photo)
    _, _, shapes, (names,) = pyogrio.raw.read(vectors, layer="landcover", columns=["name"])
    for polygon, name in zip(shapely.from_wkb(shapes), names, strict=True):
        if name == BACKGROUND:
            continue
        colour = tuple(classes.colors[classes.names.index(name)].tolist())
        covers = Image.new("L", drawn.size)
        for part in shapely.get_parts(polygon):
            for ring, fill in ((part.exterior, 150), *((hole, 0) for hole in part.interiors)):
                places = [to_pixel * place for place in ring.coords]
                ImageDraw.Draw(covers).polygon(places, fill=fill)
                ImageDraw.Draw(covers).line(places, fill=255, width=3)
        drawn.paste(colour, mask=covers)
    panels = [("map.tif over the image", over), ("map.gpkg", np.asarray(drawn)), ("confidence.tif", sure)]
    picture = strip(panels, height=420)
    others = [(n, c) for n, c in zip(classes.names, classes.colors, strict=True) if n != BACKGROUND]
    key = legend([n for n, _ in others], np.array([c for _, c in others], np.uint8), width=picture.shape[1])
    atomic_write_bytes(out, jpeg_bytes(stack([picture, key])))


if __name__ == "__main__":
    main()
