"""A GPU that is not there: tensors that say they are on it, compute on the CPU, and refuse to mix with the CPU's.

A wrong device shows without a GPU, and what comes out can be compared with the CPU's, number by number. torch's own
FakeTensorMode has no values, so that nothing that reads a number from the device could run under it.

What a GPU does later happens late here too: a copy that nobody waits for (``non_blocking``, between pinned memory and
the GPU on a stream of its own) has garbage until its event or stream is waited for. A captured graph is the list of its
operations, run again on the same tensors; what CUDA refuses to capture is refused.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

GPU = torch.device("cuda", 0)
_CPU = torch.device("cpu")
_MAY_MIX = {"aten::_to_copy", "aten::copy_"}
_MAY_INDEX = {"aten::index.Tensor", "aten::index_put_", "aten::_index_put_impl_"}
"""CUDA takes indices from either side."""


class OnGPU(torch.Tensor):
    """A tensor on the GPU that is not there, and the CPU's tensor behind it."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> "OnGPU":
        # On "meta" for torch's own code: its autograd engine would look for the threads and streams of a GPU.
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.size(), held.stride(), held.storage_offset(), dtype=held.dtype, device="meta"
        )
        made.held = held
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def new_tensor(self, values: Any, **settings: Any) -> torch.Tensor:  # type: ignore[override]
        return torch.tensor(values, **{"dtype": self.dtype, **settings}).to(GPU)

    def tolist(self) -> Any:
        return self.held.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"OnGPU({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    """Makes what is asked for on the GPU, also where no argument is there yet."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    tensors = [x for x in flat if isinstance(x, torch.Tensor)]
    there, name = [t for t in tensors if isinstance(t, OnGPU)], func.name()
    here = [t for t in tensors if not isinstance(t, OnGPU) and t.dim()]
    indices = name in _MAY_INDEX and isinstance(args[0], OnGPU)
    if there and here and not indices and name not in _MAY_MIX:
        raise RuntimeError(f"tensors on cuda:0 and on the CPU in one operation: {name}")
    wanted = kwargs.get("device")
    if name == "aten::copy_":
        on_gpu = isinstance(args[0], OnGPU)
    else:
        on_gpu = bool(there) if wanted is None else torch.device(wanted).type in ("cuda", "meta")
    if _capturing is not None:
        _check_capturable(name, [t for t in tensors if not isinstance(t, OnGPU)], there, on_gpu=on_gpu)
    given = args, kwargs
    plain = [x.held if isinstance(x, OnGPU) else _CPU if isinstance(x, torch.device) else x for x in flat]
    args, kwargs = tree_unflatten(plain, spec)
    kwargs.pop("pin_memory", None)
    known = {id(t.held): t for t in there}

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:  # an operation in place
            return known[id(x)]
        return OnGPU(x) if on_gpu else x

    found = tree_map(placed, func(*args, **kwargs))
    if _capturing is not None and on_gpu:
        _capturing.add(func, args, kwargs, found)
    if name in _MAY_MIX and _is_late(given[1] if name == "aten::_to_copy" else given[0][2:], there, on_gpu):
        return _late(name, found, tensors)
    return found


# ------------------------------------------------------------------------------------------------- streams and events


class Stream:
    """A stream: copies that are under way on it."""

    def __init__(self, device: Any = None) -> None:
        self.under_way: list[Callable[[], Any]] = []

    def record_event(self) -> "Event":
        return Event(self)

    def wait_event(self, event: "Event") -> None:
        event.synchronize()

    def wait_stream(self, other: "Stream") -> None:
        other.synchronize()

    def synchronize(self) -> None:
        while self.under_way:
            self.under_way.pop(0)()


class Event:
    """The end of what is under way on a stream now."""

    def __init__(self, stream: Stream) -> None:
        self.stream, self.left = stream, len(stream.under_way)

    def synchronize(self) -> None:
        for _ in range(min(self.left, len(self.stream.under_way))):
            self.stream.under_way.pop(0)()
        self.left = 0


_usual = Stream()
_threads = threading.local()
late_copies: list[str] = []
"""Names of the copies that nobody waited for at once, in a pretended session."""


def _current_stream(device: Any = None) -> Stream:
    return getattr(_threads, "stream", _usual)


@contextlib.contextmanager
def _on_stream(stream: Stream) -> Iterator[None]:
    # A thread begins to use the GPU here: modes are those of a thread.
    before, _threads.stream = _current_stream(), stream
    with _Everywhere():
        yield
    _threads.stream = before


