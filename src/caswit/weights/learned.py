"""Where a model learned and how sure it is of its validation data, as its config.json holds it in ``provenance``.

This module does not import torch, so that ``caswit predict --list`` takes no time.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, NotRequired, TypedDict

from caswit.errors import DataError
from caswit.files import checked
from caswit.raster.ground import Degrees, distance_km


class _Place(TypedDict):
    name: NotRequired[str | None]
    area: NotRequired[Degrees | None]
    """As versions wrote it that knew one area."""
    areas: NotRequired[list[Degrees]]


class _Confidence(TypedDict):
    mean: float
    classes: dict[str, float]


class Learned(NamedTuple):
    """Facts of a model's training that say where it can be trusted."""

    place: str | None = None
    """Name of the training area as its maker wrote it."""
    dataset: str | None = None
    """Name of the dataset."""
    areas: tuple[Degrees, ...] = ()
    """West, south, east, north of the training images in degrees, of each region."""
    confidence: float | None = None
    """Mean confidence on validation data, in percent."""
    confidence_of_classes: Mapping[str, float] = {}
    """The same over the pixels of each predicted class."""

    @staticmethod
    def of(provenance: Mapping[str, Any]) -> "Learned":
        """Read what a model folder says; models of earlier versions say little."""
        place, sure = provenance.get("learned"), provenance.get("validation_confidence")
        named: _Place = {}
        mean, classes = None, {}
        # A line at the end of a map is not worth refusing a model that someone described by hand.
        try:
            named = checked(_Place, place or {}, "learned")
            if sure:
                confidence = checked(_Confidence, sure, "validation_confidence")
                mean, classes = confidence["mean"], confidence["classes"]
        except DataError:
            pass
        dataset = provenance.get("dataset")
        areas = tuple(named.get("areas") or ())
        if not areas and (area := named.get("area")) is not None:
            areas = (area,)
        return Learned(named.get("name"), dataset if isinstance(dataset, str) else None, areas, mean, classes)

    def distance_km(self, bounds: Degrees | None) -> float | None:
        """Return the distance from the middle of an image's bounds to the nearest area; None if either is unknown."""
        return min((distance_km(bounds, area) for area in self.areas), default=None) if bounds else None

    def where(self, distance_km: float | None) -> str:
        """Return where the model learned, as "learned in Nepal, 12 km from here"; empty where nothing is known."""
        name = f"learned in {self.place}" if self.place else f"trained on {self.dataset}" if self.dataset else ""
        if distance_km is None or not name:
            return name
        return f"{name}, {'where the image lies' if distance_km < 1 else f'{distance_km:,.0f} km from here'}"
