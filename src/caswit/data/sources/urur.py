"""URUR: pictures of 5120 px as PNG, which ``caswit prepare urur`` turns into tiled GeoTIFFs; scenes are made of those.

Of a PNG no part can be read without all that lies above it, so a tile would cost as much as the whole picture.
"""

import logging
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from caswit.config import UrurSource, check
from caswit.data.classes import UnknownLabelError
from caswit.data.published_classes import URUR_CLASSES
from caswit.data.scene import Scene
from caswit.data.sources.found import Found
from caswit.errors import DataError
from caswit.files import atomic_path
from caswit.progress import Progress
from caswit.raster.labels import ColorLabel
from caswit.raster.reader import Raster, UInt8, write_raster
from caswit.raster.tiff_header import read_header
from caswit.raster.windows import Window

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")
TILED = "tiled"
"""Name of the folder of the GeoTIFFs in the root."""


def tiled_path(root: Path, png: Path) -> Path:
    """Return the path of the GeoTIFF made of a PNG."""
    return root / TILED / png.relative_to(root).with_suffix(".tif")


def pictures(root: Path) -> list[tuple[str, Path, Path]]:
    """List split, image and label of every picture, sorted by name; the label may be missing.

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
    """Return one scene per picture.

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


def prepare_urur(root: Path, *, workers: int = 2, skip_broken: bool = False) -> Path:
    """Write a GeoTIFF of each image and label below ``root / "tiled"``, without loss; labels hold ids afterwards.

    Files that are there and no older than their PNG are left alone, so an interrupted run continues.

    Args:
        root: Folder that holds train/, val/ and test/.
        workers: Files written at the same time.
        skip_broken: Go on where a file is missing or broken.

    Returns:
        The folder of the GeoTIFFs.

    Raises:
        DataError: A file is missing or broken.
    """
    check(workers >= 1, f"workers must be at least 1, got {workers}")
    pairs = [(image, label) for _, image, label in pictures(root)]
    left = [pair for pair in pairs if not all(_is_done(root, file) for file in pair)]
    broken = 0
    done = len(pairs) - len(left)
    with Progress("prepare urur", len(pairs), "pictures", done=done) as progress, ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(_prepare, root, *pair) for pair in left]
        try:
            for job in as_completed(jobs):
                try:
                    job.result()
                except DataError as error:
                    if not skip_broken:
                        raise
                    broken += 1
                    log.warning("left out: %s", error)
                progress.advance(1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if broken:
        log.warning("%d of %d pictures are broken and were left out", broken, len(pairs))
    return root / TILED


def _is_done(root: Path, png: Path) -> bool:
    tif = tiled_path(root, png)
    return tif.exists() and png.exists() and tif.stat().st_mtime >= png.stat().st_mtime


def _prepare(root: Path, image: Path, label: Path) -> None:
    if not label.exists():
        raise DataError(f"{label}: no such label, {image} has none; download it again, or add --skip-broken")
    with Raster(image) as raster:
        raster.check_image((1, 2, 3))
        pixels, _ = raster.read_image(_whole(raster))
    with Raster(label) as raster:
        ids = _ids(raster)[None]
    if pixels.shape[1:] != ids.shape[1:]:
        sizes = [f"{a.shape[1]} x {a.shape[2]}" for a in (ids, pixels)]
        raise DataError(f"{label}: the label is {sizes[0]}, its image {image} is {sizes[1]}; download both again")
    for png, array in ((image, pixels), (label, ids)):
        tif = tiled_path(root, png)
        tif.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(tif) as partial:
            write_raster(partial, array)
            read_header(partial)  # GDAL reports no full disk; a header that points beyond the end does


def _whole(raster: Raster) -> Window:
    return Window(0, 0, raster.height, raster.width)


def _ids(label: Raster) -> UInt8:
    """Return the class ids (H, W) of a label that holds ids or the official colours."""
    if label.count < 3:
        try:
            return URUR_CLASSES.ids[URUR_CLASSES.indices(label.read_band(_whole(label), fill=0), label.path)]
        except UnknownLabelError:  # the values of a palette, which make no sense as ids
            pass
    colors, _ = ColorLabel(label).read(_whole(label))
    return URUR_CLASSES.ids[URUR_CLASSES.color_indices(colors, label.path)]
