"""Class tables: the classes behind the values and colours of label rasters."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX
from caswit.data.palette import IGNORED, default_color
from caswit.errors import ConfigError, DataError, brief
from caswit.files import checked, only_keys

ValueClasses = tuple[tuple[int | None, str | None], ...]
"""Values of label rasters and the names or ids of their classes, as ``ClassTable.with_values`` takes them."""
_UNKNOWN = 254
MAX_ID = 65_535
"""Largest value that label rasters may hold."""
NEAR = 127
"""Largest difference in a band of colours that are taken for each other, where this is asked for."""
_BACKGROUND = ("background", "other", "others")
"""Names of classes that are background unless the class table says otherwise."""


@dataclass(frozen=True, kw_only=True)
class LandClass:
    """One row of a class table."""

    id: int
    """Value in label rasters, 0-65535. Maps hold it too unless it is above 254 (``ClassTable.mapped``)."""
    name: str
    color: str
    """As #rrggbb."""
    ignore: bool = False
    """Ignored in loss and scores, never predicted."""
    background: bool | None = None
    """Everything that is none of the other classes: transparent in styles, no polygons. None: as the name says."""
    more_ids: tuple[int, ...] = ()
    """Further values in label rasters that mean this class; maps hold ``id``."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Every value in label rasters that means this class, that of maps first."""
        return (self.id, *self.more_ids)

    @property
    def is_background(self) -> bool:
        """Whether this is the class of all that is none of the others."""
        return self.name.lower() in _BACKGROUND if self.background is None else self.background

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0-255."""
        red, green, blue = (int(self.color[i : i + 2], 16) for i in (1, 3, 5))
        return red, green, blue


def plain_name(name: str) -> str:
    """Return a class's name as names are compared: Swimming_pool and swimming pool are the same class."""
    return name.strip().casefold().replace("_", " ")


