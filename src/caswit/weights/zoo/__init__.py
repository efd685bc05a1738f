"""Models that come with the package: a folder each, with weights, config and model card."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from caswit.errors import ConfigError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A model of the package."""

    name: str
    """By which every command takes it."""
    folder: Path
    """Model folder."""
    summary: str
    """What it maps, in a line."""
    gsd_m: tuple[float, float]
    """Ground sizes of a pixel, in metres, it is meant for: from, to below."""
    classes: tuple[str, ...]
    """What it tells apart."""
    sample: Path
    """An image of the kind it is for."""
    sample_gsd_m: float
    """Ground size of the sample's pixels, in metres."""

    def __str__(self) -> str:
        """Name and what it is for, in a line."""
        return f"{self.name} ({self.gsd_m[0]:g}-{self.gsd_m[1]:g} m a pixel: {', '.join(self.classes)})"


@cache
def zoo_models() -> tuple[ZooModel, ...]:
    """All models of the package, by name."""
    return tuple(_boxed(file) for file in sorted(_FOLDER.glob("*/config.json")))


def _boxed(file: Path) -> ZooModel:
    config = json.loads(file.read_text(encoding="utf-8"))
    about = config["about"]
    return ZooModel(
        name=file.parent.name,
        folder=file.parent,
        summary=about["summary"],
        gsd_m=tuple(about["gsd_m"]),
        classes=tuple(c["name"] for c in config["classes"] if not c.get("ignore")),
        sample=file.with_name(about["sample"]),
        sample_gsd_m=about["sample_gsd_m"],
    )


def find(name: str | Path) -> Path | None:
    """Folder of the model of this name, None if the package has none. What lies at a path comes first."""
    if Path(name).exists():
        return None
    return next((m.folder for m in zoo_models() if m.name == str(name)), None)


def choose(gsd_m: float | None, image: str, models: Sequence[ZooModel] | None = None) -> tuple[ZooModel, str]:
    """The model for an image whose pixels have this ground size, and why it.

    Args:
        gsd_m: In metres; None where unknown.
        image: What to call it.
        models: To choose from; None: those of the package.

    Raises:
        ConfigError: The ground size is unknown, or no model or several are for it; the models are listed.
    """
    models = zoo_models() if models is None else models
    known = f"the models of the package are {'; '.join(map(str, models)) or 'none'}"
    if gsd_m is None:
        raise ConfigError(
            f"{image}: nobody knows the ground size of its pixels, so no model can be chosen; add --gsd-m METRES, or "
            f"--model NAME: {known}"
        )
    fitting = [m for m in models if m.gsd_m[0] <= gsd_m < m.gsd_m[1]]
    if len(fitting) != 1:
        many = "several models are" if fitting else "no model is"
        raise ConfigError(f"{image}: {many} meant for pixels of {gsd_m:.3g} m; say which with --model: {known}")
    (model,) = fitting
    reason = f"pixels of {gsd_m:.3g} m; it is for {model.gsd_m[0]:g} to {model.gsd_m[1]:g} m"
    return model, reason
