"""Write a model as an ONNX file, and check that ONNX Runtime computes with it what PyTorch does."""

import json
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from caswit import __version__
from caswit.config import check
from caswit.errors import ModelError, one_line
from caswit.files import atomic_path
from caswit.inference.onnx.graphs import Form, Graph, make_graph
from caswit.inference.onnx.metadata import describe_model
from caswit.weights.model_folder import LoadedModel, load_model, model_folder
from caswit.weights.publish import public_config

OPSET = 18
"""Version of ONNX's operators: the oldest that torch's exporter writes, which most programs can read."""
IR_VERSION = 8
"""Version of the file format: that of ONNX 1.13, as the opset. ONNX Runtime up to 1.17 refuses newer ones."""
TOLERANCE = 1e-3
"""Largest allowed difference from PyTorch, as a share of the largest value where that is above 1."""
MOST_BYTES = 2**31 - 2**24
"""Largest size of weights: an ONNX file holds 2 GiB, of which some is left for the graph."""

log = logging.getLogger(__name__)


class Exported(NamedTuple):
    """A file that was written."""

    size_bytes: int
    inputs: dict[str, str]
    """Type and shape of each input, by name."""
    outputs: dict[str, str]
    """Type and shape of each output, by name."""
    difference: float
    """Largest difference between ONNX Runtime and PyTorch."""
    largest: float
    """Largest absolute value of what was compared."""
    rim_px: int = 0
    """Black rim that a layer needs around it in Deepness, in pixels of the model's ground size."""


def export(model: Path | str, out: Path, form: Form = "tile and context") -> Exported:
    """Write a model as an ONNX file, if ONNX Runtime gives the same result as PyTorch.

    Args:
        model: Model folder, hf:owner/name, or the name of a model in the zoo.
        out: File to write, ``.onnx``.
        form: Inputs and output of the graph.

    Raises:
        ConfigError: ``out`` cannot be such a file.
        ModelError: The model cannot be read, is too large, or gives another result in ONNX Runtime.
    """
    _check_target(out)
    import onnx  # noqa: F401  a missing package is reported at once, not after a minute of tracing
    import onnxruntime  # noqa: F401
    import onnxscript  # noqa: F401

    folder = model_folder(model)
    loaded = load_model(model)
    if loaded.info.model.kind == "caswit" and loaded.info.model.decoder == "mask2former":
        raise ModelError(
            f"{model}: networks with decoder mask2former cannot be exported as ONNX yet; "
            "export one with upernet or segformer"
        )
    if loaded.info.model.arch == "glnet":
        # Known beforehand: tracing it takes a minute and ends in pages of what torch has to say.
        raise ModelError(
            f"{model}: GLNet cannot be exported as ONNX, since it labels the images of a batch one by one, in patches; "
            "export another network"
        )
    size_bytes = 4 * sum(p.numel() for p in loaded.network.parameters())
    if size_bytes > MOST_BYTES:
        raise ModelError(
            f"{model}: its weights take {size_bytes / 2**30:.2f} GiB, an ONNX file holds 2; export a smaller model"
        )
    graph = make_graph(loaded, form)
    log.info("tracing %s: half a minute for a small network", loaded.name)
    metadata = describe_model(loaded, form, public_config(folder)["provenance"])
    content = _traced(graph, metadata, loaded)
    with atomic_path(out) as partial:
        partial.write_bytes(content)
        log.info("comparing ONNX Runtime with PyTorch")
        exported = _compare(partial, graph, loaded)
        if not exported.difference <= TOLERANCE * max(1.0, exported.largest):
            raise ModelError(
                f"{out}: not written, ONNX Runtime and PyTorch give different results: a difference of "
                f"{exported.difference:.2g} where values reach {exported.largest:.2g}; please report this"
            )
    return exported._replace(rim_px=json.loads(metadata.get("rim_px", "0")))


def _traced(graph: Graph, metadata: dict[str, str], loaded: LoadedModel) -> bytes:
    """Return the content of the file; say in one line where a network of table 2 cannot be traced."""
    try:
        return onnx_bytes(graph, metadata)
    except Exception as error:  # the tracer raises anything
        if loaded.info.model.kind != "table2":
            raise
        reason = one_line(error)
        raise ModelError(f"{loaded.name}: {loaded.info.model.title} cannot be exported as ONNX ({reason})") from error


