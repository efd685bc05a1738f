"""Layers of the viewer: where their pixels come from, and how they become colours.

A layer's pixels come from a raster, from the parts of a map that is still being computed, or from comparing two other
layers. Shapes: H/W rows and columns of the picture that is asked for.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from caswit.config import LabelValues
from caswit.data.classes import NEAR, ClassTable, LandClass, ValueClasses
from caswit.data.scene import VectorLabel
from caswit.errors import naming_extras
from caswit.explain.figure import ramp_colours
from caswit.raster.geopackage import PolygonFile
from caswit.raster.georef import GSD_M, Grid
from caswit.raster.ground import row_areas_m2
from caswit.raster.overviews import Overviews
from caswit.raster.reader import Bool, UInt8, rescaled
from caswit.raster.warped import places_on
from caswit.raster.windows import Window
from caswit.serve.bands import Shown
from caswit.viz.pictures import WRONG_COLOUR

if TYPE_CHECKING:
    from caswit.data.vector_label import VectorLabels

Kind = Literal["image", "map", "truth", "confidence", "errors"]
NO_CLASS = 255
_COUNT_PX = 2048
"""Longest side of the picture on which the areas of classes are counted, in pixels."""
_UNLABELLED = (40, 42, 46, 150)


class Source(Protocol):
    """The pixels of a layer."""

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window at the size (H, W): (bands, H, W) values, and (H, W) True where there are data."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """An image, or something that is laid over it, on the grid of the image."""

    kind: Kind
    title: str
    path: Path
    """File of the layer; two layers of one path and kind are the same layer."""
    source: Source
    height: int
    width: int
    classes: tuple[LandClass, ...] = ()
    """Legend of a map, truth, or errors."""
    bands: Shown = (1, 1, 1)
    """Of an image, the bands that are shown as red, green and blue."""
    names: tuple[str, ...] = ()
    """Of an image, what each band that can be shown is called; empty for one without a name."""
    truth: Source | None = None
    """Labels with which an error layer compares its map."""
    coarsest: int = 1
    """Factor of the coarsest overview."""
    revision: int = 0
    """Changes whenever the content does; part of the addresses of tiles, so that browsers keep no old ones."""
    done: float = 1.0
    """Share of the map that is computed, 0..1."""
    gsd_m: float | None = None
    """Ground size of a pixel where the file is not asked: of a map made with ``--gsd-m``, of an image as its dataset
    has it."""

    @cached_property
    def key(self) -> str:
        """Name in addresses. A digest, so that it does not tell the path and no other path can be asked for."""
        return hashlib.sha256(f"{self.kind}:{self.path}".encode()).hexdigest()[:12]

    @cached_property
    def _palette(self) -> UInt8:
        """(256, 4): red, green, blue and opacity of each value."""
        table = np.zeros((256, 4), np.uint8)
        for c in self.classes:
            if 0 <= c.id < NO_CLASS and not (c.ignore and self.kind != "truth"):
                table[c.id] = (*c.rgb, 90 if c.ignore else 255)
        return table

    def picture(
        self, window: Window, height: int, width: int, hidden: Iterable[int] = (), bands: Shown | None = None
    ) -> UInt8:
        """Draw a window as (H, W, 4): red, green, blue, opacity. Hidden classes are clear, ``bands`` those to show."""
        match self.kind:
            case "image":
                return self._photograph(window, height, width, bands or self.bands)
            case "map" | "truth":
                palette = self._palette.copy()
                palette[[*hidden]] = 0
                return palette[self.values(window, height, width)]
            case "confidence":
                return self._confidence(window, height, width)
            case "errors":
                return self._errors(window, height, width)

    def values(self, window: Window, height: int, width: int) -> UInt8:
        """Read a window as (H, W) class ids, or confidence in percent; NO_CLASS where there is none."""
        return _ids(self.source, window, height, width)

    def _photograph(self, window: Window, height: int, width: int, bands: Shown) -> UInt8:
        pixels, valid = self.source.read(window, height, width, bands, average=True)
        if pixels.dtype != np.uint8:
            assert isinstance(self.source, Overviews), self.kind
            limits = map(self.source.limits, bands)
            pixels = np.stack([rescaled(band, *pair) for band, pair in zip(pixels, limits, strict=True)])
        opacity = np.where(valid, 255, 0).astype(np.uint8)
        return np.concatenate([np.moveaxis(pixels, 0, -1), opacity[..., None]], axis=-1)

    def _confidence(self, window: Window, height: int, width: int) -> UInt8:
        percent = self.values(window, height, width)
        opacity = np.where(percent == NO_CLASS, 0, 255).astype(np.uint8)
        return np.concatenate([ramp_colours(np.minimum(percent, 100) / 100), opacity[..., None]], axis=-1)

    def _errors(self, window: Window, height: int, width: int) -> UInt8:
        """Draw red where the map is wrong, dark where there is no label, nothing where it is right."""
        assert self.truth is not None
        predicted, truth = self.values(window, height, width), _ids(self.truth, window, height, width)
        labelled, mapped = np.isin(truth, [c.id for c in self.classes if not c.ignore]), predicted != NO_CLASS
        picture = np.zeros((height, width, 4), np.uint8)
        picture[mapped & labelled & (predicted != truth)] = (*WRONG_COLOUR, 255)
        picture[mapped & ~labelled] = _UNLABELLED
        return picture

    def areas(self, grid: Grid, gsd_m: float | None = None) -> list[dict[str, Any]]:
        """Count each class: pixels, share and, where the ground size is known, square metres.

        Args:
            grid: Grid of the image.
            gsd_m: Ground size of its pixels, as a map may know it where the image does not.
        """
        # Counted on nearest pixels of a smaller picture: a page wants shares at once, not a read of the whole map.
        scale = max(1.0, max(self.height, self.width) / _COUNT_PX)
        height, width = max(1, round(self.height / scale)), max(1, round(self.width / scale))
        whole = Window(0, 0, self.height, self.width)
        ids = self.values(whole, height, width).astype(np.int32) + 256 * np.arange(height, dtype=np.int32)[:, None]
        counts = np.bincount(ids.ravel(), minlength=256 * height).reshape(height, 256)
        stands_for = self.height * self.width / (height * width)
        pixels = counts.sum(0) * stands_for
        row_m2, m2 = row_areas_m2(grid, self.gsd_m or gsd_m), None
        if row_m2 is not None and np.isfinite(row_m2).all():
            rows_read = ((np.arange(height) + 0.5) * self.height / height).astype(int)
            m2 = row_m2[rows_read] @ counts * stands_for
        counted = [c for c in self.classes if not c.ignore and c.id < NO_CLASS]
        # As caswit predict counts shares.
        shown = pixels if m2 is None else m2
        total = sum(shown[c.id] for c in counted)
        return [
            {
                "id": c.id,
                "pixels": round(pixels[c.id]),
                "share": float(shown[c.id] / total) if total else 0.0,
                "area_m2": None if m2 is None else float(m2[c.id]),
                "exact": scale == 1,
            }
            for c in counted
        ]


@dataclass(frozen=True, eq=False)
class Outlines:
    """Polygons of a map, drawn by the page."""

    title: str
    polygons: PolygonFile

    @cached_property
    def key(self) -> str:
        """Name in addresses, as a layer's."""
        return hashlib.sha256(f"polygons:{self.polygons.path}".encode()).hexdigest()[:12]


