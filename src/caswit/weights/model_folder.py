"""Model folders: model.safetensors with the weights, config.json with all settings that using them needs.

There are two kinds. A trained model (``ModelInfo``) predicts classes. A pretrained one (``PretrainedInfo``) restores
masked images, and training can start from it. Encoders and fusion have the same names in both.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from caswit import __version__
from caswit.config import MaskConfig, ModelConfig, TileConfig
from caswit.config.renamed import with_new_names
from caswit.data.classes import ClassTable
from caswit.errors import ConfigError, DataError, ModelError, brief, one_line
from caswit.files import atomic_path, atomic_write_bytes, checked, read_json
from caswit.nn.baselines.smp import STRIDE_PX, Baseline
from caswit.nn.baselines.table2 import Table2Network, network_class
from caswit.nn.caswit import CASWiT
from caswit.nn.network import Network
from caswit.nn.simmim import SimMIM
from caswit.raster.stack import Bands
from caswit.weights import zoo
from caswit.weights.hub import fetch, is_on_hub
from caswit.weights.lazy import LazyWeights, all_finite, with_weights

FORMAT = 1
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
PRETRAINED = "pretrained"
"""Value of ``kind`` in the config of a pretrained model; a trained one has none."""
_SHARED = ("model", "tile", "bands", "trained_gsd_m", "provenance")
"""Entries that both kinds have."""
_NETWORK = "network."
"""Beginning of the names of encoders and fusion in ``SimMIM``, which model folders leave out."""


class _Provenance(TypedDict):
    """Entries that are printed; all others are left alone."""

    dataset: NotRequired[str | None]
    step: NotRequired[int | None]
    best_val_miou: NotRequired[float | None]


class _Config(TypedDict):
    """The shape of a config.json, under the names of today; what else it holds is left alone."""

    model: ModelConfig
    tile: TileConfig
    bands: tuple[int | str, ...]
    trained_gsd_m: float | None
    provenance: dict[str, Any]
    layout: NotRequired[tuple[str, ...]]
    kind: NotRequired[Literal["pretrained"]]
    classes: NotRequired[list[dict[str, Any]]]
    mask: NotRequired[MaskConfig]


@dataclass(frozen=True, kw_only=True)
class _Info:
    """Settings, input and origin of a model of either kind."""

    model: ModelConfig
    """Settings of the network."""
    tile: TileConfig
    """Geometry of its input."""
    bands: Bands = (1, 2, 3)
    """Where its bands were in the images it learned from: numbers, from 1, or names of rasters beside them and of bands
    in their files."""
    layout: tuple[str, ...] = ()
    """Names of all bands of these images, in their order, where its bands were found by them; "" is one without."""
    trained_gsd_m: float | None = None
    """Ground size of a pixel it was trained on, in metres; None where unknown."""
    provenance: dict[str, Any] = field(default_factory=dict)
    """Origin of the weights: dataset, steps, seed, version, and scores of a trained model."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo(_Info):
    """Settings, input and origin of a trained model."""

    classes: ClassTable
    """Classes it predicts, and the ignored ones of its labels."""


@dataclass(frozen=True, kw_only=True)
class PretrainedInfo(_Info):
    """Settings, input and origin of a pretrained model."""

    mask: MaskConfig
    """Masks it was pretrained with."""


class LoadedModel(NamedTuple):
    """A network ready for prediction, and its settings."""

    network: Network
    info: ModelInfo
    name: str
    digest: str
    """SHA-256 of the weights file, in hexadecimal digits."""
    config_digest: str = ""
    """SHA-256 of all in the config that changes what is predicted, shortened to 16 hexadecimal digits."""
    weights: LazyWeights | None = None
    """The file that the network's weights still lie in, if they do."""
    folder: Path | None = None
    """Where it was read from."""


class LoadedPretrained(NamedTuple):
    """A network that reconstructs masked images, and its settings."""

    network: SimMIM
    info: PretrainedInfo


def save_model(network: Network, info: ModelInfo, folder: Path) -> None:
    """Write a trained model, without the parts that exist in training only.

    An older folder is replaced when the new one is complete.
    """
    state = network.state_dict()
    # A network that is built for prediction has no context head, so its names leave that out.
    write_folder(folder, {name: state[name] for name in build(info).state_dict()}, _to_json(info))


def save_pretrained(network: SimMIM, info: PretrainedInfo, folder: Path) -> None:
    """Write a pretrained model; encoders and fusion have the names that they have in a trained one."""
    weights = {name.removeprefix(_NETWORK): x for name, x in network.state_dict().items()}
    write_folder(folder, weights, _to_json(info))


