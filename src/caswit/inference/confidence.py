"""How sure a model is of its classes: sums over pixels, which add up over blocks, tiles and processes.

Confidence is the probability of the class that was predicted, in whole percent. Shapes: K classes, H x W pixels.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from caswit.errors import CaswitError
from caswit.files import checked
from caswit.raster.reader import Bool, UInt8

_LEAST_SHARE = 0.01
"""Classes on less of the map than this are not compared: a mean over a few pixels says little."""
_MUCH = 5.0
"""Percentage points below the validation data from which on a class is called unsure (docs/mapping.md has figures)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Confidence:
    """Pixels of each class and the sum of their confidence."""

    pixels: NDArray[np.int64]
    """(K,)."""
    percent: NDArray[np.int64]
    """(K,): sums over these pixels, in percent."""

    @classmethod
    def zeros(cls, classes: int) -> Self:
        """Return the sums over no pixel."""
        return cls(pixels=np.zeros(classes, np.int64), percent=np.zeros(classes, np.int64))

    @classmethod
    def count(cls, indices: UInt8, percent: UInt8, valid: Bool, classes: int) -> Self:
        """Sum over pixels: class indices, confidence in percent and which pixels count, each (H, W)."""
        found = indices[valid]
        sums = np.bincount(found, weights=percent[valid], minlength=classes)  # whole numbers, exact in a double
        return cls(pixels=np.bincount(found, minlength=classes), percent=sums.astype(np.int64))

    @classmethod
    def from_text(cls, text: str | None, classes: int) -> Self | None:
        """Read what ``text`` wrote; None for anything else."""
        try:
            sums = checked(dict[str, list[int]], json.loads(text or ""), "")
            made = cls(pixels=np.array(sums["pixels"]), percent=np.array(sums["percent"]))
        except (ValueError, LookupError, CaswitError):
            return None
        return made if made.pixels.shape == made.percent.shape == (classes,) else None

    def text(self) -> str:
        """Return the sums as JSON."""
        return json.dumps({"pixels": self.pixels.tolist(), "percent": self.percent.tolist()})

    def __add__(self, other: "Confidence") -> "Confidence":
        return Confidence(pixels=self.pixels + other.pixels, percent=self.percent + other.percent)

    @property
    def mean(self) -> float | None:
        """Mean over all pixels, in percent; None without any."""
        return float(self.percent.sum() / self.pixels.sum()) if self.pixels.sum() else None

    def of_classes(self, names: Sequence[str]) -> dict[str, float]:
        """Return the mean over the pixels of each class that was predicted, in percent, by name."""
        there = zip(names, self.pixels.tolist(), self.percent.tolist(), strict=True)
        return {name: percent / pixels for name, pixels, percent in there if pixels}

    def values(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the means as a model folder stores those on its validation data: one decimal, in percent."""
        classes = {name: round(mean, 1) for name, mean in self.of_classes(names).items()}
        return {} if self.mean is None else {"mean": round(self.mean, 1), "classes": classes}

    def unsure(self, names: Sequence[str], expected: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Return the classes that the model is much less sure of than on its validation data: here, and there.

        The mean over all pixels does not tell: a model of buildings is sure of the sea, wherever it lies.
        """
        large = self.pixels >= _LEAST_SHARE * self.pixels.sum()
        compared = [name for name, enough in zip(names, large, strict=True) if enough and name in expected]
        here = self.of_classes(names)
        return {name: (here[name], expected[name]) for name in compared if here.get(name, 100) < expected[name] - _MUCH}