def raster_layer(
    kind: Kind,
    title: str,
    overviews: Overviews,
    *,
    classes: tuple[LandClass, ...] = (),
    bands: Shown = (1, 1, 1),
    names: tuple[str, ...] = (),
) -> Layer:
    """Make a layer of a raster."""
    about = overviews.info
    return Layer(
        kind=kind,
        title=title,
        path=overviews.path,
        source=overviews,
        height=about.grid.height,
        width=about.grid.width,
        classes=classes,
        bands=bands,
        names=names,
        coarsest=about.coarsest,
        revision=overviews.path.stat().st_mtime_ns,
        gsd_m=_told_gsd_m(about.tags),
    )


def _told_gsd_m(tags: Mapping[str, str]) -> float | None:
    """Return the ``--gsd-m`` that ``predict`` wrote into a map, None where there is none that could be."""
    try:
        told = float(tags.get("CASWIT_GSD_M", "nan"))
    except ValueError:
        return None
    return told if GSD_M[0] <= told <= GSD_M[1] else None


def truth_layer(
    title: str,
    overviews: Overviews,
    table: ClassTable,
    label_values: LabelValues | ValueClasses = "auto",
    grid: Grid | None = None,
) -> Layer:
    """Make a layer of a label raster, with the values that its classes have in maps.

    In maps 255 is nodata, while a label may well be 255, or hold colours: its values are replaced as maps replace them.
    A label on another grid than its image, ``grid``, is warped onto it.
    """
    mapped = dict(zip(table.predicted, table.mapped, strict=True))
    classes = tuple(mapped.get(c, replace(c, more_ids=())) for c in table.classes)
    layer, source = raster_layer("truth", title, overviews, classes=classes), _placed(overviews, grid)
    if grid is not None and source is not overviews:
        layer = replace(layer, height=grid.height, width=grid.width)
    about = overviews.info
    if label_values in ("colors", "near_colors") or (label_values == "auto" and about.bands in (3, 4)):
        return replace(layer, source=_Colored(source, classes, near=label_values == "near_colors"))
    if label_values == "binary" and len(classes) == 2:
        rest, marked = sorted(zip(table.classes, classes, strict=True), key=lambda pair: 0 not in pair[0].ids)
        return replace(layer, source=_Binary(source, rest[1].id, marked[1].id))
    if isinstance(label_values, tuple):
        return replace(layer, source=_Meant(source, table.with_values(label_values, str(overviews.path))))
    pairs = list(zip(table.classes, classes, strict=True))
    replaced = {i: after.id for before, after in pairs for i in before.ids if i != after.id}
    # A training would refuse 255 here, or take it for the other class: ``data.masks`` decides by all labels.
    if label_values in ("auto", "mask255") and len(table) == len(pairs) == 2 and any(0 in own.ids for own, _ in pairs):
        replaced[255] = next(after.id for before, after in pairs if 0 not in before.ids)
    return replace(layer, source=_Replaced(source, replaced) if replaced else source)


