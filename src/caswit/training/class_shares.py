"""How often classes occur in few labels and in the images around them, and what follows for the loss.

Two tiles show the classes of a few fields. Learned as they are, they teach that what they lack is nowhere.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.config import IGNORE_INDEX, PredictConfig
from caswit.data.classes import plain_name
from caswit.data.reader import SceneReaders
from caswit.inference.load import load_predictor
from caswit.raster.windows import area_tiles, some_of
from caswit.weights.model_folder import LoadedModel

_MOST_TILES = 64
"""Tiles of the images, spread over them, that are mapped: shares of classes need no more."""
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
    whole: Shares
    """In the whole images: in the labels where there are any, and elsewhere as a model maps them."""

    @property
    def logit_adjustment(self) -> dict[str, float]:
        """What is added to the logits of each class in the loss: log of its share in labels over that in images.

        A network that learns with it is made for the shares of the images (Menon et al. 2021, arXiv 2007.07314,
        equation 10, with these shares in place of equal ones). Where everything is labelled all are 0.
        """
        return {name: round(float(each), 2) + 0.0 for name, each in zip(self.names, self._logs(), strict=True)}

    def said(self) -> str:
        """Name the classes whose shares differ most."""
        most = np.argsort(-np.abs(self._logs()))[:_MOST_SAID]
        return ", ".join(f"{self.names[i]} {self.whole[i]:.1%} (of the labels {self.labelled[i]:.1%})" for i in most)

    def _logs(self) -> Shares:
        logs: Shares = np.log((self.labelled + _RARE) / (self.whole + _RARE))
        return logs


def class_shares(loaded: LoadedModel, opened: SceneReaders, pixels: Sequence[int], accelerator: str) -> ClassShares:
    """Compare the classes of labels with those of whole images.

    Args:
        loaded: A model that has the classes of the dataset by name; what it finds of others does not count.
        opened: Scenes with labels.
        pixels: (K,) labelled pixels of each class in them.
        accelerator: Where the model runs: auto, cpu, cuda, mps.
    """
    predictor = load_predictor(loaded, PredictConfig(device=accelerator))
    numbers, side = some_of(range(len(opened.scenes)), _MOST_TILES), loaded.info.tile.tile_px
    tiles = [(number, tile) for number in numbers for tile in area_tiles([opened[number].raster], side)]
    names = opened.dataset.classes.names
    known, found = np.zeros(len(names), np.int64), np.zeros(len(loaded.info.classes), np.int64)
    for number, tile in some_of(tiles, _MOST_TILES):
        classes = predictor.tile(opened[number], tile.window)[tile.owned.inside(tile.window)]
        labels = opened[number].labels(tile.owned, np.ones(classes.shape, bool))
        unknown = labels == IGNORE_INDEX
        known += np.bincount(labels[~unknown], minlength=len(known))
        found += np.bincount(classes[unknown & (classes < len(found))], minlength=len(found))  # the rest has no data
    places = {plain_name(name): place for place, name in enumerate(loaded.info.classes.names)}
    whole = known + found[[places[plain_name(name)] for name in names]]
    return ClassShares(names, np.asarray(pixels) / max(1, sum(pixels)), whole / max(1, whole.sum()))
