"""Seconds per tile and peak memory of the network, beside what one would run instead.

python benchmarks/speed.py [--sizes nano tiny base] [--batches 1 4] [--repeats 5] [--only NAME ...] [--train]

ours: what ``caswit predict`` runs; ours, torch and ours, OpenVINO: its two ways. plain: ``--precision fp32``.
(a): assembled from transformers and torch's MultiheadAttention, eager, in fp32 and under bf16 autocast.
(b): Swin + UPerNet of segmentation_models_pytorch, which sees no context, likewise.
(c): OpenVINO running (a), with the bf16 hint.
(d): what this machine multiplies at most, measured, against the arithmetic of the network as the paper writes it.

Every contestant lives in a process of its own, which says its peak memory; they run in turn. Seconds are of the wall
clock; those of the processor follow in brackets, for machines that are shared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from timm.models.swin_transformer import SwinTransformerBlock, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from caswit.memory import _resident_mb
from caswit.model import CASWiT
from caswit.optim import adamw

SIDE, CLASSES = 512, 15
INFERENCE = ["ours", "ours, torch", "ours, OpenVINO", "plain", "(a) fp32", "(a) bf16", "(b) fp32", "(b) bf16", "(c)"]
TRAINING = ["ours", "ours, checkpointing", "(a) fp32", "(a) bf16", "(a) bf16, checkpointing"]
Run = Callable[[], Any]


def filled(model: nn.Module, *, train: bool = False) -> nn.Module:
    """A model that was built without memory, with noise for weights: initialising takes longer than measuring."""
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=weight.shape[-1] ** -0.5 if weight.ndim > 1 else 0.1)
        for buffer in model.buffers():
            buffer.fill_(1) if buffer.is_floating_point() else buffer.zero_()
    for module in model.modules():
        if isinstance(module, WindowAttention | SwinTransformerBlock):
            module.init_non_persistent_buffers()
    return model.train(train)


def network(size: str, *, train: bool = False) -> CASWiT:
    """CASWiT without memory; whoever predicts has no head of the context branch."""
    with torch.device("meta"):
        return CASWiT(num_classes=CLASSES, size=size, drop_path=0.0, context_head=train)  # type: ignore[arg-type]


def assembled(size: str, *, train: bool = False, attention: str = "sdpa") -> nn.Module:
    """(a) without memory."""
    from assembled import Assembled

    with torch.device("meta"):
        model = Assembled(network(size, train=True), attention)
    if not train:
        model.context.head = None  # type: ignore[assignment]
    return model


def images(batch: int, side: int, context: int) -> tuple[Tensor, Tensor]:
    """The same noise in every process."""
    drawn = torch.Generator().manual_seed(1)
    hr, around = (torch.randint(0, 256, (batch, 3, n, n), dtype=torch.uint8, generator=drawn) for n in (side, context))
    return hr, around


def inference(name: str, size: str, batch: int, side: int = SIDE) -> Run:
    """A contestant, ready to label a batch."""
    from caswit.fast.network import FastCASWiT, fast_network

    hr, context = images(batch, side, side)
    bf16 = torch.cpu._is_avx512_bf16_supported()
    if name.startswith("(b)"):
        model = baseline(size)
        return lambda: under(model, "bf16" in name, hr)
    if name.startswith("(a)"):
        theirs = filled(assembled(size))
        return lambda: under(theirs, "bf16" in name, hr, context)
    if name == "(c)":
        return openvino(filled(assembled(size)), hr, context)
    plain = filled(network(size))
    if name == "plain":
        return lambda: under(plain, False, hr, context)
    fast = {
        "ours": lambda: fast_network(plain, device=hr.device, bf16=bf16),
        "ours, torch": lambda: FastCASWiT(plain, bf16=bf16, openvino=False),  # type: ignore[arg-type]
        "ours, OpenVINO": lambda: FastCASWiT(plain, bf16=bf16, openvino=True),  # type: ignore[arg-type]
    }[name]()
    assert fast is not None
    return lambda: fast(hr, context)


def under(model: nn.Module, bf16: bool, *inputs: Tensor) -> Tensor:
    """Logits, under autocast or not."""
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits: Tensor = model(*inputs)
    return logits.float()


def openvino(model: nn.Module, hr: Tensor, context: Tensor) -> Run:
    """(a), converted as OpenVINO's documentation says."""
    import openvino as ov

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        example = tuple(x.float() for x in (hr, context))
        converted = ov.convert_model(model, example_input=example, input=[list(x.shape) for x in example])
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = ov.Core().compile_model(converted, "CPU", settings).create_infer_request()
    inputs = [x.numpy() for x in example]
    return lambda: request.infer(inputs, share_inputs=True)


def baseline(size: str) -> nn.Module:
    """segmentation_models_pytorch's Swin of this size with its UPerNet; it has none as small as nano."""
    import segmentation_models_pytorch as smp

    encoder = {"tiny": "tu-swin_tiny_patch4_window7_224", "base": "tu-swin_base_patch4_window12_384"}[size]
    more = {"img_size": SIDE, "decoder_channels": 512}
    model = smp.create_model("upernet", encoder, None, classes=CLASSES, **more)
    model = model.eval()

    class Pixels(nn.Module):
        def forward(self, hr: Tensor) -> Tensor:
            logits: Tensor = model((hr.float() - 114) / 53)
            return logits

    return Pixels().eval()