def write_folder(folder: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    """Write weights and config, replacing an older folder only when the new one is complete."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    # safetensors takes contiguous tensors only.
    try:
        with atomic_path(partial / WEIGHTS) as file:
            save_file({name: x.detach().cpu().contiguous() for name, x in weights.items()}, file)
    except SafetensorError as error:
        reason = one_line(error)
        raise DataError(f"{partial / WEIGHTS}: could not be written; is the disk full? ({reason})") from error
    atomic_write_bytes(partial / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    # A kill between these two leaves the whole model under the other name.
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def is_complete(folder: Path) -> bool:
    """Return whether a model folder has its config, and weights whose file is as long as its header says."""
    try:
        with safe_open(folder / WEIGHTS, "pt"):
            return isinstance(read_json(folder / CONFIG), dict)
    except (OSError, SafetensorError, DataError):
        return False


def load_model(folder: Path | str) -> LoadedModel:
    """Read a trained model; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: There is no trained model, or its weights do not fit its config.
    """
    given = str(folder)
    folder = model_folder(folder)
    info = read_info(folder)
    if isinstance(info, PretrainedInfo):
        raise ModelError(
            f"{folder / CONFIG}: pretrained without labels, it knows no classes; train with init: {folder}, "
            "or look at it with caswit reconstruct"
        )
    network: Network
    lazy = None
    with _weights_errors(folder):
        if info.model.kind != "smp":
            # Parameters are views of the mapped file: once rearranged for a processor, they leave memory again.
            lazy = LazyWeights(folder / WEIGHTS)
        if info.model.kind == "caswit":
            assert lazy is not None
            network = cast("Network", with_weights(lambda: build(info), lazy))
        else:
            # Parts of other libraries may compute buffers when they are built, which needs them to have memory.
            network = build(info)
            loaded = load_file(folder / WEIGHTS) if lazy is None else lazy
            network.load_state_dict(loaded, assign=lazy is not None)
    if lazy is not None:
        digest, unusable = lazy.digest()
    else:
        digest, unusable = file_digest(folder), _unusable(loaded)
    _check_finite(folder, unusable)
    whole = folder.resolve()
    # runs/town/model is called town; the name of a download's folder in the cache says nothing.
    name = whole.parent.name if whole.name == "model" else whole.name
    name = given if is_on_hub(given) else name
    return LoadedModel(network.eval(), info, name, digest, _config_digest(folder), lazy, folder)


def load_pretrained(path: Path | str) -> LoadedPretrained:
    """Read a pretrained model; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: There is no pretrained model, or its weights do not fit its config.
    """
    folder = model_folder(path)
    info = read_info(folder)
    if isinstance(info, ModelInfo):
        raise ModelError(
            f"{folder / CONFIG}: a trained model cannot reconstruct; give the model/ of a caswit pretrain run"
        )
    network = build_simmim(info)
    # Mask tokens, norm and head are SimMIM's own; all other names are those of the network in it.
    own = network.network.state_dict()
    with _weights_errors(folder):
        weights = load_file(folder / WEIGHTS)
        _check_finite(folder, _unusable(weights))
        network.load_state_dict({(_NETWORK + name if name in own else name): x for name, x in weights.items()})
    return LoadedPretrained(network.eval(), info)


def _unusable(weights: Mapping[str, Tensor]) -> str | None:
    return next((name for name, values in weights.items() if not all_finite(values)), None)


def _check_finite(folder: Path, unusable: str | None) -> None:
    # Such a network gives every pixel the first class, without an error.
    if unusable is not None:
        raise ModelError(
            f"{folder / WEIGHTS}: {unusable} holds NaN or infinity; the file is damaged or the training diverged: "
            "train or download the model again"
        )


def model_folder(path: Path | str) -> Path:
    """Return the folder of a model, given its path or a run's, hf:owner/name, or the name of a model in the zoo.

    Raises:
        ModelError: There is no such folder, or it lacks weights or config.
    """
    zoo.check_there(path)
    folder = fetch(path) if is_on_hub(path) else zoo.find(path) or Path(path)
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"  # of a run folder
    for file in (folder / CONFIG, folder / WEIGHTS):
        if not file.is_file():
            raise ModelError(f"{folder}: no model folder, {file.name} is missing")
    return folder


def file_digest(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights, in hexadecimal digits."""
    with (folder / WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _config_digest(folder: Path) -> str:
    """Return 16 hexadecimal digits that change with what is predicted, not with names, colours or scores."""
    # Of the settings as the file writes them: those that a later version adds would change a digest of all settings.
    file = folder / CONFIG
    with config_errors(file):
        content = read_config(file)
        classes = [[c["id"], c.get("ignore", False)] for c in content["classes"]]
        facts = {"classes": classes, **{name: content[name] for name in ("model", "tile", "bands")}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def build(info: ModelInfo, *, context_head: bool = False, pretrained: bool = False) -> Network:
    """Build a network with random weights; one of others has ``pretrained`` weights in its encoder if asked for.

    Raises:
        ConfigError: Tiles do not fit the network, or weights cannot be downloaded.
    """
    model, classes = info.model, len(info.classes)
    if model.kind == "caswit":
        contexts = len(info.tile.context_factors)
        return CASWiT(num_classes=classes, context_head=context_head, contexts=contexts, **model.of_caswit)
    of_table2 = model.kind == "table2"
    stride_px = network_class(model.arch).stride_px if of_table2 else STRIDE_PX
    if info.tile.tile_px % stride_px:
        raise ConfigError(f"arch {model.arch} needs tile_px in multiples of {stride_px}, got {info.tile.tile_px}")
    kind = Table2Network if of_table2 else Baseline
    network = kind(num_classes=classes, settings=model, pretrained=pretrained)
    if model.arch == "relay_tokens":
        # Its loss looks for the tile in the context.
        cast("Any", network.network).context_factor = info.tile.context_factors[-1]
    return network


def build_simmim(info: PretrainedInfo) -> SimMIM:
    """Build a network for pretraining with random weights."""
    # The tile is this share of its context's side: 0.5 in section 3.5, whose factor is 2.
    ratio = info.mask.context_ratio
    factors = info.tile.context_factors
    return SimMIM(
        CASWiT(num_classes=0, contexts=len(factors), **info.model.of_caswit),
        context_ratio=[1 / factor if ratio is None else ratio for factor in factors],
    )


def _to_json(info: ModelInfo | PretrainedInfo) -> dict[str, Any]:
    kind: dict[str, Any] = {}
    own: dict[str, Any]
    if isinstance(info, ModelInfo):
        own = {"classes": info.classes.to_dicts()}
    else:
        kind, own = {"kind": PRETRAINED}, {"mask": asdict(info.mask)}
    return {
        "format": FORMAT,
        **kind,
        "software": f"caswit {__version__}",
        "model": asdict(info.model),
        "tile": asdict(info.tile),
        **own,
        "bands": list(info.bands),
        **({"layout": list(info.layout)} if info.layout else {}),
        "trained_gsd_m": info.trained_gsd_m,
        "provenance": info.provenance,
    }


def read_info(folder: Path) -> ModelInfo | PretrainedInfo:
    """Read the config of a model folder of either kind, and no weights.

    Raises:
        ModelError: It is missing, or is no config of caswit.
    """
    file = folder / CONFIG
    with config_errors(file):
        content = checked(_Config, read_config(file), str(file))
        checked(_Provenance, content["provenance"], f"{file}: provenance")
        shared: dict[str, Any] = {name: content[name] for name in _SHARED} | {"layout": content.get("layout", ())}
        pretrained = content.get("kind") == PRETRAINED
        if ("mask" if pretrained else "classes") not in content:
            raise ModelError(f"{file}: missing {'mask' if pretrained else 'classes'}")
        numbers = [band for band in content["bands"] if isinstance(band, int)]
        if min(numbers, default=1) < 1 or len(content["bands"]) != len(content["model"].band_names):
            count = len(content["model"].band_names)
            many = "three" if count == 3 else str(count)
            raise ModelError(f"{file}: bands must be {many} numbers from 1, got {list(content['bands'])}")
        if content["trained_gsd_m"] is not None and not content["trained_gsd_m"] > 0:
            raise ModelError(f"{file}: trained_gsd_m must be above 0 or null, got {content['trained_gsd_m']}")
        if pretrained:
            return PretrainedInfo(mask=content["mask"], **shared)
        return ModelInfo(classes=ClassTable.from_dicts(content["classes"], str(file)), **shared)


def read_config(file: Path) -> dict[str, Any]:
    """Read a config.json, with its settings under their names of today; to be called inside of ``config_errors``."""
    content = checked(dict[str, Any], read_json(file), str(file))
    if content.get("format") != FORMAT:
        raise ModelError(f"{file}: format {brief(content.get('format'))}, this version reads format {FORMAT}")
    # Version 0.1.0 had two different ground sizes that were both called gsd_m, here and in tile.
    if "gsd_m" in content:
        # This one is that of the training images; the one in tile is that at which images are read.
        content["trained_gsd_m"] = content.pop("gsd_m")
    content["tile"] = with_new_names("tile", checked(dict[str, Any], content.get("tile"), f"{file}: tile"))
    return content


@contextmanager
def config_errors(file: Path) -> Iterator[None]:
    """Turn whatever is wrong in a config.json into a ModelError of one line."""
    try:
        yield
    except ConfigError as error:
        raise ModelError(f"{file}: {error}") from error
    except DataError as error:
        reason = str(error).removeprefix(f"{file}: ")
        raise ModelError(f"{file}: not a caswit config ({reason}); give the model/ of a caswit train run") from error


@contextmanager
def _weights_errors(folder: Path) -> Iterator[None]:
    """Turn whatever is wrong with the weights of a model folder into a ModelError of one line."""
    try:
        yield
    # A header that safetensors accepts may still name shapes that torch cannot make, or take more than there is.
    except (SafetensorError, RuntimeError, LookupError, ValueError, TypeError, OverflowError, MemoryError) as error:
        reason = one_line(error)
        raise ModelError(f"{folder / WEIGHTS}: does not hold the weights that {CONFIG} describes ({reason})") from error


def torch_load(file: Path) -> Any:
    """Read a checkpoint of tensors and plain values; nothing in the file can run code.

    Raises:
        ModelError: The file is missing or damaged, or holds anything else.
    """
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from EOFError to UnpicklingError
        raise ModelError(f"{file}: cannot be read as a checkpoint ({one_line(error, 120)})") from error
