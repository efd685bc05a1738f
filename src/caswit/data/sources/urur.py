"""URUR: read from the tiled GeoTIFFs that ``caswit prepare urur`` makes of its PNG files."""

from pathlib import Path

from caswit.config import UrurSource
from caswit.data.scene import Scene
from caswit.data.sources.found import Found
from caswit.errors import DataError

SPLITS = ("train", "val", "test")
TILED = "tiled"
"""Folder of the GeoTIFFs, in the root."""


def tiled_path(root: Path, png: Path) -> Path:
    """Where the GeoTIFF of a PNG lies."""
    return root / TILED / png.relative_to(root).with_suffix(".tif")


def pictures(root: Path) -> list[tuple[str, Path, Path]]:
    """Split, image and label of all pairs that there should be, by name; a label may be missing.

    Raises:
        DataError: No split is there.
    """
    found = [
        (split, image, root / split / "label" / image.name)
        for split in SPLITS
        for image in sorted((root / split / "image").glob("*.png"))
    ]
    if not found:
        raise DataError(
            f"{root}: no pictures in train/image, val/image or test/image; unpack URUR so that they lie there"
        )
    return found


def find(source: UrurSource) -> Found:
    """One scene per picture.

    Raises:
        DataError: Pictures are missing, or have not been prepared.
    """
    root = Path(source.root)
    scenes, broken, unprepared = [], [], 0
    for split, image, label in pictures(root):
        tiled = tiled_path(root, image), tiled_path(root, label)
        if not label.is_file():
            broken.append(f"{label}: no such label, {image} has none")
        elif all(tif.is_file() for tif in tiled):
            scenes.append(Scene(image=tiled[0], label=tiled[1], split=split))
        else:
            unprepared += 1
    if unprepared:
        everything = unprepared + len(scenes)
        broken.append(
            f"{root}: {unprepared} of {everything} pictures are PNG only, of which no part can be read without the "
            f"rest; make GeoTIFFs of them, or go on with it: caswit prepare urur {root}"
        )
    return Found(tuple(scenes), tuple(broken))
