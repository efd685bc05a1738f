"""Scene plus window -> arrays: the one way in which training, evaluation and prediction read.

What the model sees in training is therefore what it sees in production, pixel for pixel.

Shapes: n bands, T tile_px, f context_factor, N contexts where there are several, narrowest first. Images are uint8,
black outside the raster; labels are class indices, IGNORE_INDEX outside. Windows count pixels that are read, which may
be coarser or finer than the raster's own: "native" is what the files hold.
"""

import copy
import logging
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np

from caswit.config import IGNORE_INDEX, ContextFactor, context_factors
from caswit.data.classes import ClassTable, UnknownLabelError
from caswit.data.dataset import Dataset
from caswit.data.levels import Level, Levels
from caswit.data.scene import Scene, VectorLabel
from caswit.errors import DataError, naming_extras
from caswit.raster.georef import Grid
from caswit.raster.labels import BinaryLabel, ColorLabel, file_at, read_whole
from caswit.raster.memory import shown_name
from caswit.raster.mosaic import Mosaic
from caswit.raster.reader import Bool, OpenFiles, PixelEncoding, Raster, UInt8
from caswit.raster.resample import MOST_AVERAGED, Axis, area_average, nearest, reading_ratio, resample_image
from caswit.raster.stack import Bands, Image, Ranges, own_ranges, sources_of, stacked
from caswit.raster.warped import WarpedLabel, overlap
from caswit.raster.windows import Window, bounds, spread_windows

if TYPE_CHECKING:
    from caswit.data.vector_label import VectorLabels

log = logging.getLogger(__name__)
MAX_OPEN = 64
"""Scenes that a worker keeps open. GDAL itself bounds the open files of each mosaic."""


class Sample(NamedTuple):
    """The images of one tile as the model sees them, and their labels."""

    tile: UInt8
    """(n, T, T)."""
    context: UInt8
    """(n, T, T), of several (N, n, T, T): f times the tile's side, area-averaged by f. Empty (n, 0, 0) where none was
    asked for."""
    label: UInt8
    """(T, T) class indices. Empty (0, 0) without labels."""
    context_label: UInt8
    """(T, T), of several contexts (N, T, T): nearest. Empty (0, 0) without labels or a context."""


class Region(NamedTuple):
    """Pixels of a scene around some tiles, in memory."""

    window: Window
    image: UInt8
    """(n, H, W), black where not valid."""
    valid: Bool
    """(H, W): inside the raster and not nodata."""
    raster: Window
    """All of the scene."""

    def tile(self, window: Window) -> UInt8:
        """Return the pixels of a window inside this region: (n, H, W)."""
        rows, cols = window.inside(self.window)
        return self.image[:, rows, cols]

    def context(self, tile: Window, factor: ContextFactor) -> UInt8:
        """Return the context of a tile, averaged to the tile's size: (n, H, W), of several factors (N, n, H, W)."""
        if isinstance(factor, int):
            return area_average(self.tile(context_window(tile, factor)), factor)
        return np.stack([self.context(tile, each) for each in factor])

    def contexts(self, tiles: Sequence[Window], factor: int) -> dict[Window, UInt8]:
        """Return the context of each of some tiles with one factor; pixels in which they overlap are averaged once."""
        # Squares of two tiles are the same ones where the tiles lie whole squares apart.
        alike: dict[tuple[int, int], dict[Window, Window]] = {}
        for tile in tiles:
            window = context_window(tile, factor)
            alike.setdefault((window.row % factor, window.col % factor), {})[tile] = window
        found: dict[Window, UInt8] = {}
        for windows in alike.values():
            around = bounds([*windows.values()])
            if around.height * around.width > sum(each.height * each.width for each in windows.values()):
                found |= {tile: self.context(tile, factor) for tile in windows}
                continue
            averaged = area_average(self.tile(around), factor)
            for tile, window in windows.items():
                top, left = (window.row - around.row) // factor, (window.col - around.col) // factor
                found[tile] = averaged[:, top : top + tile.height, left : left + tile.width]
        return found

    def known(self, window: Window, factor: int = 1, *, around: bool) -> Bool:
        """Return which squares of factor x factor pixels of a window have data throughout: (H, W) squares.

        Args:
            window: Inside this region.
            factor: Side of a square.
            around: What to say of pixels around the scene, which have none.
        """
        rows, cols = window.height // factor, window.width // factor
        valid = self.valid[window.inside(self.window)]
        if around:
            beyond = np.ones_like(valid)
            beyond[window.common(self.raster).inside(window)] = False
            valid = valid | beyond
        # Nearly every tile of a map: the general way takes milliseconds for each context.
        if valid.all():
            return np.ones((rows, cols), bool)
        squares = valid.reshape(rows, factor, cols, factor)
        known: Bool = np.logical_and.reduce(squares, axis=(1, 3))
        return known


