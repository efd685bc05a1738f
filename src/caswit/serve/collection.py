"""The views of a folder: its images, each with the maps, labels and confidences that belong to it.

Nothing outside the folder is opened, neither through links nor through virtual rasters that point elsewhere.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from caswit.data.classes import ClassTable, LandClass, default_color
from caswit.data.dataset import Dataset, load_dataset
from caswit.errors import CaswitError, DataError
from caswit.mapping.journal import SUFFIX
from caswit.mapping.partial_map import PartsSource, read_partial_map
from caswit.raster.georef import Grid
from caswit.raster.overviews import Overviews, RasterInfo
from caswit.serve.layers import Kind, Layer, error_layer, raster_layer

log = logging.getLogger(__name__)

RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
MAX_FILES = 5000
_FRESH_S = 2.0
"""Age up to which a listing is used again, in seconds."""

Palette = Mapping[int, tuple[int, int, int]]
Labelled = tuple[Path, Dataset]
"""The image that a label belongs to, and the dataset that lists both."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """An image and what can be laid over it, all on one grid."""

    image: Layer
    grid: Grid
    overlays: tuple[Layer, ...]

    @property
    def key(self) -> str:
        """Name in addresses."""
        return self.image.key

    def layer(self, key: str) -> Layer | None:
        """Return the image or the overlay with this key."""
        return next((each for each in (self.image, *self.overlays) if each.key == key), None)


@dataclass
class Collection:
    """The views of a folder.

    Args:
        where: A folder, or one raster, which is shown with what belongs to it.
        table: Classes of the model, for maps that do not name theirs.
        bands: Bands of the images that are red, green and blue, from 1.
    """

    where: Path
    table: ClassTable | None = None
    bands: tuple[int, int, int] = (1, 2, 3)
    _overviews: dict[Path, tuple[int, Overviews]] = field(default_factory=dict)
    _views: dict[str, View] = field(default_factory=dict)
    _listed_s: float = -_FRESH_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raise DataError unless there is a folder or a raster."""
        if not self.where.exists():
            raise DataError(f"{self.where}: no such folder or raster")
        self.only = None if self.where.is_dir() else self.where.resolve()
        self.root = (self.where if self.only is None else self.where.parent).resolve()
        if self.only is not None:
            Overviews(self.only).close()

    def views(self, *, refresh: bool = False) -> Mapping[str, View]:
        """Return every view by its key.

        Args:
            refresh: List the folder again, unless that was done a moment ago.
        """
        # Only the page's list asks for a refresh. Tiles and points use the last listing: a screen full of tiles would
        # walk the folder dozens of times, and all of them must mean the same state of a map that is being computed.
        with self._lock:
            if not self._views or (refresh and time.monotonic() - self._listed_s > _FRESH_S):
                self._views = {view.key: view for view in self._find()}
                self._listed_s = time.monotonic()
            return self._views

    def _find(self) -> Iterator[View]:
        rasters = {path: overviews for path in self._files() if (overviews := self._open(path)) is not None}
        datasets = list(self._datasets())
        labels = {s.label.resolve(): (s.image.resolve(), d) for d in datasets for s in d.scenes if s.label is not None}
        # A dataset that lists a label wins over what the raster looks like: it may have three bands, or any name.
        images = {p: overviews for p, overviews in rasters.items() if p not in labels and _is_image(overviews.info)}
        overlays: dict[Path, list[tuple[Path, Overviews]]] = {image: [] for image in images}
        for path, overviews in rasters.items():
            if path in labels or (path not in images and _is_classes(overviews.info)):
                image = labels[path][0] if path in labels else _image_of(path, overviews.info, images)
                if image in overlays:
                    overlays[image].append((path, overviews))
        journals = [f for f in sorted(self.root.rglob(f"*{SUFFIX}")) if f.is_dir() and self._inside(f)]
        for path, overviews in images.items():
            if self.only in (None, path) or self.only not in images:
                yield self._view(path, overviews, overlays[path], labels, journals)

    def _view(
        self,
        path: Path,
        overviews: Overviews,
        belonging: Sequence[tuple[Path, Overviews]],
        labels: Mapping[Path, Labelled],
        journals: Sequence[Path],
    ) -> View:
        about = overviews.info
        bands = self.bands if about.bands >= max(self.bands) else (1, 2, 3)
        image = raster_layer("image", str(path.relative_to(self.root)), overviews, bands=bands)
        overlays = []
        for file, raster in belonging:
            kind = _kind(file, raster.info, file in labels)
            table = labels[file][1].classes.classes if file in labels else self._classes(raster.info)
            classes = table if kind != "confidence" else ()
            overlays.append(raster_layer(kind, str(file.relative_to(self.root)), raster, classes=classes))
        overlays += self._partial_maps(path, about.grid, journals, {layer.path for layer in overlays})
        truth = next((layer for layer in overlays if layer.kind == "truth"), None)
        if truth is not None:
            overlays += [error_layer(layer, truth) for layer in overlays if layer.kind == "map"]
        return View(image=image, grid=about.grid, overlays=tuple(overlays))

    def _partial_maps(self, image: Path, grid: Grid, journals: Sequence[Path], finished: set[Path]) -> Iterator[Layer]:
        for folder in journals:
            partial = read_partial_map(folder, grid)
            if partial is None or partial.image != image.name or partial.out in finished:
                continue
            yield Layer(
                kind="map",
                title=str(partial.out.relative_to(self.root)),
                path=partial.out,
                source=PartsSource(partial.parts),
                height=grid.height,
                width=grid.width,
                classes=self.table.mapped if self.table else _numbered(range(20), {}),
                revision=partial.finished,
                done=partial.done,
            )

    def _classes(self, about: RasterInfo) -> tuple[LandClass, ...]:
        """Return the legend of a map, from its tags and palette or else the model's."""
        names = {int(k[6:]): v for k, v in about.tags.items() if k.startswith("CLASS_") and k[6:].isdigit()}
        if not names and self.table is not None:
            return self.table.predicted
        if not names:
            return _numbered(sorted(about.palette)[:64] or range(20), about.palette)
        return tuple(
            LandClass(id=i, name=names[i], color=_hex(about.palette[i]) if i in about.palette else default_color(k))
            for k, i in enumerate(sorted(names))
        )

    def _files(self) -> Iterator[Path]:
        """Walk the rasters of the folder, without those that are links to the outside."""
        count = 0
        for folder, folders, names in os.walk(self.root):
            folders[:] = sorted(f for f in folders if not f.startswith(".") and not f.endswith(SUFFIX))
            for name in sorted(names):
                path = Path(folder, name)
                if path.suffix.lower() not in RASTERS or name.startswith(".") or not self._inside(path):
                    continue
                count += 1
                if count > MAX_FILES:
                    log.warning("%s: more than %d rasters; the rest is not shown", self.root, MAX_FILES)
                    return
                yield path

    def _inside(self, path: Path) -> bool:
        return path.resolve().is_relative_to(self.root)

    def _open(self, path: Path) -> Overviews | None:
        """Open a raster, again if its file has changed; None if it cannot be shown."""
        try:
            # An open handle goes on reading a file that was replaced, as `predict` does when a map is finished.
            changed = path.stat().st_mtime_ns
            if path in self._overviews and self._overviews[path][0] == changed:
                return self._overviews[path][1]
            overviews = Overviews(path)
        except (CaswitError, OSError) as error:
            log.info("not shown: %s", error)
            return None
        if not all(self._inside(file) for file in overviews.info.files):
            log.warning("not shown: %s is made of files outside %s", path, self.root)
            overviews.close()
            return None
        self._overviews[path] = changed, overviews
        return overviews

    def _datasets(self) -> Iterator[Dataset]:
        for file in sorted(self.root.rglob("dataset.yaml")):
            if not self._inside(file):
                continue
            try:
                yield load_dataset(file)
            except CaswitError as error:
                log.warning("labels are not shown: %s", error)


