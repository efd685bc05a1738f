"""What a recipe takes over from the model that it starts from, where it does not say otherwise.

Weights fit only the network that they were learned in, and expect its input: a recipe with ``init`` need not repeat
the size, stem, fusion stages and gate of that network, its tiles, its ground size and its bands.
"""

from typing import Any

from caswit.config import RGB, InitConfig
from caswit.weights.initialize import info_of_start
from caswit.weights.model_folder import ModelInfo

_NETWORK = ("size", "stem", "fusion_stages", "gated", "feed_forward", "decoder_norm", "mean", "std")
"""Settings that encoders and fusion were learned with; ``drop_path`` is one of the training."""
_DECODER = ("decoder", "decoder_channels")
_TILE = ("tile_px", "context_factor", "read_gsd_m")

INHERITED = (*(f"model.{name}" for name in (*_NETWORK, *_DECODER)), *(f"tile.{name}" for name in _TILE), "data.bands")
"""Settings of a recipe that follow from ``init`` unless they are given."""


def inherited_settings(start: InitConfig | None) -> dict[str, Any]:
    """Return the settings of a recipe that follow from the weights it starts from, as ``section.name`` -> value.

    Nothing follows from weights of other libraries, which have no config.json, or from weights that are not there.

    Raises:
        ModelError: The model's config is damaged.
    """
    info = info_of_start(start)
    if info is None or info.model.arch != "caswit":
        return {}
    # A pretrained network has no decoder, whatever its config says of one.
    names = (*_NETWORK, *_DECODER) if isinstance(info, ModelInfo) else _NETWORK
    found = {f"model.{name}": getattr(info.model, name) for name in names}
    found |= {f"tile.{name}": getattr(info.tile, name) for name in _TILE}
    if info.model.band_names != RGB:  # mean and deviation of other bands are taken over by name, once the data is known
        del found["model.mean"], found["model.std"]
    numbered = all(isinstance(band, int) for band in info.bands)
    return found | ({"data.bands": info.bands} if numbered else {})
