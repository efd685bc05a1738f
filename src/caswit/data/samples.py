"""Scene plus window -> arrays: the one way in which training, evaluation and prediction read.

Shapes: T tile_px, f context_factor. Images are uint8, black outside the raster; labels are class indices,
IGNORE_INDEX outside.
"""

from typing import NamedTuple, Self

import numpy as np

from caswit.data.scene import ClassTable, Dataset, Scene
from caswit.errors import DataError
from caswit.raster.io import Bool, Raster, UInt8
from caswit.raster.windows import Window


class Sample(NamedTuple):
    """What the model sees of one window, and what is true there."""

    tile: UInt8
    """(3, T, T)."""
    context: UInt8
    """(3, T, T): f times the tile's side, area-averaged by f. Empty (3, 0, 0) where none was asked for."""
    label: UInt8
    """(T, T) class indices. Empty (0, 0) without a label raster."""
    context_label: UInt8
    """(T, T), nearest. Empty (0, 0) without a label raster or a context."""


class Region(NamedTuple):
    """Pixels of a scene around some tiles, in memory."""

    window: Window
    image: UInt8
    """(3, H, W), black where not valid."""
    valid: Bool
    """(H, W): inside the raster and not nodata."""

    def tile(self, window: Window) -> UInt8:
        """(3, H, W): the pixels of a window inside this region."""
        rows, cols = window.inside(self.window)
        return self.image[:, rows, cols]

    def context(self, tile: Window, factor: int) -> UInt8:
        """(3, H, W): the surroundings of a tile, averaged to its size."""
        return area_average(self.tile(context_window(tile, factor)), factor)


class OpenScene:
    """A scene whose files are open. Use as a context manager.

    Args:
        scene: What to open.
        classes: Table that turns label ids into indices; None reads no labels.
        bands: Bands of the image that are red, green and blue, from 1.

    Raises:
        DataError: A file is missing or broken, or image and label do not fit each other.
    """

    def __init__(
        self, scene: Scene, classes: ClassTable | None = None, bands: tuple[int, int, int] = (1, 2, 3)
    ) -> None:
        self.scene = scene
        self.classes = classes
        self.bands = bands
        self.image = Raster(scene.image)
        self.image.check_image(bands)
        self.label: Raster | None = None
        if classes is not None and scene.label is not None:
            self.label = Raster(scene.label)
            _check_label(self.image, self.label)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self.image.close()
        if self.label is not None:
            self.label.close()

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.image.height

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.image.width

    def region(self, window: Window) -> Region:
        """Read a window of the image, which may reach outside."""
        return Region(window, *self.image.read_image(window, self.bands))

    def labels(self, window: Window, valid: Bool) -> UInt8:
        """Class indices of a window: (H, W); IGNORE_INDEX outside, at nodata, and where not ``valid``."""
        assert self.label is not None, self.scene
        assert self.classes is not None, self.scene
        # 65536 is no label id: it marks what lies outside or is nodata in the label raster.
        ids = self.label.read_band(window, fill=65_536)
        return self.classes.indices(ids, self.label.path, ignore=(ids == 65_536) | ~valid)

    def read(self, tile: Window, context_factor: int | None) -> Sample:
        """Read everything about a tile with one access to each file.

        Args:
            tile: May reach outside the raster.
            context_factor: f, or None to read no context.
        """
        window = tile if context_factor is None else context_window(tile, context_factor)
        region = self.region(window)
        none = np.zeros((0, 0), np.uint8)
        label = context_label = none
        if self.label is not None:
            labels = self.labels(window, region.valid)
            label = labels[tile.inside(window)]
            context_label = none if context_factor is None else nearest(labels, context_factor)
        if context_factor is None:
            return Sample(region.image, np.zeros((3, 0, 0), np.uint8), label, none)
        return Sample(region.tile(tile), region.context(tile, context_factor), label, context_label)


def open_dataset_scene(dataset: Dataset, scene: Scene) -> OpenScene:
    """Open a scene of a dataset with its labels."""
    return OpenScene(scene, dataset.classes, dataset.bands)


def context_window(tile: Window, factor: int) -> Window:
    """The window ``factor`` times the tile's sides with the same centre. The tile covers its centre."""
    margin = tile.height * (factor - 1) // 2
    assert tile.height == tile.width, tile
    assert margin * 2 == tile.height * (factor - 1), (tile, factor)
    assert margin % factor == 0, (tile, factor)
    return tile.grown(margin)


def area_average(image: UInt8, factor: int) -> UInt8:
    """Mean of every factor x factor square, rounded half up: (3, H, W) -> (3, H / factor, W / factor).

    Exact in 16 bits for factors up to 16.
    """
    if factor == 1:
        return image
    assert factor <= 16, factor
    total = np.full((len(image), image.shape[1] // factor, image.shape[2] // factor), factor**2 // 2, np.uint16)
    for i in range(factor):
        for j in range(factor):
            total += image[:, i::factor, j::factor]
    return (total // factor**2).astype(np.uint8)


def nearest(labels: UInt8, factor: int) -> UInt8:
    """Take the middle of every factor x factor square (its lower right middle if even): (H, W) -> smaller."""
    return np.ascontiguousarray(labels[factor // 2 :: factor, factor // 2 :: factor])


def _check_label(image: Raster, label: Raster) -> None:
    if (label.height, label.width) != (image.height, image.width):
        raise DataError(
            f"{label.path}: the label is {label.height} x {label.width}, its image {image.path} is "
            f"{image.height} x {image.width}; give a label on the image's grid (gdalwarp -te -ts)"
        )
    if image.grid.crs and label.grid.crs and not image.grid.same_place(label.grid):
        raise DataError(
            f"{label.path}: lies elsewhere than its image {image.path} (CRS or transform differ); "
            "warp it onto the image's grid (gdalwarp -t_srs -te -ts)"
        )
    if not np.issubdtype(np.dtype(label.dtype), np.integer):
        raise DataError(
            f"{label.path}: label ids are {label.dtype}, whole numbers are needed; try gdal_translate -ot Byte"
        )
    if label.count != 1:
        raise DataError(
            f"{label.path}: a label has one band of class ids, got {label.count} bands; turn colours into ids first"
        )
