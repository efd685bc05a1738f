"""The views of folders and files: images, each with the maps, labels, confidences and polygons that belong to it.

Nothing else is opened: every raster passes the gate (``raster.gate``), and every other file is looked at before it is
read. A file that cannot be shown is left out with a line in the log, whatever is wrong with it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from caswit.config import LabelValues
from caswit.data.classes import ClassTable, LandClass, ValueClasses
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.palette import default_color
from caswit.data.scene import Scene, VectorLabel
from caswit.errors import CaswitError, DataError
from caswit.files import check_place, expand_path, read_yaml
from caswit.mapping.journal import SUFFIX
from caswit.mapping.partial_map import PartsSource, read_partial_map
from caswit.raster.gate import OPENING, RASTERS, Gate
from caswit.raster.geopackage import PolygonFile
from caswit.raster.georef import Grid, lonlat_of
from caswit.raster.overviews import Overviews, RasterInfo
from caswit.raster.stack import Further, in_list_order
from caswit.raster.vector_gate import check_vector
from caswit.serve.bands import Numbers, Shown, band_names, numbers_of, shown_bands
from caswit.serve.layers import Kind, Layer, Outlines, drawn_layer, error_layer, raster_layer, truth_layer
from caswit.viz.pictures import SOFTWARE

log = logging.getLogger(__name__)

MAX_FILES = 5000
_DATASET = "dataset.yaml"
_POLYGONS = ".gpkg"
_FRESH_S = 2.0
"""Age up to which a listing is used again, in seconds."""

Palette = Mapping[int, tuple[int, int, int]]
Labelled = tuple[Path, Dataset, LabelValues | ValueClasses]
"""The image that a label belongs to, the dataset that lists both, and what the label holds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """An image and what can be laid over it, all on one grid."""

    image: Layer | None
    """None where a map is shown without its image."""
    grid: Grid
    overlays: tuple[Layer, ...]
    also: tuple[Further, ...] = ()
    """Rasters beside the image, as the dataset that lists it names them."""
    outlines: tuple[Outlines, ...] = ()

    @property
    def base(self) -> Layer:
        """The image, or without one the first overlay, after which the view is called."""
        return self.image or self.overlays[0]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The image, if there is one, and the overlays."""
        return self.overlays if self.image is None else (self.image, *self.overlays)

    @property
    def key(self) -> str:
        """Name in addresses."""
        return self.base.key

    @property
    def gsd_m(self) -> float | None:
        """Ground size of a pixel in metres: the image's, or where it has none that of its maps, if they agree."""
        if self.image is not None and self.image.gsd_m is not None:
            return self.image.gsd_m
        told = {layer.gsd_m for layer in self.overlays if layer.gsd_m is not None}
        return self.grid.source_gsd_m or (told.pop() if len(told) == 1 else None)

    def layer(self, key: str) -> Layer | None:
        """Return the image or the overlay with this key."""
        return next((each for each in self.layers if each.key == key), None)


