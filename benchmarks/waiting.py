"""Print how much of a training is spent waiting for samples.

python benchmarks/waiting.py RECIPE [--train.max_steps 20 --data.workers 1 ...]

Takes the words of ``caswit train`` except --out. Trains into a temporary folder and prints the share of time between
the first step and the last in which the network stood still because the next batch was not there.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

from caswit.cli.commands import COMMANDS
from caswit.cli.parsing import make_parser, settings_of
from caswit.config import Recipe
from caswit.training import loop
from caswit.training.supervised import train


def main(words: list[str]) -> None:
    """Print one line."""
    waits: list[tuple[float, float]] = []
    plain = loop.training_loader

    def timed(*arguments: Any, **settings: Any) -> Iterator[Any]:
        batches = iter(plain(*arguments, **settings))
        while True:
            began = time.perf_counter()
            batch = next(batches)
            waits.append((began, time.perf_counter()))
            yield batch

    with tempfile.TemporaryDirectory() as folder, patch.object(loop, "training_loader", timed):
        reads = make_parser(COMMANDS["train"])
        parsed = reads.parse_args(["--recipe", *words, "--out", str(Path(folder) / "run")])
        recipe = settings_of(Recipe, reads.instantiate(parsed))
        train(recipe, Path(folder) / "run")
    (_, first), *others = waits
    waited = sum(end - begin for begin, end in others)
    whole = others[-1][1] - first
    size, count = recipe.train.batch, len(others)
    print(f"{count} steps of {size}: {count * size / whole:.2f} samples/s")
    print(f"waited {waited:.2f} of {whole:.2f} s for samples: {waited / whole:.1%}")


if __name__ == "__main__":
    main(sys.argv[1:])
