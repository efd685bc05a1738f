"""Which classes a score counts: those of the dataset, or those of a named benchmark (paper section 4.2).

A protocol is a list of class ids. Truth of any other class is ignored; where a model predicts any other class, the
pixel is dropped, as the rows *and columns* of FLAIR-HUB's unused classes are dropped from its confusion matrix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, ProtocolName
from caswit.data.classes import ClassTable
from caswit.data.dataset import Dataset
from caswit.errors import DataError

PROTOCOL_IDS: dict[ProtocolName, tuple[int, ...]] = {"flair15": tuple(range(15)), "urur8": tuple(range(8))}
"""flair15: of 19 classes the first 15. urur8: all eight, class 0 "others" among them."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The classes that are scored, and how indices of truth and prediction become theirs."""

    classes: ClassTable
    """Of the dataset, without what the protocol leaves out."""
    truth: NDArray[np.uint8]
    """(256,) index in the dataset's table -> scored index, IGNORE_INDEX where it does not count."""
    prediction: NDArray[np.uint8]
    """(256,) index in the model's table -> scored index, IGNORE_INDEX where the pixel is dropped."""

    def pair(self, truth: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Truth and prediction as scored indices; dropped pixels are ignored in truth."""
        kept = self.prediction[prediction]
        there = self.truth[truth]
        there[kept == IGNORE_INDEX] = IGNORE_INDEX
        return there, kept


def scored_classes(table: ClassTable, data: Dataset, protocol: ProtocolName | None) -> Scored:
    """What is scored of a model that predicts ``table``.

    Raises:
        DataError: Model and dataset do not have the same classes, or not those of the protocol.
    """
    if protocol is None:
        ids = tuple(c.id for c in data.classes.predicted)
        check_same_classes(table, data)
    else:
        ids = PROTOCOL_IDS[protocol]
        _check_protocol(table, data, protocol)
    classes = ClassTable(tuple(c for c in data.classes.predicted if c.id in ids))
    return Scored(classes=classes, truth=_lookup(data.classes, ids), prediction=_lookup(table, ids))


def check_same_classes(table: ClassTable, data: Dataset) -> None:
    """Raise DataError unless model and dataset predict the same classes in the same order."""
    theirs, ours = _named(data.classes), _named(table)
    if ours != theirs:
        raise DataError(
            f"{data.path}: the model predicts {_listed(ours)}, the dataset has {_listed(theirs)}; "
            "scores need the same classes with the same ids"
        )


def _check_protocol(table: ClassTable, data: Dataset, protocol: ProtocolName) -> None:
    ids = PROTOCOL_IDS[protocol]
    for who, classes in (("the dataset", data.classes), ("the model", table)):
        missing = [str(i) for i in ids if i not in {c.id for c in classes.predicted}]
        if missing:
            raise DataError(
                f"{data.path}: protocol {protocol} scores class ids {ids[0]}-{ids[-1]}, {who} does not have "
                f"{', '.join(missing)} or ignores them; use another protocol, or none"
            )
    theirs, ours = ([c for c in _named(t) if c[0] in ids] for t in (data.classes, table))
    if ours != theirs:
        raise DataError(
            f"{data.path}: of the classes that {protocol} scores the model has {_listed(ours)}, the dataset "
            f"{_listed(theirs)}; scores need the same classes with the same ids"
        )


def _lookup(table: ClassTable, ids: tuple[int, ...]) -> NDArray[np.uint8]:
    found = np.full(256, IGNORE_INDEX, np.uint8)
    order = [c.id for c in table.predicted if c.id in ids]
    for index, each in enumerate(table.predicted):
        if each.id in ids:
            found[index] = order.index(each.id)
    return found


def _named(table: ClassTable) -> list[tuple[int, str]]:
    return [(c.id, c.name) for c in table.predicted]


def _listed(classes: list[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {name}" for number, name in classes)