@dataclass
class Collection:
    """The views of folders and files.

    Args:
        where: A folder; or one raster, which is shown with what belongs to it in its folder; or several of either,
            of which only these folders and these files with their sidecars are opened.
        table: Classes of the model, for maps that do not name theirs.
        bands: Bands of the images that are red, green and blue, from 1; None: those of these names.
        numbers: The bands that a model reads, by name.
    """

    where: Path | Sequence[Path]
    table: ClassTable | None = None
    bands: Shown | None = None
    numbers: Numbers = field(default_factory=dict)
    _overviews: dict[Path, tuple[int, Overviews]] = field(default_factory=dict)
    _views: dict[str, View] = field(default_factory=dict)
    _told: set[str] = field(default_factory=set)
    _listed_s: float = -_FRESH_S
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Raise DataError unless there are folders and rasters."""
        given = [self.where] if isinstance(self.where, Path) else list(self.where)
        for place in given:
            check_place(place)
        places = [*dict.fromkeys(place.resolve() for place in given)]
        self.named = [place for place in places if not place.is_dir()]
        self.only = self.named[0] if len(places) == len(self.named) == 1 else None
        self.gate = Gate(*places) if self.only is None else Gate(self.only.parent)
        for file in self.named:
            if file.suffix.lower() != _POLYGONS:
                Overviews(file, self.gate).close()

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
        scenes = [(d, s) for d in datasets for s in d.scenes]
        drawn = {_real(s.image): (s.label, d) for d, s in scenes if isinstance(s.label, VectorLabel)}
        pairs = ((_real(s.label), _real(s.image), d, s) for d, s in scenes if isinstance(s.label, Path))
        # A label of an image elsewhere says nothing about this folder, and must not take an image out of the list.
        labels = {
            label: (image, d, scene.label_values)
            for label, image, d, scene in pairs
            if label != image and self.gate.is_inside(image)
        }
        # A dataset that lists a label wins over what the raster looks like: it may have three bands, or any name.
        listed = {_real(s.image): (d, s) for d, s in scenes}
        images = {p: o for p, o in rasters.items() if p not in labels and (p in listed or self._is_image(p, o.info))}
        overlays: dict[Path, list[tuple[Path, Overviews]]] = {image: [] for image in images}
        alone: list[list[tuple[Path, Overviews]]] = []
        for path, overviews in rasters.items():
            if path in labels or (path not in images and _is_classes(overviews.info)):
                image = labels[path][0] if path in labels else self._image_of(path, overviews.info, images)
                if image in overlays:
                    overlays[image].append((path, overviews))
                elif path in self.named or (path not in labels and _is_ours(overviews.info)):
                    _put_together(alone, path, overviews)
        views: list[View] = []
        for first, belonging in (*overlays.items(), *((group[0][0], group) for group in alone)):
            if self.only in (None, first, *(file for file, _ in belonging)):
                try:
                    view = self._view(first, images.get(first), belonging, labels, drawn, files.journals)
                    views.append(self._as_listed(view, *listed[first]) if first in listed else view)
                except Exception as error:
                    self._not_shown(first, error)
        own = {_real(label.file) for label, _ in drawn.values()}
        return self._with_outlines(views, [file for file in files.polygons if _real(file) not in own])

    def _image_of(self, path: Path, about: RasterInfo, images: Mapping[Path, Overviews]) -> Path | None:
        """Return the image that a map belongs to; None if no rule leaves exactly one."""
        image = _image_of(path, about, images)
        if image is None and path in self.named:
            # Who names a map beside an image says that they belong together, unless their grids say otherwise.
            grids = {image: overviews.info.grid for image, overviews in images.items()}
            fit = [i for i, grid in grids.items() if i in self.named and grid[:2] == about.grid[:2]]
            fit = [i for i in fit if not (grids[i].crs and about.grid.crs) or grids[i].same_place(about.grid)]
            image = fit[0] if len(fit) == 1 else None
        return image

    def _view(
        self,
        path: Path,
        overviews: Overviews | None,
        belonging: Sequence[tuple[Path, Overviews]],
        labels: Mapping[Path, Labelled],
        drawn: Mapping[Path, tuple[VectorLabel, Dataset]],
        journals: Sequence[Path],
    ) -> View:
        """Make the view of an image, or without one that of a map."""
        about = (overviews or belonging[0][1]).info
        # A transform may be any numbers: where places cannot be computed, the raster is left out, here and not later.
        for corner in ((0.0, 0.0), (float(about.grid.height), float(about.grid.width))):
            lonlat_of(about.grid, *corner)
        image = None
        if overviews is not None:
            if self.bands is not None and max(self.bands) > about.bands:
                self._tell(f"bands {', '.join(map(str, self.bands))} of %s, which has {about.bands}", path)
            shown, names = shown_bands(about, self.bands, self.numbers), band_names(about, self.numbers)
            image = raster_layer("image", self._title(path), overviews, bands=shown, names=names)
        overlays = []
        for file, raster in belonging:
            kind, title = _kind(file, raster.info, file in labels), self._title(file)
            if file in labels:
                _, dataset, values = labels[file]
                overlays.append(truth_layer(title, raster, dataset.classes, values, about.grid))
                continue
            classes = self._classes(raster.info) if kind != "confidence" else ()
            overlays.append(raster_layer(kind, title, raster, classes=classes))
        if image is not None:
            overlays += self._partial_maps(path, about.grid, journals, {layer.path for layer in overlays})
        if image is not None and path in drawn:
            overlays += self._drawn(image, about.grid, *drawn[path])
        truth = next((layer for layer in overlays if layer.kind == "truth"), None)
        if truth is not None:
            overlays += [error_layer(layer, truth) for layer in overlays if layer.kind == "map"]
        return View(image=image, grid=about.grid, overlays=tuple(overlays))

    def _is_image(self, path: Path, about: RasterInfo) -> bool:
        """Return whether a raster that no dataset lists is an image."""
        if about.tags.get("Software") == SOFTWARE and path not in self.named:
            return False  # a figure of a run, a report or an explanation
        if about.bands - about.alpha >= 3:
            return np.dtype(about.dtype).kind in "uif"
        # One or two bands are those of a model that reads so few, unless they look like a map or a label.
        few = 0 < len(self.numbers) < 3 and about.bands >= len(self.numbers)
        return few and not (about.palette or _is_ours(about) or _kind(path, about, is_label=False) != "map")

    def _as_listed(self, view: View, dataset: Dataset, scene: Scene) -> View:
        """Return a view with what its dataset says of the image: names of its bands, ground size, rasters beside it."""
        image = view.image
        if image is None or not isinstance(image.source, Overviews):
            return view
        if dataset.names_bands:
            about, own = image.source.info, numbers_of(dataset.band_names, dataset.bands)
            if not own and not any(about.descriptions):  # its bands are those of the list, in order
                own = in_list_order(dataset.band_names, {each.name for each in scene.also})
            shown, names = shown_bands(about, self.bands, self.numbers, own), band_names(about, own, self.numbers)
            image = replace(image, bands=shown, names=names)
        image = replace(image, gsd_m=scene.gsd_m)
        return replace(view, image=image, also=tuple(each for each in scene.also if self.gate.is_inside(each.path)))

    def _drawn(self, image: Layer, grid: Grid, label: VectorLabel, dataset: Dataset) -> list[Layer]:
        """Return the layer of labels that are shapes; none if they cannot be shown."""
        try:
            for file in (label.file, label.annotated):
                if file is not None:
                    check_vector(self.gate, file)
            # Making an index changes the filters of warnings, which all threads share.
            with OPENING:
                return [drawn_layer(self._title(label.file), label, dataset.classes, image, grid)]
        except Exception as error:
            self._not_shown(label.file, error)
            return []

    def _title(self, path: Path) -> str:
        """Return the name of a file on the page: as short as tells it from the others."""
        for folder in self.gate.folders:
            if path.is_relative_to(folder):
                several = len(self.gate.folders) > 1 or self.gate.files
                return str(path.relative_to(folder.parent if several else folder))
        same = [file for file in self.gate.files if file.name == path.name]
        return path.name if len(same) < 2 else f"{path.parent.name}/{path.name}"

    def _with_outlines(self, views: Sequence[View], files: Sequence[Path]) -> list[View]:
        """Add the polygons of each file to the view they belong to."""
        found: dict[str, list[Outlines]] = {view.key: [] for view in views}
        for file in files:
            said = None
            fit = []
            for view in _candidates(file, views):
                try:
                    polygons = PolygonFile(file, view.grid)
                    if polygons.overlaps:
                        fit.append((view, polygons))
                except Exception as error:
                    said = error
            if len(fit) == 1:
                ((view, polygons),) = fit
                found[view.key].append(Outlines(self._title(file), polygons))
            elif said is not None and not fit:
                self._not_shown(file, said)
        return [replace(view, outlines=tuple(found[view.key])) for view in views]

    def _partial_maps(self, image: Path, grid: Grid, journals: Sequence[Path], finished: set[Path]) -> Iterator[Layer]:
        for folder in journals:
            partial = read_partial_map(folder, grid, self.gate)
            if partial is None or partial.image != image.name or partial.out in finished:
                continue
            yield Layer(
                kind="map",
                title=self._title(partial.out),
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
        """List the files, without what is a link to the outside or no ordinary file."""
        found = _Files([], [], [], [])
        for folder in self.gate.folders:
            self._walk(folder, found)
        for file in self.gate.files:
            # Polygons go by the name of their map, as its sidecars do.
            for path in (file, file.with_suffix(_POLYGONS)):
                listed = found.polygons if path.suffix.lower() == _POLYGONS else found.rasters
                if path not in listed and self.gate.is_file(path):
                    listed.append(path)
        return found

    def _walk(self, root: Path, found: "_Files") -> None:
        for folder, folders, names in os.walk(root):
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
                elif path.suffix.lower() in (*RASTERS, _POLYGONS) and not name.startswith("."):
                    if self.gate.is_file(path):
                        (found.rasters if path.suffix.lower() in RASTERS else found.polygons).append(path)
                    if len(found.rasters) > MAX_FILES or len(found.polygons) > MAX_FILES:
                        self._tell(f"all of %s: it holds more than {MAX_FILES} rasters", root)
                        return
            # Pictures of runs: earlier versions wrote them without saying whose they are.
            passed = {"pictures"} if "recipe.yaml" in names else set()
            further = sorted(f for f in set(folders) - passed if not f.startswith(".") and _is_text(f))
            folders[:] = [f for f in further if not f.endswith(SUFFIX)]

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
                raise DataError(f"is made of files outside {self.gate}")
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
                        raise DataError(f"its source lies outside {self.gate}")
            # Rasters are opened through the gate alone.
            dataset = load_dataset(file, skip_broken=True, open_labels=False)
            outside = [scene.image for scene in dataset.scenes if not self.gate.is_inside(scene.image)]
            if outside:
                count, place = f"{len(outside)} of {len(dataset.scenes)}", _real(outside[0]).parent
                self._not_shown(file, DataError(f"images outside {self.gate}: {count}; name {place} too"))
            return dataset
        except Exception as error:
            self._not_shown(file, error)
            return None


class _Files(NamedTuple):
    """The files of a folder that matter here."""

    rasters: list[Path]
    datasets: list[Path]
    journals: list[Path]
    """Folders with the parts of a map."""
    polygons: list[Path]


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
        prefixes = [image for image in images if _begins_with(path, image)]
        longest = max((len(image.stem) for image in prefixes), default=0)
        named = [image for image in prefixes if len(image.stem) == longest and image in same_size]
    # Images of one name lie in several folders: the one beside the map, then the one on its grid. The grid alone
    # decides only where no name does, since many plain photographs share a size and have no place on the ground.
    in_folder = [image for image in named if image.parent == path.parent]
    named_on_grid = [image for image in named if image in same_grid]
    rules = (in_folder, named_on_grid, named, [] if named else same_grid)
    return next((candidates[0] for candidates in rules if len(candidates) == 1), None)


def _begins_with(path: Path, image: Path) -> bool:
    """Return whether a file's name begins with that of an image, and goes on with another word: d is none of dubai."""
    rest = path.stem.removeprefix(image.stem)
    return path.stem.startswith(image.stem) and not rest[:1].isalnum()