def _is_late(settings: Any, there: list[Any], on_gpu: bool) -> bool:
    wanted = settings.get("non_blocking") if isinstance(settings, dict) else bool(settings and settings[0])
    # On the usual stream what follows a copy to the GPU waits for it anyway.
    return bool(wanted) and bool(there) != on_gpu and (not on_gpu or _current_stream() is not _usual)


def _late(name: str, found: Any, tensors: list[Any]) -> Any:
    held = found.held if isinstance(found, OnGPU) else found
    values = held.clone()
    held.fill_(-1 if held.is_floating_point() else 7)
    late_copies.append(name)
    _current_stream().under_way.append(lambda: held.copy_(values))
    return found


# -------------------------------------------------------------------------------------------------------------- graphs


class Graph:
    """A captured graph: operations with the tensors that they read and wrote."""

    replays = 0

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def add(self, func: Any, args: Any, kwargs: Any, found: Any) -> None:
        self.operations.append((func, args, kwargs, found))

    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, found in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(found), tree_leaves(again), strict=True):
                # A view of what the operation read is up to date already.
                if isinstance(old, OnGPU) and old.held.untyped_storage()._cdata != new.untyped_storage()._cdata:
                    old.held.copy_(new)


_capturing: Graph | None = None


def _check_capturable(name: str, here: list[Any], there: list[Any], *, on_gpu: bool) -> None:
    """Refuse what waits for the GPU or reads memory of the CPU that may be gone later."""
    if name == "aten::_local_scalar_dense" or (name in _MAY_MIX and bool(here) == on_gpu and bool(there) != on_gpu):
        raise RuntimeError(f"operation not permitted when stream is capturing: {name}")


@contextlib.contextmanager
def _capture(graph: Graph, capture_error_mode: str = "global") -> Iterator[None]:
    global _capturing
    assert capture_error_mode == "thread_local", "another thread reads meanwhile"
    _capturing = graph
    try:
        yield
    finally:
        _capturing = None


_attend = torch.nn.functional.scaled_dot_product_attention


def _attend_by_a_kernel(q: Any, k: Any, v: Any, attn_mask: Any = None, **settings: Any) -> Any:
    """Attend if a kernel is allowed that could: flash takes no mask."""
    cuda = torch.backends.cuda
    fused = (cuda.flash_sdp_enabled() and attn_mask is None) or cuda.mem_efficient_sdp_enabled()
    if isinstance(q, OnGPU) and not fused and not cuda.cudnn_sdp_enabled() and not cuda.math_sdp_enabled():
        raise RuntimeError("No available kernel. Aborting execution.")
    return _attend(q, k, v, attn_mask, **settings)


@contextlib.contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Give this thread a GPU."""
    make, generator = torch.tensor, torch.Generator

    def tensor(values: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
        # torch's own asks for the GPU before any mode hears of it.
        made = make(values, **settings)
        return made if device is None else made.to(device)

    with contextlib.ExitStack() as stack:
        late_copies.clear()
        Graph.replays = 0
        stack.enter_context(mock.patch("torch.cuda._lazy_init", return_value=None))
        stack.enter_context(mock.patch("torch.cuda.get_device_name", return_value="a GPU that is not there"))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", return_value=False))
        stack.enter_context(mock.patch("torch.nn.functional.scaled_dot_product_attention", _attend_by_a_kernel))
        stack.enter_context(mock.patch("torch.cuda.Stream", Stream))
        stack.enter_context(mock.patch("torch.cuda.stream", _on_stream))
        stack.enter_context(mock.patch("torch.cuda.current_stream", _current_stream))
        stack.enter_context(mock.patch("torch.cuda.CUDAGraph", Graph))
        stack.enter_context(mock.patch("torch.cuda.graph", _capture))
        stack.enter_context(mock.patch.object(torch.Tensor, "pin_memory", torch.Tensor.clone))
        stack.enter_context(mock.patch.object(torch.Tensor, "record_stream", return_value=None))
        stack.enter_context(mock.patch("torch.tensor", tensor))
        stack.enter_context(mock.patch("torch.Generator", side_effect=lambda device="cpu": generator()))
        # Inference tensors may not be wrapped; what is left out of them here is their speed.
        stack.enter_context(mock.patch("torch._C._InferenceMode", side_effect=lambda mode: torch.no_grad()))
        # A parameter that moves stays the same object, as on a GPU, for the optimisers that hold it.
        swapping = torch.__future__.get_swap_module_params_on_conversion()
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapping)
        torch.__future__.set_swap_module_params_on_conversion(True)
        stack.enter_context(_Everywhere())
        yield GPU
