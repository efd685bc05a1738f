"""Labels from shapes: which class each shape is, what the pixels without one are, and their class indices."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from caswit.config import IGNORE_INDEX
from caswit.data.classes import ClassTable, LandClass, plain_name
from caswit.data.scene import ANY, VectorLabel
from caswit.errors import DataError, brief, one_line
from caswit.raster.georef import Grid, bounds_in_words
from caswit.raster.reader import Bool, UInt8
from caswit.raster.vector_drawing import Drawing
from caswit.raster.vector_index import Kind, ShapeIndex
from caswit.raster.windows import Window

_SHOWN = 8
"""Values listed in an error."""
_YES_OR_NO = {"true": {"yes", "on", "y"}, "false": {"no", "off", "n"}}
"""Words that YAML takes for true and false, such as the yes of OpenStreetMap."""


class VectorLabels:
    """Reads the labels of an image from a vector file.

    Args:
        label: The file, and what its shapes mean.
        classes: The class table of the dataset.
        grid: Of the image.

    Raises:
        DataError: A file is missing, broken, or does not fit the image or the class table.
    """

    def __init__(self, label: VectorLabel, classes: ClassTable, grid: Grid) -> None:
        self.label, self.classes, self.grid = label, classes, grid
        self.index = ShapeIndex(label.file, label.layer, label.attribute)
        self.class_of = self._classes(self.index.kinds)
        """By value of the attribute that is drawn: its class."""
        self.width_m = self._widths()
        order = {value: self._place(value) for value in self.class_of}
        self.drawing = Drawing(self.index, grid, order, self.width_m, all_touched=label.all_touched)
        self.annotated = None if label.annotated is None else self._annotated(label.annotated)
        self.background = self._background()
        # An area without a single shape may be annotated too.
        deciding = self.annotated or self.drawing
        if not deciding.meets_image():
            where = bounds_in_words(deciding.index.bounds)
            says = "without a CRS" if deciding.index.crs is None else f"in {brief(deciding.index.crs)}"
            left_out = "the label of this image" if self.annotated is None else "annotated"
            raise DataError(
                f"{deciding.index.file}: its shapes lie outside the image ({where} {says}); "
                f"check the CRS of both, or leave {left_out} out"
            )

    def read(self, window: Window, valid: Bool) -> UInt8:
        """Return class indices of a native window that may reach outside the image: (H, W).

        IGNORE_INDEX outside, where not ``valid`` or not annotated, and where there is no shape and no background.
        """
        known = np.zeros_like(valid)
        inside = window.clipped(self.grid.height, self.grid.width)
        if inside.height and inside.width:
            known[inside.inside(window)] = True
        return self._labels(window, known & valid, self.drawing, self.annotated)

    def read_coarse(self, window: Window, height: int, width: int) -> UInt8:
        """Return class indices of a window in a size of its own, for pictures: (height, width), else as ``read``."""
        rows = window.row + (np.arange(height) + 0.5) * window.height / height
        cols = window.col + (np.arange(width) + 0.5) * window.width / width
        inside = ((rows >= 0) & (rows < self.grid.height))[:, None] & (cols >= 0) & (cols < self.grid.width)
        drawing = self.drawing.coarser(window, height, width)
        annotated = None if self.annotated is None else self.annotated.coarser(window, height, width)
        return self._labels(Window(0, 0, height, width), inside, drawing, annotated)

    @property
    def said(self) -> str:
        """Which shapes are drawn as which class, and what is elsewhere, in words."""
        label, shown = self.label, [*self.class_of.items()][:_SHOWN]
        listed = [f"{sum(self.index.kinds[value])} {one_line(value, 30)} as {c.name}".split() for value, c in shown]
        more = [f"{len(self.class_of) - _SHOWN} more values"] if len(self.class_of) > _SHOWN else []
        names = [c.name for c in self.classes.predicted]
        rest = "ignored" if self.background == IGNORE_INDEX else names[self.background]
        around = f"the rest {rest}" if label.annotated is None else f"the rest of {label.annotated.name} {rest}"
        return f"shapes of {label.file.name}: {', '.join([*map(' '.join, listed), *more, around])}"

    def _labels(self, window: Window, known: Bool, drawing: Drawing, annotated: Drawing | None) -> UInt8:
        ranks, values = drawing.draw(window)
        indices = [self.background, *(self._index(self.class_of[value]) for value in values)]
        labels: UInt8 = np.array(indices, np.uint8)[ranks]
        if annotated is not None:
            known = known & (annotated.draw(window).ranks > 0)
        labels[~known] = IGNORE_INDEX
        return labels

    def _index(self, land_class: LandClass) -> int:
        return IGNORE_INDEX if land_class.ignore else self.classes.predicted.index(land_class)

    def _background(self) -> int:
        """Return the index of pixels that are annotated, but have no shape."""
        label, found = self.label, [c for c in self.classes.classes if c.is_background]
        if label.elsewhere == "ignore" or (label.elsewhere is None and not found):
            return IGNORE_INDEX
        if len(found) != 1:
            said = ", ".join(c.name for c in found) or "none"
            raise DataError(
                f"{label.file}: pixels without a shape are background, but the classes that are background are: "
                f"{brief(said)}; mark one with background: true, or set elsewhere: ignore"
            )
        return self._index(found[0])

    def _class(self, word: str) -> LandClass:
        """Return the class that the dataset file names."""
        if (found := self.classes.by_word(word)) is None:
            raise DataError(f"{self.label.file}: {brief(word)} is no class; classes are {self._known()}")
        return found

    def _known(self) -> str:
        return ", ".join(f"{c.id} {c.name}" for c in self.classes.classes)

    def _classes(self, kinds: Mapping[str, Kind]) -> dict[str, LandClass]:
        label = self.label
        if label.attribute is None:
            return {"": self._only() if label.land_class is None else self._class(label.land_class)}
        listed = {value: None if name is None else self._class(name) for value, name in label.values}
        found, unknown = {}, []
        for value in kinds:
            land_class: LandClass | None
            if (key := _key(listed, value)) is not None:
                land_class = listed[key]
            elif (land_class := self._class_called(value)) is None:
                unknown.append(value)
                continue
            if land_class is not None:
                found[value] = land_class
        if unknown:
            self._refuse(unknown, kinds)
        if not found:
            raise DataError(f"{label.file}: values leave out every shape; name classes for some of them")
        return found

    def _class_called(self, value: str) -> LandClass | None:
        """Return the class of a value that ``values`` does not list; beside a list, numbers may be another table's."""
        found = self.classes.by_word(value)
        return None if self.label.values and found and plain_name(found.name) != plain_name(value) else found

    def _only(self) -> LandClass:
        found = [c for c in self.classes.classes if not (c.is_background or c.ignore)]
        if len(found) != 1:
            raise DataError(
                f"{self.label.file}: which class are its shapes? classes are {self._known()}; "
                "add attribute: COLUMN if a column of the file says it, or class: NAME"
            )
        return found[0]

    def _refuse(self, unknown: list[str], kinds: Mapping[str, Kind]) -> None:
        shown = ", ".join(f"{brief(value)} ({_shapes(sum(kinds[value]))})" for value in unknown[:_SHOWN])
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        pairs = []
        for value in unknown[:_SHOWN]:
            near = difflib.get_close_matches(value, [c.name for c in self.classes.classes], 1)
            pairs.append(f"{value[:40]}: {near[0] if near else 'null'}")
        raise DataError(
            f"{self.label.file}: attribute {brief(self.label.attribute)} has values that are no class: {shown}{more}; "
            f"classes are {self._known()}; say e.g. values: {{{', '.join(pairs)}}}, "
            "with the name of a class, or null for shapes to leave out"
        )

    def _place(self, value: str) -> int:
        """Return the place of a value in the order of drawing."""
        listed = [key for key, _ in self.label.values]
        key = _key(listed, value)
        return -1 if key is None else listed.index(key)

    def _widths(self) -> dict[str, float]:
        """Return by value the metres by which lines and points are widened; refuse those that would have no area."""
        given, widths = dict(self.label.buffer_m), {}
        names = {word for c in self.classes.classes for word in (c.name, *map(str, c.ids))}
        if unknown := sorted(given.keys() - names - {ANY, *self.class_of, *(value for value, _ in self.label.values)}):
            raise DataError(
                f"{self.label.file}: buffer_m names {brief(unknown[0])}, which is neither a class nor a value of the "
                f"attribute; classes are {self._known()}"
            )
        for value, land_class in self.class_of.items():
            keys = [value, land_class.name, *map(str, land_class.ids), ANY]
            key = next((key for key in keys if key in given), None)
            if key is not None:
                widths[value] = given[key]
            elif self.index.kinds[value].others:
                such = _shapes(self.index.kinds[value].others)
                raise DataError(
                    f"{self.label.file}: lines or points cover no pixels, and {such} of class "
                    f"{brief(land_class.name)} are such; add buffer_m: {{{land_class.name}: METRES}}"
                )
        return widths

    def _annotated(self, file: Path) -> Drawing:
        index = ShapeIndex(file, self.label.annotated_layer)
        if not any(kind.polygons for kind in index.kinds.values()):
            raise DataError(f"{index.file}: annotated areas are polygons, it has lines or points only")
        return Drawing(index, self.grid, {"": 0})


def _shapes(count: int) -> str:
    return f"{count} shape{'s' * (count != 1)}"


def _key(listed: Collection[str], value: str) -> str | None:
    """Return the key that stands for a value of the attribute: itself, as YAML reads it, or that for all others."""
    words = [key for key, same in _YES_OR_NO.items() if value.casefold() in same]
    return next((key for key in (value, *words, ANY) if key in listed), None)
