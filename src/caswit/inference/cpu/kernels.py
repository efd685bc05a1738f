"""Which of several equal ways the arranged network is computed in, and which one fits a processor by its features.

All ways compute the same function up to rounding, which tests hold; they differ in time and memory. Where features do
not decide, ``timing`` measures.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import torch

Attention = Literal["torch", "whole", "groups"]
GROUP = 2048
"""Keys in a group, where attention reads them group by group."""
MANY_KEYS = 2 * GROUP
"""Keys from which on there are several ways of reading them."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The ways in which an arranged network is computed."""

    openvino: bool
    """The network runs in OpenVINO; otherwise in torch."""
    attention: Attention
    """How tokens read many others, in OpenVINO: by torch's kernel, by OpenVINO's over all keys at once, or by
    OpenVINO's in groups of keys that are put together afterwards."""
    winograd: bool
    """3x3 convolutions of many channels use Winograd's algorithm."""
    joined_masks: bool
    """Position biases of windows and masks of rolled windows are one table, which takes memory, and not two."""


def has_openvino() -> bool:
    """Return whether OpenVINO is installed."""
    return find_spec("openvino") is not None


def has_amx() -> bool:
    """Return whether torch finds matrix tiles for bfloat16 (AMX) in this processor."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def has_avx512() -> bool:
    """Return whether torch finds vectors of 512 bits in this processor."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def usual(*, openvino: bool | None = None, amx: bool | None = None, avx512: bool | None = None) -> Kernels:
    """Return what processors with these features were measured to be fastest with; None asks the one at hand.

    With AMX products take so little time that what surrounds them counts: Winograd's sums and differences and the
    copies that groups of keys need cost more than they save. With AVX-512 alone, both paid. With AVX2 alone Winograd's
    algorithm pays, and OpenVINO's attention is slower than torch's in any form (docs/performance.md).
    """
    tiles = has_amx() if amx is None else amx
    wide = has_avx512() if avx512 is None else avx512
    return Kernels(
        openvino=has_openvino() if openvino is None else openvino,
        attention="torch" if tiles or not wide else "groups",
        winograd=not tiles,
        joined_masks=False,
    )
