"""A model folder: model.safetensors + config.json, everything that prediction needs."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from caswit import __version__
from caswit.config import MaskConfig, ModelConfig, TileConfig
from caswit.config.renamed import with_new_names
from caswit.data.classes import ClassTable
from caswit.errors import CaswitError, ConfigError, ModelError
from caswit.nn.baselines.smp import STRIDE_PX, Baseline, Network
from caswit.nn.caswit import CASWiT
from caswit.nn.simmim import SimMIM
from caswit.weights import zoo as box
from caswit.weights.hub import fetch, is_on_hub
from caswit.weights.lazy import LazyWeights, with_weights

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PRETRAINED = "pretrained"
"""Kind of a folder whose weights were pretrained and predict nothing."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model expects and where it comes from."""

    model: ModelConfig
    """The network."""
    tile: TileConfig
    """Geometry of its input."""
    classes: ClassTable
    """What it predicts."""
    bands: tuple[int, int, int] = (1, 2, 3)
    """Bands of the images that are red, green and blue, from 1."""
    trained_gsd_m: float | None = None
    """Ground size of a pixel it was trained on, in metres; None where unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """How it was made: dataset, steps, seed, scores, version."""


class LoadedModel(NamedTuple):
    """A network ready for prediction and what it expects."""

    network: Network
    info: ModelInfo
    name: str
    digest: str
    """SHA-256 in hexadecimal digits of its weights file."""
    weights: LazyWeights | None = None
    """What the network has its weights from, if they are still in their file."""


def save_model(network: Network, info: ModelInfo, folder: Path) -> None:
    """Write a model folder, replacing an older one only when the new one is complete.

    What exists for training only is left out.
    """
    inference = build(info)
    state = network.state_dict()
    write_folder(folder, {name: state[name] for name in inference.state_dict()}, _to_json(info))


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and config, replacing an older folder only when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: x.detach().cpu().contiguous() for name, x in weights.items()}, partial / WEIGHTS)
    (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_model(folder: Path | str) -> LoadedModel:
    """Read a model folder; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: It is no model folder, or its weights do not fit its config.
    """
    given = str(folder)
    folder = model_folder(folder)
    weights = folder / WEIGHTS
    info = _read_info(folder / CONFIG)
    network: Network
    mapped = None
    try:
        if info.model.arch == "caswit":
            mapped = LazyWeights(weights)
            network = cast("CASWiT", with_weights(lambda: build(info), mapped))
        else:
            network = build(info)
            network.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{weights}: does not hold the weights that {CONFIG} describes ({reason})") from error
    digest = file_digest(folder)
    whole = folder.resolve()
    name = whole.parent.name if whole.name == "model" else whole.name  # runs/town/model is called town
    name = given if is_on_hub(given) else name
    return LoadedModel(network.eval(), info, name, digest, mapped)


def model_folder(path: Path | str) -> Path:
    """The folder that a path, hf:owner/name or the name of a model of the package means.

    Raises:
        ModelError: It has no weights or no config.
    """
    folder = fetch(path) if is_on_hub(path) else box.find(path) or Path(path)
    for file in (folder / CONFIG, folder / WEIGHTS):
        if not file.is_file():
            hint = "; this is a run folder, its model is in model/" if (folder / "model" / CONFIG).is_file() else ""
            if not folder.exists():
                names = ", ".join(m.name for m in box.zoo_models())
                raise ModelError(f"{folder}: no such model folder, and no model of the package ({names})")
            raise ModelError(f"{folder}: no model folder, {file.name} is missing{hint}")
    return folder


def file_digest(folder: Path) -> str:
    """SHA-256 in hexadecimal digits of a model folder's weights."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(info: ModelInfo, *, context_head: bool = False, pretrained: bool = False) -> Network:
    """A network for these settings and classes: with fresh weights, or a baseline with a ``pretrained`` encoder."""
    if info.model.arch != "caswit":
        if info.tile.tile_px % STRIDE_PX:
            raise ConfigError(
                f"arch {info.model.arch} needs tile_px in multiples of {STRIDE_PX}, got {info.tile.tile_px}"
            )
        return Baseline(num_classes=len(info.classes), settings=info.model, pretrained=pretrained)
    return CASWiT(num_classes=len(info.classes), context_head=context_head, **info.model.of_caswit)


def _to_json(info: ModelInfo) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "software": f"caswit {__version__}",
        "model": asdict(info.model),
        "tile": asdict(info.tile),
        "classes": info.classes.to_dicts(),
        "bands": list(info.bands),
        "trained_gsd_m": info.trained_gsd_m,
        "provenance": info.provenance,
    }


def _read_info(file: Path) -> ModelInfo:
    with config_errors(file):
        content = read_config(file)
        if content.get("kind") == PRETRAINED:
            raise ModelError(
                f"{file}: pretrained without labels, it knows no classes; train with init: {file.parent}, "
                "or look at it with caswit reconstruct"
            )
        return ModelInfo(
            model=ModelConfig(**with_tuples(content["model"])),
            tile=TileConfig(**content["tile"]),
            classes=ClassTable.from_dicts(content["classes"], str(file)),
            bands=tuple(content["bands"]),
            trained_gsd_m=content["trained_gsd_m"],
            provenance=content["provenance"],
        )


def read_config(file: Path) -> dict[str, Any]:
    """What a config.json of this format says; use inside of ``config_errors``."""
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if content["format"] != FORMAT:
        raise ModelError(f"{file}: format {content['format']}, this version reads format {FORMAT}")
    if "gsd_m" in content:  # its name in version 0.1.0
        content["trained_gsd_m"] = content.pop("gsd_m")
    content["tile"] = with_new_names("tile", content["tile"])
    return content


def with_tuples(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Lists as tuples, which is what settings have."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}


@contextmanager
def config_errors(file: Path) -> Iterator[None]:
    """Whatever is wrong in a config.json becomes a ModelError of one line."""
    try:
        yield
    except ConfigError as error:
        raise ModelError(f"{file}: {error}") from error
    except CaswitError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{file}: not a caswit config ({type(error).__name__}: {error})") from error


def torch_load(file: Path) -> Any:
    """Read a checkpoint of tensors and plain values; nothing in the file can run code.

    Raises:
        ModelError: It is missing, damaged, or holds anything else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        reason = " ".join(str(error).split())[:120]
        raise ModelError(f"{file}: cannot be read as a checkpoint ({reason})") from error


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
    trained_gsd_m: float | None = None
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
        "trained_gsd_m": info.trained_gsd_m,
        "provenance": info.provenance,
    }
    write_folder(folder, weights, config)


def load_pretrained(path: Path | str) -> LoadedPretrained:
    """Read a folder of pretrained weights; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: It is none, or its weights do not fit its config.
    """
    folder = model_folder(path)
    info = _read_pretrained_info(folder / CONFIG)
    network = build_simmim(info)
    try:
        weights = load_file(folder / WEIGHTS)
        own = network.network.state_dict()
        network.load_state_dict({(_NETWORK + name if name in own else name): x for name, x in weights.items()})
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{folder}: {WEIGHTS} does not hold the weights that {CONFIG} describes ({reason})") from error
    return LoadedPretrained(network.eval(), info)


def _read_pretrained_info(file: Path) -> PretrainedInfo:
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
            trained_gsd_m=content["trained_gsd_m"],
            provenance=content["provenance"],
        )
