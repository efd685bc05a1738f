"""Scenes, class tables and dataset.yaml."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.data.palette import IGNORED, default_color
from caswit.errors import DataError
from caswit.files import read_yaml

_UNKNOWN = 254
_MAX_ID = 65_535


@dataclass(frozen=True, kw_only=True)
class LandClass:
    """One row of a class table."""

    id: int
    """Value in label rasters, 0-65535; predicted classes use 0-254, for 255 is nodata in maps."""
    name: str
    color: str
    """As #rrggbb."""
    ignore: bool = False
    """Ignored in loss and scores, never predicted."""

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0-255."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset or model. The k-th class that is not ignored has index k."""

    classes: tuple[LandClass, ...]

    def __post_init__(self) -> None:
        """Refuse tables that cannot be predicted or written as a uint8 map."""
        ids = [c.id for c in self.classes]
        twice = sorted({i for i in ids if ids.count(i) > 1})
        if twice:
            raise DataError(f"class ids must differ, got more than once: {', '.join(map(str, twice))}")
        if not 1 <= len(self.predicted) <= 250:
            raise DataError(f"1 to 250 classes can be predicted, got {len(self.predicted)} without ignore: true")
        for c in self.predicted:
            if not 0 <= c.id <= 254:
                raise DataError(f"class {c.name!r}: id must be 0..254 (255 is nodata in maps), got {c.id}")

    @cached_property
    def predicted(self) -> tuple[LandClass, ...]:
        """Classes that are not ignored, in the order of their indices."""
        return tuple(c for c in self.classes if not c.ignore)

    def __len__(self) -> int:
        """Number of classes that can be predicted."""
        return len(self.predicted)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Name by index."""
        return tuple(c.name for c in self.predicted)

    @cached_property
    def colors(self) -> NDArray[np.uint8]:
        """(K, 3) red, green, blue by index."""
        return np.array([c.rgb for c in self.predicted], np.uint8)

    @cached_property
    def ids(self) -> NDArray[np.uint8]:
        """(256,) index -> class id; IGNORE_INDEX stays as it is."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(self)] = [c.id for c in self.predicted]
        return table

    @cached_property
    def _indices(self) -> NDArray[np.uint8]:
        table = np.full(_MAX_ID + 1, _UNKNOWN, np.uint8)
        table[[c.id for c in self.classes]] = IGNORE_INDEX
        table[[c.id for c in self.predicted]] = np.arange(len(self))
        return table

    def indices(self, labels: NDArray[Any], path: str, ignore: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """Turn class ids into indices.

        Args:
            labels: Class ids of any integer type.
            path: Named in the error.
            ignore: Where True, IGNORE_INDEX whatever the id.

        Returns:
            uint8 of the same shape.

        Raises:
            DataError: An id is not in the table.
        """
        found = self._indices[np.clip(labels, 0, _MAX_ID)]
        found[(labels < 0) | (labels > _MAX_ID)] = _UNKNOWN
        if ignore is not None:
            found[ignore] = IGNORE_INDEX
        if (found == _UNKNOWN).any():
            unknown = np.unique(labels[found == _UNKNOWN]).tolist()
            raise DataError(
                f"{path}: label id{'s' * (len(unknown) > 1)} {', '.join(map(str, unknown[:8]))} not in the "
                f"class table ({', '.join(str(c.id) for c in self.classes)}); add a class with that id, "
                "with ignore: true if it should not count"
            )
        return found

    def to_dicts(self) -> list[dict[str, Any]]:
        """As in dataset.yaml and config.json."""
        plain = [{"id": c.id, "name": c.name, "color": c.color} for c in self.classes]
        return [d | ({"ignore": True} if c.ignore else {}) for d, c in zip(plain, self.classes, strict=True)]

    @staticmethod
    def from_dicts(rows: Sequence[Mapping[str, Any]], path: str) -> "ClassTable":
        """Read what ``to_dicts`` writes; ``path`` is named in errors."""
        classes: list[LandClass] = []
        for number, row in enumerate(rows, 1):
            where = f"{path}: class {number}"
            _only_keys(row, {"id", "name"}, {"color", "ignore"}, where)
            if not _is_color(row.get("color", IGNORED)):
                raise DataError(f'{where}: color must look like "#3c1098", got {row["color"]!r}')
            if not isinstance(row["id"], int) or not 0 <= row["id"] <= _MAX_ID:
                raise DataError(f"{where}: id must be a whole number 0..{_MAX_ID}, got {row['id']!r}")
            default = IGNORED if row.get("ignore") else default_color(sum(not c.ignore for c in classes))
            classes.append(LandClass(**{"color": default, **row, "name": str(row["name"])}))
        try:
            return ClassTable(tuple(classes))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One image raster, with or without a label raster, in one split."""

    image: Path
    label: Path | None = None
    split: str = "train"

    @property
    def name(self) -> str:
        """What pictures and messages call it."""
        return self.image.stem


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Scenes and the class table of their labels."""

    name: str
    path: Path
    classes: ClassTable
    scenes: tuple[Scene, ...]
    bands: tuple[int, int, int] = (1, 2, 3)
    """Bands of the images that are red, green and blue, from 1."""
    gsd_m: float | None = None
    """Ground size in metres of the pixels that are read; None: as they are in the files."""

    def read_at(self, gsd_m: float | None) -> "Dataset":
        """The same scenes, read at another ground size of a pixel."""
        return replace(self, gsd_m=gsd_m)

    def split(self, name: str, *, labelled: bool = True) -> tuple[Scene, ...]:
        """The scenes of a split.

        Raises:
            DataError: There are none, or one has no label although ``labelled``.
        """
        scenes = tuple(s for s in self.scenes if s.split == name)
        if not scenes:
            there = ", ".join(sorted({s.split for s in self.scenes}))
            raise DataError(f"{self.path}: no scene has split {name!r}; splits are: {there}")
        for scene in scenes if labelled else ():
            if scene.label is None:
                raise DataError(
                    f"{self.path}: {scene.image.name} in split {name!r} has no label; "
                    "add label: FILE, or give it another split, e.g. unlabelled"
                )
        return scenes


def expand_path(text: str) -> Path:
    """Replace $NAME from the environment and ~.

    Raises:
        DataError: A variable is not set.
    """
    expanded = os.path.expandvars(text)
    if "$" in expanded:
        name = expanded.split("$", 1)[1].strip("{").split("/")[0].split("}")[0]
        raise DataError(f"{text}: the environment variable {name} is not set; try: export {name}=/path/to/it")
    return Path(expanded).expanduser()


def load_dataset(path: str | Path) -> Dataset:
    """Read a dataset.yaml. Paths in it are relative to it.

    Raises:
        DataError: It is missing, is not YAML, or says something that cannot be.
    """
    file = expand_path(str(path))
    if not file.is_file():
        raise DataError(f"{file}: no such dataset file; write one as docs/datasets.md shows")
    content = read_yaml(file)
    _only_keys(content, {"name", "classes", "scenes"}, {"note", "bands"}, str(file))
    for key in ("classes", "scenes"):
        if not isinstance(content[key], list) or not content[key]:
            raise DataError(f"{file}: {key} must be a list with at least one entry")
    scenes = tuple(_scene(row, f"{file}: scene {n}", file.parent) for n, row in enumerate(content["scenes"], 1))
    bands = content.get("bands", [1, 2, 3])
    if not (isinstance(bands, list) and len(bands) == 3 and all(isinstance(b, int) and b > 0 for b in bands)):
        raise DataError(f"{file}: bands must be three numbers from 1, e.g. [1, 2, 3], got {bands!r}")
    return Dataset(
        name=str(content["name"]),
        path=file,
        classes=ClassTable.from_dicts(content["classes"], str(file)),
        scenes=scenes,
        bands=(bands[0], bands[1], bands[2]),
    )


def _scene(row: Mapping[str, Any], where: str, folder: Path) -> Scene:
    _only_keys(row, {"image", "split"}, {"label"}, where)
    image = folder / expand_path(str(row["image"]))
    label = folder / expand_path(str(row["label"])) if row.get("label") is not None else None
    for file in (image, label):
        if file is not None and not file.exists():
            raise DataError(f"{where}: no such file {file}; paths are relative to {folder.resolve()}")
    return Scene(image=image, label=label, split=str(row["split"]))


def _only_keys(row: Any, needed: set[str], optional: set[str], where: str) -> None:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: must be a mapping with {', '.join(sorted(needed))}, got {type(row).__name__}")
    missing, strange = needed - row.keys(), row.keys() - needed - optional
    if missing:
        raise DataError(f"{where}: missing {', '.join(sorted(missing))}")
    if strange:
        allowed = ", ".join(sorted(needed | optional))
        raise DataError(f"{where}: unknown {', '.join(sorted(map(str, strange)))}; allowed: {allowed}")


def _is_color(value: Any) -> bool:
    digits = set("0123456789abcdefABCDEF")
    return isinstance(value, str) and len(value) == 7 and value[0] == "#" and set(value[1:]) <= digits
