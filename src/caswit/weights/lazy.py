"""Weights that stay in their file until they are used, and leave memory again afterwards.

The file is mapped into memory: the operating system reads each part when it is first touched, and may drop it again,
since it can be read once more. A network that is only read to be arranged in another way (``caswit.inference.cpu``)
then takes no memory of its own.
"""

import hashlib
import json
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
_FILL = {getattr(Tensor, f"{name}_") for name in ("uniform", "normal", "erfinv", "clamp", "mul", "add", "fill", "zero")}
"""Methods by which new parameters get their values."""
_EVERY_S = 0.05
"""Seconds between two releases of what was read."""


class LazyWeights(Mapping[str, Tensor]):
    """Tensors of a safetensors file by name. Writing to them changes memory, never the file.

    Args:
        file: The file must not be written to while a tensor is in use; replacing it by renaming another is fine.

    Raises:
        SafetensorError: The file is no safetensors file, or damaged.
        KeyError: It holds tensors of types that weights do not have.
    """

    def __init__(self, file: Path) -> None:
        # Checks the whole header, so that it can be trusted below.
        with safe_open(file, framework="pt"):
            pass
        with file.open("rb") as opened:
            # Copy on write: torch wants memory that can be written to, and the file must never change.
            self._memory = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
            self._opened = os.dup(opened.fileno())
        weakref.finalize(self, os.close, self._opened)
        self._state = self._state_now()
        # The format: the header's length in 8 bytes, the header in JSON, the tensors one after the other.
        begin = 8 + int.from_bytes(self._memory[:8], "little")
        header = json.loads(self._memory[8:begin])
        header.pop("__metadata__", None)
        self._tensors = {name: self._tensor(begin, **entry) for name, entry in header.items()}
        self._ends = {name: begin + entry["data_offsets"][1] for name, entry in header.items()}

    def _tensor(self, begin: int, dtype: str, shape: list[int], data_offsets: tuple[int, int]) -> Tensor:
        kind, (first, last) = _TYPES[dtype], data_offsets
        if first == last:
            return torch.empty(shape, dtype=kind)
        count = (last - first) // kind.itemsize
        found = torch.frombuffer(self._memory, dtype=kind, count=count, offset=begin + first).view(shape)
        return found.float() if kind.is_floating_point else found  # a copy, unless it is fp32

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def _state_now(self) -> tuple[int, int]:
        status = os.fstat(self._opened)  # of the file that is mapped, whatever has its name by now
        return status.st_size, status.st_mtime_ns

    def changed(self) -> bool:
        """Return whether the file was written to since it was mapped: then the tensors may be of two files."""
        return self._state_now() != self._state

    def digest(self) -> tuple[str, str | None]:
        """Return the file's SHA-256 in hexadecimal digits, and the first tensor with NaN or infinity, if there is one.

        Both in one pass, as the file may be larger than the memory that keeps what was read.
        """
        digest, unusable, begin = hashlib.sha256(), None, 0
        # Tensors lie one behind the other, so each is checked right after its bytes were read.
        for name, end in sorted(self._ends.items(), key=lambda entry: entry[1]):
            digest.update(memoryview(self._memory)[begin:end])
            if unusable is None and not all_finite(self._tensors[name]):
                unusable = name
            begin = end
            self._release()
        digest.update(memoryview(self._memory)[begin:])
        return digest.hexdigest(), unusable

    @contextmanager
    def released(self) -> Iterator[None]:
        """Keep releasing what is read in the body, for weights that are read once."""
        done = threading.Event()
        thread = threading.Thread(target=self._release_until, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _release_until(self, done: threading.Event) -> None:
        while not done.wait(_EVERY_S):
            self._release()
        self._release()

    def _release(self) -> None:
        # Releasing drops what was written to a tensor too. torch counts writes in _version, which tensors that share
        # memory share: once there was one, nothing is released any more.
        if hasattr(mmap, "MADV_DONTNEED") and not any(x._version for x in self._tensors.values()):
            self._memory.madvise(mmap.MADV_DONTNEED)


def all_finite(values: Tensor) -> bool:
    """Return whether no value is NaN or infinite."""
    return not values.is_floating_point() or bool(finite_numbers(values))


def finite_numbers(values: Tensor) -> Tensor:
    """Return whether no floating-point value is NaN or infinite, on its device: () bool."""
    if not values.numel():
        return torch.ones((), dtype=torch.bool, device=values.device)
    # NaN is handed on; unlike isfinite() of every value, this takes no memory.
    low, high = values.aminmax()
    return low.isfinite() & high.isfinite()


class _Unfilled(TorchFunctionMode):
    """Makes torch.empty, which every parameter starts as, return tensors without memory."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.empty and kwargs.get("dtype") in (None, torch.float32):
            kwargs["device"] = "meta"
        # There is nothing to fill, but torch may take ten milliseconds to find that out, for each of some hundreds.
        if func in _FILL and args[0].is_meta:
            return args[0]
        return func(*args, **kwargs)


def with_weights(build: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> nn.Module:
    """Build a network whose parameters are these tensors, not copies of them.

    Its own parameters are built without memory: filling them with noise takes a second, and as much memory again.

    Raises:
        RuntimeError: The weights are those of another network.
    """
    with _Unfilled():
        network = build()
    network.load_state_dict(weights, assign=True)
    empty = [name for name, x in [*network.named_parameters(), *network.named_buffers()] if x.is_meta]
    assert not empty, empty  # buffers that are not saved must be computed, not made by torch.empty
    return network
