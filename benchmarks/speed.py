"""Print seconds per tile and peak memory of the network, beside what one would run instead.

python benchmarks/speed.py [--sizes nano tiny base] [--batches 1 4] [--repeats 5] [--only NAME ...] [--train]
    [--models DIR]

ours: what ``caswit predict`` runs; ours, torch: where OpenVINO is not installed. plain: ``--precision fp32``.
(a): assembled from transformers and torch's MultiheadAttention, eager, in fp32 and under bf16 autocast.
(b): Swin + UPerNet of segmentation_models_pytorch, which sees no context, likewise.
(c): OpenVINO running (a), with the bf16 hint.
(d): what this machine multiplies at most, measured, against the arithmetic of the network as the paper writes it.

Ours and (c) are read from files, which are written first and kept in --models; converting (c) takes minutes and memory.
Every contestant is a process of its own, which says its peak memory; they run in turn. Seconds are of the wall clock;
those of the processor stand beside them, for machines that are shared.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from caswit.inference.devices import uses_bf16
from common.clock import processor, versions
from common.contestants import INFERENCE, SIDE, TRAINING, Run, assembled
from common.process import Process


def arithmetic(size: str, *, train: bool, side: int = SIDE) -> float:
    """Return the GFLOP of one tile as the paper writes the network, i.e. of (a); multiply and add are two."""
    model = assembled(size, train=train, attention="eager").train(train)
    inputs = [torch.zeros(2, 3, side, side, device="meta") for _ in range(2)]  # norms over a batch want two
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(train):
        out = model(*inputs)
        if train:
            (out[0].sum() + out[1].sum()).backward()
    return float(counter.get_total_flops()) / 2 / 1e9


def limit() -> dict[str, float]:
    """Return the best GFLOP/s of a large convolution and a large matrix product, in both types."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        image = torch.randn(1, 512, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
        kernel = torch.randn(512, 512, 3, 3).to(dtype).contiguous(memory_format=torch.channels_last)
        rows, weight = torch.randn(4096, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
        kinds: list[tuple[Run, float]] = [
            (lambda i=image, k=kernel: F.conv2d(i, k, padding=1), 2 * 4096 * 512 * 512 * 9),  # type: ignore[misc]
            (lambda r=rows, w=weight: F.linear(r, w), 2 * 4096 * 2048 * 2048),  # type: ignore[misc]
        ]
        seconds: list[tuple[float, float]] = []
        with torch.inference_mode():
            for run, flop in kinds:
                for _ in range(5):
                    began, cpu = time.perf_counter(), time.process_time()
                    run()
                    spent = (time.process_time() - cpu) / torch.get_num_threads()
                    seconds.append((flop / (time.perf_counter() - began) / 1e9, flop / spent / 1e9))
        name = "bf16" if dtype == torch.bfloat16 else "fp32"
        best[name], best[f"{name}, processor"] = (max(rates) for rates in zip(*seconds, strict=True))
    return best


def main(arguments: argparse.Namespace) -> None:
    """Print a table for every size and batch."""
    names = arguments.only or (TRAINING if arguments.train else INFERENCE)
    print(f"{processor()}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}; {versions()}")
    rates = limit()
    print("(d) GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    for size in arguments.sizes:
        gflop = arithmetic(size, train=arguments.train, side=arguments.side)
        print(f"\n{size}: {gflop:.0f} GFLOP a tile as the paper writes it\n")
        for batch in arguments.batches:
            table(size, batch, [n for n in names if fits(n, size)], gflop, rates, arguments)


def fits(name: str, size: str) -> bool:
    """Return whether there is such a contestant."""
    return not (name.startswith("(b)") and size not in ("tiny", "base"))


def table(size: str, batch: int, names: list[str], gflop: float, rates: dict[str, float], arguments: Any) -> None:
    """Measure each contestant in turn with ours, two processes at a time, then print."""
    clock = "cpu" if arguments.shared else "wall"
    where = {"side": arguments.side, "models": arguments.models, "train": arguments.train}
    ours = Process(names[0], size, batch, **where)
    rows = [[names[0], 1.0, ours]]
    for name in names[1:]:
        other, before = Process(name, size, batch, **where), len(ours.rows)
        for _ in range(arguments.repeats):
            ours.run()
            other.run()
        ratio = other.median(clock) / statistics.median(row[clock] for row in ours.rows[before:])
        rows.append([name, ratio, other])
        other.end()
    if len(names) == 1:
        for _ in range(arguments.repeats):
            ours.run()
    ours.end()
    heads = ["s per tile", "of the processor", "Mpx/s", "peak MB", "before MB", "first s"]
    heads += [f"over {names[0]}", "share of (d)"]
    has_bf16 = uses_bf16("auto", torch.device("cpu"))
    print(f"| {size}, batch {batch} | {' | '.join(heads)} |\n|---{'|---:' * len(heads)}|")
    for name, ratio, one in rows:
        seconds = one.median(clock) / batch
        # Ours and (c) compute in fp32 where the processor has no bf16.
        wide = "fp32" in name or name == "plain" or ("bf16" not in name and not has_bf16)
        rate = rates[("fp32" if wide else "bf16") + ", processor" * arguments.shared]
        cells = [
            f"{one.median('wall') / batch:.2f}",
            f"{one.median('cpu') / batch:.2f}",
            f"{arguments.side**2 / seconds / 1e6:.3f}",
            f"{one.rows[-1]['peak']:.0f}",
            f"{one.ready['before']:.0f}",
            f"{one.ready['first']:.1f}",
            f"{ratio:.2f}",
            "" if name.startswith("(b)") else f"{gflop / seconds / rate:.0%}",
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["nano", "tiny", "base"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--only", nargs="+", choices=sorted({*INFERENCE, *TRAINING}))
    parser.add_argument("--train", action="store_true", help="a training step instead of inference")
    parser.add_argument("--shared", action="store_true", help="ratios of processor time, on a machine with other work")
    parser.add_argument("--models", type=Path, help="where models and (c) are kept; left out: nowhere")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parsed.models = parsed.models or Path(folder)
        main(parsed)
