"""Weights of other libraries: finding their file, reading it, and translating their names into ours.

All of them are of one Swin encoder, some with a UPerNet behind it. Translated, an encoder has timm's names behind
``encoder.``, the layer norms of the four stage maps are ``norms.``, and UPerNet is ``decoder.`` with the names of
``caswit.nn.decoders``. Names that belong to none of them are kept, so that what is left over can be reported.
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
from caswit.weights import zoo
from caswit.weights.hub import fetch, is_on_hub
from caswit.weights.model_folder import torch_load

State = dict[str, Tensor]
"""Tensors by name."""
_Renaming = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
"""Regular expressions and what replaces them, one after the other."""

_FILES = ("model.safetensors", "pytorch_model.bin", "open_clip_model.safetensors")
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")
_NESTED = ("state_dict", "model", "model_state_dict", "module")
"""Keys under which training frameworks put the state dict in a checkpoint."""
_COMPUTED = ("relative_position_index", "relative_coords_table", "attn_mask", "num_batches_tracked")
"""Endings of the names of tensors that a network computes or does not need."""


def find_weights(path: str) -> Path:
    """Return the file of weights that a path stands for.

    Args:
        path: A file; a run folder, model folder or other folder with one file of weights; hf:owner/name; or the name of
            a model in the zoo.

    Raises:
        ModelError: There is no file of weights, or there are several.
    """
    place = fetch(path, weights_only=True) if is_on_hub(path) else zoo.find(path) or expand_path(path)
    if place.is_file():
        return place
    if not place.is_dir():
        raise ModelError(f"{path}: no such file or folder of weights")
    for folder in (place / "model", place):
        for name in _FILES:
            if (folder / name).is_file():
                return folder / name
    there = sorted(f for f in place.iterdir() if f.suffix in _SUFFIXES)
    if len(there) != 1:
        found = ", ".join(f.name for f in there) or "none"
        raise ModelError(f"{path}: holds {len(there)} files of weights ({found}); give the path of one")
    return there[0]


def read_weights(file: Path) -> State:
    """Read tensors by name from a safetensors file, or from a pickle of nothing but tensors and plain values.

    Raises:
        ModelError: The file is damaged, or holds anything else, or no tensors.
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
    """Return the state dict in a checkpoint, which may lie some levels down."""
    if not isinstance(content, Mapping):
        return {}
    for key in _NESTED:
        if isinstance(content.get(key), Mapping):
            return _tensors(content[key])
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def from_timm(state: Mapping[str, Tensor]) -> State:
    """Translate timm's Swin, also from features_only, from before version 0.9, or as a part of a larger network.

    Microsoft's own files have these names too.
    """
    found = _encoder(state, "patch_embed.proj.weight", ((r"layers_(\d)\.", r"layers.\1."),))
    # Until version 0.9 patches were merged at the end of a stage. Now it begins the next one, and the first has none.
    merges_at_the_end = any(name.startswith("encoder.layers.0.downsample.") for name in found)
    return _renamed(found, _MERGING) if merges_at_the_end else found


def from_smp(state: Mapping[str, Tensor]) -> State:
    """Translate segmentation_models_pytorch's UPerNet with a ``tu-swin`` encoder, from version 0.5 on.

    Before that version its decoder was another one, which is left over.
    """
    return _renamed(from_timm(state), _SMP)


def from_flair_hub(state: Mapping[str, Tensor]) -> State:
    """Translate the encoder AERIAL_RGBI of IGN's FLAIR-HUB files; their decoder, smp's of before 0.5, is left over."""
    aerial = {name: x for name, x in state.items() if not re.search(r"encoders\.(?!AERIAL_RGBI\.)", name)}
    return from_timm(aerial)


def from_transformers(state: Mapping[str, Tensor]) -> State:
    """Translate transformers' Swin and UperNet-Swin, from files or from version 5 in memory, whose names differ."""
    found = _encoder(state, "embeddings.patch_embeddings.projection.weight", _TRANSFORMERS)
    return _with_qkv(_renamed(_with_decoder(found), _MERGING))


