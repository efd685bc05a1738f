"""Where a model learned and how sure it is of its validation data, as its config.json holds it in ``provenance``.

This module does not import torch, so that ``caswit predict --list`` takes no time.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NamedTuple, NotRequired, TypedDict

from caswit.errors import DataError
from caswit.files import checked
from caswit.raster.ground import Degrees, distance_km


class _Place(TypedDict):
    name: NotRequired[str | None]
    names: NotRequired[list[str]]
    """Of each area, where there are several."""
    area: NotRequired[Degrees | None]
    """As versions wrote it that knew one area."""
    areas: NotRequired[list[Degrees]]


class _Confidence(TypedDict):
    mean: float
    classes: dict[str, float]


class _Context(TypedDict):
    own: float
    """Mean IoU of the classes in the labels, 0..1, with the context that the image has."""
    masked: float
    """The same with black around the tile."""


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
    place_of_area: tuple[str, ...] = ()
    """Name of each area, in their order; empty where they have none of their own."""
    masking_costs: float | None = None
    """Points of mIoU that it loses on validation data with its context masked."""

    @staticmethod
    def of(provenance: Mapping[str, Any]) -> "Learned":
        """Read what a model folder says; models of earlier versions say little."""
        place, sure = provenance.get("learned"), provenance.get("validation_confidence")
        context = provenance.get("context_report")
        named: _Place = {}
        mean, classes, costs = None, {}, None
        # A line at the end of a map is not worth refusing a model that someone described by hand: what cannot be read
        # is left out, and the rest holds.
        with suppress(DataError):
            named = checked(_Place, place or {}, "learned")
        with suppress(DataError):
            if sure:
                confidence = checked(_Confidence, sure, "validation_confidence")
                mean, classes = confidence["mean"], confidence["classes"]
        with suppress(DataError):
            if context:
                scores = checked(_Context, context, "context_report")
                costs = 100 * (scores["own"] - scores["masked"])
        dataset = provenance.get("dataset")
        areas = tuple(named.get("areas") or ())
        if not areas and (area := named.get("area")) is not None:
            areas = (area,)
        names = tuple(named.get("names") or ())
        return Learned(
            place=named.get("name"),
            dataset=dataset if isinstance(dataset, str) else None,
            areas=areas,
            confidence=mean,
            confidence_of_classes=classes,
            place_of_area=names if len(names) == len(areas) else (),
            masking_costs=costs,
        )

    def distance_km(self, bounds: Degrees | None) -> float | None:
        """Return the distance from the middle of an image's bounds to the nearest area; None if either is unknown."""
        return min((distance_km(bounds, area) for area in self.areas), default=None) if bounds else None

    def where(self, bounds: Degrees | None) -> str:
        """Return where the model learned and how far that is from an image's bounds; empty where nothing is known.

        As "learned in Nepal, 12 km from here", or "learned in France (where the image lies) and in Nepal".
        """
        name = f"learned in {self.place}" if self.place else f"trained on {self.dataset}" if self.dataset else ""
        away_km = self.distance_km(bounds)
        if away_km is None or not name:
            return name
        near = "where the image lies" if away_km < 1 else f"{away_km:,.0f} km from here"
        if bounds is None or len(set(self.place_of_area)) < 2:
            return f"{name}, {near}"
        first = min(zip(self.areas, self.place_of_area, strict=True), key=lambda each: distance_km(bounds, each[0]))[1]
        others = dict.fromkeys(place for place in self.place_of_area if place != first)
        return f"learned in {first} ({near}) and in {' and in '.join(others)}"
