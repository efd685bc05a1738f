"""Print the peak memory of labelling whole images with networks of table 2, each in a process of its own.

python benchmarks/whole_image.py [--archs isdnet stdc1 stdc2] [--sides 1024 2560 5120] [--device cpu] [--limit-gib 24]

Weights are random, which changes no memory. On a CPU the figure is resident memory (in brackets: before the model was
read); on a GPU, what the driver counts for the process, what torch reserved, and what it allocated. Of an image that
does not fit into --limit-gib of address space, the line says so.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from caswit.config import ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.errors import CaswitError
from caswit.experiments.memory import measure
from caswit.weights.model_folder import ModelInfo, build, save_model
from common.clock import processor, versions

_CLASSES = ("others", "building", "farmland", "greenhouse", "woodland", "bareland", "water", "road")
"""Those of URUR, whose images have 5120 x 5120 px."""


def write_model(arch: str, folder: Path) -> None:
    """Write a model folder of a network with random weights."""
    classes = tuple(LandClass(id=number, name=name, color="#000000") for number, name in enumerate(_CLASSES))
    torch.manual_seed(0)
    info = ModelInfo(model=ModelConfig(arch=arch), tile=TileConfig(tile_px=512), classes=ClassTable(classes))  # type: ignore[arg-type]
    save_model(build(info).eval(), info, folder)


def measure_once(model: Path, device: str, side: int, limit_gib: float) -> None:
    """Label one image in this process, and print seconds and memory."""
    if device == "cpu":
        resource.setrlimit(resource.RLIMIT_AS, (int(limit_gib * 2**30),) * 2)
    began_s = time.perf_counter()
    peak = measure(model, device, "fp32", (side, side))
    print(f"{peak} MB ({peak.description}); {time.perf_counter() - began_s:.0f} s for two passes")


def main(options: argparse.Namespace) -> None:
    """Print a line for each network and side."""
    print(f"{processor()}, {torch.get_num_threads()} threads; {versions()}\n")
    with tempfile.TemporaryDirectory() as name:
        for arch in options.archs:
            folder = Path(name) / arch
            try:
                write_model(arch, folder)
            except CaswitError as error:
                print(f"{arch}: {error}")
                continue
            for side in options.sides:
                words = [sys.executable, __file__, "--measure", folder, options.device, side, options.limit_gib]
                done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)
                said = (
                    done.stdout.strip() or (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
                )
                print(f"{arch}, {side} x {side} px: {said}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--archs", nargs="+", default=["isdnet", "stdc1", "stdc2"])
    parser.add_argument("--sides", nargs="+", type=int, default=[1024, 2560, 5120])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--limit-gib", type=float, default=24.0)
    parser.add_argument("--measure", nargs=4, metavar=("MODEL", "DEVICE", "SIDE", "GIB"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        _model, _device, _side, _gib = given.measure
        measure_once(Path(_model), _device, int(_side), float(_gib))
    else:
        main(given)
