"""Metadata of an ONNX file: texts in JSON, under names of ours and under those that QGIS Deepness reads."""

import json
import math
from typing import Any

from caswit.inference.onnx.graphs import Form, deepness_window_px
from caswit.weights.model_folder import LoadedModel

NOT_MAPPED = "not mapped"
"""Name of the first class of the Deepness form, which is everything around the tile."""


def describe_model(loaded: LoadedModel, form: Form, provenance: dict[str, Any]) -> dict[str, str]:
    """Return a file's metadata, texts by name.

    Args:
        loaded: Model that is exported.
        form: Form of the graph.
        provenance: Origin of the model, without folders of whoever trained it.
    """
    info = loaded.info
    factor = info.tile.context_factors[-1] if loaded.network.reads_context else 1
    names, predicted = list(info.classes.names), info.classes.mapped
    content: dict[str, Any] = {
        "form": form,
        "model_name": loaded.name,
        "model_sha256": loaded.digest,
        "tile_px": info.tile.tile_px,
        "context_factor": info.tile.context_factor if loaded.network.reads_context else 1,
        "bands": list(info.bands),
        **({"band_names": info.model.band_names, "ranges": info.model.ranges} if info.model.has_other_bands else {}),
        "gsd_m": info.trained_gsd_m,
        "class_ids": [c.id for c in predicted],
        "class_colors": [c.color for c in predicted],
        "provenance": provenance,
    }
    if form == "deepness":
        names = [NOT_MAPPED, *names]
        content |= deepness(info.tile.tile_px, factor, info.trained_gsd_m)
    content["class_names"] = dict(enumerate(names))
    return {name: json.dumps(value, ensure_ascii=False) for name, value in content.items()}


def deepness(tile_px: int, factor: int, trained_gsd_m: float | None) -> dict[str, Any]:
    """Return the settings that Deepness takes from a file and proposes to its user."""
    window_px = deepness_window_px(tile_px, factor)
    settings: dict[str, Any] = {
        "model_type": "Segmentor",
        "tile_size": window_px,
        "tiles_overlap": overlap_percent(tile_px, factor),
        "rim_px": (window_px - tile_px) // 2,  # not read by Deepness: the black rim that a layer needs
        "seg_thresh": 0,  # every pixel gets its most probable class
        "seg_small_segment": 0,  # and keeps it: anything else smooths the map
    }
    return settings if trained_gsd_m is None else settings | {"resolution": round(trained_gsd_m * 100, 3)}  # cm


def overlap_percent(tile_px: int, factor: int) -> int:
    """Return the overlap of windows, in whole percent, at which tiles overlap by a quarter as in ``caswit predict``."""
    # Deepness keeps of each window what lies at least half the overlap away from its edges. That must lie in the tile,
    # and an eighth of the tile's side away from its edges too, where it sees less around a pixel.
    window_px = deepness_window_px(tile_px, factor)
    return math.ceil(100 * (window_px - tile_px + tile_px / 4) / window_px)
