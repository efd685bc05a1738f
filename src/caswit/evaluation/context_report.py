"""What a model's context does for it: scores with the context masked and swapped, gates, and what it costs.

Masked context is black around the tile, which many networks met in training. Swapped context shows another place: what
falls with it is what the network really takes from its surroundings, and not only from their being there.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from caswit.data.dataset import Dataset
from caswit.data.reader import context_window, open_dataset_scene
from caswit.data.scene import Scene
from caswit.evaluation.metrics import Counts, score
from caswit.evaluation.tile_pictures import spread_tiles
from caswit.inference.predictor import Predictor
from caswit.nn.caswit import gates_in_words

HARDLY_USED = 0.02
"""A fall of mIoU by less than this, with masked context, is said to be little."""
_OTHERS = 32
"""Places whose contexts are swapped in."""
_TIMES = 5


class Cost(NamedTuple):
    """Milliseconds for one tile, medians of a few."""

    network_ms: float
    network_alone_ms: float | None
    """Of the same network without its context branch; None where there is no such network."""
    read_ms: float
    read_alone_ms: float


@dataclass(frozen=True, kw_only=True, eq=False)
class ContextReport:
    """What was measured beside the scores with the context as it is."""

    swapped: Counts
    """Counts with another place's context around every tile."""
    gates: dict[int, float]
    """tanh(g) by fusion stage; empty where fusion is not gated."""
    cost: Cost

    def values(self, own: Counts, masked: Counts) -> dict[str, Any]:
        """Return what ``report.json`` says of it; scores are fractions of 0..1."""
        scores = {name: score(counts) for name, counts in (("own", own), ("masked", masked), ("swapped", self.swapped))}
        return {
            **{
                name: {key: getattr(each, key) for key in ("miou", "miou_truth", "overall_accuracy")}
                for name, each in scores.items()
            },
            "iou": {name: each.iou.tolist() for name, each in scores.items()},
            "gates": {str(stage): gate for stage, gate in self.gates.items()},
            "cost": self.cost._asdict(),
            "said": self.said(own, masked),
        }

    def said(self, own: Counts, masked: Counts) -> list[str]:
        """Return what the numbers say, in sentences; means are over the classes that the truth has."""
        lost = [100 * (score(own).miou_truth - score(counts).miou_truth) for counts in (masked, self.swapped)]
        lines = [f"Masking the context costs {lost[0]:.1f} points of mIoU, another place's context {lost[1]:.1f}."]
        if (known := int((score(own).support > 0).sum())) < len(own.confusion):
            lines[0] = f"{lines[0][:-1]} (mean of the {known} classes in the truth)."
        without = "the same network without it (model.fusion_stages: []) may be as good, in less time."
        if max(lost) < 100 * HARDLY_USED:
            lines.append(f"The model hardly uses its context here: {without}")
        elif lost[0] < 100 * HARDLY_USED:
            lines.append(f"Another place's context misleads the model, its own gains it little: {without}")
        if self.gates:
            lines.append(f"{gates_in_words(self.gates).capitalize()}.")
        cost = self.cost
        alone = cost.network_alone_ms
        without = "" if alone is None else f" ({alone:.1f} ms without the context branch)"
        lines.append(
            f"A tile takes {cost.network_ms:.1f} ms in the network{without} and {cost.read_ms:.1f} ms to read "
            f"({cost.read_alone_ms:.1f} ms without its context)."
        )
        return lines


def swapping(predictor: Predictor, data: Dataset, scenes: Sequence[Scene], tile_px: int, tiles: int) -> Predictor:
    """Return the predictor with swapped context: that of a tile half the split away, of a few dozen places.

    Args:
        predictor: With the context as it is.
        data: The dataset.
        scenes: Those that are scored, in their order.
        tile_px: Side of the tiles.
        tiles: How many are scored, in their order.
    """
    contexts = []
    for scene, tile in spread_tiles(data, scenes, tile_px, _OTHERS):
        with open_dataset_scene(data, scene) as opened:
            region = opened.region(context_window(tile.window, predictor.context_factor))
            contexts.append(predictor.context(region, tile.window))
    return predictor.with_swapped_context(torch.stack(contexts), tiles)


def cost_of_context(
    predictor: Predictor, alone: Predictor | None, data: Dataset, scenes: Sequence[Scene], tile_px: int
) -> Cost:
    """Time reading and computing of a tile, with the context and without.

    Args:
        predictor: With the context.
        alone: Of the same network without its context branch; its weights do not matter. None where there is none.
        data: The dataset.
        scenes: Those that are scored.
        tile_px: Side of the tiles.
    """
    some = spread_tiles(data, scenes, tile_px, _TIMES)
    scene, tile = some[len(some) // 2]
    with open_dataset_scene(data, scene) as opened:
        wide = context_window(tile.window, predictor.context_factor)
        region = opened.region(wide)
        return Cost(
            network_ms=_median_ms(lambda: predictor.logits(region, [tile]).cpu()),
            network_alone_ms=None if alone is None else _median_ms(lambda: alone.logits(region, [tile]).cpu()),
            read_ms=_median_ms(lambda: opened.region(wide)),
            read_alone_ms=_median_ms(lambda: opened.region(tile.window)),
        )


def _median_ms(run: Callable[[], Any]) -> float:
    run()  # the first one prepares
    times = []
    for _ in range(_TIMES):
        began_s = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - began_s))
    return statistics.median(times)
