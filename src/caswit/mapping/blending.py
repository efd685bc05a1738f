"""Whether neighbouring tiles are blended where the user leaves it open.

A network that decides by what lies around a tile may decide otherwise for the next one, and the map shows a line where
one tile's part ends. Networks that see the tile alone hardly do, and their maps stay as they are.
"""

from typing import NamedTuple

from caswit.config import PredictConfig
from caswit.nn.caswit import NEARLY_CLOSED, CASWiT
from caswit.weights.learned import Learned
from caswit.weights.model_folder import LoadedModel

_LEANS = 1.0
"""Points of mIoU that masking its context costs a model that leans on it."""


class Blending(NamedTuple):
    """Whether tiles are blended, and why where nobody asked for it."""

    blend: bool
    why: str | None = None


def blending(loaded: LoadedModel, asked: PredictConfig) -> Blending:
    """Return what was asked for, else blend the tiles of a model that leans on its context.

    A model says what masking its context costs where its card was made of a context report. Others are judged by their
    gates: a network without gates, or with one that is open, adds what it reads.
    """
    if asked.blend is not None:
        return Blending(asked.blend)
    # Without overlap there is nothing to average.
    if not loaded.network.reads_context or asked.overlap_px == 0:
        return Blending(False)
    costs = Learned.of(loaded.info.provenance).masking_costs
    if costs is not None:
        return Blending(costs >= _LEANS, f"masking its context costs it {costs:.1f} points of mIoU")
    gates = loaded.network.gates.values() if isinstance(loaded.network, CASWiT) else ()
    if gates and all(abs(gate) < NEARLY_CLOSED for gate in gates):
        return Blending(False)
    return Blending(True, "it reads its context, and how much that decides was not measured")
