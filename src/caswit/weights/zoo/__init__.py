"""The zoo: models that come with the package. This module does not import torch, so that listing them takes no time."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from caswit.errors import ConfigError, ModelError, did_you_mean
from caswit.weights.hub import is_on_hub
from caswit.weights.learned import Learned

log = logging.getLogger(__name__)
_FOLDER = Path(__file__).parent
_RENAMED = {"caswit-nano-buildings": "swin-nano-buildings", "caswit-nano-dubai": "swin-nano-dubai"}
"""Models of earlier versions, and those that took their place."""


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
    """Lowest and highest ground size of a pixel that it is meant for, in metres."""
    classes: tuple[str, ...]
    """Names of the classes it predicts."""
    sample: Path
    """File of an image of the kind it is for."""
    sample_gsd_m: float
    """Ground size of the sample's pixels, in metres."""
    read_gsd_m: float | None = None
    """Ground size that images are resampled to; None: they are read as they are."""
    reads_context: bool = False
    """It reads the context of each tile, so that its attention can be shown."""
    learned: Learned = field(default_factory=Learned)
    """Where it learned, and how sure it is of its validation data."""

    def fits(self, gsd_m: float, models: "Sequence[ZooModel]") -> tuple[bool, str]:
        """Return whether it is meant for pixels of a ground size, and why; finer ones are averaged by the finest."""
        low, high = self.gsd_m
        if gsd_m > 1.001 * high:  # files round
            return False, f"pixels of {gsd_m:.3g} m are coarser than its {low:g} to {high:g} m"
        if gsd_m >= low:
            return True, f"pixels of {gsd_m:.3g} m; it is for {low:g} to {high:g} m"
        if self.read_gsd_m is None or low > min(model.gsd_m[0] for model in models):
            return False, f"pixels of {gsd_m:.3g} m are finer than its {low:g} to {high:g} m"
        return True, f"pixels of {gsd_m:.3g} m, which are averaged to the {self.read_gsd_m:g} m that it reads"


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
        read_gsd_m=config["tile"].get("read_gsd_m", config["tile"].get("gsd_m")),  # as version 0.1.0 called it
        reads_context=bool(config["model"].get("fusion_stages", True)),
        learned=Learned.of(config.get("provenance", {})),
    )


def find(name: str | Path) -> Path | None:
    """Return the folder of the model of this name, or None if the zoo has none or a file or folder has the name."""
    if Path(name).exists():
        return None
    if (new := _RENAMED.get(str(name))) is not None:
        _say_replaced(str(name), new)
    return next((m.folder for m in zoo_models() if m.name == (new or str(name))), None)


@cache
def _say_replaced(old: str, new: str) -> None:
    log.warning("%s has been replaced by %s, which is taken", old, new)


def check_there(name: str | Path) -> None:
    """Raise ModelError unless a model's name is one of the zoo, on the hub, or that of a file or folder."""
    if not is_on_hub(name) and find(name) is None and not Path(name).exists():
        names = [m.name for m in zoo_models()]
        near = did_you_mean(Path(name).name.lower(), names)
        raise ModelError(f"{name}: no such model folder, and no model of the package ({', '.join(names)}){near}")


def choose(gsd_m: float | None, image: str, models: Sequence[ZooModel] | None = None) -> tuple[ZooModel, str]:
    """Choose the model for an image by the ground size of its pixels; return it and the reason.

    Of several that are meant for such pixels, the one with the most classes is chosen.

    Args:
        gsd_m: Ground size in metres; None where unknown.
        image: Name of the image, for messages.
        models: Models to choose from; None: the zoo.

    Raises:
        ConfigError: The ground size is unknown, or no model or several alike are meant for it; the models are named.
    """
    models = zoo_models() if models is None else models
    listed = f"--model NAME ({', '.join(m.name for m in models) or 'none'}); caswit predict IMAGE --list says more"
    if gsd_m is None:
        raise ConfigError(
            f"{image}: the ground size of its pixels is unknown, so no model can be chosen; add --gsd-m METRES, or "
            f"{listed}"
        )
    fitting = fitting_models(gsd_m, models)
    best = best_of(fitting)
    if best is None:
        many = "several models are" if fitting else "no model is"
        raise ConfigError(f"{image}: {many} meant for pixels of {gsd_m:.3g} m; choose one with {listed}")
    why = best.fits(gsd_m, models)[1]
    others = ", ".join(model.name for model in fitting if model is not best)
    return best, f"{why}, and has more classes than {others}" if others else why


def fitting_models(gsd_m: float, models: Sequence[ZooModel]) -> list[ZooModel]:
    """Return the models that are meant for pixels of a ground size."""
    return [model for model in models if model.fits(gsd_m, models)[0]]


def best_of(fitting: Sequence[ZooModel]) -> ZooModel | None:
    """Return the model with the most classes of those that fit; None without any, or with two such."""
    most = max((len(model.classes) for model in fitting), default=0)
    best = [model for model in fitting if len(model.classes) == most]
    return best[0] if len(best) == 1 else None
