"""Datasets: scenes and the class table of their labels, read from a dataset.yaml."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from caswit.config import RGB, SOURCES, FlairHubSource, ModelConfig, SourceConfig
from caswit.data.classes import ClassTable, named_rows
from caswit.data.folds import fold_scenes
from caswit.data.label_entry import is_vector, read_label_entry, read_label_values
from caswit.data.masks import with_masks
from caswit.data.published_classes import OFFICIAL_CLASSES
from caswit.data.scene import Scene, VectorLabel
from caswit.data.sources import read_source
from caswit.errors import DataError, brief, did_you_mean
from caswit.files import checked, expand_path, only_keys, read_yaml
from caswit.raster.stack import Bands, Further, Ranges
from caswit.raster.windows import Window

log = logging.getLogger(__name__)

_OF_A_DATASET = (".tif", ".tiff", ".jp2", ".png", ".jpg", ".vrt", ".gpkg", ".shp", ".geojson", ".fgb", ".csv")
"""Endings of files that a dataset.yaml names, and that are given in its place by mistake."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Scenes and the class table of their labels."""

    name: str
    path: Path
    classes: ClassTable
    """Empty where no scene has a label."""
    scenes: tuple[Scene, ...]
    bands: Bands = (1, 2, 3)
    """Bands that are read: numbers in the images, from 1; names of rasters beside them, or of bands in their files."""
    band_names: tuple[str, ...] = RGB
    """Name of each."""
    ranges: Ranges = ()
    """Of each the values that become 0 and 255, None where pixels are uint8; (): all are."""
    names_bands: bool = False
    """True where the file names them."""
    read_gsd_m: float | None = None
    """Ground size in metres of the pixels that are read; None reads native pixels."""
    skip_broken: bool = False
    """Leave out what turns out to be broken when it is read, instead of stopping there."""
    broken: tuple[str, ...] = ()
    """Files that are missing or broken and were left out, a line each."""

    def read_at(self, read_gsd_m: float | None, bands: Bands | None = None) -> "Dataset":
        """Return the same scenes, read at another ground size and, where the file names none, in other bands."""
        if bands is None or (self.names_bands and bands == self.bands):
            return replace(self, read_gsd_m=read_gsd_m)
        if self.names_bands:
            if len(bands) == len(self.bands):
                log.info("bands %s are read, which %s names, not %s", list(self.bands), self.path, list(bands))
            return replace(self, read_gsd_m=read_gsd_m)
        return replace(self, read_gsd_m=read_gsd_m, bands=bands, band_names=_names_of(bands))

    def with_bands(self, names: tuple[str, ...], ranges: Ranges = ()) -> "Dataset":
        """Return the same scenes, of which the bands with these names are read.

        Raises:
            DataError: It has no band of a name.
        """
        if names == self.band_names:
            return replace(self, ranges=ranges)
        # Nothing says what the bands are: they are taken for those that are asked for.
        if not self.names_bands and len(names) == len(self.bands):
            return replace(self, band_names=names, ranges=ranges)
        if lacks := [name for name in names if name not in self.band_names]:
            raise DataError(
                f"{self.path}: lacks {', '.join(lacks)}, which the model reads; its bands are "
                f"{', '.join(self.band_names)}; add bands: {{{lacks[0]}: NUMBER}}, or also: {{{lacks[0]}: FILE}}"
            )
        by_name = dict(zip(self.band_names, self.bands, strict=True))
        return replace(self, bands=tuple(by_name[name] for name in names), band_names=names, ranges=ranges)

    def for_model(self, model: ModelConfig, bands: Bands, read_gsd_m: float | None) -> "Dataset":
        """Return the same scenes, read as a model reads them: its bands by name, or by number where none are named.

        Args:
            model: Its settings.
            bands: The bands it learned from.
            read_gsd_m: Ground size at which it reads.

        Raises:
            DataError: It lacks a band.
        """
        return self.read_at(read_gsd_m, bands).with_bands(model.band_names, model.ranges)

    def list_broken(self) -> None:
        """Log what was left out."""
        for line in self.broken:
            log.warning("left out: %s", line)

    def split(self, name: str, *, labelled: bool = True) -> tuple[Scene, ...]:
        """Return the scenes of a split.

        Raises:
            DataError: There are none, or one has no label although ``labelled``.
        """
        scenes = tuple(s for s in self.scenes if s.split == name)
        if not scenes:
            there = ", ".join(sorted({s.split for s in self.scenes}))
            raise DataError(f"{self.path}: no scene has split {brief(name)}; splits are: {there}")
        for scene in scenes if labelled else ():
            if scene.label is None:
                raise DataError(
                    f"{self.path}: {scene.image.name} in split {brief(name)} has no label; "
                    "add label: FILE, or give it another split, e.g. unlabelled"
                )
        return scenes