def onnx_bytes(graph: Graph, metadata: dict[str, str]) -> bytes:
    """Return a graph as the content of an ONNX file that takes batches of any size."""
    import onnx
    from onnx_ir import passes
    from onnx_ir.passes import common
    from onnxscript import optimizer

    batch = torch.export.Dim("batch", min=1)
    examples = tuple(graph.inputs.values())
    shapes = tuple({0: batch} for _ in examples)  # the other sides are what the network was traced for
    with torch.no_grad():
        graph.module(*examples)  # fills the caches of tables that depend on the size alone: they become constants
    traced = torch.export.export(graph.module, examples, dynamic_shapes=shapes, strict=False)
    program = torch.onnx.export(
        traced,
        input_names=list(graph.inputs),
        output_names=[graph.output],
        opset_version=OPSET,
        dynamo=True,
        optimize=False,  # its search for patterns takes longer than all the rest; ONNX Runtime has its own
        verbose=False,
    )
    assert program is not None
    optimizer.fold_constants(program.model)
    tidy = [
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),  # among it the folders of whoever exports
    ]
    passes.Sequential(*tidy)(program.model)
    program.model.ir_version = IR_VERSION
    proto = program.model_proto
    proto.producer_name, proto.producer_version = "caswit", __version__
    del proto.graph.value_info[:]  # shapes of intermediate results, which programs derive themselves
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto, full_check=True)
    content: bytes = proto.SerializeToString()
    return content


def _check_target(out: Path) -> None:
    check(out.suffix.lower() == ".onnx", f"out must end in .onnx, got {out}")
    check(not out.is_dir(), f"{out}: is a folder; give the name of a file in it, as {out / 'model.onnx'}")
    check(out.resolve().parent.is_dir(), f"{out}: there is no folder {out.parent}; make it first")


def _compare(file: Path, graph: Graph, loaded: LoadedModel) -> Exported:
    """Run a file and the network on the same random images, a single one and a batch of three."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    difference = largest = 0.0
    for batch in (1, 3):
        images = {name: _random_inputs(batch, x, rng) for name, x in graph.inputs.items()}
        given = {
            name: image if x.dtype == torch.uint8 else image.astype(np.float32) / graph.to_uint8
            for (name, x), image in zip(graph.inputs.items(), images.values(), strict=True)
        }
        (found,) = session.run(None, given)
        with torch.inference_mode():
            expected = graph.module(*(torch.from_numpy(x) for x in given.values())).numpy()
        difference = max(difference, float(np.abs(found - expected).max()))
        largest = max(largest, float(np.abs(expected).max()))
    return Exported(
        file.stat().st_size, _types(session.get_inputs()), _types(session.get_outputs()), difference, largest
    )


def _random_inputs(batch: int, like: torch.Tensor, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a batch of an input (B, n, side, side), or of several contexts (B, N, n, side, side)."""
    several = math.prod(like.shape[1:-3])
    return _random_images(batch * several, like.shape[-3], like.shape[-1], rng).reshape(batch, *like.shape[1:])


def _random_images(batch: int, bands: int, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw images (B, n, side, side): patches of colour with noise, and black at their edges as outside of an image."""
    patches = rng.integers(0, 256, (batch, bands, side // 8 + 1, side // 8 + 1)).repeat(8, 2).repeat(8, 3)
    noisy = patches[:, :, :side, :side] + rng.integers(-30, 31, (batch, bands, side, side))
    noisy[:, :, :, : side // 8] = 0
    noisy[1:, :, 5 * side // 8 :] = 0  # not the same in all images of a batch
    return noisy.clip(0, 255).astype(np.uint8)


def _types(values: list[Any]) -> dict[str, str]:
    kinds = [v.type.removeprefix("tensor(").removesuffix(")") for v in values]
    return {v.name: f"{kind} ({', '.join(map(str, v.shape))})" for v, kind in zip(values, kinds, strict=True)}