class SceneReader:
    """A scene whose files are open. Use as a context manager.

    Args:
        scene: What to open.
        classes: Table that turns label ids into indices; None reads no labels.
        bands: Bands that are read: numbers of the image's own, from 1, or their names, and names in ``Scene.also``.
        read_gsd_m: Ground size in metres of the pixels to read; None reads native pixels. So does an image of unknown
            ground size, after a warning.
        image: The scene's image where it is open already; it is closed with this reader.
        ranges: Of each band the values that become 0 and 255, None for uint8; an open image has those of its own.

    Raises:
        DataError: A file is missing or broken, or image and label do not fit each other.
    """

    def __init__(
        self,
        scene: Scene,
        classes: ClassTable | None = None,
        bands: Bands = (1, 2, 3),
        read_gsd_m: float | None = None,
        image: Raster | Mosaic | None = None,
        ranges: Ranges = (),
    ) -> None:
        self.scene = scene
        self.classes = classes
        encoding = PixelEncoding(ranges=own_ranges(bands, ranges, scene.also))
        opened = Raster(scene.image, encoding) if image is None else image
        self.image: Image
        self.image, self.bands = stacked(opened, bands, ranges, scene.also)
        self.image.check_image(self.bands)  # type: ignore[arg-type]  # a stack alone has names among its bands
        if not scene.checked:
            _check_areas(scene, self.image)
        self.label: Raster | WarpedLabel | None = None
        self.colors: ColorLabel | None = None
        self.binary: BinaryLabel | None = None
        self.drawn: VectorLabels | None = None
        if classes is not None and isinstance(scene.label, VectorLabel):
            self.drawn = _vector_labels(scene.label, classes, self.image.grid)
        elif classes is not None and isinstance(scene.label, Path):
            label = Raster(scene.label)
            self.label = label if scene.checked else _on_grid(self.image, label)
            # Class ids take one band, so a label with three or four bands holds colours.
            match scene.label_values, self.label.count:
                case ("colors" | "near_colors", _) | ("auto", 3 | 4):
                    self.colors = ColorLabel(self.label)
                case "binary", _:
                    classes.binary_id(self.label.path)  # a training would run into it at its first tile
                    self.binary = BinaryLabel(self.label)
                case "mask255", _:
                    self.classes = classes.mask255(self.label.path)
                case tuple(values), _:
                    self.classes = classes.with_values(values, self.label.path)
            if not scene.checked:
                _check_label(self.label, label, ids=self.colors is None and self.binary is None)
        self.source_gsd_m = scene.gsd_m or self.image.grid.source_gsd_m
        """Ground size of the image's pixels in metres; None: unknown."""
        self.ratio = self._ratio(read_gsd_m)
        self.rows, self.cols = Axis(self.image.height, self.ratio), Axis(self.image.width, self.ratio)
        self.levels: Levels | None = Levels(
            str(scene.image),
            (self.height, self.width),
            len(self.bands),
            labels=self.has_labels,
            read=self._pixels,
            sources=self._sources,
        )

    def _ratio(self, read_gsd_m: float | None) -> float:
        if read_gsd_m is None:
            return 1.0
        if self.source_gsd_m is None:
            _say_unknown(shown_name(self.image.path), read_gsd_m)
            return 1.0
        try:
            return reading_ratio(self.source_gsd_m, read_gsd_m)
        except DataError as error:
            raise DataError(f"{self.image.path}: {error}") from error

    def scaled(self, factor: float) -> "SceneReader":
        """Return a reader of the same open files whose pixels are ``factor`` times as large."""
        # Both share the open files, so closing either closes both.
        other = copy.copy(self)
        other.ratio = self.ratio * factor
        other.rows, other.cols = (Axis(axis.native, other.ratio) for axis in (self.rows, self.cols))
        # Of a ground size that is drawn for one sample, nothing is worth keeping.
        other.levels = self.levels if factor == 1 else None
        return other

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
    def has_labels(self) -> bool:
        """Whether the scene's labels are read."""
        return self.label is not None or self.drawn is not None

    @property
    def height(self) -> int:
        """Number of rows that are read."""
        return self.rows.length

    @property
    def width(self) -> int:
        """Number of columns that are read."""
        return self.cols.length

    @property
    def raster(self) -> Window:
        """All pixels that are read."""
        return Window(0, 0, self.height, self.width)

    @property
    def areas(self) -> tuple[Window, ...]:
        """The rectangles that are cut into tiles one by one, in pixels that are read."""
        whole = Window(0, 0, self.height, self.width)
        return tuple(_scaled(a, self.ratio, whole) for a in self.scene.areas or ()) or (whole,)

    def native(self, window: Window) -> Window:
        """Return the native pixels whose centres lie in a window, inside the raster.

        Windows that share no pixel have native windows that share none, and those of a grid over the scene
        cover the raster.
        """
        top, bottom = self.rows.owned(window.row, window.row + window.height)
        left, right = self.cols.owned(window.col, window.col + window.width)
        return Window(top, left, bottom - top, right - left)

    def region(self, window: Window) -> Region:
        """Read a window of the image; it may reach outside."""
        # A wide context may lie outside the raster for the most part, where there is nothing to decode or to average.
        part = window.clipped(self.height, self.width)
        if part == window or not (part.height and part.width):
            return self._region(window)
        image = np.zeros((len(self.bands), window.height, window.width), np.uint8)
        valid = np.zeros((window.height, window.width), bool)
        rows, cols = part.inside(window)
        _, image[:, rows, cols], valid[rows, cols], _ = self._region(part)
        return Region(window, image, valid, self.raster)

    def _region(self, window: Window) -> Region:
        if self.ratio == 1:
            return Region(window, *self.native_image(window), self.raster)
        image, valid = self.native_image(self._source(window))
        # Whole pixels without gaps average to the same bytes in 16 bits, several times as fast as with shares.
        if self.ratio <= MOST_AVERAGED and self.ratio.is_integer() and valid.all():
            averaged = area_average(image, int(self.ratio))
            return Region(window, averaged, np.ones(averaged.shape[1:], bool), self.raster)
        edges = window.row, window.row + window.height, window.col, window.col + window.width
        return Region(window, *resample_image(image, valid, self.rows, self.cols, edges), self.raster)

    def native_image(self, window: Window) -> tuple[UInt8, Bool]:
        """Read a native window: (n, H, W), and where it is valid (H, W)."""
        return self.image.read_image(window, self.bands)  # type: ignore[arg-type]  # as above

    def labels(self, window: Window, valid: Bool) -> UInt8:
        """Read class indices of a window: (H, W), nearest; IGNORE_INDEX outside, at nodata, and where not ``valid``."""
        labels = np.full((window.height, window.width), IGNORE_INDEX, np.uint8)
        part = window.clipped(self.height, self.width)
        if part.height and part.width:
            where = part.inside(window)
            labels[where] = self._labels(part, valid[where])
        return labels

    def _labels(self, window: Window, valid: Bool) -> UInt8:
        if self.ratio == 1:
            return self.native_labels(window, valid)
        source = self._source(window)
        # Native validity is left out here: a pixel that is read is valid if half of it is, wherever its centre lies.
        found = self.native_labels(source, np.ones((source.height, source.width), bool))
        rows = self.rows.nearest(window.row, window.row + window.height)
        cols = self.cols.nearest(window.col, window.col + window.width)
        return np.where(valid, found[rows[:, None], cols], np.uint8(IGNORE_INDEX))

    def native_labels(self, window: Window, valid: Bool) -> UInt8:
        """Read class indices of a native window: (H, W); IGNORE_INDEX as in ``labels``."""
        if self.drawn is not None:
            return self.drawn.read(window, valid)
        assert self.label is not None, self.scene
        assert self.classes is not None, self.scene
        try:
            if self.colors is not None:
                colors, has_data = self.colors.read(window)
                near = self.scene.label_values == "near_colors"
                return self.classes.color_indices(colors, self.label.path, ignore=~(has_data & valid), near=near)
            if self.binary is not None:
                mask, known = self.binary.read(window)
                return self.classes.binary_indices(mask, self.label.path, ignore=~(known & valid))
            ids, known = read_whole(self.label, window)
            return self.classes.indices(ids, self.label.path, ignore=~(known & valid))
        except UnknownLabelError as error:
            # The error knows a place in the array; users look for it in the file.
            row, col = (start + at for start, at in zip(window[:2], error.at, strict=True))
            if isinstance(self.label, WarpedLabel):
                row, col = self.label.at(row, col)
            raise error.named(file_at(self.label.path, row, col)) from error

    def _source(self, window: Window) -> Window:
        top, bottom = self.rows.source(window.row, window.row + window.height)
        left, right = self.cols.source(window.col, window.col + window.width)
        return Window(top, left, bottom - top, right - left)

    def _pixels(self, window: Window) -> tuple[UInt8, UInt8 | None]:
        """Read the image of a window, and its labels if there are some."""
        region = self.region(window)
        return region.image, self.labels(window, region.valid) if self.has_labels else None

    def _sources(self) -> tuple[list[str], str]:
        """Return the files behind what is read, and a text that changes with anything else that it depends on."""
        names, how = sources_of(self.image)
        labels = ""
        if self.has_labels:
            assert self.classes is not None, self.scene
            labels = repr((self.scene.label, self.scene.label_values, self.classes.to_dicts()))
        if self.label is not None:
            names.append(self.label.path)
        if self.drawn is not None:
            indexes = self.drawn.index, self.drawn.annotated and self.drawn.annotated.index
            labels += repr([index and index.fingerprint for index in indexes])
        return names, repr((how, self.bands, self.image.grid, self.ratio, labels))

    def read(self, tile: Window, context_factor: ContextFactor | None) -> Sample:
        """Read everything about a tile with one access to each file.

        Args:
            tile: May reach outside the raster.
            context_factor: f, those of several contexts, or None to read no context.
        """
        if self.levels is not None and context_factor not in (None, 1):
            assert context_factor is not None  # for mypy
            levels = self.levels.get(context_factors(context_factor), tile)
            if levels:
                return self._read_levels(tile, levels, several=not isinstance(context_factor, int))
        # The widest context holds the tile, so one read serves both; and labels of the context cost one more, not two.
        window = tile if context_factor is None else context_window(tile, context_factor)
        region = self.region(window)
        # Empty arrays, not None: samples are put into batches field by field.
        none = np.zeros((0, 0), np.uint8)
        label = context_label = none
        if self.has_labels:
            labels = self.labels(window, region.valid)
            label = labels[tile.inside(window)]
            if context_factor is not None:
                context_label = _labels_around(labels, window, tile, context_factor)
        if context_factor is None:
            return Sample(region.image, np.zeros((len(self.bands), 0, 0), np.uint8), label, none)
        return Sample(region.tile(tile), region.context(tile, context_factor), label, context_label)

    def _read_levels(self, tile: Window, levels: Sequence[Level], *, several: bool) -> Sample:
        """Read as ``read``: the tile by itself, and each of its contexts out of a level."""
        region = self.region(tile)
        contexts = [level.read(context_window(tile, level.factor)) for level in levels]
        none = np.zeros((0, 0), np.uint8)
        label = self.labels(tile, region.valid) if self.has_labels else none
        images = [image for image, _ in contexts]
        labels = [none if found is None else found for _, found in contexts]
        if not several:
            return Sample(region.image, images[0], label, labels[0])
        return Sample(region.image, np.stack(images), label, np.stack(labels) if self.has_labels else none)


