"""A forward pass as a CUDA graph: hundreds of small kernels started by one call."""

import logging
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from caswit.errors import one_line
from caswit.inference.predictor import Forward

log = logging.getLogger(__name__)
_WARM_UP = 3
"""Passes of one shape before it is captured: kernels are chosen and tables made in them."""
Shapes = tuple[torch.Size, ...]


class Graphed:
    """Runs a network as a CUDA graph once it was asked for the same shapes a few times.

    A map's tiles have one shape, except for the last batch of a block, which runs plainly, as does everything if
    capturing fails. Tiles of other sides begin anew. What it returns is the caller's: no later pass writes to it.

    Args:
        run: Tiles and contexts -> logits; it must be the same kernels for the same shapes.
    """

    def __init__(self, run: Forward) -> None:
        self.run = run
        self.graph: _Graph | None = None
        self._passes: Counter[Shapes] = Counter()
        self._usable = True

    def __call__(self, hr: Tensor, context: Tensor | None) -> Tensor:
        """Return fp32 logits (B, K, T, T)."""
        images = (hr,) if context is None else (hr, context)
        shapes = tuple(image.shape for image in images)
        if self.graph is not None and self.graph.shapes == shapes:
            return self.graph.replay(images)
        if self.graph is not None and _sides(self.graph.shapes) != _sides(shapes):
            self.graph, self._passes = None, Counter()
        self._passes[shapes] += 1
        # The largest batch is what most tiles come in.
        larger = self.graph is None or len(hr) > len(self.graph.images[0])
        if not (self._usable and larger and self._passes[shapes] > _WARM_UP):
            return self.run(hr, context).float()
        self.graph = None  # its memory, before the next one takes some
        try:
            self.graph = _Graph(self.run, images)
        except RuntimeError as error:
            self._usable = False
            log.warning("no CUDA graph of the network (%s): its kernels are started one by one", one_line(error, 200))
            return self.run(hr, context).float()
        return self.graph.replay(images)


def _sides(shapes: Shapes) -> list[tuple[int, ...]]:
    return [tuple(shape[1:]) for shape in shapes]


class _Graph:
    """The captured pass of one shape, with the tensors that it reads and writes wherever they lie."""

    def __init__(self, run: Forward, images: tuple[Tensor, ...]) -> None:
        self.images = tuple(torch.empty_like(image, memory_format=torch.contiguous_format) for image in images)
        self.shapes = tuple(image.shape for image in images)
        for mine, image in zip(self.images, images, strict=True):
            mine.copy_(image)
        hr, context = self.images[0], self.images[1] if len(images) > 1 else None
        # torch asks for passes on another stream than the usual one before a capture.
        stream = torch.cuda.Stream(hr.device)
        stream.wait_stream(torch.cuda.current_stream(hr.device))
        with torch.cuda.stream(stream):
            run(hr, context)
        torch.cuda.current_stream(hr.device).wait_stream(stream)
        self._graph, read = torch.cuda.CUDAGraph(), _Read()
        # thread_local: another thread reads the next block meanwhile, and may ask CUDA for pinned memory.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"), read:
            self._logits = run(hr, context)
        self.read = read.tensors
        """What the graph reads that it did not make: tables that a cache might let go of."""

    def replay(self, images: tuple[Tensor, ...]) -> Tensor:
        for mine, image in zip(self.images, images, strict=True):
            mine.copy_(image)
        self._graph.replay()
        return self._logits.to(torch.float32, copy=True)


class _Read(TorchDispatchMode):
    """Notes the tensors that operations read and that none of them made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tensors: list[Tensor] = []
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value not in self._known:
                self._known[value] = True
                self.tensors.append(value)
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._known[value] = True
        return made
