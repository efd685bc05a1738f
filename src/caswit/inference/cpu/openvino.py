"""The operations of the arranged network as nodes of an OpenVINO graph, and the graph compiled for the processor.

OpenVINO chooses kernels for the processor at hand, fuses operations, and plans all memory before the first image. The
graph is built directly, which takes seconds; its converter from torch takes over a minute and gigabytes.
"""

# ruff: noqa: D102  The methods of OpenVinoOps are described in caswit.inference.cpu.ops.Ops.

import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import openvino as ov
import torch
from numpy.typing import NDArray
from openvino import opset13 as nodes
from torch import Tensor, nn

from caswit.inference.cpu.kernels import GROUP, MANY_KEYS, Kernels, usual
from caswit.inference.cpu.ops import Affine, Value, attention

Graph = Callable[["OpenVinoOps", Sequence[Value]], Value]
"""A function that builds a graph: from the nodes of the inputs to the node of the output."""


class TorchAttention(ov.Op):  # type: ignore[misc]
    """A node that torch computes: ``Ops.attention``, from queries and keys with values to what was read.

    OpenVINO hands it fp32 and takes fp32, whatever it computes in itself; between them are two copies.

    Args:
        inputs: Outputs of two nodes.
        heads: Number of heads.
        bf16: Compute in bfloat16.
    """

    def __init__(self, inputs: Sequence[Any], heads: int, *, bf16: bool) -> None:
        super().__init__(self, inputs)
        self.heads, self.dtype = heads, torch.bfloat16 if bf16 else torch.float32
        self.constructor_validate_and_infer_types()

    def validate_and_infer_types(self) -> None:
        self.set_output_type(0, self.get_input_element_type(0), self.get_input_partial_shape(0))

    def clone_with_new_inputs(self, new_inputs: Sequence[Any]) -> "TorchAttention":
        return TorchAttention(new_inputs, self.heads, bf16=self.dtype == torch.bfloat16)

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: Sequence[ov.Tensor], inputs: Sequence[ov.Tensor]) -> bool:
        with torch.inference_mode():
            q, kv = (torch.from_numpy(x.data).to(self.dtype) for x in inputs)
            torch.from_numpy(outputs[0].data).copy_(attention(q, kv, self.heads))
        return True


