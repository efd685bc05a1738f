"""A folder of pretrained weights: a model folder without decoder and classes, with what reconstruction needs."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file

from caswit.checkpoint import (
    CONFIG,
    FORMAT,
    PRETRAINED,
    WEIGHTS,
    config_errors,
    model_folder,
    read_config,
    with_tuples,
    write_folder,
)
from caswit.config import MaskConfig, ModelConfig, TileConfig
from caswit.errors import ModelError
from caswit.model import CASWiT
from caswit.simmim import SimMIM
from caswit.version import __version__

_NETWORK = "network."


@dataclass(frozen=True, kw_only=True)
class PretrainedInfo:
    """What pretrained weights expect and where they come from."""

    model: ModelConfig
    """The network."""
    tile: TileConfig
    """Geometry of its input."""
    mask: MaskConfig
    """What was hidden."""
    bands: tuple[int, int, int] = (1, 2, 3)
    """Bands of the images that are red, green and blue, from 1."""
    gsd_m: float | None = None
    """Ground size of a pixel, in metres; None where unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made."""


class LoadedPretrained(NamedTuple):
    """A network that reconstructs, and what it expects."""

    network: SimMIM
    info: PretrainedInfo


def build_simmim(info: PretrainedInfo) -> SimMIM:
    """A network with fresh weights."""
    ratio = info.mask.context_ratio
    return SimMIM(
        CASWiT(num_classes=0, **info.model.of_caswit),
        context_ratio=1 / info.tile.context_factor if ratio is None else ratio,
    )


def save_pretrained(network: SimMIM, info: PretrainedInfo, folder: Path) -> None:
    """Write a folder; encoders and fusion have the names that they have in a trained model."""
    weights = {name.removeprefix(_NETWORK): x for name, x in network.state_dict().items()}
    config = {
        "format": FORMAT,
        "kind": PRETRAINED,
        "software": f"caswit {__version__}",
        "model": asdict(info.model),
        "tile": asdict(info.tile),
        "mask": asdict(info.mask),
        "bands": list(info.bands),
        "gsd_m": info.gsd_m,
        "provenance": info.provenance,
    }
    write_folder(folder, weights, config)


def load_pretrained(path: Path | str) -> LoadedPretrained:
    """Read a folder of pretrained weights; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: It is none, or its weights do not fit its config.
    """
    folder = model_folder(path)
    info = _read_info(folder / CONFIG)
    network = build_simmim(info)
    try:
        weights = load_file(folder / WEIGHTS)
        own = network.network.state_dict()
        network.load_state_dict({(_NETWORK + name if name in own else name): x for name, x in weights.items()})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: {WEIGHTS} does not hold the weights that {CONFIG} describes ({reason})") from error
    return LoadedPretrained(network.eval(), info)


def _read_info(file: Path) -> PretrainedInfo:
    with config_errors(file):
        content = read_config(file)
        if content.get("kind") != PRETRAINED:
            raise ModelError(
                f"{file}: a trained model, it cannot reconstruct; give the model/ of a caswit pretrain run"
            )
        bands: Any = tuple(content["bands"])
        return PretrainedInfo(
            model=ModelConfig(**with_tuples(content["model"])),
            tile=TileConfig(**content["tile"]),
            mask=MaskConfig(**content["mask"]),
            bands=bands,
            gsd_m=content["gsd_m"],
            provenance=content["provenance"],
        )