class SceneReaders:
    """The readers of some scenes by number, those used last kept open. A forked process must begin with ``forget``.

    Args:
        dataset: How they are read.
        scenes: The scenes; their place here is their number.
        labels: Read their labels too.
    """

    def __init__(self, dataset: Dataset, scenes: Sequence[Scene], *, labels: bool = True) -> None:
        self.dataset, self.scenes, self.labels = dataset, scenes, labels
        self._open = OpenFiles(MAX_OPEN)

    def __getitem__(self, number: int) -> SceneReader:
        """Return the reader of a scene, open until ``MAX_OPEN`` others were read.

        Raises:
            DataError: As ``SceneReader``.
        """
        if number not in self._open:
            self._open[number] = open_dataset_scene(self.dataset, self.scenes[number], labels=self.labels)
        return self._open[number]

    def forget(self) -> None:
        """Let go of open files without closing them: they may belong to the process that this one was forked from."""
        self._open = OpenFiles(MAX_OPEN)


def _vector_labels(label: VectorLabel, classes: ClassTable, grid: Grid) -> "VectorLabels":
    """Open labels that are shapes."""
    with naming_extras("a label that is a vector file"):
        from caswit.data.vector_label import VectorLabels
    return VectorLabels(label, classes, grid)


@cache  # threads and passes each open the image, and one line is enough
def _say_unknown(path: str, read_gsd_m: float) -> None:
    log.warning("%s: ground size of a pixel unknown; read as if it were %g m", path, read_gsd_m)


