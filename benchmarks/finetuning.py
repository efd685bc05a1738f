"""Whether caswit finetune improves a model of the zoo: two tiles of its own kind, half of each held out.

python benchmarks/finetuning.py swin-nano-buildings --out DIR [--seeds 0 1] [--tile_px 512]

A seed draws two tiles (of that many pixels of the model's ground size) out of a labelled scene that the model was not
trained on; of each, the left half is learned and the right half is scored, before and after. The image is given whole,
as a mapper has it who labels a part of it; ``finetune`` never sees a label of the right halves. A seed that is finished
is not trained again.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import yaml

from caswit.cli.main import main as caswit
from caswit.config import EvaluateConfig
from caswit.evaluation.run import evaluate
from caswit.weights.model_folder import load_model

SCENES = {
    "caswit-nano-france": ([f"herault/{z}_val" for z in ("beziers", "vineyards", "lagoon", "garrigue")], 0.2),
    "swin-nano-buildings": (["banepa/south"], 0.132),
    "swin-nano-dubai": (["dubai/tile2"], 1.0),
}
"""By model: labelled scenes in $CASWIT_DATA that it was not trained on, which seeds take in turn; ground size."""
_ELSEWHERE = 255
"""Label of what is not scored."""
_LEAST = 0.02
"""Share of a half that its second class has at least: a half of one class has nothing to improve."""
_TRIES = 500
"""Draws after which the first tile is drawn anew."""


def main() -> None:
    """Run what is missing and print a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=SCENES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--tile_px", type=int, default=512)
    options = parser.parse_args()
    sys.stdout.write(
        "| model | seed | mIoU before | after | IoU before | after | CPU s |\n|---|---|---|---|---|---|---|\n"
    )
    for seed in options.seeds:
        folder = options.out / f"{options.model}-s{seed}"
        found = folder / "scores.json"
        if not found.exists():
            found.write_text(json.dumps(run(options.model, folder, seed, options.tile_px)))
        s: dict[str, Any] = json.loads(found.read_text())
        each = [" ".join(f"{name} {iou:.3f}" for name, iou in s[which]["iou"].items()) for which in ("before", "after")]
        miou = f"{s['before']['miou']:.4f} | {s['after']['miou']:.4f}"
        sys.stdout.write(f"| {options.model} | {seed} | {miou} | {each[0]} | {each[1]} | {s['cpu_s']:.0f} |\n")


def run(model: str, folder: Path, seed: int, tile_px: int) -> dict[str, Any]:
    """Cut the tiles, fine-tune, and score the right halves before and after."""
    dataset, held_out = cut(model, folder, seed, tile_px)
    began_s = time.process_time()
    caswit(["finetune", model, str(dataset), "--out", str(folder / "run"), "--seed", str(seed)])
    cpu_s = time.process_time() - began_s
    scores = {"before": score(model, held_out), "after": score(str(folder / "run" / "model"), held_out)}
    return {**scores, "cpu_s": cpu_s}


def score(model: str, dataset: Path) -> dict[str, Any]:
    """Score a model on the held-out halves; classes that are not in their truth are left out."""
    evaluation = evaluate(Path(model), dataset, None, split="test", settings=EvaluateConfig(batch=1))
    there = evaluation.counts.confusion.sum(1) > 0
    named = zip(evaluation.class_names, evaluation.scores.iou, there, strict=True)
    iou = {name: float(value) for name, value, is_there in named if is_there}
    return {"miou": float(np.mean(list(iou.values()))), "iou": iou}


def cut(model: str, folder: Path, seed: int, tile_px: int) -> tuple[Path, Path]:
    """Write two datasets of one image: the left halves of two tiles of it, with their labels, and the right halves."""
    folder.mkdir(parents=True, exist_ok=True)
    scenes, gsd_m = SCENES[model]
    stem = Path(os.environ["CASWIT_DATA"]).resolve() / scenes[seed % len(scenes)]
    info = load_model(model).info
    side = round(tile_px * (info.tile.read_gsd_m or gsd_m) / gsd_m)
    classes = [c for c in info.classes.to_dicts() if c["id"] != _ELSEWHERE]
    classes.append({"id": _ELSEWHERE, "name": "elsewhere", "color": "#000000", "ignore": True})
    with rasterio.open(f"{stem}_label.tif") as labels:
        ids, profile = labels.read(1), labels.profile
    tiles = places(ids, side, seed)
    half = side // 2
    files = []
    for name, split, left in (("learned", "train", 0), ("scored", "test", half)):
        areas = [[row, col + left, side, half] for row, col in tiles]
        # No label of the other halves is in the file.
        there = np.full_like(ids, _ELSEWHERE)
        for row, col, height, width in areas:
            rows, cols = slice(row, row + height), slice(col, col + width)
            there[rows, cols] = ids[rows, cols]
        label = folder / f"{name}.tif"
        with rasterio.open(label, "w", **profile | {"compress": "deflate", "nodata": None}) as to:
            to.write(there, 1)
        scene = {"image": f"{stem}.tif", "label": str(label.resolve()), "split": split}
        if split == "test":
            scene["areas"] = areas  # scored alone, so that tiles begin where they do
        files.append(folder / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump({"name": name, "classes": classes, "scenes": [scene]}, sort_keys=False))
    return files[0], files[1]


def places(labels: np.ndarray, side: int, seed: int) -> list[tuple[int, int]]:
    """Draw (row, col) of two tiles that do not overlap, with two classes in each half."""
    rng = np.random.default_rng(seed)
    found: list[tuple[int, int]] = []
    tries = 0
    while len(found) < 2:
        tries += 1
        if tries % _TRIES == 0:  # one in the middle of a scene can leave no room for another
            found.clear()
        row, col = (int(rng.integers(length - side + 1)) for length in labels.shape)
        apart = all(abs(row - r) >= side or abs(col - c) >= side for r, c in found)
        tile = labels[row : row + side, col : col + side]
        if apart and all(_varied(half) for half in np.array_split(tile, 2, axis=1)):
            found.append((row, col))
    return found


def _varied(labels: np.ndarray) -> bool:
    counts = np.sort(np.unique(labels, return_counts=True)[1])
    return bool(len(counts) > 1 and counts[-2] >= _LEAST * labels.size)


if __name__ == "__main__":
    main()
