"""The device and the precision that a network computes in."""

import os
from contextlib import AbstractContextManager
from pathlib import Path

import torch

from caswit.config import RunPrecision
from caswit.errors import ConfigError, brief

MB = 2**20


def pick_device(name: str) -> torch.device:
    """Return the device of a name; "auto" takes a GPU where there is one.

    Raises:
        ConfigError: The device is unknown to torch or missing on this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {brief(name)} cannot be used ({reason}); try auto or cpu") from error
    return device


def uses_bf16(precision: RunPrecision, device: torch.device) -> bool:
    """Return whether to compute in bfloat16; "auto" does where the device has it natively."""
    if precision != "auto":
        return precision == "bf16"
    # Emulated bfloat16 is slower than fp32, so hardware support is what counts.
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16()


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Return a context manager in which torch computes in bfloat16 where that is safe, if ``bf16``."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16)


def _cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    return capabilities.startswith("AVX512") and torch.cpu._is_avx512_bf16_supported()


def resident_mb() -> float:
    """Return the peak of the resident memory of this process, in MB of 2^20 bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says on Linux includes the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 1024
    if os.name == "posix":  # macOS, where psutil knows no peak
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
    import psutil  # which predict does not need

    return psutil.Process().memory_info().peak_wset / MB