def load_dataset(path: str | Path, *, skip_broken: bool = False, open_labels: bool = True) -> Dataset:
    """Read a dataset.yaml. Paths in it are relative to it.

    Args:
        path: The file.
        skip_broken: Leave out what is missing or broken, and list it in ``broken``.
        open_labels: Look into the labels of two classes for masks of 0 and 255; False opens no raster.

    Raises:
        DataError: It is missing, is not YAML, or holds values that are not allowed; files are missing or broken.
    """
    file = expand_path(str(path))
    if not file.is_file():
        inside = file / "dataset.yaml"
        remedy = f"did you mean {inside}?" if inside.is_file() else "write one as docs/datasets.md shows"
        raise DataError(f"{file}: no such dataset file; {remedy}")
    if file.suffix.lower() in _OF_A_DATASET:
        raise DataError(f"{file}: is an image or labels; give a dataset.yaml that names it, as docs/datasets.md shows")
    content = read_yaml(file)
    if isinstance(content, dict) and "fold" in content:
        return _fold(content, file, skip_broken=skip_broken)
    only_keys(content, {"name"}, {"classes", "scenes", "source", "note", "bands", "also", "gsd_m"}, str(file))
    if ("scenes" in content) == ("source" in content):
        raise DataError(f"{file}: needs either scenes or source, got {'both' if 'scenes' in content else 'neither'}")
    named = _bands(content.get("bands", [1, 2, 3]), file)
    classes, scenes, broken = _read_scenes(content, file)
    everywhere = _also(content.get("also") or {}, f"{file}: also", file.parent)
    missing = [each.path for each in everywhere if not Path(each.path).exists()]
    if missing:
        raise DataError(f"{file}: also: no such file {missing[0]}; paths are relative to {file.parent.resolve()}")
    gsd_m = _gsd_m(content, str(file))
    scenes = tuple(replace(_beside(scene, everywhere), gsd_m=scene.gsd_m or gsd_m) for scene in scenes)
    apart = {each.name: each.name for scene in scenes for each in scene.also}
    if double := [name for name in apart if isinstance(named.get(name), int)]:
        raise DataError(
            f"{file}: also names {double[0]}, which is band {named[double[0]]} of the images; give the raster another "
            "name, or leave that band out of bands"
        )
    named = {name: band for name, band in named.items() if name not in apart} | {**apart}
    # Report only the first: a list of thousands would bury the hint at the end of the message.
    if broken and not skip_broken:
        more = f" (and {len(broken) - 1} more like it; --skip-broken leaves them out)" if len(broken) > 1 else ""
        raise DataError(broken[0] + (more or "; --skip-broken leaves it out"))
    if not scenes:
        raise DataError(f"{file}: no scene is left without its broken files; the first: {broken[0]}")
    return Dataset(
        name=_text(content["name"], f"{file}: name"),
        path=file,
        classes=classes,
        scenes=with_masks(classes, scenes) if open_labels else scenes,
        bands=tuple(named.values()),
        band_names=tuple(named),
        names_bands="bands" in content or bool(apart),
        skip_broken=skip_broken,
        broken=broken,
    )


def _fold(content: Mapping[str, Any], file: Path, *, skip_broken: bool) -> Dataset:
    """Return one fold of another dataset's scenes, as ``caswit table --folds`` writes it."""
    only_keys(content, {"name", "fold"}, set(), str(file))
    where = f"{file}: fold"
    only_keys(content["fold"], {"of", "number", "folds", "splits"}, set(), where)
    fold = content["fold"]
    number, folds = (checked(int, fold[key], f"{where}: {key}") for key in ("number", "folds"))
    if not (1 <= number <= folds and folds >= 2):
        raise DataError(f"{where}: needs a number from 1 to folds, and 2 folds or more, got {number} of {folds}")
    splits = checked(list[str], fold["splits"], f"{where}: splits")
    whole = file.parent / expand_path(_text(fold["of"], f"{where}: of"))
    if "fold" in (read_yaml(whole) if whole.is_file() else ()):
        raise DataError(f"{where}: of names {whole}, which is a fold itself; name a dataset of scenes")
    dataset = load_dataset(whole, skip_broken=skip_broken)
    scenes = [scene for name in splits for scene in dataset.split(name)]
    name = _text(content["name"], f"{file}: name")
    return replace(dataset, name=name, path=file, scenes=fold_scenes(scenes, number, folds, str(whole)))


