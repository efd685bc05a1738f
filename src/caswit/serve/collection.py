"""What there is to look at in a folder: images, and the maps, labels and confidences that belong to each.

Nothing outside the folder is opened: not through links, and not through virtual rasters that point elsewhere.
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
from caswit.raster.overviews import About, Pyramid
from caswit.serve.layers import Kind, Layer, error_layer, raster_layer

log = logging.getLogger(__name__)

RASTERS = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".jp2", ".vrt")
MAX_FILES = 5000
_FRESH_S = 2.0
"""A listing younger than this is not made again."""


Palette = Mapping[int, tuple[int, int, int]]
Labelled = tuple[Path, Dataset]
"""The image of a label, and the dataset that says so."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """An image and what can be laid over it, all on one grid."""

    image: Layer
    grid: Grid
    overlays: tuple[Layer, ...]

    @property
    def key(self) -> str:
        """Its name in addresses."""
        return self.image.key

    def layer(self, key: str) -> Layer | None:
        """The image or an overlay."""
        return next((each for each in (self.image, *self.overlays) if each.key == key), None)


@dataclass
class Collection:
    """The views of a folder, looked up anew when asked after a while.

    Args:
        where: A folder, or a raster; of a raster, only what belongs to it is shown.
        table: Classes for maps that name none: the model's.
        bands: Bands of the images that are red, green and blue, from 1.
    """

    where: Path
    table: ClassTable | None = None
    bands: tuple[int, int, int] = (1, 2, 3)
    _pyramids: dict[Path, tuple[int, Pyramid]] = field(default_factory=dict)
    _views: dict[str, View] = field(default_factory=dict)
    _looked_s: float = -_FRESH_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Refuse what is neither a folder nor a raster."""
        if not self.where.exists():
            raise DataError(f"{self.where}: no such folder or raster")
        self.only = None if self.where.is_dir() else self.where.resolve()
        self.root = (self.where if self.only is None else self.where.parent).resolve()
        if self.only is not None:
            Pyramid(self.only).close()

    def views(self, *, anew: bool = False) -> Mapping[str, View]:
        """Every view by its key, as it was found lately or, if asked, a moment ago."""
        with self._lock:
            if not self._views or (anew and time.monotonic() - self._looked_s > _FRESH_S):
                self._views = {view.key: view for view in self._find()}
                self._looked_s = time.monotonic()
            return self._views

    def _find(self) -> Iterator[View]:
        found = {path: pyramid for path in self._files() if (pyramid := self._open(path)) is not None}
        datasets = list(self._datasets())
        labels = {s.label.resolve(): (s.image.resolve(), d) for d in datasets for s in d.scenes if s.label is not None}
        images = {p: pyramid for p, pyramid in found.items() if p not in labels and _is_image(pyramid.about)}
        mine: dict[Path, list[tuple[Path, Pyramid]]] = {image: [] for image in images}
        for path, pyramid in found.items():
            if path in labels or (path not in images and _is_classes(pyramid.about)):
                owner = labels[path][0] if path in labels else _image_of(path, pyramid, images)
                if owner in mine:
                    mine[owner].append((path, pyramid))
        journals = [f for f in sorted(self.root.rglob(f"*{SUFFIX}")) if f.is_dir() and self._inside(f)]
        for path, pyramid in images.items():
            if self.only in (None, path) or self.only not in images:
                yield self._view(path, pyramid, mine[path], labels, journals)

    def _view(
        self,
        path: Path,
        pyramid: Pyramid,
        others: Sequence[tuple[Path, Pyramid]],
        labels: Mapping[Path, Labelled],
        journals: Sequence[Path],
    ) -> View:
        about = pyramid.about
        bands = self.bands if about.bands >= max(self.bands) else (1, 2, 3)
        image = raster_layer("image", str(path.relative_to(self.root)), pyramid, bands=bands)
        overlays = []
        for other, its in others:
            kind = _kind(other, its.about, other in labels)
            table = labels[other][1].classes.classes if other in labels else self._classes(its.about)
            classes = table if kind != "confidence" else ()
            overlays.append(raster_layer(kind, str(other.relative_to(self.root)), its, classes=classes))
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
                classes=self.table.predicted if self.table else _numbered(range(20), {}),
                revision=partial.finished,
                done=partial.done,
            )

    def _classes(self, about: About) -> tuple[LandClass, ...]:
        """The legend of a map: from its tags and palette, else the model's."""
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
        """Rasters of the folder, none that lies outside it or links out of it."""
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

    def _open(self, path: Path) -> Pyramid | None:
        """The raster, opened again if it changed; None if it cannot be shown."""
        try:
            changed = path.stat().st_mtime_ns
            if path in self._pyramids and self._pyramids[path][0] == changed:
                return self._pyramids[path][1]
            pyramid = Pyramid(path)
        except (CaswitError, OSError) as error:
            log.info("not shown: %s", error)
            return None
        if not all(self._inside(file) for file in pyramid.about.files):
            log.warning("not shown: %s is made of files outside %s", path, self.root)
            pyramid.close()
            return None
        self._pyramids[path] = changed, pyramid
        return pyramid

    def _datasets(self) -> Iterator[Dataset]:
        for file in sorted(self.root.rglob("dataset.yaml")):
            if not self._inside(file):
                continue
            try:
                yield load_dataset(file)
            except CaswitError as error:
                log.warning("labels are not shown: %s", error)


def _image_of(path: Path, pyramid: Pyramid, images: Mapping[Path, Pyramid]) -> Path | None:
    """The image a map belongs to: by the name in its tags, by its own name, or as the only one on its grid."""
    about = pyramid.about
    fitting = [image for image in images if images[image].about.grid[:2] == about.grid[:2]]
    on_grid = [image for image in fitting if _same_grid(images[image].about.grid, about.grid)]
    if name := about.tags.get("CASWIT_IMAGE"):
        named = [image for image in fitting if image.name == name]
    else:
        begun = [image for image in images if path.stem.startswith(image.stem)]
        longest = max((len(image.stem) for image in begun), default=0)
        named = [image for image in begun if len(image.stem) == longest and image in fitting]
    beside = [image for image in named if image.parent == path.parent]
    for some in (beside, [image for image in named if image in on_grid], named, [] if named else on_grid):
        if len(some) == 1:
            return some[0]
    return None


def _same_grid(one: Grid, other: Grid) -> bool:
    return one[:2] == other[:2] and one.same_place(other)


def _is_image(about: About) -> bool:
    return about.bands - about.alpha >= 3 and about.dtype == "uint8"


def _is_classes(about: About) -> bool:
    """A single band of small whole numbers that says, by palette, tags or name, what they mean."""
    return about.bands - about.alpha == 1 and about.dtype in ("uint8", "uint16", "int16")


def _kind(path: Path, about: About, is_label: bool) -> Kind:
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
