"""Make the pictures of a model of the zoo: what it maps, beside the image and the labels.

python recipes/zoo/pictures.py MODEL IMAGE OUT.jpg [LABEL --data DATASET] [--height PX] [--window ROW COL HEIGHT WIDTH]
    [--sample SAMPLE.jpg]

The window is a rectangle of the image, in its own pixels. It is mapped with the context of the whole image. --sample
writes the window of the image, as it is. Neighbouring tiles are blended, as caswit predict does with --blend.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

import caswit
from caswit.config import IGNORE_INDEX
from caswit.data.dataset import load_dataset
from caswit.viz.pictures import colourise, jpeg_bytes, legend, shrink, stack, strip


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("label", type=Path, nargs="?")
    parser.add_argument("--data", type=Path, help="dataset.yaml whose class table the label has")
    parser.add_argument("--height", type=int, default=420)
    parser.add_argument("--window", type=int, nargs=4)
    parser.add_argument("--sample", type=Path)
    options = parser.parse_args()
    window = None
    if options.window:
        row, col, height, width = options.window
        window = Window(col, row, width, height)
    with rasterio.open(options.image) as opened:
        pixels = opened.read([1, 2, 3], window=window).transpose(1, 2, 0)
    with tempfile.TemporaryDirectory() as folder:
        caswit.predict(options.image, Path(folder) / "map.tif", options.model, blend=True)
        with rasterio.open(Path(folder) / "map.tif") as opened:
            found = opened.read(1, window=window)
    table = caswit.load_model(options.model).info.classes
    classes = table.indices(found, "map.tif", ignore=found == IGNORE_INDEX)
    panels = [("image", pixels), ("map", colourise(classes, table.colors))]
    present = set(np.unique(classes))
    if options.label:
        theirs = load_dataset(options.data).classes
        with rasterio.open(options.label) as opened:
            truth = theirs.indices(opened.read(1, window=window), str(options.label))
        panels.append(("labels", colourise(truth, table.colors)))
        present |= set(np.unique(truth))
    side = max(1, round(max(pixels.shape) * options.height / pixels.shape[0]))
    small = strip([(name, shrink(panel, side)) for name, panel in panels], height=options.height)
    shown = [i for i in range(len(table.names)) if i in present]
    names = legend([table.names[i] for i in shown], table.colors[shown], width=small.shape[1])
    options.out.write_bytes(jpeg_bytes(stack([small, names])))
    if options.sample:
        options.sample.write_bytes(jpeg_bytes(pixels))


if __name__ == "__main__":
    main()
