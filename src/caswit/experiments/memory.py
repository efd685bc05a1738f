"""Measure the peak memory of a model at inference with batch 1 (table 2 of the paper), in a process of its own.

On a GPU this is what torch allocated and what it reserved; on the CPU the resident memory of the process, and how much
of it Python and the libraries took before the model was read.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import torch

from caswit.config import ComputeConfig, Precision
from caswit.errors import ModelError
from caswit.inference.load import load_predictor
from caswit.weights.model_folder import load_model, model_folder

MB = 2**20


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """Peak memory over a few tiles, in MB of 2^20 bytes."""

    device: str
    """Name of the GPU, or cpu."""
    precision: str
    """bf16 or fp32."""
    allocated_mb: float | None = None
    """Memory of tensors on the GPU."""
    reserved_mb: float | None = None
    """Memory held by torch on the GPU."""
    resident_mb: float | None = None
    """Memory of the process, on the CPU."""
    before_mb: float | None = None
    """Memory of the process before the model was read, on the CPU."""

    def __str__(self) -> str:
        if self.allocated_mb is not None:
            return f"{self.allocated_mb:.0f} / {self.reserved_mb:.0f}"
        return f"{self.resident_mb:.0f} ({self.before_mb:.0f})"

    @property
    def description(self) -> str:
        """Describe the numbers of ``str``."""
        what = (
            "allocated / reserved by torch"
            if self.allocated_mb is not None
            else "resident memory of the process (in brackets: before the model was read)"
        )
        return f"{what}, {self.device}, {self.precision}"


def peak_memory(model: Path, *, device: str = "auto", precision: Precision = "auto") -> PeakMemory:
    """Measure a model folder in a fresh process.

    Raises:
        ModelError: The folder is no model folder, or the process failed.
    """
    model_folder(model)
    here = str(Path(__file__).parents[1])
    paths = [here, *filter(None, [os.environ.get("PYTHONPATH")])]
    words = [sys.executable, "-m", "caswit.experiments.memory", str(model), device, precision]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(f"{model}: its memory cannot be measured ({last})")
    return PeakMemory(**json.loads(done.stdout.splitlines()[-1]))


def measure(model: Path, device: str, precision: Precision) -> PeakMemory:
    """Measure in this process, whose peak must not have been higher before."""
    before_mb = _resident_mb()
    loaded = load_model(model)
    predictor = load_predictor(loaded, ComputeConfig(batch=1, device=device, precision=precision))
    side = loaded.info.tile.tile_px
    tile = torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    contexts = len(loaded.info.tile.context_factors)
    context = tile if contexts == 1 else tile[:, None].repeat(1, contexts, 1, 1, 1)
    images = tile.to(predictor.device), context.to(predictor.device) if loaded.network.reads_context else None
    with torch.inference_mode():
        for _ in range(2):  # the first run also chooses kernels
            predictor.image_logits(*images).argmax(1).byte().cpu()
    name = "bf16" if predictor.bf16 else "fp32"
    if predictor.device.type == "cuda":
        return PeakMemory(
            device=torch.cuda.get_device_name(predictor.device),
            precision=name,
            allocated_mb=torch.cuda.max_memory_allocated(predictor.device) / MB,
            reserved_mb=torch.cuda.max_memory_reserved(predictor.device) / MB,
        )
    return PeakMemory(device=predictor.device.type, precision=name, resident_mb=_resident_mb(), before_mb=before_mb)


def _resident_mb() -> float:
    """Return the peak of this process."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says on Linux includes the process that started this one
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) / 1024
    if os.name == "posix":  # macOS, where psutil knows no peak
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
    return psutil.Process().memory_info().peak_wset / MB


if __name__ == "__main__":
    _, _model, _device, _precision = sys.argv
    sys.stdout.write(json.dumps(asdict(measure(Path(_model), _device, _precision))) + "\n")  # type: ignore[arg-type]
