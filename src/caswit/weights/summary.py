"""Summary of a model for ``caswit info``: its whole architecture, its costs, and the images it expects."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from caswit.config import RGB, ModelConfig
from caswit.errors import CaswitError
from caswit.nn.baselines.table2 import Table2Network
from caswit.nn.caswit import SIZES, CASWiT, decoder_width
from caswit.viz.pages import numbers
from caswit.weights.int8 import ABOUT, int8_of
from caswit.weights.model_folder import (
    LoadedModel,
    ModelInfo,
    PretrainedInfo,
    file_digest,
    load_model,
    load_pretrained,
    model_folder,
    read_info,
)

PARTS = {
    "encoder": ("network.encoder",),
    "hr encoder": ("hr_encoder",),
    "context encoder": ("context_encoder",),
    "fusion": ("fusion",),
    "decoder": ("decoder", "hr_norms", "network.decoder", "network.segmentation_head"),
    "reconstruction": ("head", "norm", "hr_token", "context_token"),
}
"""By part: beginnings of the names of its parameters."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Size and arithmetic of a network at inference."""

    parameters: dict[str, int]
    """Number of parameters of each part of the network."""
    flops: int
    """Floating-point operations for one tile; a multiply-add counts as two."""


def costs(loaded: LoadedModel) -> Costs:
    """Count the parameters of each part, and the FLOPs of one tile with tensors that have no memory."""
    side = loaded.info.tile.tile_px
    contexts, bands = len(loaded.info.tile.context_factors), len(loaded.info.model.band_names)
    try:
        # Shapes alone. Fake and not "meta": to networks that ask for the device these are tensors of the CPU.
        with FakeTensorMode(allow_non_fake_inputs=True):
            flops = _flops(loaded.network, side, contexts, bands)
    except DataDependentOutputException:  # one that looks at numbers, such as the places of its patches
        flops = _flops(loaded.network, side, contexts, bands)
    return Costs(parameters=count_parameters(loaded.network), flops=flops)


@torch.no_grad()
def _flops(network: nn.Module, side: int, contexts: int, bands: int) -> int:
    tile = torch.zeros(1, bands, side, side)
    with FlopCounterMode(display=False) as counter:
        network(tile, tile if contexts == 1 else tile[:, None].expand(-1, contexts, -1, -1, -1))
    return counter.get_total_flops()


def count_parameters(network: nn.Module) -> dict[str, int]:
    """Return the number of parameters of each part that a network has."""
    if isinstance(network, Table2Network):
        counts = Counter[str]()
        for name, weights in network.network.named_parameters():
            counts[name.partition(".")[0].replace("_", " ")] += weights.numel()
        return dict(counts)
    own = "network.hr_encoder."  # of a network for pretraining, which holds the other
    inner = any(name.startswith(own) for name, _ in network.named_parameters())
    sizes = {n.removeprefix("network.") if inner else n: p.numel() for n, p in network.named_parameters()}
    parameters = {
        part: sum(size for n, size in sizes.items() if f"{n}.".startswith(tuple(f"{x}." for x in prefixes)))
        for part, prefixes in PARTS.items()
    }
    assert sum(parameters.values()) == sum(sizes.values())
    return {part: count for part, count in parameters.items() if count}


def describe(model: Path) -> str:
    """Return a readable page about a model folder, trained or pretrained.

    Raises:
        ModelError: There is no model folder, or its weights do not fit its config.
    """
    folder = model_folder(model)
    info = read_info(folder)
    if isinstance(info, PretrainedInfo):
        pretrained = load_pretrained(model).network
        lines = [f"model          {model}, pretrained without labels (sha256 {file_digest(folder)})"]
        return "\n".join([*lines, *_page(info, pretrained.network, count_parameters(pretrained), [])])
    loaded = load_model(model)
    cost = costs(loaded)
    lines = [f"model          {loaded.name} (sha256 {loaded.digest})"]
    arithmetic = [f"arithmetic     {cost.flops / 1e9:.1f} GFLOP per tile"]
    return "\n".join([*lines, *_page(loaded.info, loaded.network, cost.parameters, arithmetic), *_int8(loaded)])


def _int8(loaded: LoadedModel) -> Iterator[str]:
    """Yield the line of the weights for ``--precision int8``, if there are some."""
    if loaded.folder is None or not (loaded.folder / ABOUT).is_file():
        return
    try:
        found = int8_of(loaded).comparison
    except CaswitError as error:
        yield f"int8 weights   cannot be used: {error}"
        return
    alike = f"{100 * found.pixels_alike:.2f} % of the pixels of {found.dataset} ({found.split}) as in {found.beside}"
    yield f"int8 weights   {alike}; mIoU {found.miou[0]:.4f}, with int8 {found.miou[1]:.4f}"


