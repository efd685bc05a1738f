"""Answers of the model itself: the attention of a pixel, and the class and confidence under the pointer.

The model answers one question at a time. Attention is computed when a pixel is clicked and never stored: for every
pixel of an image, stage and head it would be larger than the image by orders of magnitude.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from caswit.config import ComputeConfig
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.errors import ModelError
from caswit.explain.attention import Explanation, explain_pixel, pixel_as_read, shows_attention
from caswit.explain.figure import heatmap_overlay, peak_over_uniform
from caswit.inference.load import load_predictor
from caswit.raster.gate import OPENING, Gate
from caswit.raster.reader import PixelEncoding, Raster
from caswit.raster.stack import Further, own_ranges
from caswit.raster.windows import Tile, Window, owner
from caswit.viz.pictures import data_uri
from caswit.weights.image_bands import bands_to_read, check_further
from caswit.weights.model_folder import LoadedModel, load_model

_KEPT_TILES = 16


class LiveModel:
    """A model that answers questions about pixels.

    Args:
        folder: Model folder.
        settings: How to compute.
        also: Rasters that lie under all images, for bands that these lack.

    ``gate`` is set by the application: it checks images before they are opened.
    """

    def __init__(self, folder: Path, settings: ComputeConfig, also: Sequence[Further] = ()) -> None:
        self.gate: Gate | None = None
        self.loaded: LoadedModel = load_model(folder)
        check_further(self.loaded.info, also)
        self.also = tuple(also)
        self.model = load_predictor(self.loaded, settings)
        self.tile_px = self.loaded.info.tile.tile_px
        self._busy = threading.Lock()
        self._tiles: LRUCache[tuple[Path, float | None, Window], NDArray[np.float32]] = LRUCache(_KEPT_TILES)

    @property
    def explains(self) -> bool:
        """True where there is attention to show: only CASWiT has some, and the page can lay that of one context."""
        return shows_attention(self.model.network) and isinstance(self.model.context_factor, int)

    def attention(
        self, image: Path, row: int, col: int, also: Sequence[Further] = (), gsd_m: float | None = None
    ) -> dict[str, Any]:
        """Explain a pixel: attention by stage and head as pictures, and the probabilities for each kind of context.

        Args:
            image: File that is shown.
            row: Of the pixel, from 0.
            col: Of the pixel.
            also: Rasters beside this image, which passed no gate yet.
            gsd_m: Ground size of its pixels; None: the file's.
        """
        if not isinstance(self.model.context_factor, int):
            raise ModelError("this model reads several contexts; caswit explain draws where it attends in each")
        with self._busy, self._scene(image, also, gsd_m) as scene:
            explanation = explain_pixel(self.model, scene, row, col, self.tile_px)
            ratio = scene.ratio
        tile = explanation.tile.window
        return {
            "row": row,
            "col": col,
            "tile": [ratio * side for side in tile],
            "context": [ratio * side for side in context_window(tile, self.model.context_factor)],
            "changed": float(explanation.changed.mean()),
            "probabilities": self._probabilities(explanation),
            "stages": [
                {
                    "stage": s.stage,
                    "tokens": list(s.mean.shape),
                    "peak": peak_over_uniform(s.mean),
                    "mean": data_uri(heatmap_overlay(s.mean)),
                    "heads": [data_uri(heatmap_overlay(head)) for head in s.heads],
                }
                for s in explanation.stages
            ],
        }

    def confidence(
        self, image: Path, row: int, col: int, also: Sequence[Further] = (), gsd_m: float | None = None
    ) -> dict[str, Any] | None:
        """Return the model's class at a pixel and its probability; None while the model is busy."""
        # A pointer asks many times a second: an answer that comes late is of a place it has left, so none is queued.
        if not self._busy.acquire(blocking=False):
            return None
        try:
            with self._scene(image, also, gsd_m) as scene:
                at = pixel_as_read(scene, row, col)
                tile = owner(scene.height, scene.width, self.tile_px, self.tile_px // 4, *at)
                probabilities = self._tile(image, scene, tile)
        finally:
            self._busy.release()
        values = probabilities[:, at[0] - tile.window.row, at[1] - tile.window.col]
        best = self.loaded.info.classes.predicted[int(values.argmax())]
        return {"name": best.name, "color": best.color, "confidence": float(values.max())}

    def _tile(self, image: Path, scene: SceneReader, tile: Tile) -> NDArray[np.float32]:
        """Return (K, T, T) probabilities of a tile. The last few tiles are kept, since a pointer moves little."""
        place = image, scene.source_gsd_m, tile.window
        if place not in self._tiles:
            region = scene.region(context_window(tile.window, self.model.context_factor))
            self._tiles[place] = self.model.logits(region, [tile])[0].softmax(0).cpu().numpy()
        return self._tiles[place]

    def _scene(self, image: Path, also: Sequence[Further], gsd_m: float | None) -> SceneReader:
        info = self.loaded.info
        model = info.model
        # What the user names for all images wins over what a dataset has for this one.
        named = {each.name for each in self.also}
        beside = [each for each in also if each.name in model.band_names and each.name not in named]
        with OPENING:
            driver = None
            if self.gate is not None:
                driver = self.gate.driver(image)
                beside = [each._replace(driver=self.gate.driver(Path(each.path))) for each in beside]
            further = (*self.also, *beside)
            raster = Raster(image, PixelEncoding(ranges=own_ranges(model.band_names, model.ranges, further)), driver)
            try:
                return SceneReader(
                    Scene(image=image, also=further, gsd_m=gsd_m),
                    bands=bands_to_read(image, info, further=further, opened=raster),
                    read_gsd_m=info.tile.read_gsd_m,
                    image=raster,
                    ranges=model.ranges,
                )
            except BaseException:
                raster.close()
                raise

    def _probabilities(self, explanation: Explanation) -> list[dict[str, Any]]:
        classes = self.loaded.info.classes.predicted
        order = np.argsort(-np.max([*explanation.probabilities.values()], axis=0))
        return [
            {
                "name": classes[k].name,
                "color": classes[k].color,
                "values": {kind: float(p[k]) for kind, p in explanation.probabilities.items()},
            }
            for k in order
        ]
