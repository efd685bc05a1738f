"""Summary of a model for ``caswit info``: its network, its size and arithmetic, and the images it expects."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from caswit.config import ModelConfig
from caswit.weights.model_folder import LoadedModel, build, load_model

PARTS = {
    "encoder": ("network.encoder",),
    "hr encoder": ("hr_encoder",),
    "context encoder": ("context_encoder",),
    "fusion": ("fusion",),
    "decoder": ("decoder", "hr_norms", "network.decoder", "network.segmentation_head"),
}


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Size and arithmetic of a network at inference."""

    parameters: dict[str, int]
    """Number of parameters of each part of the network."""
    flops: int
    """Floating-point operations for one tile; a multiply-add counts as two."""


def costs(loaded: LoadedModel) -> Costs:
    """Count the parameters of each part, and the FLOPs of one tile with tensors that have no memory."""
    network = loaded.network
    parameters = {
        part: sum(p.numel() for n, p in network.named_parameters() if n.startswith(tuple(f"{x}." for x in prefixes)))
        for part, prefixes in PARTS.items()
    }
    assert sum(parameters.values()) == sum(p.numel() for p in network.parameters())
    side = loaded.info.tile.tile_px
    image = torch.empty(1, 3, side, side, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(loaded.info).eval().to("meta")(image, image)
    return Costs(parameters={k: v for k, v in parameters.items() if v}, flops=counter.get_total_flops())


def describe(model: Path) -> str:
    """Return a readable page about a model folder."""
    loaded = load_model(model)
    info, cost = loaded.info, costs(loaded)
    tile, made = info.tile, info.provenance
    gsd = "unknown" if info.trained_gsd_m is None else f"{info.trained_gsd_m:.3g} m"
    sees = (
        f"{tile.context_px} x {tile.context_px} px around it, averaged by {tile.context_factor}"
        if loaded.network.reads_context
        else "the tile alone"
    )
    lines = [
        f"model          {loaded.name} (sha256 {loaded.digest})",
        f"network        {_network(info.model)}",
        f"parameters     {sum(cost.parameters.values()) / 1e6:.2f} M",
        *(f"  {part:<15}{count / 1e6:8.3f} M" for part, count in cost.parameters.items()),
        f"arithmetic     {cost.flops / 1e9:.1f} GFLOP per tile",
        f"input          bands {list(info.bands)} as RGB, uint8; tile {tile.tile_px} x {tile.tile_px} px",
        f"sees           {sees}",
        f"ground pixel   {gsd}{', which images are resampled to' if tile.read_gsd_m else ''}",
        f"normalisation  mean {_numbers(info.model.mean)}, std {_numbers(info.model.std)}",
        f"classes        {len(info.classes)}",
        *(f"  {c.id:>3}  {c.color}  {c.name}" for c in info.classes.predicted),
    ]
    if made:
        score = made.get("best_val_miou")
        lines.append(
            f"made from      {made.get('dataset')}, step {made.get('step')}"
            + (f", best validation mIoU {score:.4f}" if score is not None else "")
        )
    return "\n".join(lines)


def _network(model: ModelConfig) -> str:
    if model.arch != "caswit":
        return f"{model.arch} with encoder {model.encoder} (segmentation_models_pytorch)"
    stages = list(model.fusion_stages) or "none"
    return f"CASWiT-{model.size}, {model.decoder}, fusion after stages {stages}{', gated' if model.gated else ''}"


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:g}" for v in values)