def _is_ours(about: RasterInfo) -> bool:
    """Return whether ``caswit predict`` wrote a raster, so that it is worth showing without its image."""
    return "CASWIT_IMAGE" in about.tags or any(tag.startswith("CLASS_") for tag in about.tags)


def _put_together(groups: list[list[tuple[Path, Overviews]]], path: Path, raster: Overviews) -> None:
    """Add a map without an image to those at its place on the ground, or begin a group."""
    for group in groups:
        other_path, other = group[0]
        if other.info.grid[:2] == raster.info.grid[:2] and other.info.grid.same_place(raster.info.grid):
            # Without a georeference, equal sizes mean little.
            alike = path.parent == other_path.parent and path.stem.startswith(other_path.stem)
            if raster.info.grid.crs or alike:
                group.append((path, raster))
                return
    groups.append([(path, raster)])


def _candidates(file: Path, views: Sequence[View]) -> Sequence[View]:
    """Return the views that polygons may belong to, by their name: that of the map, or else one that begins alike."""
    paths = {view.key: {layer.path for layer in view.layers} for view in views}
    own = [view for view in views if file.with_suffix("") in {path.with_suffix("") for path in paths[view.key]}]
    beside = [(len(view.base.path.stem), view) for view in views if view.base.path.parent == file.parent]
    alike = [(length, view) for length, view in beside if _begins_with(file, view.base.path)]
    longest = max((length for length, _ in alike), default=0)
    return own or [view for length, view in alike if length == longest] or views


def _is_classes(about: RasterInfo) -> bool:
    """Return whether a raster can be a map, labels or a confidence: a single band of small whole numbers."""
    return about.bands - about.alpha == 1 and about.dtype in ("uint8", "uint16", "int16")


def _kind(path: Path, about: RasterInfo, is_label: bool) -> Kind:
    # FLAIR-HUB's scenes are mosaics, which are not shown: its patches are known as labels by their names alone.
    if is_label or path.stem.endswith(("_label", "_truth", "_mask")) or "_LABEL-" in path.stem:
        return "truth"
    if "confidence" in about.descriptions[0].lower() or path.stem.endswith("confidence"):
        return "confidence"
    return "map"


def _numbered(ids: Iterable[int], palette: Palette) -> tuple[LandClass, ...]:
    return tuple(
        LandClass(id=i, name=f"class {i}", color=_hex(palette[i]) if i in palette else default_color(k))
        for k, i in enumerate(ids)
    )


def _hex(rgb: tuple[int, int, int]) -> str:
    return "#" + "".join(f"{value:02x}" for value in rgb)
