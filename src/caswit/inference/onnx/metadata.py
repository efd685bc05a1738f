"""What an ONNX file says about itself: texts, each JSON, by the names that QGIS Deepness reads and by ours."""

import json
import math
from typing import Any

from caswit.inference.onnx.graphs import Form
from caswit.weights.model_folder import LoadedModel

NOT_MAPPED = "not mapped"
"""First class of the Deepness form: what lies around the tile."""


def describe_model(loaded: LoadedModel, form: Form, provenance: dict[str, Any]) -> dict[str, str]:
    """Names and values of a file's metadata.

    Args:
        loaded: The model.
        form: Of the graph.
        provenance: How the model was made, without folders of whoever made it.
    """
    info = loaded.info
    factor = info.tile.context_factor if loaded.network.reads_context else 1
    names, colors, ids = list(info.classes.names), [c.color for c in info.classes.predicted], info.classes.predicted
    content: dict[str, Any] = {
        "form": form,
        "model_name": loaded.name,
        "model_sha256": loaded.digest,
        "tile_px": info.tile.tile_px,
        "context_factor": factor,
        "bands": list(info.bands),
        "gsd_m": info.trained_gsd_m,
        "class_ids": [c.id for c in ids],
        "class_colors": colors,
        "provenance": provenance,
    }
    if form == "deepness":
        names = [NOT_MAPPED, *names]
        content |= deepness(info.tile.tile_px, factor, info.trained_gsd_m)
    content["class_names"] = dict(enumerate(names))
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}


def deepness(tile_px: int, factor: int, trained_gsd_m: float | None) -> dict[str, Any]:
    """What only Deepness reads: the settings it proposes."""
    window_px = factor * tile_px
    settings: dict[str, Any] = {
        "model_type": "Segmentor",
        "tile_size": window_px,
        "tiles_overlap": overlap_percent(tile_px, factor),
        "seg_thresh": 0,  # every pixel gets its most probable class
        "seg_small_segment": 0,  # and keeps it: anything else smooths the map
    }
    return settings if trained_gsd_m is None else settings | {"resolution": round(trained_gsd_m * 100, 3)}  # cm


def overlap_percent(tile_px: int, factor: int) -> int:
    """Overlap of windows in whole percent, at which of each tile as much is kept as by ``caswit predict``.

    Deepness keeps what lies half the overlap away from a window's edges. That must not reach outside the tile; a
    quarter of the tile more leaves out what the tile's own edges know less about.
    """
    window_px = factor * tile_px
    return math.ceil(100 * (window_px - tile_px + tile_px / 4) / window_px)
