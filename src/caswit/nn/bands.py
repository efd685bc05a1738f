"""First convolutions for other bands: weights are copied by the bands' names, those of new bands are a mean.

Shapes: O output channels, n bands.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def for_bands(weight: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """Return the weights of a first convolution for images of other bands.

    Args:
        weight: (O, n, ...) of a network that reads the bands ``theirs``.
        theirs: Names of the n bands it was learned with.
        ours: Names of the bands that are read now.

    Returns:
        (O, bands of ours, ...): of a band that both have, its own weights; of a new one, the mean over all of theirs.
    """
    assert weight.shape[1] == len(theirs), (weight.shape, theirs)
    mean = weight.mean(1)
    return torch.stack([weight[:, theirs.index(name)] if name in theirs else mean for name in ours], dim=1)


def said(theirs: Sequence[str], ours: Sequence[str]) -> str:
    """Say which bands keep their weights and which start as a mean."""
    kept = [name for name in ours if name in theirs]
    new = [name for name in ours if name not in theirs]
    unused = [name for name in theirs if name not in ours]
    parts = [f"{', '.join(kept)} by name"] if kept else []
    parts += [f"{', '.join(new)} from the mean of {', '.join(theirs)}"] if new else []
    parts += [f"{', '.join(unused)} not used"] if unused else []
    return "; ".join(parts)
