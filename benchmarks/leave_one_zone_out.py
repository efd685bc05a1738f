"""Whether what a network learns carries over: train on all zones but one, score that one, for each zone in turn.

python benchmarks/leave_one_zone_out.py DATASET RECIPE... --out DIR [--steps N] [--start RECIPE --start-steps N]
    [--seeds 0 1] [--zones NAME...]

A zone is the part of an image's name before the first ``_``; training scenes of the other zones are learned. Two things
are scored, with own and with masked context: all scenes of the zone, and those of the other zones that are not learned,
which lie beside ground that is. Pixels of classes with less than 1 % of the labels that are learned are left out:
vineyards cannot be known from four zones without any. Counts of all folds are added up before they are scored: one mIoU
over the classes that occur, for a mean over five zones of five sets of classes says little. Differences to the first
recipe are those of the folds, one by one, with the 95 % interval of their mean (Student's t). A fold that is finished
is not trained again, so the same command goes on where it stopped. With --start, all recipes of a fold go on from the
weights of one training of that recipe on that fold, which makes what follows comparable in pairs.
"""

import argparse
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from scipy import stats

from caswit.cli.recipe import parse_recipe, read_recipe
from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.data.label_counts import count_labels
from caswit.data.reader import SceneReaders
from caswit.evaluation.run import evaluate
from caswit.files import atomic_write_bytes
from caswit.raster.windows import area_tiles
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train

SCORED = {"test": "the zone left out", "val": "beside the zones learned"}
UNITS = ("mIoU", "accuracy")
TAUGHT = 0.01
"""Share of the labels that are learned from which on a class can be known."""


def main() -> None:
    """Run what is missing and print a line for each recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dataset", type=Path)
    parser.add_argument("recipes", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--start", type=Path)
    parser.add_argument("--start-steps", type=int)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--zones", nargs="+", default=[])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    scenes = load_dataset(options.dataset).scenes
    zones = options.zones or sorted({zone(scene.image) for scene in scenes})
    for seed in options.seeds:  # the outer loops, so that what is finished early compares all recipes
        for held_out in zones:
            data = without(options.dataset, held_out, options.out)
            start = None
            if options.start is not None:
                start = learn(
                    options.start, data, options.out / "start" / f"{held_out}-s{seed}", seed, options.start_steps
                )
            for file in options.recipes:
                run(file, data, held_out, seed, options.steps, options.out, start)
            report(options.recipes, zones, options.seeds, options.out)


def zone(image: Path) -> str:
    """Return the zone of an image."""
    return image.name.split("_")[0]


def without(dataset: Path, held_out: str, out: Path) -> Path:
    """Write a dataset.yaml whose split ``test`` is a zone; scenes of the others keep theirs."""
    content = yaml.safe_load(dataset.read_text())
    scenes = []
    for scene in content["scenes"]:
        there = zone(Path(scene["image"])) == held_out
        files = {name: str((dataset.parent / scene[name]).resolve()) for name in ("image", "label")}
        scenes.append(files | {"split": "test" if there else scene["split"]})
    file = out / f"without-{held_out}.yaml"
    atomic_write_bytes(file, yaml.safe_dump(content | {"scenes": scenes}, sort_keys=False).encode())
    return file


def learn(file: Path, data: Path, folder: Path, seed: int, steps: int | None, start: Path | None = None) -> Path:
    """Train a recipe on a fold unless that is done, and return the model's folder."""
    if (folder / "model" / "config.json").exists():
        return folder / "model"
    recipe = parse_recipe(read_recipe(file), file)
    learning: dict[str, Any] = {"seed": seed} | ({} if steps is None else {"max_steps": steps})
    recipe = replace(
        recipe,
        data=replace(recipe.data, dataset=str(data), val_split=None),
        train=replace(recipe.train, keep="last", **learning),
        init=recipe.init if start is None else {"path": str(start), "decoder": True},
    )
    return train(recipe, folder, resume=RunFolder(folder).last.exists())


def run(file: Path, data: Path, held_out: str, seed: int, steps: int | None, out: Path, start: Path | None) -> None:
    """Train and score a fold."""
    folder = out / file.stem / f"{held_out}-s{seed}"
    if (folder / "counts.json").exists():
        return
    model = learn(file, data, folder, seed, steps, start)
    settings = EvaluateConfig(masked_context=True, pictures=0)
    counts: dict[str, Any] = {}
    for split in SCORED:
        found = evaluate(model, data, None, split=split, settings=settings)
        masked = found.masked_context_counts
        counts["classes"] = list(found.class_names)
        counts[split] = {
            "own": found.counts.confusion.tolist(),
            "masked": None if masked is None else masked.confusion.tolist(),
        }
    atomic_write_bytes(folder / "counts.json", json.dumps(counts).encode())


@cache  # a report follows every fold, and the labels stay as they are
def known_classes(data: Path) -> Any:
    """Return which classes have enough labels in the scenes that are learned: (K,) bool."""
    dataset = load_dataset(data)
    readers = SceneReaders(dataset, dataset.split("train"))
    tiles = [(i, tile.owned) for i in range(len(readers.scenes)) for tile in area_tiles(readers[i].areas, 512)]
    pixels = count_labels(readers, tiles).sum(0)
    return pixels >= TAUGHT * pixels.sum()


def report(recipes: list[Path], zones: list[str], seeds: list[int], out: Path) -> None:
    """Print mIoU and accuracy in percent over all folds that every recipe has finished."""
    names = [file.stem for file in recipes]
    folds = [(z, f"{z}-s{s}") for s in seeds for z in zones]
    folds = [(z, fold) for z, fold in folds if all((out / n / fold / "counts.json").exists() for n in names)]
    print(f"folds: {', '.join(fold for _, fold in folds)}", flush=True)
    if not folds:
        return
    known = [known_classes(out / f"without-{z}.yaml") for z, _ in folds]
    found = {n: [json.loads((out / n / fold / "counts.json").read_text()) for _, fold in folds] for n in names}
    for split, where in SCORED.items():
        print(where)
        own: dict[str, list[tuple[float, float]]] = {}
        for name in names:
            words = [f"  {name:24}"]
            for kind in ("own", "masked"):
                if any(counts[split][kind] is None for counts in found[name]):
                    continue
                matrices = [np.array(c[split][kind]) * k[:, None] for c, k in zip(found[name], known, strict=True)]
                each = [scores(matrix) for matrix in matrices]
                miou, accuracy = scores(sum(matrices[1:], start=matrices[0]))
                single = " ".join(f"{one[0]:5.1f}" for one in each)
                words.append(f"{kind} mIoU {miou:5.1f} accuracy {accuracy:5.1f} ({single})")
                own.setdefault(name, each)
            print("  ".join(words))
        for name in names[1:]:
            gains = np.subtract(own[name], own[names[0]])
            half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains) if len(gains) > 1 else (np.nan, np.nan)
            said = ", ".join(
                f"{unit} {g:+.1f} ± {h:.1f}" for unit, g, h in zip(UNITS, gains.mean(0), half, strict=True)
            )
            print(f"  {name} over {names[0]}: {said} (95 %, {len(gains)} folds)")
    print(end="", flush=True)


def scores(confusion: Any) -> tuple[float, float]:
    """Return mIoU over the classes that occur in the truth, and overall accuracy, in percent."""
    right, truth = confusion.diagonal(), confusion.sum(1)
    union = truth + confusion.sum(0) - right
    there = truth > 0
    return 100 * float((right[there] / union[there]).mean()), 100 * float(right.sum() / truth.sum())


if __name__ == "__main__":
    main()
