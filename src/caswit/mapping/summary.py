"""What there is to say at the end of a map: files, areas of the classes, and how far the model can be trusted here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from caswit.inference.confidence import Confidence
from caswit.mapping.blocks import CONFIDENCE
from caswit.raster.cog import PlacedPart, read_tags
from caswit.raster.georef import Grid
from caswit.raster.ground import ClassArea
from caswit.weights.learned import Learned
from caswit.weights.model_folder import LoadedModel

_FAR_KM = 500.0
"""Distance from the training area from which on a model is called far from home."""


class Trust(NamedTuple):
    """Where a model learned, and how sure it is of a map."""

    model: str
    learned: Learned
    where: str
    """Where it learned, and how far that is from here, as ``Learned.where`` says it."""
    distance_km: float | None
    """From the middle of the image to the training area, 0 inside of it; None where either is unknown."""
    confidence: float | None
    """Mean over all mapped pixels, in percent; None where the parts are of a version that did not store it."""
    unsure: Mapping[str, tuple[float, float]]
    """Classes with much less confidence than on the validation data: in percent, here and there."""

    @staticmethod
    def of(loaded: LoadedModel, grid: Grid, confidence: Confidence | None) -> "Trust":
        """Compare a map with the data that its model learned from."""
        learned = Learned.of(loaded.info.provenance)
        names = loaded.info.classes.names
        return Trust(
            loaded.name,
            learned,
            learned.where(grid.degrees),
            learned.distance_km(grid.degrees),
            confidence.mean if confidence else None,
            confidence.unsure(names, learned.confidence_of_classes) if confidence else {},
        )

    @property
    def line(self) -> str:
        """The model, where it learned, and how sure it is, in a line."""
        there = self.learned.confidence
        sure = "" if self.confidence is None else f"mean confidence {self.confidence:.0f} %"
        if sure and there is not None:
            sure += f" ({there:.0f} % on its validation data)"
        return f"model: {self.model}{self.where and ', ' + self.where}{sure and '; ' + sure}"

    @property
    def warning(self) -> str | None:
        """What speaks against this model on this image, in a line; None where nothing is known to."""
        classes = (f"{name} {here:.0f} % ({there:.0f} %)" for name, (here, there) in self.unsure.items())
        doubts = []
        if self.unsure:
            doubts.append(f"low confidence here (on its validation data): {', '.join(classes)}")
        if self.distance_km is not None and self.distance_km > _FAR_KM:
            doubts.append(f"far from where it learned ({self.distance_km:,.0f} km)")
        if not doubts:
            return None
        return f"{self.model}: {'; '.join(doubts)}: compare the map with the image before you use it"


def confidence_of(parts: Sequence[PlacedPart], classes: int) -> Confidence | None:
    """Add up the confidence that parts carry; None if none does, as those of earlier versions."""
    found = [Confidence.from_text(read_tags(part.file).get(CONFIDENCE), classes) for part in parts]
    known = [each for each in found if each is not None]
    return sum(known, start=Confidence.zeros(classes)) if known else None


def area_table(areas: Mapping[str, ClassArea]) -> list[str]:
    """Return the lines of a table: each class with its area in hectares and square metres, pixels and percent.

    Args:
        areas: By the name of the class, in the order of the lines; without ground size, pixels alone are given.
    """
    whole = sum(area.pixels for area in areas.values())
    known = all(area.area_m2 is not None for area in areas.values())
    total_m2 = sum(area.area_m2 or 0.0 for area in areas.values())
    rows = [("class", "ha", "m2", "%") if known else ("class", "pixels", "%")]
    for name, area in areas.items():
        share = (area.area_m2 or 0.0) / total_m2 if known and total_m2 else area.pixels / max(whole, 1)
        size = (f"{area.area_m2 / 1e4:,.2f}", f"{area.area_m2:,.0f}") if area.area_m2 is not None and known else (
            f"{area.pixels:,}",
        )  # fmt: skip
        rows.append((name, *size, f"{100 * share:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = ([f"{row[0]:{widths[0]}}", *map(str.rjust, row[1:], widths[1:])] for row in rows)
    return ["  ".join(cells) for cells in aligned]


def add_areas(maps: Sequence[Mapping[str, ClassArea]]) -> dict[str, ClassArea]:
    """Add up the areas of several maps, class by class; unknown where one is."""
    total: dict[str, ClassArea] = {}
    for name, area in (item for areas in maps for item in areas.items()):
        before = total.get(name, ClassArea(0, 0.0))
        known = before.area_m2 is not None and area.area_m2 is not None
        total[name] = ClassArea(
            before.pixels + area.pixels, (before.area_m2 or 0.0) + (area.area_m2 or 0.0) if known else None
        )
    return total


def named(areas: Mapping[int, ClassArea], names: Mapping[int, str]) -> dict[str, ClassArea]:
    """Return areas by the names of the classes, in the order of the class table; classes that are not there as 0."""
    known = all(area.area_m2 is not None for area in areas.values())
    return {name: areas.get(i, ClassArea(0, 0.0 if known else None)) for i, name in names.items()}
