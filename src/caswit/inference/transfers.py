"""Pixels on their way to a device, and results on their way back, beside what the device computes.

On a CUDA GPU both ways go through pinned memory, which the GPU reads and writes by itself, on a stream each. torch
keeps pinned memory that is free again for the next copy of its size, so that blocks use the same two or three buffers.
On other devices a copy is a copy.
"""

import threading
from collections import deque
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from caswit.raster.reader import UInt8


class _Sent(NamedTuple):
    pixels: UInt8
    there: Tensor
    arrived: torch.cuda.Event | None


class Fetched:
    """A tensor on its way from a device."""

    def __init__(self, values: Tensor, arrived: torch.cuda.Event | None = None) -> None:
        self._values, self._arrived = values, arrived

    def numpy(self) -> np.ndarray:
        """Wait for the values and return them; any thread may ask."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.cpu().numpy()


class Transfers:
    """Copies to and from one device. One thread may ``send`` while another computes."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sent: deque[_Sent] = deque()
        self._lock = threading.Lock()
        self._up = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._down = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, pixels: UInt8) -> None:
        """Begin to copy pixels that ``pixels`` will be asked for; on a GPU this returns before they are there."""
        if self._up is None:
            sent = _Sent(pixels, torch.from_numpy(pixels).to(self.device), None)
        else:
            with torch.cuda.stream(self._up):
                there = torch.from_numpy(pixels).pin_memory().to(self.device, non_blocking=True)
                sent = _Sent(pixels, there, self._up.record_event())
        with self._lock:
            self._sent.append(sent)

    def pixels(self, pixels: UInt8) -> Tensor:
        """Return pixels on the device, for the thread that computes; those that were sent before them are forgotten."""
        with self._lock:
            known = any(sent.pixels is pixels for sent in self._sent)
        if not known:
            self.send(pixels)
        with self._lock:
            while self._sent[0].pixels is not pixels:
                self._sent.popleft()
            _, there, arrived = self._sent[0]
            self._sent[0] = _Sent(pixels, there, None)
        if arrived is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(arrived)
            there.record_stream(now)  # or its memory could be given away while kernels still read it
        return there

    def small(self, values: Tensor) -> Tensor:
        """Return a tensor on the device, without waiting for what a GPU computes."""
        # From memory that is not pinned CUDA takes a copy of its own before this returns.
        return values.to(self.device, non_blocking=self._up is not None)

    def fetch(self, values: Tensor) -> Fetched:
        """Begin to copy a tensor from the device, once it is computed."""
        if self._down is None:
            return Fetched(values)
        self._down.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._down):
            here = torch.empty(values.shape, dtype=values.dtype, device="cpu", pin_memory=True)
            here.copy_(values, non_blocking=True)
            values.record_stream(self._down)
            return Fetched(here, self._down.record_event())