def _page(
    info: ModelInfo | PretrainedInfo, network: nn.Module, parameters: dict[str, int], arithmetic: list[str]
) -> Iterator[str]:
    tile, made = info.tile, info.provenance
    yield from _architecture(info.model, network, decoder=isinstance(info, ModelInfo))
    yield f"parameters     {sum(parameters.values()) / 1e6:.2f} M"
    yield from (f"  {part:<15}{count / 1e6:8.3f} M" for part, count in parameters.items())
    yield from arithmetic
    yield f"input          {_bands(info)}; tile {tile.tile_px} x {tile.tile_px} px"
    factors = tile.context_factors
    sides = numbers([tile.tile_px * factor for factor in factors])
    around = f"squares of {sides} px" if len(factors) > 1 else f"{sides} x {sides} px"
    name = f"context factor{'s' * (len(factors) > 1)}"
    sees = f"{around} around it, averaged by {numbers(factors)} (the {name})"
    yield f"sees           {sees if info.model.reads_context else 'the tile alone'}"
    yield f"ground pixel   {_ground_size(info)}"
    mean, std = info.model.normalisation()
    yield f"normalisation  mean {_numbers(mean)}, std {_numbers(std)}"
    if isinstance(info, ModelInfo):
        yield f"classes        {len(info.classes)}"
        for c in info.classes.predicted:
            also = f" (in labels also {numbers(c.more_ids)})" if c.more_ids else ""
            yield f"  {c.id:>3}  {c.color}  {c.name}{also}"
    else:
        yield "classes        none: it reconstructs images; training starts from it with init"
        mask = info.mask
        yield f"masked         {mask.ratio:g} of the tile, in cells of {mask.mask_cell_px} px; the context's middle"
    if made:
        score = made.get("best_val_miou")
        scored = "" if score is None else f", best validation mIoU {score:.4f}"
        yield f"made from      {made.get('dataset')}, step {made.get('step')}{scored}"
        if said := averaged_with_start(made):
            yield f"               {said}"


def averaged_with_start(provenance: Mapping[str, Any]) -> str | None:
    """Say of which weights a model is the mean, if its training averaged them with those that it started from."""
    recipe = provenance.get("recipe")
    learning, start = (recipe.get("train"), recipe.get("init")) if isinstance(recipe, dict) else (None, None)
    share = learning.get("average_with_start") if isinstance(learning, dict) else None
    if not isinstance(share, int | float):
        return None
    path = start.get("path") if isinstance(start, dict) else start
    return f"the mean of the weights of that step ({1 - share:.0%}) and of its start, {path} ({share:.0%})"


def started_from(provenance: Mapping[str, Any]) -> str | None:
    """Return the weights that the training of a model began with, as its recipe names them."""
    recipe = provenance.get("recipe")
    start = recipe.get("init") if isinstance(recipe, dict) else None
    path = start.get("path") if isinstance(start, dict) else start
    return path if isinstance(path, str) else None


def _bands(info: ModelInfo | PretrainedInfo) -> str:
    """Say which bands are read, of what values."""
    names, ranges = info.model.band_names, info.model.ranges
    if names == RGB:
        listed = f"bands {list(info.bands)} as RGB"
    else:
        pairs = zip(names, info.bands, strict=True)
        listed = "bands " + ", ".join(name if name == band else f"{name} {band}" for name, band in pairs)
    stretched = [f"{n} {r[0]:g} to {r[1]:g}" for n, r in zip(names, ranges, strict=bool(ranges)) if r is not None]
    made_of = f" made of {', '.join(stretched)}" if stretched else ""
    return f"{listed}, uint8{made_of}"


def _architecture(model: ModelConfig, network: nn.Module, *, decoder: bool) -> Iterator[str]:
    """Yield the lines about the network."""
    if model.kind != "caswit":
        yield f"network        {model.title}{' (segmentation_models_pytorch)' if model.kind == 'smp' else ''}"
        return
    assert isinstance(network, CASWiT)
    size = SIZES[model.size]
    widths = [size["embed_dim"] * 2**stage for stage in range(len(size["depths"]))]
    yield f"network        {model.title if decoder else model.encoder_title}"
    yield f"  encoders     {model.stem} stem, windows of {size['window_size']} x {size['window_size']} tokens"
    yield f"  by stage     widths {_list(widths)}; blocks {_list(size['depths'])}; heads {_list(size['num_heads'])}"
    yield f"  fusion       {_fusion(model, network)}"
    if decoder:
        norm = "" if model.decoder == "mask2former" else f", {model.decoder_norm} norm"
        yield f"  decoder      {model.decoder}, {decoder_width(model)} channels{norm}"


def _fusion(model: ModelConfig, network: CASWiT) -> str:
    if not model.fusion_stages:
        return "none"
    gates = ", ".join(f"{gate:.3f} (stage {stage})" for stage, gate in network.gates.items())
    return (
        f"after stage{'s' * (len(model.fusion_stages) > 1)} {', '.join(map(str, model.fusion_stages))}, "
        f"{'feeding the next stage' if model.feed_forward else 'for the decoder only'}; "
        f"{f'gates tanh(g) {gates}' if gates else 'not gated'}"
    )


def _ground_size(info: ModelInfo | PretrainedInfo) -> str:
    if info.tile.read_gsd_m is not None:
        return f"{info.tile.read_gsd_m:.3g} m, which images are resampled to"
    return "unknown" if info.trained_gsd_m is None else f"{info.trained_gsd_m:.3g} m"


def _list(values: Iterable[int]) -> str:
    return " ".join(map(str, values))


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)
