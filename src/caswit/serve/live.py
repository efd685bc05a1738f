"""What only the model can say: the attention of a pixel, and how sure it is there. One question at a time."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from caswit.config import ComputeConfig
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.explain.attention import Explanation, explain_pixel, read_pixel
from caswit.explain.figure import as_overlay, times_even
from caswit.inference.load import load_predictor
from caswit.raster.windows import Tile, Window, owner
from caswit.viz.pictures import data_uri
from caswit.weights.model_folder import LoadedModel, load_model

_KEPT_TILES = 16


class LiveModel:
    """A model that answers questions about pixels.

    Args:
        folder: Model folder.
        settings: How to compute.
    """

    def __init__(self, folder: Path, settings: ComputeConfig) -> None:
        self.loaded: LoadedModel = load_model(folder)
        self.model = load_predictor(self.loaded, settings)
        self.tile_px = self.loaded.info.tile.tile_px
        self._busy = threading.Lock()
        self._seen: OrderedDict[tuple[Path, Window], NDArray[np.float32]] = OrderedDict()

    @property
    def explains(self) -> bool:
        """False for a model that reads no context."""
        return self.model.network.reads_context

    def attention(self, image: Path, row: int, col: int) -> dict[str, Any]:
        """Attention by stage and head as pictures, and the probabilities with other surroundings."""
        with self._busy, self._scene(image) as scene:
            found = explain_pixel(self.model, scene, row, col, self.tile_px)
            ratio = scene.ratio
        return {
            "row": row,
            "col": col,
            "tile": [ratio * side for side in found.tile.window],
            "context": [ratio * side for side in context_window(found.tile.window, self.model.context_factor)],
            "changed": float(found.changed.mean()),
            "probabilities": self._probabilities(found),
            "stages": [
                {
                    "stage": s.stage,
                    "tokens": list(s.mean.shape),
                    "peak": times_even(s.mean),
                    "mean": data_uri(as_overlay(s.mean)),
                    "heads": [data_uri(as_overlay(head)) for head in s.heads],
                }
                for s in found.stages
            ],
        }

    def confidence(self, image: Path, row: int, col: int) -> dict[str, Any] | None:
        """The model's class at a pixel and its probability; None while the model is busy with something else."""
        if not self._busy.acquire(blocking=False):
            return None
        try:
            with self._scene(image) as scene:
                at = read_pixel(scene, row, col)
                tile = owner(scene.height, scene.width, self.tile_px, self.tile_px // 4, *at)
                probabilities = self._tile(image, scene, tile)
        finally:
            self._busy.release()
        values = probabilities[:, at[0] - tile.window.row, at[1] - tile.window.col]
        best = self.loaded.info.classes.predicted[int(values.argmax())]
        return {"name": best.name, "color": best.color, "confidence": float(values.max())}

    def _tile(self, image: Path, scene: SceneReader, tile: Tile) -> NDArray[np.float32]:
        """(K, T, T) probabilities; the last few tiles are kept, since a pointer moves little."""
        place = image, tile.window
        if place not in self._seen:
            region = scene.region(context_window(tile.window, self.model.context_factor))
            self._seen[place] = self.model.logits(region, [tile])[0].softmax(0).cpu().numpy()
            if len(self._seen) > _KEPT_TILES:
                self._seen.popitem(last=False)
        return self._seen[place]

    def _scene(self, image: Path) -> SceneReader:
        info = self.loaded.info
        return SceneReader(Scene(image=image), bands=info.bands, read_gsd_m=info.tile.read_gsd_m)

    def _probabilities(self, found: Explanation) -> list[dict[str, Any]]:
        classes = self.loaded.info.classes.predicted
        order = np.argsort(-np.max([*found.probabilities.values()], axis=0))
        return [
            {
                "name": classes[k].name,
                "color": classes[k].color,
                "values": {name: float(p[k]) for name, p in found.probabilities.items()},
            }
            for k in order
        ]
