"""The views of a folder: its images, each with the maps, labels and confidences that belong to it.

Nothing outside the folder is opened: every raster passes the gate (``raster.gate``), and every other file is looked at
before it is read. A file that cannot be shown is left out with a line in the log, whatever is wrong with it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from caswit.data.classes import ClassTable, LandClass, default_color
from caswit.data.dataset import Dataset, load_dataset
from caswit.errors import CaswitError, DataError
from caswit.files import expand_path, read_yaml
from caswit.mapping.journal import SUFFIX
from caswit.mapping.partial_map import PartsSource, read_partial_map
from caswit.raster.gate import RASTERS, Gate
from caswit.raster.georef import Grid, lonlat_of
from caswit.raster.overviews import Overviews, RasterInfo
from caswit.serve.layers import Kind, Layer, error_layer, raster_layer, truth_layer

log = logging.getLogger(__name__)

MAX_FILES = 5000
_DATASET = "dataset.yaml"
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
    _told: set[str] = field(default_factory=set)
    _listed_s: float = -_FRESH_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raise DataError unless there is a folder or a raster."""
        if not self.where.exists():
            raise DataError(f"{self.where}: no such folder or raster")
        self.only = None if self.where.is_dir() else self.where.resolve()
        self.root = self.where.resolve() if self.only is None else self.only.parent
        self.gate = Gate(self.root)
        if self.only is not None:
            Overviews(self.only, self.gate).close()

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

    def _find(self) -> list[View]:
        files = self._files()
        rasters = {path: overviews for path in files.rasters if (overviews := self._open(path)) is not None}
        self._forget(rasters)
        datasets = [dataset for file in files.datasets if (dataset := self._dataset(file)) is not None]
        pairs = ((_real(s.label), _real(s.image), d) for d in datasets for s in d.scenes if s.label is not None)
        # A label of an image elsewhere says nothing about this folder, and must not take an image out of the list.
        labels = {label: (image, d) for label, image, d in pairs if label != image and self.gate.is_inside(image)}
        # A dataset that lists a label wins over what the raster looks like: it may have three bands, or any name.
        images = {p: overviews for p, overviews in rasters.items() if p not in labels and _is_image(overviews.info)}
        overlays: dict[Path, list[tuple[Path, Overviews]]] = {image: [] for image in images}
        for path, overviews in rasters.items():
            if path in labels or (path not in images and _is_classes(overviews.info)):
                image = labels[path][0] if path in labels else _image_of(path, overviews.info, images)
                if image in overlays:
                    overlays[image].append((path, overviews))
        views: list[View] = []
        for path, overviews in images.items():
            if self.only in (None, path) or self.only not in images:
                try:
                    views.append(self._view(path, overviews, overlays[path], labels, files.journals))
                except Exception as error:
                    self._not_shown(path, error)
        return views

    def _view(
        self,
        path: Path,
        overviews: Overviews,
        belonging: Sequence[tuple[Path, Overviews]],
        labels: Mapping[Path, Labelled],
        journals: Sequence[Path],
    ) -> View:
        about = overviews.info
        # A transform may be any numbers: where places cannot be computed, the raster is left out, here and not later.
        for corner in ((0.0, 0.0), (float(about.grid.height), float(about.grid.width))):
            lonlat_of(about.grid, *corner)
        bands = self.bands if about.bands >= max(self.bands) else (1, 2, 3)
        image = raster_layer("image", str(path.relative_to(self.root)), overviews, bands=bands)
        overlays = []
        for file, raster in belonging:
            kind, title = _kind(file, raster.info, file in labels), str(file.relative_to(self.root))
            if file in labels:
                overlays.append(truth_layer(title, raster, labels[file][1].classes))
                continue
            classes = self._classes(raster.info) if kind != "confidence" else ()
            overlays.append(raster_layer(kind, title, raster, classes=classes))
        overlays += self._partial_maps(path, about.grid, journals, {layer.path for layer in overlays})
        truth = next((layer for layer in overlays if layer.kind == "truth"), None)
        if truth is not None:
            overlays += [error_layer(layer, truth) for layer in overlays if layer.kind == "map"]
        return View(image=image, grid=about.grid, overlays=tuple(overlays))

    def _partial_maps(self, image: Path, grid: Grid, journals: Sequence[Path], finished: set[Path]) -> Iterator[Layer]:
        for folder in journals:
            partial = read_partial_map(folder, grid, self.gate)
            if partial is None or partial.image != image.name or partial.out in finished:
                continue
            yield Layer(
                kind="map",
                title=str(partial.out.relative_to(self.root)),
                path=partial.out,
                source=PartsSource(partial.parts, self.gate),
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

    def _files(self) -> "_Files":
        """Walk the folder, without what is a link to the outside or no ordinary file."""
        found = _Files([], [], [])
        for folder, folders, names in os.walk(self.root):
            for name in [*sorted(names), *sorted(folders)]:
                path = Path(folder, name)
                # Names may be any bytes; those that are not text can neither be sent to a browser nor given to GDAL.
                if not _is_text(path):
                    self._tell("%s has a name that is not UTF-8", path)
                elif name in folders:
                    if name.endswith(SUFFIX) and self.gate.is_inside(path):
                        found.journals.append(path)
                elif name == _DATASET and self.gate.is_file(path):
                    found.datasets.append(path)
                elif path.suffix.lower() in RASTERS and not name.startswith(".") and self.gate.is_file(path):
                    if len(found.rasters) == MAX_FILES:
                        self._tell(f"all of %s: it holds more than {MAX_FILES} rasters", self.root)
                        return found
                    found.rasters.append(path)
            folders[:] = sorted(f for f in folders if not f.startswith(".") and not f.endswith(SUFFIX) and _is_text(f))
        return found

    def _open(self, path: Path) -> Overviews | None:
        """Open a raster, again if its file has changed; None if it cannot be shown."""
        try:
            # An open handle goes on reading a file that was replaced, as `predict` does when a map is finished.
            changed = path.stat().st_mtime_ns
            if path in self._overviews and self._overviews[path][0] == changed:
                return self._overviews[path][1]
            overviews = Overviews(path, self.gate)
            if not all(self.gate.is_inside(file) for file in overviews.info.files):
                overviews.close()
                raise DataError(f"is made of files outside {self.root}")
        except Exception as error:
            self._not_shown(path, error)
            return None
        if path in self._overviews:
            self._overviews[path][1].close()
        self._overviews[path] = changed, overviews
        return overviews

    def _not_shown(self, path: Path, error: Exception) -> None:
        """Log whatever went wrong with a file."""
        # The folder is the user's and holds anything. One file that nobody foresaw must not hide all the others, so
        # the places that call this catch everything.
        name = "" if isinstance(error, CaswitError) else f"{type(error).__name__}: "
        self._tell(f"%s ({name}{' '.join(str(error).split())[:300].replace('%', '%%')})", path)

    def _tell(self, message: str, path: Path) -> None:
        """Log that something is not shown: once, though the folder is listed every few seconds."""
        line = message % ascii(str(path))[1:-1]
        if line not in self._told:
            self._told.add(line)
            log.warning("not shown: %s", line)

    def _forget(self, there: Iterable[Path]) -> None:
        """Close rasters that are gone."""
        for path in self._overviews.keys() - set(there):
            self._overviews.pop(path)[1].close()

    def _dataset(self, file: Path) -> Dataset | None:
        """Read a dataset.yaml; None if it cannot be used, or lists another folder."""
        try:
            content = read_yaml(file)
            source = content.get("source") if isinstance(content, Mapping) else None
            if isinstance(source, Mapping):
                splits = source.get("splits", ())
                places = [splits] if isinstance(splits, str) else [*splits.values()] if splits else []
                for place in (source.get("root"), *places):
                    if not self.gate.is_inside(file.parent / expand_path(str(place))):
                        raise DataError(f"its source lies outside {self.root}")
            return load_dataset(file, skip_broken=True)
        except Exception as error:
            self._not_shown(file, error)
            return None


class _Files(NamedTuple):
    """The files of a folder that matter here."""

    rasters: list[Path]
    datasets: list[Path]
    journals: list[Path]
    """Folders with the parts of a map."""


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _is_text(path: Path | str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in str(path))


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
