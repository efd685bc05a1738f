"""Choose the classes that are scored: those of the dataset, or those of a named benchmark (paper section 4.2).

A protocol is a list of class ids. Truth of any other class is ignored, and so is a pixel where the model predicts any
other class, as FLAIR-HUB drops both the rows and the columns of its unused classes from the confusion matrix.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, ProtocolName
from caswit.data.classes import ClassTable, plain_name
from caswit.data.dataset import Dataset
from caswit.errors import DataError

PROTOCOL_IDS: dict[ProtocolName, tuple[int, ...]] = {"flair15": tuple(range(15)), "urur8": tuple(range(8))}
"""flair15: the first 15 of FLAIR-HUB's 19 classes. urur8: all eight of URUR, class 0 "others" included."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The classes that are scored, and tables from class indices of truth and prediction to scored ones."""

    classes: ClassTable
    """Classes of the dataset, without those that the protocol leaves out."""
    truth: NDArray[np.uint8]
    """(256,) index in the dataset's table -> scored index; IGNORE_INDEX for a class that is not scored."""
    prediction: NDArray[np.uint8]
    """(256,) index in the model's table -> scored index; IGNORE_INDEX for a class whose pixels are dropped."""

    def pair(self, truth: NDArray[Any], prediction: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Convert truth and prediction to scored indices; dropped pixels become ignored truth."""
        scored_truth, scored_prediction = self.truth[truth], self.prediction[prediction]
        scored_truth[scored_prediction == IGNORE_INDEX] = IGNORE_INDEX
        return scored_truth, scored_prediction


def scored_classes(table: ClassTable, data: Dataset, protocol: ProtocolName | None) -> Scored:
    """Return the classes that are scored of a model that predicts ``table``.

    Raises:
        DataError: Model and dataset differ in their classes, or lack classes of the protocol.
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
    if [(i, plain_name(name)) for i, name in ours] != [(i, plain_name(name)) for i, name in theirs]:
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
    # URUR has no other classes, and truth and predictions of others would be dropped from the scores without a word.
    others = [c for c in _named(data.classes) if c[0] not in ids] if protocol == "urur8" else []
    if others:
        raise DataError(
            f"{data.path}: protocol urur8 is for datasets of class ids 0-7 alone, this one also has "
            f"{_listed(others)}; use another protocol, or none"
        )
    theirs, ours = ([c for c in _named(t) if c[0] in ids] for t in (data.classes, table))
    if ours != theirs:
        raise DataError(
            f"{data.path}: of the classes that {protocol} scores the model has {_listed(ours)}, the dataset "
            f"{_listed(theirs)}; scores need the same classes with the same ids"
        )


def _lookup(table: ClassTable, ids: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return (256,): index in ``table`` -> position among its classes with one of the ids, IGNORE_INDEX for others."""
    lookup = np.full(256, IGNORE_INDEX, np.uint8)
    indices = [index for index, each in enumerate(table.predicted) if each.id in ids]
    lookup[indices] = np.arange(len(indices))
    return lookup


def _named(table: ClassTable) -> list[tuple[int, str]]:
    return [(c.id, c.name) for c in table.predicted]


def _listed(classes: list[tuple[int, str]]) -> str:
    return ", ".join(f"{number} {name}" for number, name in classes)