def _names_of(bands: Bands) -> tuple[str, ...]:
    """Return the names of bands that have only numbers: three are red, green and blue."""
    return RGB if len(bands) == len(RGB) else tuple(b if isinstance(b, str) else f"band_{b}" for b in bands)


def _bands(said: Any, file: Path) -> dict[str, int | str]:
    """Return the bands of the images by name: their numbers, or names to look for in the files."""
    named: dict[Any, Any] = {}
    if isinstance(said, Mapping):
        named = dict(said)
    elif isinstance(said, list) and all(isinstance(each, str) and each for each in said):
        named = {name: name for name in said}
        if len(named) < len(said):
            raise DataError(f"{file}: bands names a band twice, got {brief(said)}; name each once")
    elif isinstance(said, list):
        named = dict(zip(_names_of(tuple(said)), said, strict=True))
    numbers = [band for band in named.values() if not isinstance(said, list) or not isinstance(band, str)]
    if (
        not named
        or len(named) != len(said)
        or not all(isinstance(name, str) and name for name in named)
        or not all(type(band) is int and 0 < band < 1 << 16 for band in numbers)
    ):
        raise DataError(
            f"{file}: bands must be numbers from 1, e.g. [1, 2, 3], names and numbers, e.g. {{red: 1, nir: 4}}, or "
            f"names in the order of the bands, got {brief(said)}"
        )
    return named


def _read_scenes(content: Mapping[str, Any], file: Path) -> tuple[ClassTable, tuple[Scene, ...], tuple[str, ...]]:
    """Return class table, scenes, and a line for everything missing or broken."""
    if "source" in content:
        config = _source(content["source"], f"{file}: source", file.parent)
        classes = _classes(content, file, official=OFFICIAL_CLASSES.get(content["source"]["kind"]))
        found = read_source(config)
        return classes, found.scenes, found.broken
    if not isinstance(content["scenes"], list) or not content["scenes"]:
        raise DataError(f"{file}: scenes must be a list with at least one entry")
    scenes, broken = [], []
    for number, row in enumerate(content["scenes"], 1):
        scene, missing = _scene(row, f"{file}: scene {number}", file.parent)
        broken += missing
        scenes += [] if missing else [scene]
    return _classes(content, file, official=None), tuple(scenes), tuple(broken)


def _classes(content: Mapping[str, Any], file: Path, *, official: ClassTable | None) -> ClassTable:
    # A published data set comes with its class table; the file may still give another.
    if "classes" not in content and official is not None:
        return official
    rows = content.get("classes")
    # A row without its dash is a mapping too, but not one of names.
    if isinstance(rows, Mapping) and not rows.keys() & {"id", "ids", "name"}:
        rows = named_rows(rows, str(file))
    if not isinstance(rows, list) or not rows:
        raise DataError(f"{file}: classes must be a list with at least one entry, or ids by name")
    table = ClassTable.from_dicts(rows, str(file))
    names = table.names
    if double := [name for i, name in enumerate(names) if name in names[:i]]:
        raise DataError(
            f"{file}: two classes are called {brief(double[0])}; rename one, or make them one with ids: [1, 2]"
        )
    return table


def _source(row: Any, where: str, folder: Path) -> SourceConfig:
    if not isinstance(row, Mapping) or not isinstance(row.get("kind"), str) or row["kind"] not in SOURCES:
        kind = row.get("kind") if isinstance(row, Mapping) else row
        meant = did_you_mean(str(kind), SOURCES)
        raise DataError(f"{where}: kind must be one of {', '.join(SOURCES)}, got {brief(kind)}{meant}")
    made = SOURCES[row["kind"]]
    only_keys(row, {"kind", "root"}, {field.name for field in fields(made)}, where)
    # If root is absolute, pathlib drops the folder before it.
    root = folder / expand_path(_text(row["root"], f"{where}: root"))
    if not root.is_dir():
        raise DataError(f"{where}: no such folder {root}; root is relative to {folder.resolve()}")
    settings = {key: value for key, value in row.items() if key != "kind"} | {"root": str(root)}
    match settings.get("splits"):
        case str(path) if made is FlairHubSource:  # elsewhere a word, such as official
            settings["splits"] = str(folder / expand_path(path))
        case {**paths}:
            settings["splits"] = {str(name): str(folder / expand_path(str(path))) for name, path in paths.items()}
    config: SourceConfig = checked(made, settings, where)
    return config


