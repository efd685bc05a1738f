"""Settings of the weights that training starts from."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from caswit.config.checks import check
from caswit.errors import brief

WeightSource = Literal["caswit", "timm", "transformers", "mmseg", "smp", "flair_hub", "official"]


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """Weights to start from. In a recipe ``source`` is called ``from``, which is a keyword in Python."""

    source: WeightSource = "caswit"
    """Origin of the weights, which decides how their names are translated: caswit (pretrained or trained), timm,
    transformers, mmseg, smp, flair_hub (IGN's), or official (the authors', whose names are not public: names that do
    not fit are reported)."""
    path: str | None = None
    """A file of weights, a folder that holds one, a run or model folder, or hf:owner/name; $NAME is expanded."""
    timm: bool = False
    """Download timm's own ImageNet weights for the size instead of reading ``path``."""
    context: bool = True
    """Weights of a single encoder start the context encoder too."""
    decoder: bool = False
    """Take the decoder too, where the weights have one of the same shape."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of names to replace before anything else, e.g. {backbone_hr.: hr_encoder.}."""
    min_matched: float = 0.9
    """Refuse to start when a smaller share of the encoders' weights is found."""

    def __post_init__(self) -> None:
        """Refuse unknown libraries, and settings from which no file follows."""
        allowed = get_args(WeightSource)
        check(self.source in allowed, f"init.from must be one of {', '.join(allowed)}, got {brief(self.source)}")
        check(
            not self.timm or (self.source == "timm" and self.path is None),
            "init.timm: true downloads timm's weights; leave out path and other values of from",
        )
        check(self.timm or bool(self.path), "init needs path: a file or folder of weights, or timm: true")
        check(0 <= self.min_matched <= 1, f"init.min_matched must be in [0, 1], got {self.min_matched}; try 0.9")


def parse_init(value: str | Mapping[str, Any]) -> InitConfig:
    """Read the section ``init`` of a recipe: a mapping, or the path of caswit's own weights.

    Raises:
        ConfigError: There are unknown keys, or values that are not allowed.
    """
    if isinstance(value, str):
        return InitConfig(path=value)
    check(isinstance(value, Mapping), f"init must be a path or a mapping, got {brief(value)}")
    names = {"from" if f.name == "source" else f.name for f in dataclasses.fields(InitConfig)}
    unknown = sorted(str(key) for key in value if key not in names)
    check(not unknown, f"init: unknown {', '.join(unknown)}; allowed: {', '.join(sorted(names))}")
    settings = {("source" if key == "from" else key): x for key, x in value.items()}
    if settings.get("timm"):
        settings.setdefault("source", "timm")
    for name, kind in (("path", str | None), ("timm", bool), ("context", bool), ("decoder", bool)):
        given = settings.get(name, InitConfig.__dataclass_fields__[name].default)
        allowed = "a path" if name == "path" else "true or false"
        check(isinstance(given, kind), f"init.{name} must be {allowed}, got {brief(given)}")
    rename = settings.get("rename", {})
    check(
        isinstance(rename, Mapping) and all(isinstance(x, str) for pair in rename.items() for x in pair),
        f"init.rename must map beginnings of names to their replacements, got {brief(rename)}",
    )
    number = settings.get("min_matched", 0.9)
    check(isinstance(number, int | float), f"init.min_matched must be a number, got {brief(number)}; try 0.9")
    return InitConfig(**settings)
