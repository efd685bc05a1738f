"""The type of every network that training, evaluation and mapping take."""

from caswit.nn.baselines.smp import Baseline
from caswit.nn.baselines.table2 import Table2Network
from caswit.nn.caswit import CASWiT

Network = CASWiT | Baseline | Table2Network
"""Takes tile and context; whether it reads the context is ``reads_context``."""

_STRIDE_PX = 32


def stride_px(network: Network) -> int:
    """Return the number of which sides of images are multiples: the network's own ``stride_px``, or else 32."""
    # A baseline stands inside of what normalises images for it.
    stride: int = getattr(getattr(network, "network", network), "stride_px", _STRIDE_PX)
    return stride