def _placed(raster: Overviews, grid: Grid | None) -> "Overviews | _Warped":
    own = raster.info.grid
    if grid is None or not (grid.crs and own.crs) or (grid[:2] == own[:2] and grid.same_place(own)):
        return raster
    return _Warped(raster, grid)


class _Warped:
    """A label raster on the grid of its image: each pixel of a picture takes the label under its centre."""

    def __init__(self, raster: Overviews, grid: Grid) -> None:
        self.raster, self.grid, self.info, self.path = raster, grid, raster.info, raster.path

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        across, down = np.meshgrid(
            window.col + (np.arange(width) + 0.5) * window.width / width,
            window.row + (np.arange(height) + 0.5) * window.height / height,
        )
        own = self.info.grid
        found = [p.reshape(height, width) for p in places_on(self.grid, own, down.ravel(), across.ravel())]
        inside = (down >= 0) & (down < self.grid.height) & (across >= 0) & (across < self.grid.width)
        for place, size in zip(found, own[:2], strict=True):
            inside &= (place >= 0) & (place < size)
        if not inside.any():
            return np.zeros((len(bands), height, width), self.info.dtype), inside
        rows, cols = (np.where(inside, np.nan_to_num(p, posinf=0, neginf=0), 0) for p in found)
        top, left = int(rows[inside].min()), int(cols[inside].min())
        box = Window(top, left, int(rows[inside].max()) + 1 - top, int(cols[inside].max()) + 1 - left)
        # Of a label that is much finer than the picture, as many pixels as it takes to be near the right one.
        high, wide = min(box.height, 4 * height), min(box.width, 4 * width)
        values, valid = self.raster.read(box, high, wide, bands)
        at = (
            ((rows - top) * high / box.height).clip(0, high - 1).astype(int),
            ((cols - left) * wide / box.width).clip(0, wide - 1).astype(int),
        )
        return np.where(inside, values[:, *at], 0), valid[at] & inside


def drawn_layer(title: str, label: VectorLabel, table: ClassTable, image: Layer, grid: Grid) -> Layer:
    """Make a layer of labels that are shapes, on the grid of their image.

    Raises:
        CaswitError: They cannot be drawn on it.
    """
    mapped = dict(zip(table.predicted, table.mapped, strict=True))
    with naming_extras("a label that is a vector file"):
        from caswit.data.vector_label import VectorLabels
    return replace(
        image,
        kind="truth",
        title=title,
        path=label.file,
        source=_Drawn(VectorLabels(label, table, grid), table),
        classes=tuple(mapped.get(c, c) for c in table.classes),
        names=(),
        revision=label.file.stat().st_mtime_ns,
    )