_WARPED: set[Path] = set()
"""Datasets of which it was said that labels are warped: threads and passes open a scene many times."""


def open_dataset_scene(dataset: Dataset, scene: Scene, *, labels: bool = True) -> SceneReader:
    """Open a scene of a dataset with its labels, if asked for; say once for each dataset if labels are warped."""
    classes = dataset.classes if labels else None
    opened = SceneReader(scene, classes, dataset.bands, dataset.read_gsd_m, ranges=dataset.ranges)
    if isinstance(opened.label, WarpedLabel) and dataset.path not in _WARPED:
        _WARPED.add(dataset.path)
        log.warning(
            "%s: labels on another grid than their image are warped onto it while they are read, nearest neighbour; "
            "the first is %s of %s",
            dataset.path,
            Path(opened.label.path).name,
            scene.image.name,
        )
    return opened


def check_scenes(dataset: Dataset, scenes: Iterable[Scene]) -> None:
    """Raise DataError unless every scene can be read as the dataset asks: a training would run into it hours later."""
    for scene in scenes:
        # Scenes of indexed data sets are known to fit; opening half a million files here would take hours.
        if scene.checked and dataset.read_gsd_m is None:
            continue
        with open_dataset_scene(dataset.read_at(None), scene) as opened:  # which says nothing of ground sizes itself
            if dataset.read_gsd_m is not None and opened.source_gsd_m is None:
                raise DataError(
                    f"{scene.image}: ground size of a pixel unknown, so it cannot be read at "
                    f"tile.read_gsd_m={dataset.read_gsd_m}; say it with gsd_m: METRES in the dataset.yaml, or set "
                    "tile.read_gsd_m to null"
                )
            if isinstance(opened.label, WarpedLabel):
                shared = overlap(opened.image.grid, opened.label.label.grid)
                if shared == (0, 1):
                    raise DataError(
                        f"{opened.label.path}: lies elsewhere than its image {scene.image}, they share no ground; "
                        "compare their CRS and corners (gdalinfo)"
                    )


