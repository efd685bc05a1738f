"""Land-cover maps from orthophotos of any size, with a network that sees the context of every tile.

``CASWiT`` is the network. ``load_model`` reads a trained one, which labels arrays; ``predict``, ``train`` and
``evaluate`` do what the commands of these names do. All are imported when first used, so that ``import caswit`` stays
instant.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from caswit.cli.api import Model, evaluate, load_model, predict, train
    from caswit.nn.caswit import CASWiT

__version__ = version("caswit")

__all__ = ["CASWiT", "Model", "__version__", "evaluate", "load_model", "predict", "train"]


def __getattr__(name: str) -> Any:
    if name == "CASWiT":
        from caswit.nn.caswit import CASWiT

        return CASWiT
    if name in __all__:
        from caswit.cli import api

        return getattr(api, name)
    raise AttributeError(f"module 'caswit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