def training(name: str, size: str, batch: int, side: int = SIDE) -> Run:
    """A contestant, ready for a step: forward, backward, optimiser."""
    hr, context = images(batch, side, side)
    truth = torch.randint(0, CLASSES, (batch, side, side), generator=torch.Generator().manual_seed(2))
    model: Any
    if name.startswith("(a)"):
        model = filled(assembled(size, train=True), train=True)
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    else:
        from caswit.config import TrainConfig

        model = filled(network(size, train=True), train=True)
        optimizer = adamw(model, TrainConfig(lr=1e-5))
    if "checkpointing" in name:
        model.checkpoint_gradients()
    bf16 = "fp32" not in name

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            ours, around = model(hr, context)
        loss = F.cross_entropy(ours.float(), truth) + 0.5 * F.cross_entropy(around.float(), truth)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def contestant(arguments: argparse.Namespace) -> None:
    """What a process of its own does: one line in, one measurement out."""
    before = _resident_mb()
    name, size, batch = arguments.worker, arguments.sizes[0], arguments.batches[0]
    began = time.perf_counter()
    run = (
        training(name, size, batch, arguments.side) if arguments.train else inference(name, size, batch, arguments.side)
    )
    run()
    first = time.perf_counter() - began
    print(json.dumps({"first": first, "before": before}), flush=True)
    for _ in sys.stdin:
        began, cpu = time.perf_counter(), time.process_time()
        run()
        row = {"wall": time.perf_counter() - began, "cpu": time.process_time() - cpu, "peak": _resident_mb()}
        print(json.dumps(row), flush=True)


class Process:
    """A contestant in a process of its own."""

    def __init__(self, name: str, size: str, batch: int, arguments: argparse.Namespace) -> None:
        words = [sys.executable, __file__, "--worker", name, "--sizes", size, "--batches", str(batch)]
        words += ["--side", str(arguments.side), *(["--train"] if arguments.train else [])]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = self._line()
        self.rows: list[dict[str, float]] = []

    def run(self) -> None:
        """Measure once more."""
        assert self.process.stdin is not None
        self.process.stdin.write("run\n")
        self.process.stdin.flush()
        self.rows.append(self._line())

    def _line(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args}: ended early")
        return json.loads(line)  # type: ignore[no-any-return]

    def median(self, what: str) -> float:
        """Over the runs."""
        return statistics.median(row[what] for row in self.rows)

    def end(self) -> None:
        """Close its input, upon which it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def arithmetic(size: str, *, train: bool, side: int = SIDE) -> float:
    """GFLOP of one tile as the paper writes the network, i.e. of (a); multiply and add are two."""
    model = assembled(size, train=train, attention="eager").train(train)
    inputs = [torch.zeros(2, 3, side, side, device="meta") for _ in range(2)]  # norms over a batch want two
    counter = FlopCounterMode(display=False)
    with counter, torch.set_grad_enabled(train):
        out = model(*inputs)
        if train:
            (out[0].sum() + out[1].sum()).backward()
    return float(counter.get_total_flops()) / 2 / 1e9


def limit() -> dict[str, float]:
    """The best GFLOP/s of a large convolution and a large matrix product, in both types."""
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
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    rates = limit()
    print("(d) GFLOP/s: " + ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items()))
    for size in arguments.sizes:
        gflop = arithmetic(size, train=arguments.train, side=arguments.side)
        print(f"\n{size}: {gflop:.0f} GFLOP a tile as the paper writes it\n")
        for batch in arguments.batches:
            table(size, batch, [n for n in names if fits(n, size)], gflop, rates, arguments)


def fits(name: str, size: str) -> bool:
    """Whether there is such a contestant."""
    return not (name.startswith("(b)") and size not in ("tiny", "base"))


def table(size: str, batch: int, names: list[str], gflop: float, rates: dict[str, float], arguments: Any) -> None:
    """Measure each contestant in turn with ours, two processes at a time, then print."""
    clock = "cpu" if arguments.shared else "wall"
    ours = Process(names[0], size, batch, arguments)
    rows = [[names[0], 1.0, ours]]
    for name in names[1:]:
        other, before = Process(name, size, batch, arguments), len(ours.rows)
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
    heads = (
        "s per tile",
        "of the processor",
        "Mpx/s",
        "peak MB",
        "before MB",
        "first s",
        f"over {names[0]}",
        "share of (d)",
    )
    print(f"| {size}, batch {batch} | {' | '.join(heads)} |\n|---{'|---:' * len(heads)}|")
    for name, ratio, one in rows:
        seconds = one.median(clock) / batch
        rate = rates[("fp32" if "fp32" in name or name == "plain" else "bf16") + ", processor" * arguments.shared]
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
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.worker:
        contestant(parsed)
    else:
        main(parsed)
