"""The arranged network in eight-bit integers: made by NNCF, stored beside the model, run by OpenVINO.

Linear layers and convolutions of learned weights are quantised, weights once and what goes into them by ranges seen on
training tiles. Products of two results (attention, the matrices that enlarge maps), norms, softmax and sums stay as
they were. Nothing here is chosen by itself: it changes labels, if few.
"""

import contextlib
import io
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from caswit.config import TileConfig
from caswit.errors import ConfigError, ModelError, install, one_line
from caswit.files import atomic_path
from caswit.inference.cpu.kernels import Kernels, has_amx, has_openvino
from caswit.inference.cpu.network import ArrangedCASWiT, can_be_arranged, graph_of
from caswit.nn.caswit import CASWiT
from caswit.nn.swin import PATCH_PX
from caswit.nn.window_partition import Sides
from caswit.weights.int8 import GRAPH, MATRICES, int8_of
from caswit.weights.model_folder import LoadedModel

if TYPE_CHECKING:
    from caswit.inference.cpu.openvino import Built


def check_can_be_int8(loaded: LoadedModel) -> CASWiT:
    """Return the network of a model.

    Raises:
        ConfigError: OpenVINO is not installed.
        ModelError: No arrangement of the network is known.
    """
    if not can_be_arranged(loaded.network):
        raise ModelError(
            f"{loaded.name}: precision int8 is for networks of arch caswit with decoder upernet or segformer; "
            "take another precision"
        )
    if not has_openvino():
        raise ConfigError(f"precision int8 runs in OpenVINO, which is not installed: {install('fast')}")
    return loaded.network


def network_in_int8(loaded: LoadedModel, device: torch.device, *, bf16: bool) -> ArrangedCASWiT:
    """Return the eight-bit form of a model, for tiles of the model's own size.

    Args:
        loaded: The model.
        device: Where it is to run.
        bf16: Compute in bfloat16 what is not computed in integers; otherwise in fp32.

    Raises:
        ConfigError: The device is no processor, or OpenVINO is not installed.
        ModelError: The model has no such form, or one that does not fit it.
    """
    if device.type != "cpu":
        raise ConfigError(f"precision int8 runs on a processor, got device {device}; add --device cpu")
    check_can_be_int8(loaded)
    int8_of(loaded)
    assert loaded.folder is not None
    return stored_network(loaded, loaded.folder, bf16=bf16)


def stored_network(loaded: LoadedModel, folder: Path, *, bf16: bool) -> ArrangedCASWiT:
    """Return the network whose graph a folder holds, unchecked; it takes the images of the model's own tiles alone."""
    network = check_can_be_int8(loaded)
    sizes = sizes_of(network, loaded.info.tile.tile_px)

    def arrange(asked: Sequence[Sides]) -> Callable[..., Tensor]:
        from caswit.inference.cpu.openvino import Compiled

        if tuple(asked) != sizes:
            raise ModelError(
                f"{loaded.name}: its int8 weights are for tiles of {sizes[0][0]} px, got images of {tuple(asked)}; "
                "take another precision"
            )
        return Compiled(_read(folder), bf16=bf16)

    arranged = ArrangedCASWiT(
        network, bf16=bf16, openvino=True, weights=loaded.weights, kernels=_kernels(), arrange=arrange
    )
    return arranged.eval()


def sizes_of(network: CASWiT, tile_px: int) -> tuple[Sides, ...]:
    """Return the sides of the images that a network takes for a tile: its own and those of its contexts."""
    side = tile_px + -tile_px % PATCH_PX
    return ((side, side),) * (1 + (network.contexts if network.reads_context else 0))


def _kernels() -> Kernels:
    # Winograd's sums would need a sign and a bit more than eight. No node of torch: the graph is a file.
    return Kernels(openvino=True, attention="whole" if has_amx() else "groups", winograd=False, joined_masks=False)


