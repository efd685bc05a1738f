"""Files of weights, whoever wrote them. Nothing in a file can run code."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caswit import box
from caswit.checkpoint import torch_load
from caswit.data.scene import expand_path
from caswit.errors import ModelError
from caswit.hub import fetch, is_on_hub

State = dict[str, Tensor]

_NAMES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_NESTED = ("state_dict", "model", "model_state_dict", "module")


def find_weights(path: str) -> Path:
    """The file of weights that a path means: itself, or that of a folder (run, model, other), the hub or the package.

    Raises:
        ModelError: There is none, or it cannot be told which.
    """
    place = fetch(path, weights_only=True) if is_on_hub(path) else box.find(path) or expand_path(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise ModelError(f"{path}: no such file or folder of weights")
    for folder in (place / "model", place):
        for name in _NAMES:
            if (folder / name).is_file():
                return folder / name
    there = sorted(f for f in place.iterdir() if f.suffix in _SUFFIXES)
    if len(there) != 1:
        found = ", ".join(f.name for f in there) or "none"
        raise ModelError(f"{path}: holds {len(there)} files of weights ({found}); give the path of one")
    return there[0]


def read_weights(file: Path) -> State:
    """Tensors by name, out of safetensors, or out of a pickle that holds nothing but tensors and plain values.

    Raises:
        ModelError: It holds anything else, or no tensors.
    """
    try:
        content: Any = load_file(file) if file.suffix == ".safetensors" else torch_load(file)
    except SafetensorError as error:
        raise ModelError(f"{file}: damaged, or no safetensors file ({' '.join(str(error).split())[:120]})") from error
    state = _tensors(content)
    if not state:
        raise ModelError(f"{file}: holds no tensors by name")
    return state


def _tensors(content: Any) -> State:
    """The state dict in a checkpoint, which may lie one level down."""
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