def _image_of(path: Path, about: RasterInfo, images: Mapping[Path, Overviews]) -> Path | None:
    """Return the image that a map belongs to; None if no rule leaves exactly one."""
    same_size = [image for image, overviews in images.items() if overviews.info.grid[:2] == about.grid[:2]]
    same_grid = [image for image in same_size if images[image].info.grid.same_place(about.grid)]
    if name := about.tags.get("CASWIT_IMAGE"):
        named = [image for image in same_size if image.name == name]
    else:
        # The longest name that the map's begins with: tile11_map.tif is a map of tile11.tif and not of tile1.tif. It is
        # sought among images of every size, so that the shorter name does not win because the longer does not fit.
        prefixes = [image for image in images if path.stem.startswith(image.stem)]
        longest = max((len(image.stem) for image in prefixes), default=0)
        named = [image for image in prefixes if len(image.stem) == longest and image in same_size]
    # Images of one name lie in several folders: the one beside the map, then the one on its grid. The grid alone
    # decides only where no name does, since many plain photographs share a size and have no place on the ground.
    in_folder = [image for image in named if image.parent == path.parent]
    named_on_grid = [image for image in named if image in same_grid]
    rules = (in_folder, named_on_grid, named, [] if named else same_grid)
    return next((candidates[0] for candidates in rules if len(candidates) == 1), None)


def _is_image(about: RasterInfo) -> bool:
    return about.bands - about.alpha >= 3 and about.dtype == "uint8"


def _is_classes(about: RasterInfo) -> bool:
    """Return whether a raster can be a map, labels or a confidence: a single band of small whole numbers."""
    return about.bands - about.alpha == 1 and about.dtype in ("uint8", "uint16", "int16")


def _kind(path: Path, about: RasterInfo, is_label: bool) -> Kind:
    if is_label or path.stem.endswith(("_label", "_truth", "_mask")):
        return "truth"
    if "confidence" in about.description.lower() or path.stem.endswith("confidence"):
        return "confidence"
    return "map"


def _numbered(ids: Iterable[int], palette: Palette) -> tuple[LandClass, ...]:
    return tuple(
        LandClass(id=i, name=f"class {i}", color=_hex(palette[i]) if i in palette else default_color(k))
        for k, i in enumerate(ids)
    )


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in rgb)
