"""The type of every network that training, evaluation and mapping take."""

from caswit.nn.baselines.smp import Baseline
from caswit.nn.baselines.table2 import Table2Network
from caswit.nn.caswit import CASWiT

Network = CASWiT | Baseline | Table2Network
"""Takes tile and context; whether it reads the context is ``reads_context``."""
