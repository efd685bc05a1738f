"""A scene: one image raster, with or without labels."""

from dataclasses import dataclass
from pathlib import Path

from caswit.config import LabelValues
from caswit.raster.stack import Further
from caswit.raster.windows import Window


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image raster, with or without a label raster, in one split."""

    image: Path
    label: Path | None = None
    split: str = "train"
    areas: tuple[Window, ...] | None = None
    """Rectangles of the image that are cut into tiles one by one, such as the patches of a mosaic; None: the whole."""
    checked: bool = False
    """Image and label are known to fit each other, so that they need not be opened before they are read."""
    also: tuple[Further, ...] = ()
    """Further rasters on the same ground, whose bands the image lacks."""
    label_values: LabelValues = "auto"
    """What the values of the label raster mean; see ``FolderSource.label_values``."""

    @property
    def name(self) -> str:
        """Name of the scene in pictures and messages."""
        return self.image.stem