def _text(value: Any, where: str) -> str:
    """Return a name or path; YAML takes one like 2021 for a number."""
    return str(checked(str | int | float | bool, value, where))


def _scene(row: Mapping[str, Any], where: str, folder: Path) -> tuple[Scene, list[str]]:
    only_keys(row, {"image", "split"}, {"label", "label_values", "also", "areas", "gsd_m"}, where)
    said = {key: _text(row[key], f"{where}: {key}") for key in ("image", "split")}
    areas = None if row.get("areas") is None else _areas(row["areas"], f"{where}: areas")
    also = _also(row.get("also") or {}, f"{where}: also", folder)
    values = read_label_values(row.get("label_values", "auto"), f"{where}: label_values")
    image = folder / expand_path(said["image"])
    files: list[Path | None] = []
    label: Path | VectorLabel | None = None
    if is_vector(row.get("label"), folder):
        label = read_label_entry(row["label"], f"{where}: label", folder)
        files = [label.file, label.annotated]
    elif row.get("label") is not None:
        label = folder / expand_path(_text(row["label"], f"{where}: label"))
        files = [label]
    # Only existence is checked here; ``check_scenes`` opens the files before a training.
    missing = [
        f"{where}: no such file {file}; paths are relative to {folder.resolve()}"
        for file in (image, *files, *(Path(each.path) for each in also))
        if file is not None and not file.exists()
    ]
    scene = Scene(
        image=image,
        label=label,
        split=said["split"],
        areas=areas,
        also=also,
        gsd_m=_gsd_m(row, where),
        label_values=values,
    )
    return scene, missing


def _gsd_m(row: Mapping[str, Any], where: str) -> float | None:
    """Return the ground size of an image's pixels that a row states."""
    said: float | None = checked(float | None, row.get("gsd_m"), f"{where}: gsd_m", "try 0.5, in metres")
    if said is not None and said <= 0:
        raise DataError(f"{where}: gsd_m must be above 0, got {said:g}; try 0.5, in metres")
    return said


def _areas(said: Any, where: str) -> tuple[Window, ...]:
    """Return the rectangles of an image that a scene is."""
    rows = said if isinstance(said, list) else []
    areas = [row for row in rows if isinstance(row, list) and len(row) == len(Window._fields)]
    if not areas or len(areas) != len(rows) or not all(type(n) is int and n >= 0 for row in areas for n in row):
        raise DataError(
            f"{where}: must be rectangles [row, column, height, width] in pixels of the image, such as "
            f"[[0, 0, 2048, 4096]], got {brief(said)}"
        )
    return tuple(Window(*row) for row in areas)


def _beside(scene: Scene, everywhere: tuple[Further, ...]) -> Scene:
    """Return a scene with the rasters that lie beside all scenes, where it names none of its own for a band."""
    own = {each.name for each in scene.also}
    return replace(scene, also=(*scene.also, *(each for each in everywhere if each.name not in own)))


def _also(said: Any, where: str, folder: Path) -> tuple[Further, ...]:
    """Return the further rasters of a scene: {name: FILE}, or {name: {file: FILE, band: NUMBER}}."""
    if not isinstance(said, Mapping):
        raise DataError(f"{where}: must be names and files, e.g. {{dsm: dsm.tif}}, got {brief(said)}")
    found = []
    for name, file in said.items():
        about = file if isinstance(file, Mapping) else {"file": file}
        only_keys(about, {"file"}, {"band"}, f"{where}: {name}")
        band = about.get("band", 1)
        if type(band) is not int or not 0 < band < 1 << 16:
            raise DataError(f"{where}: {name}: band must be a number from 1, got {brief(band)}")
        path = folder / expand_path(_text(about["file"], f"{where}: {name}"))
        found.append(Further(str(name), str(path), band))
    return tuple(found)