class _Drawn:
    """The classes of shapes, drawn at the size that is asked for."""

    def __init__(self, labels: "VectorLabels", table: ClassTable) -> None:
        self.labels, self.ids = labels, table.ids

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        found = self.ids[self.labels.read_coarse(window, height, width)]
        return found[None], found != NO_CLASS


class _Colored:
    """The classes of a raster that holds their colours, as ``data.classes`` finds them; NO_CLASS for other colours."""

    def __init__(self, raster: Overviews | _Warped, classes: Sequence[LandClass], *, near: bool) -> None:
        self.raster, self.palette = raster, None
        self.ids = np.array([c.id for c in classes], np.int32)
        self.colors = np.array([c.rgb for c in classes], np.int16)
        self.most = NEAR if near else 0
        if raster.info.bands < 3:
            self.palette = np.zeros((1 << 16, 3), np.uint8)
            for value, color in raster.info.palette.items():
                self.palette[value] = color

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        pixels, valid = self.raster.read(window, height, width, (1,) if self.palette is not None else (1, 2, 3))
        if self.palette is not None:
            pixels = np.moveaxis(self.palette[pixels[0]], -1, 0)
        apart = np.stack([np.abs(pixels - color[:, None, None]).max(0) for color in self.colors])
        found = np.where(apart.min(0) <= self.most, self.ids[apart.argmin(0)], NO_CLASS)
        return found[None], valid


class _Binary:
    """The classes of a raster in which every value but 0 is one class; from 128 on in a JPEG."""

    def __init__(self, raster: Overviews | _Warped, rest: int, marked: int) -> None:
        self.raster, self.rest, self.marked = raster, rest, marked
        self.least = 128 if raster.path.suffix.lower() in (".jpg", ".jpeg") else 1

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        pixels, valid = self.raster.read(window, height, width, (1, 2, 3) if self.raster.info.bands > 1 else (1,))
        return np.where(pixels.max(0) >= self.least, self.marked, self.rest)[None], valid


class _Meant:
    """A label raster whose dataset says what its values mean; those that mean nothing are unknown."""

    def __init__(self, source: Source, table: ClassTable) -> None:
        self.source, self.table = source, table

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        values, valid = self.source.read(window, height, width, bands, average=average)
        # Floats that are no number, and fractions, which a training refuses, become ids that no class has.
        whole = values if values.dtype.kind in "iu" else np.where(values % 1 == 0, values, -1).astype(np.int64)
        indices = self.table.looked_up(whole)
        return self.table.ids[indices], valid & (indices[0] < len(self.table))


class _Replaced:
    """A source some of whose values stand for others."""

    def __init__(self, source: Source, replaced: Mapping[int, int]) -> None:
        self.source, self.replaced = source, replaced

    def read(
        self, window: Window, height: int, width: int, bands: Sequence[int] = (1,), *, average: bool = False
    ) -> tuple[NDArray[Any], Bool]:
        """Read a window, as ``Source``."""
        values, valid = self.source.read(window, height, width, bands, average=average)
        found = values.copy()
        for before, after in self.replaced.items():
            found[values == before] = after
        return found, valid


def error_layer(predicted: Layer, truth: Layer) -> Layer:
    """Make the layer that shows where a map differs from the labels."""
    return replace(
        predicted,
        kind="errors",
        classes=truth.classes,
        truth=truth.source,
        coarsest=min(predicted.coarsest, truth.coarsest),
        revision=predicted.revision ^ truth.revision,
    )


def class_name(classes: Sequence[LandClass], value: int) -> Mapping[str, Any] | None:
    """Describe the class of a value; None if it is not in the legend."""
    for c in classes:
        if c.id == value:
            return {"id": c.id, "name": c.name, "color": c.color}
    return None


def _ids(source: Source, window: Window, height: int, width: int) -> UInt8:
    values, valid = source.read(window, height, width)
    known = valid & (values[0] >= 0) & (values[0] < NO_CLASS)
    return np.where(known, values[0], NO_CLASS).astype(np.uint8)
