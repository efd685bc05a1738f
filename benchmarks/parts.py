"""Where the seconds of one tile go: (a), the plain network under autocast, and the fast path in torch, by part.

python benchmarks/parts.py [SIZE ROUNDS]

Seconds are the processor's, of one thread, and medians.
"""

import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import contestants
from caswit.fast import decoder, encoder
from caswit.fast.network import FastCASWiT

Seconds = dict[str, list[float]]


def main(size: str = "base", rounds: str = "3") -> None:
    """Print a table."""
    torch.set_num_threads(1)
    found = {"(a)": of_modules(contestants.filled(contestants.assembled(size)), int(rounds))}
    plain = contestants.filled(contestants.network(size))
    found["plain, autocast"] = of_modules(plain, int(rounds))
    found["fast, torch"] = of_fast(FastCASWiT(plain, bf16=True, openvino=False), int(rounds))  # type: ignore[arg-type]
    print(f"| {size}, one tile | {' | '.join(found)} |\n|---{'|---:' * len(found)}|")
    stages = [f"stage {i}, both branches" for i in range(1, 5)]
    for part in (*stages, *[f"fusion {i}" for i in range(1, 5)], "decoder", "all"):
        print(f"| {part} | {' | '.join(f'{statistics.median(parts[part]):.2f}' for parts in found.values())} |")


def part_of(name: str) -> str | None:
    """Which part a module of (a) or of the plain network belongs to, if it is a whole one."""
    words = name.split(".")
    match words:
        case [_, "swin", "encoder", "layers", index, "blocks", _]:
            return f"stage {int(index) + 1}, both branches"
        case [_, "swin", "encoder", "layers", index, "downsample"]:
            return f"stage {int(index) + 2}, both branches"
        case ["hr_encoder" | "context_encoder", "layers", index]:
            return f"stage {int(index) + 1}, both branches"
        case ["fusion", index]:
            return f"fusion {index}"
        case ["decoder"] | ["hr", "head"]:
            return "decoder"
    return None


def of_modules(model: nn.Module, rounds: int) -> Seconds:
    """Seconds by part, through hooks."""
    spent: Any = defaultdict(float)
    for name, module in model.named_modules():
        if part := part_of(name):
            began: list[float] = []
            module.register_forward_pre_hook(lambda *_, b=began: b.append(time.process_time()))
            module.register_forward_hook(
                lambda *_, b=began, p=part: spent.__setitem__(p, spent[p] + time.process_time() - b.pop())
            )
    images = contestants.images(1, contestants.SIDE, contestants.SIDE)
    return measured(lambda: contestants.under(model, True, *images), spent, rounds)


def of_fast(fast: nn.Module, rounds: int) -> Seconds:
    """Seconds by part, through wrapped calls; stages and fusions follow each other in a known order."""
    spent: Any = defaultdict(float)
    order: list[str] = []

    def timed(kind: type, name: Callable[[], str]) -> None:
        plain = kind.__call__

        def call(self: Any, *arguments: Any) -> Any:
            began = time.process_time()
            result = plain(self, *arguments)
            spent[name()] += time.process_time() - began
            return result

        kind.__call__ = call  # type: ignore[method-assign]

    def next_stage() -> str:
        order.append("")
        return f"stage {(len(order) - 1) % 8 // 2 + 1}, both branches"

    timed(encoder.Stage, next_stage)
    timed(encoder.Fusion, lambda: f"fusion {(len(order) - 1) % 8 // 2 + 1}")
    timed(decoder.UPerNet, lambda: "decoder")
    images = contestants.images(1, contestants.SIDE, contestants.SIDE)
    return measured(lambda: fast(*images), spent, rounds)


def measured(run: Callable[[], object], spent: Any, rounds: int) -> Seconds:
    """Seconds of every part and of all, of every round but the first."""
    found: Seconds = defaultdict(list)
    for number in range(rounds + 1):
        spent.clear()
        began = time.process_time()
        run()
        spent["all"] = time.process_time() - began
        for name, seconds in spent.items():
            if number:
                found[name].append(seconds)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
