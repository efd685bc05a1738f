"""Compare a pretraining step with a supervised step: seconds and memory, same network, tile and batch.

    python benchmarks/pretraining.py [--size nano] [--tile 256] [--batch 8] [--device cpu] [--repeat 5]

Steps of both kinds alternate, so that what else the machine does hits both; the median of each counts. Memory is
what a step adds to a process of its own: on a GPU the most that torch held, on the CPU the growth of the peak resident
set. Random pixels; reading is not measured.
"""

import argparse
import statistics
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

from caswit.config import PretrainConfig, TrainConfig
from caswit.inference.devices import autocast, uses_bf16
from caswit.nn.caswit import CASWiT
from caswit.nn.losses import loss_normalizer, supervised_loss
from caswit.nn.simmim import SimMIM, masked_l1_sum, pixel_mask, random_cells
from caswit.training.optim import adamw
from common.clock import alternate, peak_mb

CLASSES = 15


def supervised(options: argparse.Namespace) -> Callable[[], None]:
    """Return a step of supervised training: both heads, cross-entropy, AdamW."""
    network = CASWiT(num_classes=CLASSES, size=options.size).to(options.device).train()
    optimizer = adamw(network, TrainConfig())
    tile, context, label = inputs(options)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(torch.device(options.device), options.bf16):
            logits = network(tile, context)
        normalizer = loss_normalizer(label)
        supervised_loss(logits, (label, label), (normalizer, normalizer), alpha=0.5).backward()
        optimizer.step()

    return step


def pretraining(options: argparse.Namespace) -> Callable[[], None]:
    """Return a step of pretraining: masked tile and context, reconstruction, L1, AdamW."""
    network = SimMIM(CASWiT(num_classes=0, size=options.size), context_ratio=0.5).to(options.device).train()
    optimizer = adamw(network, PretrainConfig())
    tile, context, _ = inputs(options)
    cells = [random_cells(options.tile, 32, 0.75, np.random.default_rng(n)) for n in range(options.batch)]
    mask = torch.from_numpy(np.stack(cells)).to(options.device)

    def step() -> None:
        optimizer.zero_grad()
        with autocast(torch.device(options.device), options.bf16):
            found = network(tile, context, mask)
        pixels = pixel_mask(mask, options.tile, options.tile)
        (masked_l1_sum(found, network.network.normalise(tile), pixels) / (3 * pixels.sum())).backward()
        optimizer.step()

    return step


def inputs(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return tile, context and label of random pixels."""
    torch.manual_seed(0)
    shape = options.batch, 3, options.tile, options.tile
    tile, context = (torch.randint(0, 256, shape, dtype=torch.uint8, device=options.device) for _ in range(2))
    return tile, context, torch.randint(0, CLASSES, (shape[0], *shape[2:]), dtype=torch.uint8, device=options.device)


KINDS = {"supervised": supervised, "pretraining": pretraining}


def finished(step: Callable[[], None]) -> None:
    """Take a step and wait for the GPU, if there is one."""
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def memory_mb(kind: str, options: argparse.Namespace) -> float:
    """Return what two steps add to the peak of this process, which does nothing else."""
    began_mb = peak_mb()
    step = KINDS[kind](options)
    step()
    step()
    if options.device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_mb() - began_mb


def main() -> None:
    """Print a line for each kind, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--tile", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--memory-of", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.bf16 = uses_bf16("auto", torch.device(options.device))
    if options.memory_of:
        print(memory_mb(options.memory_of, options))
        return
    memory = {
        kind: float(subprocess.check_output([sys.executable, __file__, *sys.argv[1:], "--memory-of", kind]))
        for kind in KINDS
    }
    steps = {kind: make(options) for kind, make in KINDS.items()}
    for step in steps.values():
        step()
    seconds = alternate({kind: lambda step=step: finished(step) for kind, step in steps.items()}, options.repeat)
    medians = {kind: statistics.median(s) for kind, s in seconds.items()}
    for kind in KINDS:
        print(f"{kind:<12} {medians[kind]:.3f} s a step, {1 / medians[kind]:.2f} steps/s, {memory[kind]:.0f} MB")
    print(
        f"pretraining over supervised: time {medians['pretraining'] / medians['supervised']:.2f}, "
        f"memory {memory['pretraining'] / memory['supervised']:.2f}"
    )


if __name__ == "__main__":
    main()
