"""Timing of the ways in which an arranged network can be computed, and what it found, remembered on disk.

The features of a processor say which way is usual there (``kernels.usual``). Whether that is the fastest on the
processor at hand, with these threads and versions, is timed once for a network: the parts in which the ways differ, in
turn, each alone and with few inputs, which takes seconds. Another way is taken only if it is clearly faster.

The result lies in the cache folder under a name made from everything that it depends on. Processes may write it side by
side: a file appears whole, and the last one stays. Without a file, or with a broken one, the usual way is taken, and
where no file can be written nothing is timed, so that a map which goes on later finds the ways it began with.
"""

import hashlib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from caswit.errors import CaswitError, one_line
from caswit.files import atomic_write_bytes, cache_folder, checked, read_json, try_writing
from caswit.inference.cpu.encoder import Block
from caswit.inference.cpu.kernels import MANY_KEYS, Kernels, has_amx, has_openvino, usual
from caswit.inference.cpu.ops import TorchOps, Value
from caswit.inference.cpu.winograd import LARGE, WIDE, Conv3x3
from caswit.nn.caswit import CASWiT
from caswit.nn.decoders import UPerNetHead
from caswit.nn.swin import PATCH_PX
from caswit.nn.swin import Block as SwinBlock

log = logging.getLogger(__name__)

PAYS_PX = 50_000_000
"""Pixels of a map from which on timing costs less than it can gain: some hundred tiles of 512 px."""
_ROUNDS = 3
_CLEARLY = 1.05
"""A way replaces the usual one if that takes this many times as long."""
_QUERIES = 2048
"""Tokens that read others when attention is timed: each takes as long as any other."""
Times = dict[str, float]
"""By name of a way: seconds, or how many times as long as the way that was chosen."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The ways of computing that were chosen for a processor and a network."""

    kernels: Kernels
    about: dict[str, str]
    """What the choice depends on, by name."""
    ratios: dict[str, Times]
    """By decision and way: how many times as long it takes as the way chosen; empty where nothing was timed."""


class Part(NamedTuple):
    """A part of the network that can be computed in several ways."""

    shapes: list[tuple[int, ...]]
    """Of its inputs."""
    make: Callable[[Any], Callable[[Sequence[Value]], Value]]
    """From operations to the function of its inputs."""
    times: float
    """How often the network computes it."""


def about(network: CASWiT, side_px: int, *, bf16: bool, openvino: bool | None = None) -> dict[str, str]:
    """Return everything that the choice depends on, by names that a user understands."""
    shape = [(name, tuple(x.shape)) for name, x in network.named_parameters()]
    shape += [("fusion", tuple(network.fusion_stages)), ("flags", (network.contexts, network.feed_forward))]
    with_openvino = has_openvino() if openvino is None else openvino
    amx = "AMX" if has_amx() else "no AMX"
    return {
        "processor": f"{_processor()} ({torch.backends.cpu.get_cpu_capability()}, {amx}, {os.cpu_count()} cores)",
        "threads": str(torch.get_num_threads()),
        "precision": "bf16" if bf16 else "fp32",
        "torch": torch.__version__,
        "openvino": version("openvino") if with_openvino else "not installed",
        "network": hashlib.sha256(repr(shape).encode()).hexdigest()[:16],
        "tile": f"{side_px} px",
    }