def known_and_new(names: Sequence[str], theirs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of classes that are among others, as names are compared, and those that are not."""
    known = {plain_name(name) for name in theirs}
    return [n for n in names if plain_name(n) in known], [n for n in names if plain_name(n) not in known]


class UnknownLabelError(DataError):
    """A label raster holds a value that is not in the class table."""

    def __init__(self, path: str, what: str, known: str, fix: str, at: tuple[int, int]) -> None:
        super().__init__(f"{path}: {what} not in {known}; {fix}")
        self.said = what, known, fix, at

    @property
    def at(self) -> tuple[int, int]:
        """(row, col) of the first such pixel in the array that was read."""
        return self.said[-1]

    def named(self, path: str) -> "UnknownLabelError":
        """Return the same error about another file."""
        return UnknownLabelError(path, *self.said)


@dataclass(frozen=True)
class ClassTable:
    """The classes of a dataset or model. The k-th class that is not ignored has index k."""

    classes: tuple[LandClass, ...]

    def __post_init__(self) -> None:
        """Refuse tables that cannot be predicted or written as a uint8 map."""
        ids = [i for c in self.classes for i in c.ids]
        twice = sorted(i for i, times in Counter(ids).items() if times > 1)
        if twice:
            raise DataError(f"class ids must differ, got more than once: {', '.join(map(str, twice))}")
        if self.classes and not 1 <= len(self.predicted) <= 250:
            raise DataError(f"1 to 250 classes can be predicted, got {len(self.predicted)} without ignore: true")

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
    def mapped(self) -> tuple[LandClass, ...]:
        """Predicted classes with the values that they have in maps.

        Masks of 0 and 255 are common, and 255 is nodata in maps: an id above 254 is replaced by the next of the class's
        ids that is not, or else by the lowest free value.
        """
        small = {c: min(c.ids, key=lambda i: i >= IGNORE_INDEX) for c in self.predicted}
        predicted, all_ids = set(small.values()), {i for c in self.classes for i in c.ids}
        # A value that no label has is better than that of an ignored class, which maps never hold.
        free = iter(sorted(set(range(IGNORE_INDEX)) - predicted, key=lambda i: (i in all_ids, i)))
        return tuple(
            replace(c, id=first if first < IGNORE_INDEX else next(free), more_ids=()) for c, first in small.items()
        )

    @cached_property
    def ids(self) -> NDArray[np.uint8]:
        """(256,) index -> value in maps; IGNORE_INDEX stays as it is."""
        table = np.full(256, IGNORE_INDEX, np.uint8)
        table[: len(self)] = [c.id for c in self.mapped]
        return table

    def named(self, words: str) -> tuple[int, ...]:
        """Return the values in maps of classes that a user names, by names or ids with commas between.

        Raises:
            ConfigError: There is no such class.
        """
        pairs = list(zip(self.predicted, self.mapped, strict=True))
        by_word = {str(i): c.id for own, c in pairs for i in own.ids}
        by_word |= {str(c.id): c.id for _, c in pairs} | {plain_name(c.name): c.id for _, c in pairs}
        # A name may have a comma itself.
        given = [words] if plain_name(words) in by_word else words.split(",")
        for word in given:
            if plain_name(word) not in by_word:
                known = ", ".join(f"{c.id} {c.name}" for c in self.mapped)
                raise ConfigError(f"no class of the model is called {brief(word.strip())}; it has {known}")
        return tuple(dict.fromkeys(by_word[plain_name(word)] for word in given))

    @cached_property
    def _indices(self) -> NDArray[np.uint8]:
        table = np.full(MAX_ID + 1, _UNKNOWN, np.uint8)
        table[[i for c in self.classes for i in c.ids]] = IGNORE_INDEX
        for index, c in enumerate(self.predicted):
            table[[*c.ids]] = index
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
        return self._checked(self.looked_up(labels), labels, path, ignore, "id")

    def looked_up(self, labels: NDArray[Any]) -> NDArray[np.uint8]:
        """Turn class ids of any integer type into indices as ``indices`` does, but those not in the table into 254."""
        if labels.dtype == np.uint8:  # nearly all are; numpy's own lookup makes 64 bits of each first
            looked_up = bytearray(labels.tobytes()).translate(self._indices[:256].tobytes())
            return np.frombuffer(looked_up, np.uint8).reshape(labels.shape)
        found = self._indices[np.clip(labels, 0, MAX_ID)]
        found[(labels < 0) | (labels > MAX_ID)] = _UNKNOWN
        return found

    def by_word(self, word: str) -> LandClass | None:
        """Return the class that has a name, or else an id."""
        known = {str(i): c for c in self.classes for i in c.ids} | {plain_name(c.name): c for c in self.classes}
        return known.get(plain_name(word))

    def with_values(self, values: ValueClasses, path: str) -> "ClassTable":
        """Return the table of labels that hold other values than the ids of the classes.

        Args:
            values: Of each value the name or an id of its class, None where it counts as unknown. The value None is
                every other one; without it, others are refused as unknown ids are.
            path: Named in the error.

        Raises:
            DataError: There is no such class.
        """
        index = {}
        for value, word in values:
            found = None if word is None else self.by_word(word)
            if word is not None and found is None:
                known = ", ".join(f"{c.id} {c.name}" for c in self.classes)
                raise DataError(f"{path}: label_values: {brief(word)} is no class; classes are {known}")
            counts = found is not None and not found.ignore
            index[value] = self.predicted.index(found) if found is not None and counts else IGNORE_INDEX
        return _OtherValues(self.classes, tuple(index.items()))

    def binary_id(self, path: str) -> int:
        """Return the id of the class that is not 0, of a table of two; ``path`` is named in the error.

        Raises:
            DataError: The table has other classes.
        """
        others = [c.id for c in self.classes if 0 not in c.ids]
        if len(others) != 1 or len(self.classes) != 2:
            known = ", ".join(map(str, self._known("id")))
            raise DataError(
                f"{path}: label_values: binary needs a class table of two classes, one with id 0; its ids are {known}"
            )
        return others[0]

    def mask255(self, path: str) -> "ClassTable":
        """Return the table of labels that hold 0 and 255 instead of the ids of two classes; errors as ``binary_id``."""
        other = self.binary_id(path)
        return ClassTable(tuple(replace(c, id=255 if c.id == other else 0, more_ids=()) for c in self.classes))

    def binary_indices(
        self, mask: NDArray[np.bool_], path: str, ignore: NDArray[np.bool_] | None = None
    ) -> NDArray[np.uint8]:
        """Turn a mask into indices: False is the class with id 0, True that with ``binary_id``; else as ``indices``."""
        return self.indices(np.where(mask, self.binary_id(path), 0), path, ignore)

    def color_indices(
        self, colors: NDArray[Any], path: str, ignore: NDArray[np.bool_] | None = None, *, near: bool = False
    ) -> NDArray[np.uint8]:
        """Turn colours 0xRRGGBB into indices; arguments and errors as for ``indices``.

        Args:
            colors: Of any integer type.
            path: Named in the error.
            ignore: Where True, IGNORE_INDEX whatever the colour.
            near: A colour that no class has is that of the class whose bands differ least, by at most 127 in the one
                that differs most. For colours of 0 and 255 alone, this is a threshold at 128.
        """
        codes = np.array([int(c.color[1:], 16) for c in self.classes], np.uint32)
        if len(np.unique(codes)) < len(codes):
            raise DataError(f"{path}: holds colours, but two classes share a colour; give each class its own")
        order = np.argsort(codes)
        nearest = order[np.searchsorted(codes, colors, sorter=order).clip(max=len(codes) - 1)]
        indices = self._indices[[c.id for c in self.classes]]
        found = np.where(codes[nearest] == colors, indices[nearest], _UNKNOWN).astype(np.uint8)
        if near and (others := found == _UNKNOWN).any():
            found[others] = _near(colors[others], codes, indices)
        return self._checked(found, colors, path, ignore, "color")

    def _checked(
        self,
        found: NDArray[np.uint8],
        values: NDArray[Any],
        path: str,
        ignore: NDArray[np.bool_] | None,
        kind: Literal["id", "color"],
    ) -> NDArray[np.uint8]:
        if ignore is not None:
            found[ignore] = IGNORE_INDEX
        unknown = found == _UNKNOWN
        if unknown.any():
            row, col = np.argwhere(unknown)[0].tolist()
            known = f"{self._where} ({', '.join(map(str, self._known(kind)))})"
            values = np.unique(values[unknown])
            shown = ", ".join(f"#{v:06x}" if kind == "color" else str(v) for v in values[:8].tolist())
            what = f"label {'color' if kind == 'color' else self._what}{'s' * (len(values) > 1)}"
            raise UnknownLabelError(path, f"{what} {shown}", known, self._fix(kind), (row, col))
        return found

    _what: ClassVar[str] = "id"
    """What the values of label rasters are called in messages."""
    _where: ClassVar[str] = "the class table"
    """Where they are listed."""

    def _fix(self, kind: Literal["id", "color"]) -> str:
        fix = f"add a class with that {kind}, with ignore: true if it should not count"
        if len(self.classes) == 2 and any(0 in c.ids for c in self.classes):
            fix += "; or set label_values: binary, if every value but 0 is the other class"
        return fix

    def _known(self, kind: Literal["id", "color"]) -> list[Any]:
        return [c.color for c in self.classes] if kind == "color" else [i for c in self.classes for i in c.ids]

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows of dataset.yaml and config.json; ``id`` is beside ``ids`` for programs that know it alone."""
        plain = [{"id": c.id, "name": c.name, "color": c.color} for c in self.classes]
        said = [
            ({"ids": [*c.ids]} if c.more_ids else {})
            | ({"ignore": True} if c.ignore else {})
            | ({} if c.background is None else {"background": c.background})
            for c in self.classes
        ]
        return [row | more for row, more in zip(plain, said, strict=True)]

    @staticmethod
    def from_dicts(rows: Sequence[Mapping[str, Any]], path: str) -> "ClassTable":
        """Read what ``to_dicts`` writes; ``path`` is named in errors."""
        classes: list[LandClass] = []
        for number, row in enumerate(rows, 1):
            where = f"{path}: class {number}"
            only_keys(row, {"name"}, {"id", "ids", "color", "ignore", "background"}, where)
            if not _is_color(row.get("color", IGNORED)):
                raise DataError(f'{where}: color must look like "#3c1098", got {brief(row["color"])}')
            first, *more = _ids(row, where)
            default = IGNORED if row.get("ignore") else default_color(sum(not c.ignore for c in classes))
            classes.append(
                LandClass(
                    id=first,
                    name=str(checked(str | int | float | bool, row["name"], f"{where}: name")),
                    color=row.get("color", default),
                    ignore=bool(checked(bool | int, row.get("ignore", False), f"{where}: ignore")),
                    background=checked(bool | None, row.get("background"), f"{where}: background"),
                    more_ids=tuple(more),
                )
            )
        try:
            return ClassTable(tuple(classes))
        except DataError as error:
            raise DataError(f"{path}: {error}") from error


@dataclass(frozen=True)
class _OtherValues(ClassTable):
    """A class table whose labels hold other values than its ids."""

    index_of: tuple[tuple[int | None, int], ...] = ()
    _what: ClassVar[str] = "value"
    _where: ClassVar[str] = "label_values"

    @cached_property
    def _indices(self) -> NDArray[np.uint8]:
        table = np.full(MAX_ID + 1, dict(self.index_of).get(None, _UNKNOWN), np.uint8)
        for value, index in self.index_of:
            if value is not None:
                table[value] = index
        return table

    def _known(self, kind: Literal["id", "color"]) -> list[Any]:
        return [value for value, _ in self.index_of]

    def _fix(self, kind: Literal["id", "color"]) -> str:
        return "name its class there, null if it should not count, or that of all others as *"


def named_rows(classes: Mapping[Any, Any], path: str) -> list[dict[str, Any]]:
    """Return the rows of ``classes`` written by name: an id, a list of ids, or the other keys of a row for each.

    Raises:
        DataError: A class has none of these; ``path`` is named.
    """
    rows = []
    for name, said in classes.items():
        match said:
            case Mapping():
                if "name" in said:
                    raise DataError(
                        f"{path}: class {name} has its name already, got name: {brief(said['name'])} inside"
                    )
                rows.append({"name": name, **said})
            case list():
                rows.append({"name": name, "ids": said})
            case _:
                rows.append({"name": name, "id": said})
    return rows


def _ids(row: Mapping[str, Any], where: str) -> list[int]:
    """Return the ids of a row of a class table, which says ``id`` or ``ids``; both where the first is the same."""
    if "id" not in row and "ids" not in row:
        raise DataError(f"{where}: has no id; write id: 1, or ids: [1, 2, 5] where several values mean this class")
    ids = row.get("ids", [row.get("id")])
    for value in ids if isinstance(ids, list) else [ids]:
        if type(value) is not int or not 0 <= value <= MAX_ID:
            raise DataError(f"{where}: id must be a whole number 0..{MAX_ID}, got {brief(value)}")
    if not isinstance(ids, list) or not ids:
        raise DataError(f"{where}: ids must be a list of whole numbers, e.g. [1, 2, 5], got {brief(ids)}")
    if row.get("id", ids[0]) != ids[0]:
        raise DataError(f"{where}: id must be the first of ids, got id {brief(row['id'])} and ids {brief(ids)}")
    return ids


def _near(colors: NDArray[Any], codes: NDArray[np.uint32], indices: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the index of the class with the nearest of the colours ``codes``; _UNKNOWN where none is within 127."""
    different, where = np.unique(colors, return_inverse=True)
    given, known = (np.stack([c >> 16, c >> 8 & 255, c & 255], -1).astype(np.int16) for c in (different, codes))
    apart = np.abs(given[:, None] - known).max(-1)  # (colours, classes)
    found = np.where(apart.min(1) <= NEAR, indices[apart.argmin(1)], _UNKNOWN).astype(np.uint8)
    return found[where]


def _is_color(value: Any) -> bool:
    digits = set("0123456789abcdefABCDEF")
    return isinstance(value, str) and len(value) == 7 and value[0] == "#" and set(value[1:]) <= digits
