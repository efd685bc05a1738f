"""A GPU that is not there: tensors that say they are on it, compute on the CPU, and refuse to mix with the CPU's.

A wrong device shows without a GPU, and what comes out can be compared with the CPU's, number by number. torch's own
FakeTensorMode has no values, so that nothing that reads a number from the device could run under it.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

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
    plain = [x.held if isinstance(x, OnGPU) else _CPU if isinstance(x, torch.device) else x for x in flat]
    args, kwargs = tree_unflatten(plain, spec)
    known = {id(t.held): t for t in there}

    def placed(x: Any) -> Any:
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in known:  # an operation in place
            return known[id(x)]
        return OnGPU(x) if on_gpu else x

    return tree_map(placed, func(*args, **kwargs))


@contextlib.contextmanager
def pretend_gpu() -> Iterator[torch.device]:
    """Give this thread a GPU."""
    make, generator = torch.tensor, torch.Generator

    def tensor(values: Any, *, device: Any = None, **settings: Any) -> torch.Tensor:
        # torch's own asks for the GPU before any mode hears of it.
        made = make(values, **settings)
        return made if device is None else made.to(device)

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.cuda._lazy_init", return_value=None))
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
