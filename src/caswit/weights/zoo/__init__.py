"""The zoo: models that come with the package. This module does not import torch, so that listing them takes no time."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from caswit.errors import ConfigError

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class ZooModel:
    """A model of the zoo."""

    name: str
    """Name, which every command takes in place of a model folder."""
    folder: Path
    """Model folder."""
    summary: str
    """Line that says what it maps."""
    gsd_m: tuple[float, float]
    """Lowest and highest ground size of a pixel that it is meant for, in metres; the highest is excluded."""
    classes: tuple[str, ...]
    """Names of the classes it predicts."""
    sample: Path
    """File of an image of the kind it is for."""
    sample_gsd_m: float
    """Ground size of the sample's pixels, in metres."""

    def __str__(self) -> str:
        """Return its name and what it is for, in a line."""
        return f"{self.name} ({self.gsd_m[0]:g}-{self.gsd_m[1]:g} m a pixel: {', '.join(self.classes)})"


@cache
def zoo_models() -> tuple[ZooModel, ...]:
    """Return all models of the zoo, sorted by name."""
    return tuple(_read(file) for file in sorted(_FOLDER.glob("*/config.json")))


def _read(file: Path) -> ZooModel:
    """Read a model's entry from its config.json."""
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
    """Return the folder of the model of this name, or None if the zoo has none or a file or folder has the name."""
    if Path(name).exists():
        return None
    return next((m.folder for m in zoo_models() if m.name == str(name)), None)


def choose(gsd_m: float | None, image: str, models: Sequence[ZooModel] | None = None) -> tuple[ZooModel, str]:
    """Choose the model for an image by the ground size of its pixels; return it and the reason.

    Args:
        gsd_m: Ground size in metres; None where unknown.
        image: Name of the image, for messages.
        models: Models to choose from; None: the zoo.

    Raises:
        ConfigError: The ground size is unknown, or no model or several are meant for it; the models are listed.
    """
    models = zoo_models() if models is None else models
    known = f"the models of the package are {'; '.join(map(str, models)) or 'none'}"
    if gsd_m is None:
        raise ConfigError(
            f"{image}: the ground size of its pixels is unknown, so no model can be chosen; add --gsd-m METRES, or "
            f"--model NAME: {known}"
        )
    fitting = [m for m in models if m.gsd_m[0] <= gsd_m < m.gsd_m[1]]
    if len(fitting) != 1:
        many = "several models are" if fitting else "no model is"
        raise ConfigError(f"{image}: {many} meant for pixels of {gsd_m:.3g} m; choose one with --model: {known}")
    (model,) = fitting
    reason = f"pixels of {gsd_m:.3g} m; it is for {model.gsd_m[0]:g} to {model.gsd_m[1]:g} m"
    return model, reason
