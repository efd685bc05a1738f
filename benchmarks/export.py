"""Compare an exported model under ONNX Runtime with PyTorch in fp32, and with what ``caswit predict`` computes with.

    python benchmarks/export.py [MODEL] [--threads 1] [--batch 1] [--rounds 7] [--clock wall]

MODEL is a model folder or a name of ``caswit models``; without one a nano with random weights is taken. Runs alternate,
so that other work on the machine hits all; the median of each counts. ``--clock core`` counts seconds of cores
instead, for a busy machine. What PyTorch and ONNX Runtime do at the first call is left out. Prints a table.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from caswit.config import ComputeConfig
from caswit.inference.load import load_predictor
from caswit.inference.onnx.graphs import Form
from caswit.inference.onnx.write import export
from caswit.weights.model_folder import WEIGHTS, load_model, model_folder
from common.clock import alternate
from common.drawn import random_model

CLOCKS = {"wall": time.perf_counter, "core": time.process_time}
FORMS: dict[Form, str] = {"tile and context": "two.onnx", "single input": "one.onnx"}


def runs(model: Path, folder: Path, options: argparse.Namespace) -> dict[str, Callable[[], object]]:
    """Return what is timed, by name."""
    loaded = load_model(model)
    side = loaded.info.tile.tile_px
    whole = loaded.info.tile.context_px if loaded.network.reads_context else side
    rng = np.random.default_rng(0)
    window = rng.integers(0, 256, (options.batch, 3, whole, whole), np.uint8)
    tile, context = (rng.integers(0, 256, (options.batch, 3, side, side), np.uint8) for _ in range(2))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    two, one = (
        onnxruntime.InferenceSession(folder / name, settings, providers=["CPUExecutionProvider"])
        for name in FORMS.values()
    )
    own = load_predictor(load_model(model), ComputeConfig(device="cpu", batch=options.batch))
    tensors = torch.from_numpy(tile), torch.from_numpy(context)

    def in_torch(call: Callable[[torch.Tensor, torch.Tensor], object]) -> Callable[[], object]:
        return torch.inference_mode()(lambda: call(*tensors))

    given = {"tile": tile} | ({"context": context} if loaded.network.reads_context else {})
    return {
        "PyTorch, fp32": in_torch(loaded.network),
        "caswit predict": in_torch(own.image_logits),
        "ONNX Runtime": lambda: two.run(None, given),
        "ONNX Runtime, single input": lambda: one.run(None, {"window": window}),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    options = parser.parse_args()
    for part in ("onnx_ir", "onnxscript"):
        logging.getLogger(part).setLevel(logging.ERROR)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = random_model(folder, tile_px=256) if options.model is None else model_folder(options.model)
        exported = {form: export(model, folder / file, form) for form, file in FORMS.items()}
        calls = runs(model, folder, options)
        weights_mb = (model / WEIGHTS).stat().st_size / 1e6
    for call in calls.values():
        call()
    taken_s = alternate(calls, options.rounds, CLOCKS[options.clock])
    medians = {label: statistics.median(s) for label, s in taken_s.items()}
    size_mb, difference = exported["tile and context"].size_bytes / 1e6, exported["tile and context"].difference
    print(f"\n{options.model or 'nano'}, batch {options.batch}, {options.threads} threads, {options.clock} seconds")
    print(f"file {size_mb:.1f} MB, weights {weights_mb:.1f} MB; difference {difference:.1e}\n")
    print("| what | a batch | times PyTorch | fastest-slowest |\n|---|---:|---:|---|")
    for label, median_s in medians.items():
        ratio = medians["PyTorch, fp32"] / median_s
        print(
            f"| {label} | {median_s:.3f} s | **{ratio:.2f}** | {min(taken_s[label]):.3f}-{max(taken_s[label]):.3f} s |"
        )


if __name__ == "__main__":
    main()
