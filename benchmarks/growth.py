"""Print and draw how seconds and memory of one tile, and of a training step, grow with the tile and the batch.

python benchmarks/growth.py OUT.svg [--size nano] [--sides 128 256 512 1024] [--batches 2 4 8] [--repeats 3]

Every measurement is a process of its own. Tiles grow at batch 1 (training: 2, which norms over a batch want), batches
at 256 px. The context has the tile's side in pixels, whatever its factor, and costs no more when it covers more.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from common.clock import processor, versions
from common.process import Process


class Point(NamedTuple):
    """One measurement."""

    x: int
    seconds: float
    megabytes: float


Curves = dict[str, list[Point]]
_COLOURS = ("#3c1098", "#d95f02", "#1b9e77")
_SIDE = 256
"""Of tiles whose batch grows."""
_WIDTH, _HEIGHT, _MARGIN = 320, 200, 56


def measured(what: str, side: int, batch: int, options: argparse.Namespace, *, train: bool) -> Point | None:
    """Return the medians of some runs; None if it does not fit into the machine."""
    try:
        one = Process(what, options.size, batch, side=side, models=options.models, train=train)
        for _ in range(options.repeats):
            one.run()
        one.end()
    except SystemExit:
        return None
    return Point(side, one.median("wall"), one.rows[-1]["peak"] - one.ready["before"])


def _tick(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def main(options: argparse.Namespace) -> None:
    """Measure, print, draw."""
    print(f"{options.size}, {processor()}, {torch.get_num_threads()} threads; {versions()}\n")
    print("| | side, px | batch | seconds | MB over what the process had |\n|---|---:|---:|---:|---:|")
    kinds = {"inference": ("ours", False), "training": ("ours", True)}
    kinds["training, checkpointing"] = ("ours, checkpointing", True)
    by_side: Curves = {}
    by_batch: Curves = {}
    for label, (what, train) in kinds.items():
        for side in options.sides:
            point = measured(what, side, 1 + train, options, train=train)
            by_side.setdefault(label, []).extend([point] if point else [])
            say(label, f"{side} | {1 + train}", point)
        for batch in options.batches:
            known = [p for p in by_side[label] if (p.x, 1 + train) == (_SIDE, batch)]  # measured among the sides
            point = known[0] if known else measured(what, _SIDE, batch, options, train=train)
            by_batch.setdefault(label, []).extend([point._replace(x=batch)] if point else [])
            if not known:
                say(label, f"{_SIDE} | {batch}", point)
    panels = [
        panel(curves, by, value, 10 + (_WIDTH + 30) * column, 10 + (_HEIGHT + 40) * row)
        for row, (curves, by) in enumerate(((by_side, "side of the tile, px"), (by_batch, "batch")))
        for column, value in enumerate(("seconds", "megabytes"))
    ]
    names = [
        f'<text x="{20 + 230 * i}" y="{2 * _HEIGHT + 90}" fill="{colour}">{name}</text>'
        for i, (name, colour) in enumerate(zip(kinds, _COLOURS, strict=True))
    ]
    size = f'width="{2 * _WIDTH + 60}" height="{2 * _HEIGHT + 110}"'
    style = "font-family:sans-serif;font-size:12px"
    options.out.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} style="{style}">{"".join(panels + names)}</svg>'
    )


def say(label: str, where: str, point: Point | None) -> None:
    """Print one line of the table."""
    found = "does not fit |" if point is None else f"{point.seconds:.2f} | {point.megabytes:.0f}"
    print(f"| {label} | {where} | {found} |", flush=True)


def panel(curves: Curves, by: str, value: str, left: int, top: int) -> str:
    """Return an SVG group: axes from 0, and a line for each kind."""
    points = [p for curve in curves.values() for p in curve]
    widest, highest = max(p.x for p in points), max(getattr(p, value) for p in points)

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + _MARGIN + (_WIDTH - _MARGIN) * x / widest
        return round(across, 1), round(top + (_HEIGHT - 30) * (1 - y / highest), 1)

    (x0, y0), (x1, y1) = place(0, 0), place(widest, highest)
    parts = [f'<path d="M{x0} {y1}V{y0}H{x1}" fill="none" stroke="#888"/>']
    parts += [f'<text x="{x0 - 6}" y="{y1 + 10}" text-anchor="end">{_tick(highest)}</text>']
    parts += [f'<text x="{x0 - 6}" y="{y0}" text-anchor="end">0</text>']
    parts += [
        f'<text x="{place(x, 0)[0]}" y="{y0 + 16}" text-anchor="middle">{x}</text>' for x in {p.x for p in points}
    ]
    parts += [f'<text x="{(x0 + x1) / 2}" y="{y0 + 32}" text-anchor="middle">{by}: {value}</text>']
    for curve, colour in zip(curves.values(), _COLOURS, strict=True):
        line = " ".join("{},{}".format(*place(p.x, getattr(p, value))) for p in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return "".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", default="nano")
    parser.add_argument("--sides", nargs="+", type=int, default=[128, 256, 512, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=3)
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        parsed.models = Path(folder)
        sys.exit(main(parsed))