def ground_size_m(dataset: Dataset, scene: Scene) -> float | None:
    """Return the ground size of the pixels that are read: the dataset's, or else the scene's own if it is known."""
    if dataset.read_gsd_m is not None:
        return dataset.read_gsd_m
    with open_dataset_scene(dataset, scene) as opened:
        return opened.source_gsd_m


def band_layout(dataset: Dataset, scene: Scene) -> tuple[str, ...]:
    """Return the names of all bands of a scene's image, if bands are found by these names; else nothing."""
    beside = {each.name for each in scene.also}
    if all(isinstance(band, int) or band in beside for band in dataset.bands):
        return ()
    with Raster(scene.image) as image:
        return image.descriptions if any(image.descriptions) else ()


def scene_areas(dataset: Dataset, scene: Scene) -> tuple[Window, ...]:
    """Return ``SceneReader.areas``; the files are opened, and so checked, unless all is known already."""
    if scene.areas is not None and scene.checked and dataset.read_gsd_m is None:
        return scene.areas
    with open_dataset_scene(dataset, scene) as opened:
        return opened.areas


def _scaled(area: Window, ratio: float, whole: Window) -> Window:
    """Return a native rectangle in pixels that are read, each of ``ratio`` native ones; neighbours stay neighbours."""
    # Edges are rounded rather than sizes, so that rectangles that touch still touch.
    top, left = round(area.row / ratio), round(area.col / ratio)
    bottom, right = round((area.row + area.height) / ratio), round((area.col + area.width) / ratio)
    part = Window(top, left, max(1, bottom - top), max(1, right - left)).clipped(whole.height, whole.width)
    assert part.height, (area, whole)
    assert part.width, (area, whole)
    return part


