"""How often classes occur in few labels and in the images around them, and what follows for the loss.

Two tiles show the classes of a few fields. Learned as they are, they teach that what they lack is nowhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import PredictConfig
from caswit.data.classes import plain_name
from caswit.data.dataset import Dataset
from caswit.data.reader import SceneReaders
from caswit.data.scene import Scene
from caswit.inference.load import load_predictor
from caswit.raster.windows import area_tiles, some_of
from caswit.weights.model_folder import LoadedModel

_MOST_TILES = 64
"""Tiles of the images, spread over them, that are labelled: shares of classes need no more."""
_RARE = 1e-3
"""Share that is added to every class: those that do not occur are rare, not impossible."""
_MOST_SAID = 3
"""Classes that are named."""

Shares = NDArray[np.float64]
"""(K,): of each class of a dataset; they sum to 1."""


class ClassShares(NamedTuple):
    """How often classes occur."""

    names: tuple[str, ...]
    labelled: Shares
    """In the labels."""
    found: Shares
    """In the whole images, labelled or not, as a model maps them."""

    @property
    def logit_adjustment(self) -> dict[str, float]:
        """What is added to the logits of each class in the loss: log of its share in labels over that in images.

        A network that learns with it is made for the shares of the images (Menon et al. 2021, arXiv 2007.07314,
        equation 10, with these shares in place of equal ones).
        """
        return {name: round(float(each), 2) for name, each in zip(self.names, self._logs(), strict=True)}

    def said(self) -> str:
        """Name the classes whose shares differ most."""
        most = np.argsort(-np.abs(self._logs()))[:_MOST_SAID]
        each = (f"{self.names[i]} {self.found[i]:.1%} (of the labels {self.labelled[i]:.1%})" for i in most)
        return ", ".join(each)

    def _logs(self) -> Shares:
        logs: Shares = np.log((self.labelled + _RARE) / (self.found + _RARE))
        return logs


def class_shares(
    loaded: LoadedModel, dataset: Dataset, scenes: Sequence[Scene], pixels: Sequence[int], accelerator: str
) -> ClassShares:
    """Compare the classes of labels with what a model finds in whole images.

    Args:
        loaded: A model that has the classes of the dataset by name; what it finds of others does not count.
        dataset: How the images are read.
        scenes: Some of its scenes, of which some are looked at.
        pixels: (K,) labelled pixels of each class.
        accelerator: Where the model runs: auto, cpu, cuda, mps.
    """
    predictor = load_predictor(loaded, PredictConfig(device=accelerator))
    opened = SceneReaders(dataset, some_of(scenes, _MOST_TILES), labels=False)
    side, theirs = loaded.info.tile.tile_px, loaded.info.classes.names
    rasters = [opened[number].raster for number in range(len(opened.scenes))]
    tiles = [(number, tile.window) for number, raster in enumerate(rasters) for tile in area_tiles([raster], side)]
    found = np.zeros(len(theirs), np.int64)
    for number, window in some_of(tiles, _MOST_TILES):
        labels = predictor.tile(opened[number], window)
        found += np.bincount(labels[labels < len(theirs)], minlength=len(theirs))  # the rest has no data
    places = {plain_name(name): place for place, name in enumerate(theirs)}
    names = dataset.classes.names
    return ClassShares(names, _shares(pixels), _shares(found[[places[plain_name(name)] for name in names]]))


def _shares(pixels: Sequence[int] | NDArray[np.int64]) -> Shares:
    counts = np.asarray(pixels, np.float64)
    found: Shares = counts / max(1.0, counts.sum())
    return found
