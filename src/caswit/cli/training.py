"""Commands for training and scoring: from demo and train to table and figures, and prepare."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from caswit.cli.recipe import merge, parse_recipe, parse_row, read_recipe
from caswit.config import (
    DemoConfig,
    EvaluateConfig,
    FiguresConfig,
    FinetuneConfig,
    PretrainRecipe,
    Recipe,
    TableConfig,
    TileConfig,
    check,
)
from caswit.errors import brief

_LEFT_OUT = 3
"""Exit status of a command that is done but for some parts."""


def demo(settings: DemoConfig, *, out: str) -> None:
    """Train, score and map on synthetic landscapes, and write a report.

    Two small networks, with and without context; a few minutes.
    """
    from caswit.experiments.demo import demo

    result = demo(Path(out), settings)
    alone, seeing = result.context_miou.values()
    print(f"classes that only the context decides: mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    alone, seeing = result.miou.values()
    print(f"all classes:                           mIoU {alone:.3f} from tiles alone, {seeing:.3f} with context")
    print(f"report: {result.report}\nmap:    {result.report.with_name('map.tif')}")


def train(recipe: Recipe, *, out: str, resume: bool, dry_run: bool, find_lr: bool) -> None:
    """Train a model from a recipe.

    Any field of the recipe can be given as --section.field VALUE.
    """
    from caswit.training.fabric import is_first_process
    from caswit.training.supervised import train

    if dry_run:
        from caswit.training.dry_run import dry_run as try_out

        print("\n".join(try_out(recipe, Path(out), resume=resume).lines()))
        return
    if find_lr:
        from caswit.training.lr_range import find_lr as test

        found = test(recipe, Path(out), resume=resume)
        print("\n".join([*found.lines(recipe.train.lr), f"picture: {found.picture}"]))
        return

    model = train(recipe, Path(out), resume=resume)
    if is_first_process():
        print(f"model: {model}\nlog:   {model.parent / 'log.csv'}")


def pretrain(recipe: PretrainRecipe, *, out: str, resume: bool) -> None:
    """Pretrain encoders and fusion on imagery without labels.

    Any field of the recipe can be given as --section.field VALUE.
    """
    from caswit.training.fabric import is_first_process
    from caswit.training.pretrain import pretrain

    model = pretrain(recipe, Path(out), resume=resume)
    if is_first_process():
        print(f"weights: {model}, for init: in a training recipe\nlog:     {model.parent / 'log.csv'}")


def recipe(*, dataset: str, out: str | None, **start: str | None) -> None:
    """Write a recipe for a dataset, from random weights or from a model.

    Its settings follow from the data and the model, with reasons; caswit train takes it as it is.
    """
    from caswit.files import atomic_write_bytes
    from caswit.training.fine_tuning import fine_tuning_recipe
    from caswit.training.first_recipe import first_recipe

    model = start["from"]
    text = first_recipe(dataset) if model is None else fine_tuning_recipe(model, dataset)
    if out is None:
        print(text, end="")
        return
    file = Path(out)
    check(not file.exists(), f"{out}: exists already; give another --out")
    atomic_write_bytes(file, text.encode())
    print(f"{out}; train with: caswit train {out} --out runs/{file.stem}")


def finetune(settings: FinetuneConfig, *, model: str, dataset: str, out: str) -> None:
    """Fine-tune a model on a dataset, without a recipe.

    Crop, rate, steps and validation part are chosen by the data and written into the run folder as a recipe. The same
    command goes on with a run that was interrupted.
    """
    from caswit.files import atomic_write_bytes
    from caswit.training.finetune import RECIPE, choose, first_line, result
    from caswit.training.run_folder import RunFolder
    from caswit.training.supervised import train

    run, file = RunFolder(Path(out)), Path(out) / RECIPE
    if file.is_file():
        began, now = file.read_text(encoding="utf-8").splitlines()[:1], first_line(model, dataset, settings)
        check(began == [now], f"{out}: holds another fine-tuning ({brief(' '.join(began))}); give another --out")
    else:
        choice = choose(model, dataset, settings)
        run.check(parse_recipe(yaml.safe_load(choice.recipe), file), resume=False)
        check(not run.path.is_file(), f"{out}: is a file; give another --out")
        run.path.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, choice.recipe.encode())
        print("\n".join([*choice.lines, f"recipe:     {file}; caswit train {file} --out DIR repeats it"]))
    made = train(parse_recipe(read_recipe(file), file), run.path, resume=run.last.exists())
    print("\n".join([*result(run.path), f"model: {made}", f"map with: caswit predict IMAGE OUT.tif --model {made}"]))


def reconstruct(*, model: str, image: str, out: str, tiles: int, seed: int, device: str) -> None:
    """Draw tiles of an image as pretrained weights reconstruct them.

    Beside each reconstruction stand the tile and what is masked of it.
    """
    from caswit.inference.devices import pick_device, uses_bf16
    from caswit.training.reconstruct import reconstruct

    check(tiles >= 1, f"tiles must be at least 1, got {tiles}")
    check(seed >= 0, f"seed must be 0 or more, got {seed}")
    check(out.endswith(".png"), f"out must end in .png, got {out}")
    chosen = pick_device(device)
    bf16 = uses_bf16("auto", chosen)
    reconstruct(model, Path(image), Path(out), count=tiles, seed=seed, device=chosen, bf16=bf16)
    print(out)


def evaluate(settings: EvaluateConfig, *, model: str, dataset: str, split: str, out: str) -> None:
    """Score a model on labelled scenes.

    Writes report.html, report.md and report.json.
    """
    from caswit.evaluation.metrics import score
    from caswit.evaluation.run import evaluate

    evaluation = evaluate(Path(model), Path(dataset), Path(out), split=split, settings=settings)
    scores = score(evaluation.counts)
    print(f"mIoU {scores.miou:.4f}  mF1 {scores.mf1:.4f}  mBIoU {scores.mbiou:.4f} (band {evaluation.band_px} px)")
    print(f"overall accuracy {scores.overall_accuracy:.4f} over {evaluation.tiles} tiles")
    if names := scores.without_truth(evaluation.class_names):
        print(
            f"not in the truth of split {split}: {', '.join(names)}, with an IoU of 0 in these means; "
            f"mIoU of the other classes {scores.miou_truth:.4f}"
        )
    if evaluation.masked_context_counts is not None:
        masked = score(evaluation.masked_context_counts)
        rest = "; of the other classes {:.4f}" if names else ""
        print(
            f"with masked context: mIoU {masked.miou:.4f}  mF1 {masked.mf1:.4f}  mBIoU {masked.mbiou:.4f}"
            + rest.format(masked.miou_truth)
        )
        if evaluation.context is not None:
            swapped = score(evaluation.context.swapped)
            print(
                f"with swapped context: mIoU {swapped.miou:.4f}  mF1 {swapped.mf1:.4f}  mBIoU {swapped.mbiou:.4f}"
                + rest.format(swapped.miou_truth)
            )
            print("\n".join(evaluation.context.said(evaluation.counts, evaluation.masked_context_counts)))
    print(f"report: {Path(out) / 'report.html'}")


def _without_rates_of_phases(content: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe whose phases all have the rate of the run: one that ``--over`` names is meant for all of them."""
    phases = content.get("train", {}).get("phases")
    if not isinstance(phases, list):
        return content
    plain = [{k: v for k, v in each.items() if k != "lr"} if isinstance(each, dict) else each for each in phases]
    return merge(content, {"train": {"phases": plain}})


