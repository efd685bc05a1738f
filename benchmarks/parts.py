"""Print where the time of one tile goes, part by part: as one would assemble the network, before and after.

python benchmarks/parts.py [--size base] [--rounds 3] [--side 512]    (--rounds 0: arithmetic alone)

(a): transformers and torch's MultiheadAttention under autocast. before: this network under autocast, with timm's Swin
blocks. after: arranged, as ``caswit predict`` runs it without and with OpenVINO; in OpenVINO parts are compiled one by
one, and all is the whole network compiled at once.

Seconds are the processor's, of one thread, and medians; GFLOP count a multiplication and an addition as two.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from caswit.config import NUM_STAGES
from caswit.inference.cpu import decoder, encoder
from caswit.inference.cpu.network import ArrangedCASWiT, Arrangement
from caswit.inference.cpu.openvino import Compiled, build
from caswit.inference.cpu.ops import TorchOps
from caswit.nn import swin
from caswit.nn.caswit import CASWiT
from common import contestants

Clock = Callable[[], float]
Spent = dict[str, list[float]]
STAGES = [f"stage {i}, both branches" for i in range(1, NUM_STAGES + 1)]
FUSIONS = [f"fusion {i}" for i in range(1, NUM_STAGES + 1)]


def main(size: str, rounds: int, side: int) -> None:
    """Print a table."""
    torch.set_num_threads(1)
    meta = contestants.network(size).eval()
    found = {
        "GFLOP (a)": counted(
            lambda clock, once: of_modules(contestants.assembled(size, attention="eager"), side, clock, once)
        ),
        "GFLOP after": counted(lambda clock, once: of_arranged(meta, side, clock, once)),
    }

    if rounds:
        found |= timed_parts(size, rounds, side)
    print(f"| {size}, one tile of {side} px and its context | {' | '.join(found)} |\n|---{'|---:' * len(found)}|")
    for part in (*STAGES, *FUSIONS, "decoder", "all"):
        print(f"| {part} | {' | '.join(cell(name, spent[part]) for name, spent in found.items())} |")


def timed_parts(size: str, rounds: int, side: int) -> dict[str, Spent]:
    """Return the seconds of every way of running the network."""

    def seconds(way: Callable[..., Spent], model: Any) -> Spent:
        return way(model, side, time.process_time, rounds + 1)

    found = {"(a), s": seconds(of_modules, contestants.filled(contestants.assembled(size)))}
    with patch.object(swin, "Block", lambda block: block):
        before = contestants.network(size)
    found["before, s"] = seconds(of_modules, contestants.filled(before))
    plain = contestants.filled(contestants.network(size))
    found["after, torch, s"] = seconds(of_arranged, plain)
    found["after, OpenVINO, s"] = seconds(of_compiled, plain)
    return found


def cell(name: str, spent: Sequence[float]) -> str:
    """Return the median of every round but the first, which compiles and packs."""
    value = statistics.median(spent[1:] or spent)
    return f"{value:.1f}" if "GFLOP" in name else f"{value:.3g}"


def counted(way: Callable[[Clock, int], Spent]) -> Spent:
    """Count GFLOP instead of seconds, with tensors without memory."""
    with FlopCounterMode(display=False) as counter:
        return way(lambda: counter.get_total_flops() / 1e9, 1)


def part_of(name: str) -> str | None:
    """Return the part that a module of (a) or of the plain network is, or None."""
    match name.split("."):
        case [_, "swin", "encoder", "layers", index, "blocks", _]:
            return STAGES[int(index)]
        case [_, "swin", "encoder", "layers", index, "downsample"]:
            return STAGES[int(index) + 1]
        case ["hr_encoder" | "context_encoder", "layers", index]:
            return STAGES[int(index)]
        case ["fusion", index]:
            return FUSIONS[int(index) - 1]
        case ["decoder"] | ["hr", "head"]:
            return "decoder"
    return None


def of_modules(model: nn.Module, side: int, clock: Clock, rounds: int) -> Spent:
    """Measure the parts of a network of modules, through hooks."""
    model.eval()
    spent: Any = defaultdict(float)
    for name, module in model.named_modules():
        if part := part_of(name):
            began: list[float] = []
            module.register_forward_pre_hook(lambda *_, b=began: b.append(clock()))
            module.register_forward_hook(lambda *_, b=began, p=part: spent.__setitem__(p, spent[p] + clock() - b.pop()))
    images = [x.to(next(model.parameters()).device) for x in contestants.images(1, side, side)]
    return measured(lambda: contestants.under(model, not images[0].is_meta, *images), spent, clock, rounds)


def of_arranged(network: CASWiT, side: int, clock: Clock, rounds: int) -> Spent:
    """Measure the parts of the arranged network in torch, through wrapped calls.

    Stages and fusions follow each other in a known order, which says which one a call belongs to.
    """
    spent: Any = defaultdict(float)
    order: list[str] = []

    def timed(kind: type, name: Callable[[], str]) -> Any:
        plain = kind.__call__

        def call(self: Any, *arguments: Any) -> Any:
            began = clock()
            result = plain(self, *arguments)
            spent[name()] += clock() - began
            return result

        return patch.object(kind, "__call__", call)

    def next_stage() -> str:
        order.append("")
        return STAGES[(len(order) - 1) % (2 * NUM_STAGES) // 2]

    device = network.mean.device
    if device.type == "meta":
        images = [torch.zeros(1, 3, side, side, device=device)] * 2
        arranged = Arrangement(TorchOps(device, torch.float32), network)
        run: Callable[[], object] = lambda: arranged(images, [(side, side)] * 2)  # noqa: E731
    else:
        whole = ArrangedCASWiT(network, bf16=True, openvino=False)
        pixels = contestants.images(1, side, side)
        run = lambda: whole(*pixels)  # noqa: E731
    with (
        timed(encoder.Stage, next_stage),
        timed(encoder.Fusion, lambda: FUSIONS[(len(order) - 1) % (2 * NUM_STAGES) // 2]),
        timed(decoder.UPerNet, lambda: "decoder"),
        torch.inference_mode(),
    ):
        return measured(run, spent, clock, rounds)


@torch.no_grad()
def of_compiled(network: CASWiT, side: int, clock: Clock, rounds: int) -> Spent:
    """Measure the parts of the arranged network in OpenVINO: each compiled and run by itself, then all."""
    found: Spent = defaultdict(list)
    channels = network.hr_encoder.channels
    sides = [(side // swin.PATCH_PX >> i,) * 2 for i in range(NUM_STAGES)]
    shapes = [(rows * cols, c) for (rows, cols), c in zip(sides, channels, strict=True)]

    def run(part: str, graph: Any, inputs: Sequence[tuple[int, ...]]) -> None:
        compiled = Compiled(build(graph, inputs, bf16=True), bf16=True)
        values = [torch.randn(shape) for shape in inputs]
        spent = measured(lambda: compiled(*values), {}, clock, rounds)["all"]
        found[part] = [a + b for a, b in zip(found[part] or [0.0] * rounds, spent, strict=True)]

    for i, stage in enumerate(STAGES):
        for branch in (network.hr_encoder, network.context_encoder):
            assert branch is not None
            before, module = max(i - 1, 0), branch.layers[i]
            run(
                stage,
                lambda ops, x, module=module, at=sides[before]: encoder.Stage(ops, module)(ops, x[0], at)[0],
                [shapes[before]],
            )
        block = network.fusion[str(i + 1)]
        run(
            FUSIONS[i],
            lambda ops, x, block=block: encoder.Fusion(ops, block)(ops, *x),
            [shapes[i]] * 2,
        )
    head: Any = network.decoder
    run("decoder", lambda ops, x: decoder.UPerNet(ops, head)(ops, list(zip(x, sides, strict=True))), shapes)
    arranged = ArrangedCASWiT(network, bf16=True, openvino=True)
    images = contestants.images(1, side, side)
    found["all"] = measured(lambda: arranged(*images), {}, clock, rounds)["all"]
    return found


def measured(run: Callable[[], object], spent: dict[str, float], clock: Clock, rounds: int) -> Spent:
    """Return what every part and the whole took in every round."""
    found: Spent = defaultdict(list)
    for _ in range(rounds):
        spent.clear()
        began = clock()
        run()
        spent["all"] = clock() - began
        for name, value in spent.items():
            found[name].append(value)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="base")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=contestants.SIDE)
    main(**vars(parser.parse_args()))
