"""Measure the peak memory of a model at inference with batch 1 (table 2 of the paper), in a process of its own.

On a GPU these are what the driver says the process holds, as ``nvidia-smi`` and ``gpustat`` show it and as GLNet, FCtL,
ISDNet and those after them report it, CUDA's own share included; what torch reserved; and what its tensors took. On
the CPU it is the resident memory of the process, and how much of it Python and the libraries took before the model was
read. The paper does not say which of these its figures are (our reading: the first).
"""

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from caswit.config import ComputeConfig, RunPrecision, context_factors
from caswit.errors import ModelError, install, one_line
from caswit.inference.devices import MB, resident_mb
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.weights.model_folder import load_model, model_folder

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Peak memory over a few tiles, in MB of 2^20 bytes."""

    device: str
    """Name of the GPU, or cpu."""
    precision: str
    """int8, bf16 or fp32."""
    process_mb: float | None = None
    """Memory of the process on the GPU as the driver counts it; None without nvidia-ml-py, or where it cannot tell."""
    allocated_mb: float | None = None
    """Memory of tensors on the GPU."""
    reserved_mb: float | None = None
    """Memory held by torch on the GPU."""
    resident_mb: float | None = None
    """Memory of the process, on the CPU."""
    before_mb: float | None = None
    """Memory of the process before the model was read, on the CPU."""
    height_px: int | None = None
    """Rows of the image that was labelled at once; None in files of earlier versions."""
    width_px: int | None = None
    """Columns of it."""

    def __str__(self) -> str:
        if self.allocated_mb is not None:
            process = "-" if self.process_mb is None else f"{self.process_mb:.0f}"
            return f"{process} / {self.reserved_mb:.0f} / {self.allocated_mb:.0f}"
        return f"{self.resident_mb:.0f} ({self.before_mb:.0f})"

    @property
    def description(self) -> str:
        """Describe the numbers of ``str``."""
        what = "resident memory of the process (in brackets: before the model was read)"
        if self.allocated_mb is not None:
            what = "of the process by NVML, CUDA's context included / reserved by torch / allocated by torch"
            if self.process_mb is None:
                what += f" (-: NVML did not tell; {install('gpu')})"
        return f"{what}, {self.device}, {self.precision}"

    @property
    def image(self) -> str:
        """Describe the image that was labelled at once."""
        return "a tile" if self.height_px is None else f"{self.height_px} x {self.width_px} px"


def peak_memory(
    model: Path, *, device: str = "auto", precision: RunPrecision = "auto", sides_px: tuple[int, int] | None = None
) -> PeakMemory:
    """Measure a model folder in a fresh process.

    Args:
        model: Model folder.
        device: torch device.
        precision: As in prediction.
        sides_px: Height and width of the image that is labelled at once, rounded up to what the network takes; None:
            a tile of the model.

    Raises:
        ModelError: The folder is no model folder, or the process failed.
    """
    model_folder(model)
    here = str(Path(__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [sys.executable, "-m", "caswit.experiments.memory", str(model), device, precision]
    words += map(str, sides_px or ())
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"{model}: its memory cannot be measured ({last})")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def measure(model: Path, device: str, precision: RunPrecision, sides_px: tuple[int, int] | None = None) -> PeakMemory:
    """Measure in this process, whose peak must not have been higher before."""
    before_mb = resident_mb()
    loaded = load_model(model)
    predictor = load_predictor(loaded, ComputeConfig(batch=1, device=device, precision=precision))
    driver = None if predictor.device.type != "cuda" else Driver.of(torch.cuda.get_device_properties(predictor.device))
    images = [x.to(predictor.device) for x in random_images(predictor, sides_px, loaded.info.tile.tile_px)]
    with torch.inference_mode():
        for _ in range(2):  # the first run also chooses kernels
            predictor.image_logits(images[0], images[1] if len(images) > 1 else None).argmax(1).byte().cpu()
    name = predictor.precision
    height, width = images[0].shape[-2:]
    if predictor.device.type == "cuda":
        return PeakMemory(
            device=torch.cuda.get_device_name(predictor.device),
            precision=name,
            # torch keeps what it once reserved, so that what the driver says now is the peak.
            process_mb=None if driver is None else driver.process_mb(),
            allocated_mb=torch.cuda.max_memory_allocated(predictor.device) / MB,
            reserved_mb=torch.cuda.max_memory_reserved(predictor.device) / MB,
            height_px=height,
            width_px=width,
        )
    return PeakMemory(
        device=predictor.device.type,
        precision=name,
        resident_mb=resident_mb(),
        before_mb=before_mb,
        height_px=height,
        width_px=width,
    )


def random_images(predictor: Predictor, sides_px: tuple[int, int] | None, tile_px: int) -> list[Tensor]:
    """Return an image (1, n, H, W), and its context or contexts (1, n, H, W) or (1, N, n, H, W) where one is read."""
    bands = getattr(predictor.network, "bands", 3)
    factors = context_factors(predictor.context_factor)
    # As ``caswit.evaluation`` fills up whole images.
    step = predictor.step_px
    height, width = (-(-side // step) * step for side in sides_px) if sides_px else (tile_px, tile_px)
    shapes: list[tuple[int, ...]] = [(1, bands, height, width)]
    if predictor.network.reads_context:
        shapes.append((1, bands, height, width) if len(factors) == 1 else (1, len(factors), bands, height, width))
    drawn = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, shape, dtype=torch.uint8, generator=drawn) for shape in shapes]


class Driver:
    """What NVIDIA's driver says of the memory of this process on one GPU.

    Args:
        nvml: The module pynvml, after ``nvmlInit``.
        handle: Its handle of the GPU.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self.nvml, self.handle = nvml, handle

    @classmethod
    def of(cls, device: Any) -> "Driver | None":
        """Return the driver's view of a GPU, given torch's properties of it; None without nvidia-ml-py or driver."""
        try:
            import pynvml as nvml

            nvml.nvmlInit()
            # By its name, not by its number: CUDA_VISIBLE_DEVICES renumbers GPUs for torch alone.
            return cls(nvml, nvml.nvmlDeviceGetHandleByUUID(f"GPU-{device.uuid}"))
        except ImportError:
            return None
        except Exception as error:  # NVML's own kinds, of a module that may be missing
            log.info("memory of the process on the GPU is left out: %s", one_line(error))
            return None

    def process_mb(self) -> float | None:
        """Return the memory of this process on the GPU; None where the driver does not list it."""
        try:
            listed = {p.pid: p.usedGpuMemory for p in self.nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)}
        except Exception as error:
            log.info("memory of the process on the GPU is left out: %s", one_line(error))
            return None
        used = listed.get(os.getpid())
        # A container may number its processes anew; alone on the GPU, the one that is listed is this one.
        if used is None and len(listed) == 1:
            (used,) = listed.values()
        return None if used is None else used / MB


if __name__ == "__main__":
    _, _model, _device, _precision, *_sides = sys.argv
    _px = (int(_sides[0]), int(_sides[1])) if _sides else None
    _peak = measure(Path(_model), _device, _precision, _px)  # type: ignore[arg-type]
    sys.stdout.write(json.dumps(asdict(_peak)) + "\n")