class OpenVinoOps:
    """Builds nodes of a graph, in which all shapes are fixed.

    Args:
        kernels: Ways of computing; None: what is usual for the processor.
        bf16: What torch computes is computed in bfloat16.
    """

    def __init__(self, kernels: Kernels | None = None, *, bf16: bool = False) -> None:
        self.kernels, self.bf16 = kernels or usual(openvino=True), bf16
        self.least: list[Value] = []
        """Outputs of the graph, one for each attention in groups, that are 0 if its result cannot be used."""
        self.matrices: dict[int, tuple[Tensor, NDArray[np.float32], Any]] = {}
        """Further inputs of the graph: by id, a tensor, its values and the node."""
        self._tables: dict[int, tuple[Tensor, Any]] = {}
        self._kept: list[Any] = []  # constants are read where they lie, for as long as the graph lives

    def ready(self, x: Tensor) -> Any:
        x = x.detach().cpu().contiguous()
        values = x.float().numpy() if x.is_floating_point() else x.int().numpy()
        self._kept.append(values)
        return nodes.constant(values, shared_memory=True)

    def table(self, x: Tensor) -> Any:
        if id(x) not in self._tables:
            self._tables[id(x)] = x, self.ready(x)
        return self._tables[id(x)][1]

    def linear(self, x: Value, affine: Affine) -> Value:
        product = nodes.matmul(x, affine.weight, False, True)
        return product if affine.bias is None else nodes.add(product, affine.bias)

    def layer_norm(self, x: Value, affine: Affine, eps: float) -> Value:
        normed = nodes.mvn(x, _ints([-1]), True, eps, "inside_sqrt")
        return nodes.add(nodes.multiply(normed, affine.weight), affine.bias)

    def group_norm(self, x: Value, norm: nn.GroupNorm) -> Value:
        weight, bias = self.ready(norm.weight), self.ready(norm.bias)
        planes = nodes.unsqueeze(nodes.transpose(x, _ints([1, 0])), _ints([0]))
        normed = nodes.group_normalization(planes, weight, bias, norm.num_groups, norm.eps)
        return nodes.transpose(nodes.squeeze(normed, _ints([0])), _ints([1, 0]))

    def relu(self, x: Value) -> Value:
        return nodes.relu(x)

    def gelu(self, x: Value) -> Value:
        return nodes.gelu(x, "erf")

    def add(self, x: Value, y: Value) -> Value:
        return nodes.add(x, y)

    def subtract(self, x: Value, y: Value) -> Value:
        return nodes.subtract(x, y)

    def multiply(self, x: Value, y: Value) -> Value:
        return nodes.multiply(x, y)

    def matmul(self, x: Value, y: Value) -> Value:
        return nodes.matmul(x, y, False, False)

    def mix(self, matrix: Tensor, x: Value) -> Value:
        # OpenVINO computes a product in fp32 whose first factor is a constant, whatever it was asked for, and reorders
        # maps before and after. What it is handed with the image is no constant.
        if id(matrix) not in self.matrices:
            values = matrix.float().contiguous().numpy()
            self.matrices[id(matrix)] = matrix, values, nodes.parameter(list(matrix.shape), np.float32)
        return nodes.matmul(self.matrices[id(matrix)][2], x, False, False)

    def take(self, x: Value, index: Any) -> Value:
        return nodes.gather(x, index, _ints(0))

    def part(self, x: Value, axis: int, first: int, last: int) -> Value:
        return nodes.slice(x, _ints([first]), _ints([last]), _ints([1]), _ints([axis]))

    def cat(self, values: Sequence[Value]) -> Value:
        return nodes.concat(list(values), 0)

    def reshape(self, x: Value, shape: Sequence[int]) -> Value:
        return nodes.reshape(x, _ints(shape), False)

    def permute(self, x: Value, order: Sequence[int]) -> Value:
        return nodes.transpose(x, _ints(order))

    def unbind(self, x: Value) -> list[Value]:
        parts = nodes.split(x, _ints(0), x.output(0).shape[0])
        return [nodes.squeeze(part, _ints([0])) for part in parts.outputs()]

    def softmax(self, x: Value) -> Value:
        return nodes.softmax(x, -1)

    def attention(self, q: Value, kv: Value, heads: int) -> Value:
        queries, keys = q.output(0).shape[0], kv.output(0).shape[0]
        many, groups = keys >= MANY_KEYS, keys // GROUP
        if many and self.kernels.attention == "torch":
            self._kept.append(TorchAttention([q.output(0), kv.output(0)], heads, bf16=self.bf16))
            return self._kept[-1]
        q = self.permute(self.reshape(q, (1, queries, heads, -1)), (0, 2, 1, 3))
        k, v = self.unbind(self.permute(self.reshape(kv, (1, keys, 2, heads, -1)), (2, 0, 3, 1, 4)))
        grouped = many and not keys % groups and self.kernels.attention == "groups"
        read = self._in_groups(q, k, v, groups) if grouped else nodes.scaled_dot_product_attention(q, k, v)
        return self.reshape(self.permute(read, (0, 2, 1, 3)), (queries, -1))

    def _in_groups(self, q: Value, k: Value, v: Value, groups: int) -> Value:
        """Compute attention over groups of keys: (1, h, N, D) and (1, h, M, D) -> (1, h, N, D)."""
        _, heads, keys, channels = k.output(0).shape
        # OpenVINO scores a few queries with all keys at a time. With many keys these scores leave the cache, so keys
        # are read in J groups, as if each were an image of its own: (J, h, M / J, D). Putting the groups together takes
        # the divisor of each group's softmax, which no library returns. It is read off the values instead: each group
        # gets one more key, of zeros, whose score is 0 and its exponential 1, and values get two more columns, of which
        # one counts the keys of the group (1 at each of them) and the other the added key (1 at that alone). With S the
        # sum of exp(score) over the group's keys, attention then returns
        #     (sum of exp(score) v, S, 1) / (S + 1),
        # and dividing by the last column gives numerators and denominators that add up over groups.
        own_key, own_value = np.zeros((groups, heads, 1, channels)), np.zeros((groups, heads, 1, channels + 2))
        own_value[..., -1] = 1
        others = np.zeros((groups, heads, keys // groups, 2))
        others[..., 0] = 1
        grouped = [self._groups(x, groups) for x in (k, v)]
        k = nodes.concat([grouped[0], _floats(own_key)], 2)
        v = nodes.concat([nodes.concat([grouped[1], _floats(others)], 3), _floats(own_value)], 2)
        q = nodes.concat([q] * groups, 0)
        read = nodes.scaled_dot_product_attention(q, k, v)
        # The last column is 0 where S is beyond the range of fp32. The caller then computes the tile another way.
        rest, own = nodes.variadic_split(read, _ints(3), _ints([channels + 1, 1])).outputs()
        self.least.append(nodes.reduce_min(own, _ints([0, 1, 2, 3]), False))
        total = nodes.reduce_sum(nodes.divide(rest, own), _ints([0]), True)
        values, count = nodes.variadic_split(total, _ints(3), _ints([channels, 1])).outputs()
        return nodes.divide(values, count)

    def _groups(self, x: Value, groups: int) -> Value:
        """Split keys or values into groups: (1, h, M, D) -> (J, h, M / J, D)."""
        _, heads, _, channels = x.output(0).shape
        return self.permute(self.reshape(x, (heads, groups, -1, channels)), (1, 0, 2, 3))

    def conv(self, x: Value, affine: Affine, stride: int, padding: int) -> Value:
        out = nodes.convolution(x, affine.weight, [stride] * 2, [padding] * 2, [padding] * 2, [1, 1])
        return out if affine.bias is None else nodes.add(out, nodes.reshape(affine.bias, _ints([1, -1, 1, 1]), False))

    def resize(self, x: Value, size: tuple[int, int]) -> Value:
        return nodes.interpolate(
            x, _ints(size), "linear_onnx", "sizes", axes=_ints([2, 3]), coordinate_transformation_mode="half_pixel"
        )


_LEAST_SIDE_PX = 64
"""Sides of images below which kernels that OpenVINO 2026.4 generates are not used. On processors with AVX2 and no
AVX-512, compiling one for two layers over four tokens of at most 64 channels ends the process; they save 10 to 20 %."""


@cache
def core() -> ov.Core:
    """Return OpenVINO's core, of which a process has one."""
    # It must never be closed. Its plugin for CPUs gives the thread that opens it another stack for signals, and frees
    # that when it is closed, from whichever thread: the next signal would end the process.
    return ov.Core()


class Built(NamedTuple):
    """A graph of fixed shapes."""

    model: ov.Model
    matrices: Sequence[NDArray[np.float32]]
    """What it is handed after the images: the last of its inputs."""
    ops: OpenVinoOps | None = None
    """What it was built by, which holds its constants; None for one that was read from a file."""


def build(
    graph: Graph, shapes: Sequence[Sequence[int]], *, bf16: bool = False, kernels: Kernels | None = None
) -> Built:
    """Build a graph.

    Args:
        graph: Builds it.
        shapes: Shapes of the inputs, which are fp32.
        bf16: What torch computes is computed in bfloat16.
        kernels: Ways of computing; None: what is usual for the processor.
    """
    inputs = [nodes.parameter(list(shape), np.float32) for shape in shapes]
    ops = OpenVinoOps(kernels, bf16=bf16)
    found = graph(ops, inputs)
    matrices = list(ops.matrices.values())
    model = ov.Model([found, *ops.least], [*inputs, *(node for *_, node in matrices)])
    return Built(model, [values for _, values, _ in matrices], ops)


class Compiled:
    """A graph compiled for the processor.

    Args:
        built: The graph.
        bf16: Compute in bfloat16; otherwise in fp32.
    """

    def __init__(self, built: Built, *, bf16: bool) -> None:
        self._built = built
        shapes = [node.shape for node in built.model.inputs[: len(built.model.inputs) - len(built.matrices)]]
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "ENABLE_CPU_PINNING": False,  # processes side by side would be pinned to the same cores
        }
        if min(side for shape in shapes for side in shape[-2:]) < _LEAST_SIDE_PX:
            settings["SNIPPETS_MODE"] = "DISABLE"
        self._free = threading.Lock()  # a request has one set of buffers
        self._request = core().compile_model(built.model, "CPU", settings).create_infer_request()

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Run the graph on contiguous fp32 tensors; return a copy of its output, or NaN where that cannot be used."""
        with self._free:
            given = [x.numpy() for x in inputs] + [*self._built.matrices]
            found, *least = self._request.infer(given, share_inputs=True).to_tuple()
            sound = all(number > 0 for number in least)
            return torch.from_numpy(found.copy() if sound else np.full_like(found, np.nan))


def _floats(values: NDArray[np.float64]) -> Any:
    return nodes.constant(values.astype(np.float32))


def _ints(values: int | Sequence[int]) -> Any:
    return nodes.constant(np.array(values, np.int64))