def _read(folder: Path) -> "Built":
    """Return the graph that a folder holds."""
    from caswit.inference.cpu.openvino import Built, core

    matrices = load_file(folder / MATRICES)
    try:
        model = core().read_model(folder / GRAPH)
    except RuntimeError as error:
        raise ModelError(f"{folder / GRAPH}: OpenVINO cannot read it ({one_line(error, 120)})") from error
    return Built(model, [matrices[str(number)].numpy() for number in range(len(matrices))])


class Quantised:
    """A network quantised on tiles.

    Args:
        network: In evaluation mode.
        tile: Geometry of its input.
        seen: Tiles, each with its images as ``ArrangedCASWiT.ready`` returns them.
    """

    def __init__(self, network: CASWiT, tile: TileConfig, seen: Sequence[Sequence[Tensor]]) -> None:
        nncf = import_nncf()
        from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters

        built = graph_of(network, sizes_of(network, tile.tile_px), bf16=False, kernels=_kernels())
        _name_by_place(built.model)  # NNCF orders by names
        products = [x for x in built.model.get_ops() if x.get_type_name() == "MatMul"]
        between_results = [x.get_friendly_name() for x in products if not _of_weights(x)]
        kept = [x.get_friendly_name() for x in built.model.get_ops() if "Attention" in x.get_type_name()]
        given = [[*(x.numpy() for x in images), *built.matrices] for images in seen]
        with _quiet():
            self.model: Any = nncf.quantize(
                built.model,
                nncf.Dataset(given),
                subset_size=len(given),
                preset=nncf.QuantizationPreset.MIXED,
                model_type=nncf.ModelType.TRANSFORMER,
                target_device=nncf.TargetDevice.CPU,
                ignored_scope=nncf.IgnoredScope(names=[*between_results, *kept]),
                # Processors without VNNI add pairs of products up in 16 bits, which half of the range of weights fits.
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix.ENABLE,
                    smooth_quant_alphas=AdvancedSmoothQuantParameters(matmul=-1),  # without: docs/log.md
                ),
            )
        _name_by_place(self.model)
        self._matrices = built.matrices

    def write(self, folder: Path) -> None:
        """Write the graph, its weights and the matrices into a folder."""
        import openvino as ov

        ov.save_model(self.model, folder / GRAPH, compress_to_fp16=False)
        with atomic_path(folder / MATRICES) as file:
            save_file({str(i): torch.from_numpy(x) for i, x in enumerate(self._matrices)}, file)


def _name_by_place(model: Any) -> None:
    """Name the nodes of a graph by their place in it: OpenVINO's names count all nodes that a process ever made."""
    for number, node in enumerate(model.get_ordered_ops()):
        node.set_friendly_name(f"{node.get_type_name()}_{number}")
        for value in node.outputs():
            value.get_tensor().set_names(set())
    model.set_friendly_name("caswit")


def _of_weights(product: Any) -> bool:
    return any(value.get_node().get_type_name() == "Constant" for value in product.input_values())


def versions() -> dict[str, str]:
    """Return the versions of what quantises."""
    return {"openvino": version("openvino"), "nncf": version("nncf")}


def import_nncf() -> ModuleType:
    """Import NNCF without what it would send to its makers."""
    name = "openvino_telemetry"
    # Its switch for test machines comes too late: by then it has made a sender, which writes a number for this user
    # into the home folder. Where the package is missing it makes none.
    first, before = "nncf" not in sys.modules, sys.modules.get(name)
    if first:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import nncf
    finally:
        if first:
            del sys.modules[name]
            if before is not None:
                sys.modules[name] = before
    # Its own function for that sets the levels of handlers too, which other loggers may share.
    logging.getLogger("nncf").setLevel(logging.ERROR)
    return nncf


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep from the terminal NNCF's bars, and what torch says of CUDA when NNCF loads what compiles its kernels."""
    of_torch = logging.getLogger("torch.utils.cpp_extension")
    before = of_torch.level
    of_torch.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        of_torch.setLevel(before)