def _check_areas(scene: Scene, image: Image) -> None:
    for area in scene.areas or ():
        if 0 in area[2:] or area != area.clipped(image.height, image.width):
            raise DataError(
                f"{scene.image}: areas: {list(area)} is not inside the image of {image.height} rows and {image.width} "
                "columns; rectangles are [row, column, height, width], with a height and a width of 1 or more"
            )


def context_window(tile: Window, factor: ContextFactor) -> Window:
    """Return the window of a tile's context, of several the widest, in which all others lie."""
    return tile.widened(context_factors(factor)[-1])


def _labels_around(labels: UInt8, window: Window, tile: Window, factor: ContextFactor) -> UInt8:
    """Return the labels (T, T) of a tile's context out of those of the widest one; of several factors (N, T, T)."""
    if isinstance(factor, int):
        return nearest(labels[context_window(tile, factor).inside(window)], factor)
    return np.stack([_labels_around(labels, window, tile, each) for each in factor])


def _on_grid(image: Image, label: Raster) -> Raster | WarpedLabel:
    """Return a label as it is if it lies on its image's grid, else warped onto it."""
    fits = (label.height, label.width) == (image.height, image.width)
    if image.grid.crs and label.grid.crs:
        return label if fits and image.grid.same_place(label.grid) else WarpedLabel(label, image.grid)
    # A label without a georeference, such as one drawn in a picture editor, is accepted if its size fits.
    if not fits:
        label.close()
        raise DataError(
            f"{label.path}: the label is {label.height} x {label.width}, its image {image.path} is "
            f"{image.height} x {image.width}, and without a CRS of both nobody knows where it lies; give both their "
            "CRS (gdal_edit.py -a_srs), or a label of the image's size"
        )
    return label


def _check_label(label: Raster | WarpedLabel, file: Raster, *, ids: bool) -> None:
    if ids and label.count != 1:
        raise DataError(
            f"{label.path}: a label has one band of class ids, got {label.count} bands; turn colours into ids first"
        )
    # A fraction among floats would stop a training hours later; a look at some places finds nearly all of them.
    if label.count == 1 and label.dtype.startswith("float"):
        for window in spread_windows(file.height, file.width):
            read_whole(file, window)
