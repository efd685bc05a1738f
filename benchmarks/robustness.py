"""Print scores of a model on the images of a split as they are, and as other cameras and other weather might show them.

python benchmarks/robustness.py MODEL DATASET [--split val] [--classes NAME ...] [--tta 1]

The labels stay, the images are changed: darker, hazier, yellower and so on, and coarser, with their labels. MODEL is a
model folder or a name of ``caswit models``. Prints a row for each change: mean IoU, and the IoU of classes.
"""

import argparse
import dataclasses
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from scipy import ndimage

from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.data.scene import Scene
from caswit.evaluation.evaluate import evaluate_scenes
from caswit.evaluation.metrics import score
from caswit.inference.load import load_predictor
from caswit.weights.model_folder import load_model

Pixels = NDArray[np.float64]


def balance(red: float, green: float, blue: float) -> Callable[[Pixels], Pixels]:
    """Return a change of the balance of colours."""
    return lambda x: x * np.array([red, green, blue])[:, None, None]


def jpeg(pixels: Pixels) -> Pixels:
    """Return the pixels after strong compression."""
    file = io.BytesIO()
    Image.fromarray(np.moveaxis(pixels, 0, -1).astype(np.uint8)).save(file, "JPEG", quality=20)
    return np.moveaxis(np.asarray(Image.open(file), np.float64), -1, 0)


CHANGES: dict[str, Callable[[Pixels], Pixels]] = {
    "as it is": lambda x: x,
    "darker (0.6 x)": lambda x: x * 0.6,
    "brighter (1.3 x + 15)": lambda x: x * 1.3 + 15,
    "gamma 1.6": lambda x: 255 * (x / 255) ** 1.6,
    "gamma 0.6": lambda x: 255 * (x / 255) ** 0.6,
    "haze (0.55 x + 90)": lambda x: x * 0.55 + 90,
    "warm (red 1.15 x, blue 0.8 x)": balance(1.15, 1, 0.8),
    "cold (red 0.85 x, blue 1.2 x)": balance(0.85, 1, 1.2),
    "grey": lambda x: np.repeat(x.mean(0, keepdims=True), 3, 0),
    "JPEG of quality 20": jpeg,
    "noise of 20": lambda x: x + np.random.default_rng(0).normal(0, 20, x.shape),
    "blurred by 2 px": lambda x: ndimage.gaussian_filter(x, (0, 2, 2)),
}
COARSER = 2, 3


def rewritten(file: Path, out: Path, change: Callable[[Pixels], Pixels], *, every: int = 1) -> Path:
    """Write a raster with changed pixels at the same place; ``every`` pixels of a row or column become one."""
    with rasterio.open(file) as src:
        pixels = np.clip(np.round(change(src.read().astype(np.float64))), 0, 255).astype(np.uint8)
        count, height, width = pixels.shape
        shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
        where = {"crs": src.crs, "transform": src.transform * rasterio.Affine.scale(every)}
        with rasterio.open(out, "w", driver="GTiff", **shape, **where) as dst:
            dst.write(pixels)
    return out


def mean_of(every: int) -> Callable[[Pixels], Pixels]:
    """Return a change that averages squares of ``every`` pixels; what is left over at the edges is cut off."""

    def change(x: Pixels) -> Pixels:
        bands, height, width = (n // k for n, k in zip(x.shape, (1, every, every), strict=True))
        cut = x[:, : height * every, : width * every]
        return cut.reshape(bands, height, every, width, every).mean((2, 4))

    return change


def one_of(every: int) -> Callable[[Pixels], Pixels]:
    """Return a change that takes the middle of squares of ``every`` pixels."""

    def change(x: Pixels) -> Pixels:
        height, width = (n // every * every for n in x.shape[1:])
        return x[:, :height, :width][:, every // 2 :: every, every // 2 :: every]

    return change


def variants(scenes: Sequence[Scene], folder: Path) -> dict[str, list[Scene]]:
    """Write the scenes after each change; return them by its name."""
    found = {}
    for number, (name, change) in enumerate(CHANGES.items()):
        file = f"{number}-{{}}.tif"
        found[name] = [
            dataclasses.replace(s, image=rewritten(s.image, folder / file.format(s.name), change)) for s in scenes
        ]
    for every in COARSER:
        found[f"{every} times as coarse"] = [
            dataclasses.replace(
                scene,
                image=rewritten(scene.image, folder / f"{every}x-{scene.name}.tif", mean_of(every), every=every),
                label=rewritten(scene.label, folder / f"{every}x-{scene.name}-l.tif", one_of(every), every=every),
            )
            for scene in scenes
        ]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--split", default="val")
    parser.add_argument("--classes", nargs="+", default=[], metavar="NAME", help="whose IoU is printed beside the mean")
    parser.add_argument("--tta", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("ignore", NotGeoreferencedWarning)
    logging.getLogger("caswit").setLevel(logging.ERROR)  # it would warn about each copy of a scene
    loaded = load_model(given.model)
    data = load_dataset(given.dataset).read_at(loaded.info.tile.read_gsd_m)
    names = loaded.info.classes.names
    print(f"| {loaded.name} on {data.name} {given.split} | mIoU | {' | '.join(given.classes)} |")
    print(f"|---|---:|{'---:|' * len(given.classes)}")
    settings = EvaluateConfig(pictures=0, tta=given.tta)
    predictor = load_predictor(loaded, settings)
    with tempfile.TemporaryDirectory() as folder:
        for name, scenes in variants(data.split(given.split), Path(folder)).items():
            found = evaluate_scenes(predictor, loaded, data, scenes, split=given.split, settings=settings)
            scores = score(found.counts)
            each = [f"{scores.iou[names.index(c)]:.3f}" for c in given.classes]
            print(f"| {name} | {scores.miou:.3f} | {' | '.join(each)} |", flush=True)


if __name__ == "__main__":
    main()