def table(settings: TableConfig, *, recipes: list[str], out: str, over: str | None) -> None:
    """Train and score rows of the paper's tables, beside the paper's figures.

    After an interruption, the same command continues.
    """
    from caswit.experiments.paper_tables import table
    from caswit.experiments.table_format import markdown
    from caswit.experiments.table_scale import TableRow

    replaced = {} if over is None else read_recipe(Path(over))
    fixed = frozenset(f"{section}.{name}" for section, values in replaced.items() for name in _names(values))
    rows = []
    for file in map(Path, recipes):
        own = read_recipe(file)
        content = merge(own, replaced)
        if "train.lr" in fixed and "train.phases" not in fixed:
            content = _without_rates_of_phases(content)
        recipe = parse_recipe(content, file)
        own_px = own.get("tile", {}).get("tile_px", TileConfig.tile_px)
        rows.append(TableRow(file=file, row=parse_row(content, file), recipe=recipe, own_tile_px=own_px, fixed=fixed))
    results = table(rows, Path(out), settings)
    print(markdown(results))
    print(f"written to {out}/table.md, table.csv and classes.csv")
    if failed := [result.row.name for result in results if result.error]:
        count = f"{len(failed)} of {len(rows)} rows"
        print(
            f"{count} are not complete: {', '.join(failed)}; the same command tries only these again", file=sys.stderr
        )
        sys.exit(_LEFT_OUT)


def _names(values: Any) -> Iterable[str]:
    return values if isinstance(values, dict) else ()


def figures(settings: FiguresConfig, *, model: str, dataset: str, out: str, baseline: str | None, split: str) -> None:
    """Draw the paper's figures 5, 6 and 8 for your data.

    At print quality, one PNG file each.
    """
    from caswit.experiments.paper_figures import figures

    beside = None if baseline is None else Path(baseline)
    for file in figures(Path(model), Path(dataset), Path(out), baseline=beside, split=split, settings=settings):
        print(file)


def prepare(*, kind: str, root: str, workers: int, skip_broken: bool) -> None:
    """Unpack FLAIR-HUB's zip files, or tile URUR's PNG files.

    Needed once, since no part of these can be read without the rest. Interrupted, it continues.
    """
    from caswit.data.sources.flair_zips import prepare_flair_hub
    from caswit.data.sources.urur import prepare_urur

    prepared = {"flair_hub": prepare_flair_hub, "urur": prepare_urur}
    others = "other datasets need no preparation"
    check(kind in prepared, f"only {' and '.join(prepared)} can be prepared, got {brief(kind)}; {others}")
    folder = Path(root)
    check(folder.is_dir(), f"{root}: no such folder; give the one that holds the download")
    print(prepared[kind](folder, workers=workers, skip_broken=skip_broken))
