"""Names of others for the weights of one Swin + UPerNet, translated into ours.

Ours are those of timm behind ``encoder.``, ``norms.`` for the layer norms on the four stage maps, and ``decoder.``.
What belongs to none of them keeps its name and is left over.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from caswit.errors import ModelError
from caswit.files import expand_path
from caswit.weights import zoo as box
from caswit.weights.hub import fetch, is_on_hub
from caswit.weights.model_folder import torch_load

State = dict[str, Tensor]

_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")
"""What a network computes anew, or does not need."""
_MERGED = torch.tensor([0, 2, 1, 3])
"""Neighbours in the order of timm, (0, 0), (1, 0), (0, 1), (1, 1), out of the row-major order of nn.Unfold."""


def from_timm(state: Mapping[str, Tensor]) -> State:
    """timm's Swin, also out of features_only, before version 0.9, and inside of a larger network.

    Microsoft's own files have these names too.
    """
    prefix = _prefix(state, "patch_embed.proj.weight")
    found = _renamed(state, lambda name: _under(prefix, re.sub(r"layers_(\d)\.", r"layers.\1.", name)))
    if any(name.startswith("encoder.layers.0.downsample.") for name in found):
        # Merging once stood at the end of a stage; now it begins the next one.
        found = _renamed(found, _merge_at_the_start)
    return found


def from_smp(state: Mapping[str, Tensor]) -> State:
    """segmentation_models_pytorch's UPerNet with a ``tu-swin`` encoder; before 0.5 its decoder was another one."""
    return _renamed(from_timm(state), _smp_name)


def from_flair_hub(state: Mapping[str, Tensor]) -> State:
    """IGN's FLAIR-HUB files: the encoder of AERIAL_RGBI. Their decoder is smp's of before 0.5, and is left over."""
    aerial = {name: x for name, x in state.items() if not re.search(r"encoders\.(?!AERIAL_RGBI\.)", name)}
    return from_timm(aerial)


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """transformers' Swin and UperNet-Swin, in the names of its files and those of its version 5 in memory."""
    prefix = _prefix(state, "embeddings.patch_embeddings.projection.weight")
    found = _renamed(state, lambda name: _transformers_name(_under(prefix, name)))
    return _with_qkv(_renamed(found, _merge_at_the_start))


def from_mmseg(state: Mapping[str, Tensor]) -> State:
    """mmsegmentation's Swin-UPerNet, whose patches are merged in another order."""
    prefix = _prefix(state, "patch_embed.projection.weight")
    found = _renamed(state, lambda name: _mmseg_name(_under(prefix, name)))
    for name in found:
        if ".downsample." in name:
            found[name] = _timm_order(found[name])
    return _renamed(found, _merge_at_the_start)


def _prefix(state: Mapping[str, Tensor], ending: str) -> str:
    """What stands before the encoder's own names."""
    return next((name.removesuffix(ending) for name in state if name.endswith(ending)), "")


def _under(prefix: str, name: str) -> str:
    """``encoder.`` in place of a prefix; other names as they are."""
    return "encoder." + name.removeprefix(prefix) if name.startswith(prefix) else name


def _renamed(state: Mapping[str, Tensor], rename: Callable[[str], str]) -> State:
    return {rename(name): x for name, x in state.items() if not name.endswith(_COMPUTED)}


def _merge_at_the_start(name: str) -> str:
    return re.sub(
        r"^encoder\.layers\.(\d)\.downsample\.", lambda m: f"encoder.layers.{int(m[1]) + 1}.downsample.", name
    )


def _replaced(name: str, pairs: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]) -> str:
    for pattern, new in pairs:
        name = re.sub(pattern, new, name)
    return name


def _transformers_name(name: str) -> str:
    return _head_name(
        _replaced(
            name,
            (
                (r"^encoder\.embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
                (r"^encoder\.embeddings\.norm\.", "encoder.patch_embed.norm."),
                (r"^encoder\.hidden_states_norms\.stage(\d)\.", lambda m: f"norms.{int(m[1]) - 1}."),
                (r"^encoder\.encoder\.", "encoder."),
                (r"\.layernorm_before\.", ".norm1."),
                (r"\.layernorm_after\.", ".norm2."),
                (r"\.attention\.self\.(query|key|value)\.", lambda m: f".attn.{m[1][0]}_proj."),
                (r"\.attention\.(self|relative_position_bias)\.relative", ".attn.relative"),
                (r"\.attention\.output\.dense\.", ".attn.proj."),
                (r"\.attention\.o_proj\.", ".attn.proj."),
                (r"\.attention\.", ".attn."),
                (r"\.intermediate\.dense\.", ".mlp.fc1."),
                (r"(blocks\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
            ),
        )
    )


def _mmseg_name(name: str) -> str:
    return _head_name(
        _replaced(
            name,
            (
                (r"^encoder\.patch_embed\.projection\.", "encoder.patch_embed.proj."),
                (r"^encoder\.stages\.", "encoder.layers."),
                (r"^encoder\.norm(\d)\.", r"norms.\1."),
                (r"\.attn\.w_msa\.", ".attn."),
                (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
                (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
            ),
        )
    )


def _head_name(name: str) -> str:
    """UPerNet of mmsegmentation and of transformers, which has its names."""
    if not name.startswith("decode_head."):
        return name
    return _replaced(
        name,
        (
            (r"^decode_head\.", "decoder."),
            (r"^decoder\.psp_modules\.", "decoder.pools."),
            (r"^decoder\.lateral_convs\.", "decoder.laterals."),
            (r"^decoder\.fpn_convs\.", "decoder.smooths."),
            (r"^decoder\.fpn_bottleneck\.", "decoder.fuse."),
            (r"^decoder\.(classifier|conv_seg)\.", "decoder.classify."),
            (r"\.conv\.", ".0."),
            (r"\.(batch_norm|bn)\.", ".1."),
        ),
    )


def _smp_name(name: str) -> str:
    return _replaced(
        name,
        (
            (r"^decoder\.feature_norms\.", "norms."),
            (r"^decoder\.psp\.blocks\.", "decoder.pools."),
            (r"^decoder\.psp\.out_conv\.", "decoder.bottleneck."),
            (r"^decoder\.fpn_lateral_blocks\.(\d)\.conv_norm_relu\.", lambda m: f"decoder.laterals.{2 - int(m[1])}."),
            (r"^decoder\.fpn_conv_blocks\.(\d)\.", lambda m: f"decoder.smooths.{2 - int(m[1])}."),
            (r"^decoder\.fusion_block\.", "decoder.fuse."),
            (r"^segmentation_head\.0\.", "decoder.classify."),
        ),
    )


def _with_qkv(state: State) -> State:
    """One tensor for queries, keys and values, as timm has it."""
    joined = {name: x for name, x in state.items() if not re.search(r"\.attn\.[qkv]_proj\.", name)}
    for name in state:
        if ".attn.q_proj." in name:
            parts = [name.replace(".q_proj.", f".{x}_proj.") for x in "qkv"]
            if all(part in state for part in parts):
                joined[name.replace(".q_proj.", ".qkv.")] = torch.cat([state[part] for part in parts])
    return joined


def _timm_order(weight: Tensor) -> Tensor:
    """Inputs of patch merging, (..., 4C): channel by channel -> neighbour by neighbour."""
    return weight.unflatten(-1, (-1, 4))[..., _MERGED].transpose(-1, -2).flatten(-2)


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
