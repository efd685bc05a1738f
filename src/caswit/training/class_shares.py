"""How often classes occur where labels are, and in the images around them; what follows for the loss.

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
from caswit.inference.predictor import Predictor
from caswit.raster.windows import Tile, area_tiles, some_of
from caswit.weights.model_folder import LoadedModel

_MOST_TILES = 64
"""Tiles, spread over the images or over the labels, that are mapped: shares of classes need no more."""
_RARE = 1e-3
"""Share that is added to every class: those that do not occur are rare, not impossible."""
_MOST_SAID = 3
"""Classes that are named."""

Shares = NDArray[np.float64]
"""(K,): of each class of a dataset; they sum to 1."""
Placed = tuple[int, Tile]
"""Number of a scene and a tile of it."""


class ClassShares(NamedTuple):
    """How often a model finds classes.

    Both shares are the model's: what it takes for something else where labels are, it does elsewhere too.
    """

    names: tuple[str, ...]
    labelled: Shares
    """Where labels are."""
    whole: Shares
    """In the whole images."""

    @property
    def logit_adjustment(self) -> dict[str, float]:
        """What is added to the logits of each class in the loss: log of its share at labels over that in images.

        A network that learns with it is made for the shares of the images (Menon et al. 2021, arXiv 2007.07314,
        equation 10, with these shares in place of equal ones). Where everything is labelled all are 0.
        """
        return {name: round(float(each), 2) + 0.0 for name, each in zip(self.names, self._logs(), strict=True)}

    def said(self) -> str:
        """Name the classes whose shares differ most."""
        most = np.argsort(-np.abs(self._logs()))[:_MOST_SAID]
        return ", ".join(f"{self.names[i]} {self.whole[i]:.1%} (where labels are {self.labelled[i]:.1%})" for i in most)

    def _logs(self) -> Shares:
        logs: Shares = np.log((self.labelled + _RARE) / (self.whole + _RARE))
        return logs


def class_shares(
    loaded: LoadedModel, opened: SceneReaders, labelled: Sequence[Placed], accelerator: str
) -> ClassShares:
    """Map labelled tiles and whole images with a model, and compare the classes it finds.

    Args:
        loaded: A model that has the classes of the dataset by name; what it finds of others does not count.
        opened: Scenes with labels.
        labelled: Tiles of them that have labels.
        accelerator: Where the model runs: auto, cpu, cuda, mps.
    """
    predictor = load_predictor(loaded, PredictConfig(device=accelerator))
    side = loaded.info.tile.tile_px
    numbers = some_of(range(len(opened.scenes)), _MOST_TILES)
    everywhere = [(number, tile) for number in numbers for tile in area_tiles([opened[number].raster], side)]
    names = opened.dataset.classes.names
    theirs = {plain_name(name): place for place, name in enumerate(loaded.info.classes.names)}
    places = [theirs[plain_name(name)] for name in names]
    there, whole = (
        _found(predictor, opened, tiles, len(theirs), at_labels=at_labels)[places]
        for tiles, at_labels in ((labelled, True), (everywhere, False))
    )
    return ClassShares(names, there / max(1, there.sum()), whole / max(1, whole.sum()))


def _found(
    predictor: Predictor, opened: SceneReaders, tiles: Sequence[Placed], count: int, *, at_labels: bool
) -> NDArray[np.int64]:
    """Count the pixels of each class (K,) in some of the tiles as the model maps them; it has so many classes."""
    pixels = np.zeros(count, np.int64)
    for number, tile in some_of(tiles, _MOST_TILES):
        inside = tile.owned.inside(tile.window)
        found = predictor.tile(opened[number], tile.window)[inside]
        if at_labels:
            labels = opened[number].labels(tile.owned, np.ones(found.shape, bool))
            found = found[labels != IGNORE_INDEX]
        pixels += np.bincount(found[found < count], minlength=count)  # the rest has no data
    return pixels
