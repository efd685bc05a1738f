"""Write the recipe of a training from random weights, chosen by the data: what small data and two CPU cores allow.

Rules of thumb, measured on one to five places (docs/log.md, docs/context.md). Comments of the recipe say why.
"""

import json
from textwrap import wrap

from caswit.data.dataset import Dataset, load_dataset
from caswit.training.finetune_data import Ground, LabelledData, hold_out, look, source_gsd_m

_FINE_GSD_M = 0.3
"""Ground size below which pixels are read at twice their own: a tile then shows four times the ground."""
_TILE_SIDES = (256, 192, 128, 96, 64)
_BATCH = 8
_PASSES, _LEAST_STEPS, _MOST_STEPS = 100, 600, 3000
"""Times that the data are seen, and the bounds of the steps that follow."""
_FACTORS = (4, 2)
_SEEN = 0.6
"""Share of the surroundings that has to lie within the images for them to teach anything."""
_LIGHT = """\
augment:
  spatial: true
  scale: 0.25
  brightness: 0.2     # strong changes of light: of places never seen, light decides before anything else
  contrast: 0.35
  gamma: 0.4
  tint: 0.15
  saturation: 0.4"""


def first_recipe(dataset: str) -> str:
    """Return a recipe, as commented YAML, that trains CASWiT-nano on the split ``train`` of a dataset.

    Args:
        dataset: A dataset.yaml with labels.

    Raises:
        CaswitError: The dataset cannot be used.
    """
    data = load_dataset(dataset)
    found = look(data, None, _TILE_SIDES[0], _ground(data))
    tile_px = next((side for side in _TILE_SIDES if side <= found.shortest_px), _TILE_SIDES[-1])
    factor = context_factor(found.image_px, tile_px)
    share = hold_out(found)
    tiles = found.pixels * (1 - share) / tile_px**2
    steps = round(min(max(_PASSES * tiles / _BATCH, _LEAST_STEPS), _MOST_STEPS), -2)
    validates = found.validates or share > 0
    return "\n".join(
        (
            f"# CASWiT-nano on {data.name}, from random weights. As it stands: caswit train THIS_FILE --out runs/NAME",
            *(f"# {line}" for line in wrap(_about(found), 110)),
            "data:",
            f"  dataset: {json.dumps(dataset)}",
            *_validation(found, share),
            f"  sampling: {'labelled   # labels lie here and there' if found.sparse else 'random'}",
            "model:",
            "  size: nano          # tiny, small and base want a GPU and imagery of many places",
            "  stem: conv          # learns edges in half of the steps that a patch embedding takes",
            "  drop_path: 0.1",
            *_fusion(found, tile_px, factor),
            "tile:",
            f"  tile_px: {tile_px}",
            f"  context_factor: {factor or _FACTORS[-1]}",
            f"  read_gsd_m: {'null' if found.read_gsd_m is None else f'{found.read_gsd_m:g}'}   # {found.why}",
            _LIGHT,
            "train:",
            f"  batch: {_BATCH}",
            f"  max_steps: {steps:.0f}     # {_said_of_steps(tiles, steps)}",
            *([f"  val_every_steps: {steps // 5:.0f}"] if validates else []),
            "  lr: 1.0e-3",
            "  min_lr: 1.0e-5",
            f"  warmup_steps: {steps // 20:.0f}",
            "  weight_decay: 0.05",
            "  clip_norm: 5.0",
            "  ema_decay: 0.99",
            f"  keep: {'best' if validates else 'last'}",
            "",
        )
    )


def _ground(data: Dataset) -> Ground:
    """Choose the ground size that is read."""
    source = source_gsd_m(data, None)
    if source is None:
        return Ground(None, "as they are: nothing says how large their pixels are (gsd_m in the dataset.yaml may)")
    if source < _FINE_GSD_M:
        return Ground(2 * source, f"at twice the images' {source:.2g} m: a tile shows four times the ground")
    return Ground(None, f"as they are: {source:.2g} m")


def context_factor(image_px: int, tile_px: int) -> int | None:
    """Return the widest context of which most lies within images of a side, or None.

    The tile's place is any in the image; along both sides, the mean share of the context that the image covers.
    """
    return next((factor for factor in _FACTORS if _covered(image_px, tile_px, factor) ** 2 >= _SEEN), None)


def _covered(image_px: int, tile_px: int, factor: int) -> float:
    """Return the mean share of a context's side that lies within the image, over all places of the tile in it."""
    margin = tile_px * (factor - 1) // 2
    starts = range(max(1, image_px - tile_px + 1))
    inside = [min(image_px, x + tile_px + margin) - max(0, x - margin) for x in starts]
    return sum(inside) / len(inside) / (factor * tile_px)


def _about(found: LabelledData) -> str:
    """Say what there is to learn from."""
    scenes = f"{found.scenes} scene{'s' * (found.scenes != 1)}"
    return (
        f"{scenes} to learn from, {found.pixels / 1e6:.2f} Mpx with labels, read {found.why}. Times and "
        "memory: add --dry-run. Score places that are not beside those that are learned."
    )


def _validation(found: LabelledData, share: float) -> list[str]:
    """Return the lines that say what validates."""
    if found.validates:
        return ["  val_split: val"]
    if not share:
        return ["  val_split: null   # no split val with labels: the last weights are kept"]
    return ["  val_split: held_out", f"  hold_out: {share:g}   # no split val has labels"]


def _fusion(found: LabelledData, tile_px: int, factor: int | None) -> list[str]:
    """Return the lines of the context branch."""
    if factor is None:
        return ["  fusion_stages: []   # no context: the images end too near to a tile to show its surroundings"]
    side = tile_px * factor
    ground = f"{side} px" if found.read_gsd_m is None else f"{side * found.read_gsd_m:.0f} m"
    return [
        f"  # Reads {ground} around a tile. [] leaves the context out, in half of the time a step: compare both where",
        "  # nothing was learned. caswit evaluate --context-report says what the context is used for.",
        "  fusion_stages: [2, 3, 4]",
    ]


def _said_of_steps(tiles: float, steps: float) -> str:
    passes = steps * _BATCH / max(tiles, 1)
    return f"of {_BATCH} tiles: every place is seen about {passes:.0f} times"
