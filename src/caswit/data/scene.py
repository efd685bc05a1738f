"""A scene: one image raster, with or without labels, which are a raster or the shapes of a vector file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from caswit.config import LabelValues
from caswit.data.classes import ValueClasses
from caswit.raster.stack import Further
from caswit.raster.windows import Window

Elsewhere = Literal["background", "ignore"]
ANY = "*"
"""Stands in ``VectorLabel.values`` for every value that is not listed."""


@dataclass(frozen=True, kw_only=True)
class VectorLabel:
    """Labels drawn as polygons, lines or points.

    Where shapes overlap, the later one covers the earlier: in the order of ``values`` if there are some, and else in
    that of the file.
    """

    file: Path
    """In any CRS, of any format that pyogrio reads."""
    layer: str | None = None
    """Layer of the file; None: the only one."""
    attribute: str | None = None
    """Column that says the class of a shape: by its name, by its id, or as ``values`` say."""
    values: tuple[tuple[str, str | None], ...] = ()
    """(value of the attribute, name or id of its class); None leaves such shapes out."""
    land_class: str | None = None
    """Name or id of the class of all shapes, instead of an attribute; None: the only one that is not background."""
    buffer_m: tuple[tuple[str, float], ...] = ()
    """(class, or value of the attribute, metres by which its lines and points are widened to every side)."""
    all_touched: bool = False
    """Draw every pixel of which a shape covers a part; False: those whose centres it covers."""
    annotated: Path | None = None
    """Polygons inside which the labels are complete. Outside of them nothing is labelled."""
    annotated_layer: str | None = None
    """Layer of ``annotated``; None: the only one."""
    elsewhere: Elsewhere | None = None
    """What pixels without a shape are; None: background if a class is called so, and else ignored."""

    def __str__(self) -> str:
        """Return the file, and its layer if it is named."""
        return str(self.file) if self.layer is None else f"{self.file} ({self.layer})"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image raster, with or without labels, in one split."""

    image: Path
    label: Path | VectorLabel | None = None
    split: str = "train"
    areas: tuple[Window, ...] | None = None
    """Rectangles of the image that are cut into tiles one by one, such as the patches of a mosaic; None: the whole."""
    checked: bool = False
    """Image and label are known to fit each other, so that they need not be opened before they are read."""
    also: tuple[Further, ...] = ()
    """Further rasters on the same ground, whose bands the image lacks."""
    gsd_m: float | None = None
    """Ground size of the image's pixels in metres, where the file does not say it or is wrong; None: the file's."""
    label_values: LabelValues | ValueClasses = "auto"
    """What the values of the label raster mean; see ``FolderSource.label_values`` and ``ClassTable.with_values``."""

    @property
    def name(self) -> str:
        """Name of the scene in pictures and messages."""
        return self.image.stem
