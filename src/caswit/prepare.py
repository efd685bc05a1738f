"""URUR's PNG files as tiled GeoTIFFs: no part of a PNG can be read without all that stands before it."""

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from caswit.config import check
from caswit.data.classes import URUR_CLASSES, UnknownLabelError
from caswit.data.sources.urur import TILED, pictures, tiled_path
from caswit.errors import DataError
from caswit.files import atomic_path
from caswit.progress import Progress
from caswit.raster.io import Raster, UInt8, write_raster
from caswit.raster.labels import ColorLabel
from caswit.raster.tiff import read_header
from caswit.raster.windows import Window

log = logging.getLogger(__name__)


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
        raise DataError(f"{label}: no such label, {image} has none")
    pixels, ids = _read(image, _image), _read(label, _ids)
    if pixels.shape[1:] != ids.shape[1:]:
        sizes = [f"{a.shape[1]} x {a.shape[2]}" for a in (ids, pixels)]
        raise DataError(f"{label}: the label is {sizes[0]}, its image {image} is {sizes[1]}")
    for png, array in ((image, pixels), (label, ids)):
        tif = tiled_path(root, png)
        tif.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(tif) as partial:
            write_raster(partial, array)
            read_header(partial)  # GDAL keeps a full disk to itself


def _read(png: Path, what: Callable[[Raster, Window], UInt8]) -> UInt8:
    with Raster(png) as raster:
        return what(raster, Window(0, 0, raster.height, raster.width))


def _image(raster: Raster, whole: Window) -> UInt8:
    raster.check_image((1, 2, 3))
    return raster.read_image(whole)[0]


def _ids(raster: Raster, whole: Window) -> UInt8:
    """Ids (1, H, W) of a label that holds ids or the official colours."""
    if raster.count >= 3:
        values, _ = ColorLabel(raster).read(whole)
        return URUR_CLASSES.ids[URUR_CLASSES.color_indices(values, raster.path)][None]
    values = raster.read_band(whole, fill=0)
    try:
        return URUR_CLASSES.ids[URUR_CLASSES.indices(values, raster.path)][None]
    except UnknownLabelError:
        palette = ColorLabel(raster)  # ids that make no sense may stand for colours
        return URUR_CLASSES.ids[URUR_CLASSES.color_indices(palette.read(whole)[0], raster.path)][None]