def from_mmseg(state: Mapping[str, Tensor]) -> State:
    """Translate mmsegmentation's Swin-UPerNet."""
    found = _with_decoder(_encoder(state, "patch_embed.projection.weight", _MMSEG))
    # It gathers the four neighbours that patch merging joins with nn.Unfold, row by row and channel by channel. timm
    # has them column by column and neighbour by neighbour: the inputs of norm and reduction, (..., 4C), are reordered.
    for name in found:
        if ".downsample." in name:
            neighbours = found[name].unflatten(-1, (-1, 4))[..., torch.tensor([0, 2, 1, 3])]
            found[name] = neighbours.transpose(-1, -2).flatten(-2)
    return _renamed(found, _MERGING)


_MERGING: _Renaming = (
    (r"^encoder\.layers\.(\d)\.downsample\.", lambda m: f"encoder.layers.{int(m[1]) + 1}.downsample."),
)
_TRANSFORMERS: _Renaming = (
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
)
_MMSEG: _Renaming = (
    (r"^encoder\.patch_embed\.projection\.", "encoder.patch_embed.proj."),
    (r"^encoder\.stages\.", "encoder.layers."),
    (r"^encoder\.norm(\d)\.", r"norms.\1."),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)
_MMSEG_DECODER: _Renaming = (
    (r"^decode_head\.", "decoder."),
    (r"^decoder\.psp_modules\.", "decoder.pools."),
    (r"^decoder\.lateral_convs\.", "decoder.laterals."),
    (r"^decoder\.fpn_convs\.", "decoder.smooths."),
    (r"^decoder\.fpn_bottleneck\.", "decoder.fuse."),
    (r"^decoder\.(classifier|conv_seg)\.", "decoder.classify."),
    (r"\.conv\.", ".0."),
    (r"\.(batch_norm|bn)\.", ".1."),
)
# smp counts the levels of its pyramid from the deepest, we from the shallowest.
_SMP: _Renaming = (
    (r"^decoder\.feature_norms\.", "norms."),
    (r"^decoder\.psp\.blocks\.", "decoder.pools."),
    (r"^decoder\.psp\.out_conv\.", "decoder.bottleneck."),
    (r"^decoder\.fpn_lateral_blocks\.(\d)\.conv_norm_relu\.", lambda m: f"decoder.laterals.{2 - int(m[1])}."),
    (r"^decoder\.fpn_conv_blocks\.(\d)\.", lambda m: f"decoder.smooths.{2 - int(m[1])}."),
    (r"^decoder\.fusion_block\.", "decoder.fuse."),
    (r"^segmentation_head\.0\.", "decoder.classify."),
)


def _encoder(state: Mapping[str, Tensor], ending: str, renaming: _Renaming) -> State:
    """Rename an encoder, whose names begin with whatever stands before ``ending`` in the name of its first weight."""
    prefix = next((name.removesuffix(ending) for name in state if name.endswith(ending)), "")
    found = {
        "encoder." + name.removeprefix(prefix) if name.startswith(prefix) else name: x
        for name, x in state.items()
        if not name.endswith(_COMPUTED)
    }
    return _renamed(found, renaming)


def _with_decoder(state: State) -> State:
    """Rename the decoder of mmsegmentation, whose names transformers has adopted."""
    return {_replaced(n, _MMSEG_DECODER) if n.startswith("decode_head.") else n: x for n, x in state.items()}


def _renamed(state: State, renaming: _Renaming) -> State:
    return {_replaced(name, renaming): x for name, x in state.items()}


def _replaced(name: str, renaming: _Renaming) -> str:
    for pattern, new in renaming:
        name = re.sub(pattern, new, name)
    return name


def _with_qkv(state: State) -> State:
    """Join the weights of queries, keys and values, which timm has in one tensor."""
    joined = {name: x for name, x in state.items() if not re.search(r"\.attn\.[qkv]_proj\.", name)}
    for name in state:
        if ".attn.q_proj." in name:
            parts = [name.replace(".q_proj.", f".{x}_proj.") for x in "qkv"]
            if all(part in state for part in parts):
                joined[name.replace(".q_proj.", ".qkv.")] = torch.cat([state[part] for part in parts])
    return joined
