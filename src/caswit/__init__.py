"""Land-cover maps from orthophotos of any size, with a network that sees the context of every tile.

``CASWiT`` is the network, ``load_model`` reads a trained one. They are imported when first used, so that
``import caswit`` stays instant.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caswit.nn.caswit import CASWiT
    from caswit.weights.model_folder import load_model

__version__ = version("caswit")

__all__ = ["CASWiT", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    if name == "CASWiT":
        from caswit.nn.caswit import CASWiT

        return CASWiT
    if name == "load_model":
        from caswit.weights.model_folder import load_model

        return load_model
    raise AttributeError(f"module 'caswit' has no attribute {name!r}")