def _processor() -> str:
    """Return the name of the processor."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        return next(x.split(":", 1)[1].strip() for x in lines if x.startswith("model name"))
    return platform.processor() or platform.machine()


def file_of(facts: Mapping[str, str]) -> Path:
    """Return the file that remembers what was found under these facts."""
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    return cache_folder() / "speed" / f"{name}.json"


def remembered(facts: Mapping[str, str]) -> Found | None:
    """Return what an earlier process found under these facts; None where there is nothing that can be used."""
    file = file_of(facts)
    try:
        found = checked(Found, read_json(file), str(file))
    except CaswitError as error:
        if file.exists():
            log.info("%s; the usual computation is taken, caswit info MODEL --speed times it anew", one_line(error))
        return None
    return found if found.about == facts else None


def remember(found: Found) -> bool:
    """Write what was found to the cache folder; return whether that was possible."""
    file = file_of(found.about)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, json.dumps(asdict(found), indent=1).encode())
    except OSError:
        return False
    return True


def choose(network: CASWiT, side_px: int, *, bf16: bool, map_px: int = 0) -> Found:
    """Return the ways to compute a network in: those remembered, else timed for a large map, else the usual ones.

    Args:
        network: In evaluation mode.
        side_px: Side of its tiles; contexts have as many pixels.
        bf16: Compute in bfloat16.
        map_px: Pixels that will be labelled.
    """
    facts = about(network, side_px, bf16=bf16)
    found = remembered(facts)
    if found is None and map_px >= PAYS_PX and _can_remember(facts):
        log.info("timing what is fastest on this processor: seconds, once for this network (caswit info MODEL --speed)")
        found = timed(network, side_px, bf16=bf16)
        remember(found)
    return found or Found(kernels=usual(), about=facts, ratios={})


def _can_remember(facts: Mapping[str, str]) -> bool:
    file = file_of(facts)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try_writing(file)
    except (OSError, CaswitError):
        return False
    return True


def timed(network: CASWiT, side_px: int, *, bf16: bool, openvino: bool | None = None) -> Found:
    """Time the ways in which a network can be computed, and choose.

    Args:
        network: In evaluation mode; a few of its weights are read.
        side_px: Side of its tiles.
        bf16: Compute in bfloat16.
        openvino: OpenVINO is one of the ways; None: where it is installed.
    """
    with_openvino = has_openvino() if openvino is None else openvino
    parts = parts_of(network, side_px)
    best, ratios, seconds = {}, {}, {}
    for runtime in (True, False) if with_openvino else (False,):
        kernels, found, total = usual(openvino=runtime), {}, 0.0
        for decision, part in parts.items():
            ways = _ways(decision, kernels)
            spent = time_in_turn({name: _run(part, way, bf16=bf16) for name, way in ways.items()})
            name = fastest(spent, next(iter(ways)))
            kernels, total = ways[name], total + part.times * spent[name]
            if len(spent) > 1:
                found[decision] = {way: value / spent[name] for way, value in spent.items()}
        title = _RUNTIMES[runtime]
        best[title], ratios[title], seconds[title] = kernels, found, total
    title = fastest(seconds, next(iter(seconds)))
    chosen = {"runtime": {name: value / seconds[title] for name, value in seconds.items()}} if with_openvino else {}
    facts = about(network, side_px, bf16=bf16, openvino=openvino)
    return Found(kernels=best[title], about=facts, ratios=chosen | ratios[title])


_RUNTIMES = {True: "OpenVINO", False: "torch"}
NAMES: dict[str, tuple[str, dict[Any, str]]] = {
    "attention": ("attention", {"torch": "torch's kernel", "whole": "OpenVINO", "groups": "OpenVINO, keys in groups"}),
    "convolutions": ("winograd", {False: "direct", True: "Winograd"}),
    "windows": ("joined_masks", {False: "bias and mask apart", True: "bias and mask joined"}),
}
"""By decision: the field of ``Kernels``, and the names of its values."""


def _ways(decision: str, kernels: Kernels) -> dict[str, Kernels]:
    """Return the ways to compute a part by their names, the one that is taken so far first."""
    if decision not in NAMES:
        return {decision: kernels}
    field, names = NAMES[decision]
    now = getattr(kernels, field)
    # In torch attention has one way, and bias and mask are added one after the other whatever is asked for.
    others = [value for value in names if value != now and (kernels.openvino or field == "winograd")]
    return {names[value]: replace(kernels, **{field: value}) for value in (now, *others)}


def parts_of(network: CASWiT, side_px: int) -> dict[str, Part]:
    """Return what is timed: parts that have several ways, and the blocks by which OpenVINO and torch are compared."""
    parts: dict[str, Part] = {}
    sides = [side_px // PATCH_PX // 2**stage for stage in range(4)]
    tokens = [side**2 for side in sides]
    reading = [(s, tokens[s - 1] * network.contexts) for s in network.fusion_stages]
    reading = [(stage, keys) for stage, keys in reading if keys >= MANY_KEYS]
    branches = 1 + network.contexts * network.reads_context
    layers: list[Any] = list(network.hr_encoder.layers)
    if reading:
        stage, keys = reading[0]
        block: Any = network.fusion[str(stage)]
        heads, channels = block.attention.num_heads, block.attention.to_q.out_features
        queries = min(_QUERIES, tokens[stage - 1])
        # Later stages have a quarter of the tokens and keys and twice the channels.
        times = sum(tokens[s - 1] * k * 2 ** (s - stage) for s, k in reading) / (queries * keys)
        parts["attention"] = Part([(queries, channels), (keys, 2 * channels)], partial(_attention, heads), times)
    head = network.decoder
    if isinstance(head, UPerNetHead):
        width = int(head.classify.in_channels)
        even = sides[0] % 2 == 0
        if width >= WIDE and tokens[0] >= LARGE and even:
            parts["convolutions"] = Part([(tokens[0], width)], partial(_convolution, width, sides[0]), 2)
    for stage, name in ((0, "windows"), (2, "blocks")):
        last = cast("SwinBlock", layers[stage].blocks[-1])
        width = int(last.attn.qkv.in_features)
        count = sum(len(layers[s].blocks) for s in ((0, 1) if stage == 0 else (2, 3)))
        title = name if stage or any(last.shift_size) else "first blocks"
        parts[title] = Part([(tokens[stage], width)], partial(_block, last, sides[stage]), branches * count)
    return parts


def _attention(heads: int, ops: Any) -> Callable[[Sequence[Value]], Value]:
    return lambda x: ops.attention(x[0], x[1], heads)


def _convolution(width: int, side: int, ops: Any) -> Callable[[Sequence[Value]], Value]:
    drawn = torch.Generator().manual_seed(0)
    weight = torch.randn(width, width, 3, 3, generator=drawn) / width
    layer = Conv3x3(ops, lambda: weight, torch.zeros(width), (width, width))
    return lambda x: layer(x[0], (side, side))


def _block(block: SwinBlock, side: int, ops: Any) -> Callable[[Sequence[Value]], Value]:
    layer = Block(ops, block)
    return lambda x: layer(ops, x[0], (side, side))


@torch.no_grad()
def _run(part: Part, kernels: Kernels, *, bf16: bool) -> Callable[[], object]:
    """Return a function that computes a part once, with its inputs at hand."""
    drawn = torch.Generator().manual_seed(1)
    inputs = [torch.randn(shape, generator=drawn) for shape in part.shapes]
    if kernels.openvino:
        from caswit.inference.cpu.openvino import Compiled, build

        compiled = Compiled(build(lambda ops, x: part.make(ops)(x), part.shapes, bf16=bf16, kernels=kernels), bf16=bf16)
        return lambda: compiled(*inputs)
    ops = TorchOps(torch.device("cpu"), torch.bfloat16 if bf16 else torch.float32, kernels)
    ready: list[Tensor] = [ops.ready(x) for x in inputs]
    run = part.make(ops)
    return torch.inference_mode()(lambda: run(ready))


def time_in_turn(runs: Mapping[str, Callable[[], object]]) -> Times:
    """Return the seconds of every run: the least of a few rounds, in which they take turns."""
    # Other work on the machine hits all of them. With one thread the processor's own seconds leave it out altogether;
    # with several they would count threads that wait as if they worked.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(_ROUNDS if len(runs) > 1 else 2):
        for name, run in runs.items():
            began_s = clock()
            run()
            spent[name].append(clock() - began_s)
    return {name: max(min(each), 1e-9) for name, each in spent.items()}


def fastest(spent: Times, now: str) -> str:
    """Return the way that takes least time; the one taken so far, unless another is clearly faster."""
    least = min(spent, key=spent.__getitem__)
    return least if spent[now] > _CLEARLY * spent[least] else now


def describe(found: Found, why: str) -> Iterator[str]:
    """Yield the lines of ``caswit info --speed``."""
    kernels, facts = found.kernels, found.about
    many = "" if facts["threads"] == "1" else "s"
    yield f"processor      {facts['processor']}; {facts['threads']} thread{many}; {facts['precision']}"
    installed = facts["openvino"]
    yield f"libraries      torch {facts['torch']}, OpenVINO {installed}"
    rows = [("runtime", _RUNTIMES[kernels.openvino])]
    for decision, (field, names) in NAMES.items():
        if kernels.openvino or field == "winograd":
            rows.append((decision, names[getattr(kernels, field)]))
    for decision, way in rows:
        ratios = {name: ratio for name, ratio in found.ratios.get(decision, {}).items() if name != way}
        said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
        beside = f"times as long: {said}" if said else "usual for these features, nothing to time here"
        yield f"  {decision:<13}{way:<26}{beside}"
    yield f"chosen         {why}"
