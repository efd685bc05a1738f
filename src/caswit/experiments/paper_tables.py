"""Reproduce rows of the paper's tables: train, score and print them beside the paper's figures.

A finished run, report or measurement is used again if it was made from the same recipe, model and settings, so an
interrupted table continues where it stopped.
"""

import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, get_args

import yaml

from caswit.config import EvaluateConfig, Recipe, RowConfig, Size, TableConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.synthetic import write_landscapes
from caswit.errors import CaswitError, ConfigError, DataError, Stopped
from caswit.evaluation.evaluate import band_width_px
from caswit.evaluation.run import evaluate
from caswit.experiments.memory import PeakMemory, peak_memory
from caswit.experiments.table_format import RowResult, classes_csv, markdown, scores_csv
from caswit.files import atomic_write_bytes, checked, read_json
from caswit.training.fabric import is_first_process, noting_signals, srun_tasks, stop_signal
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train
from caswit.weights.hub import is_on_hub
from caswit.weights.model_folder import file_digest

log = logging.getLogger(__name__)

LANDSCAPES = "landscapes"
"""Name that takes the place of a dataset.yaml: synthetic landscapes, drawn when first needed."""


class _Steps(TypedDict):
    """The part of a model's provenance that a table states."""

    step: int


class _Trained(TypedDict):
    """The part of a config.json that a table reads."""

    provenance: _Steps


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A recipe and the row of the table that it reproduces."""

    file: Path
    row: RowConfig
    recipe: Recipe


def table(rows: Sequence[TableRow], out: Path, settings: TableConfig | None = None) -> list[RowResult]:
    """Run rows with every seed and write table.md, table.csv and classes.csv, again after each run.

    Args:
        rows: Rows in the order in which they are printed; differences are to the first of each table.
        out: Folder of runs, reports and tables.
        settings: Scale and seeds.

    Raises:
        CaswitError: No row could be run. If only some fail, their errors are printed with the table.
    """
    settings = settings or TableConfig()
    if srun_tasks() > 1:
        if not is_first_process():
            raise SystemExit(2)
        raise ConfigError(
            f"a table is made by one process, srun started {srun_tasks()}; use srun --ntasks=1: "
            "rows with several devices start the other processes themselves"
        )
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    results = [RowResult(row=_printed(row, settings)) for row in rows]
    errors: list[CaswitError] = []
    for seed in settings.seeds:  # the outer loop, so that an interrupted table compares rows of the same seeds
        for number, row in enumerate(rows):
            try:
                results[number] = _run(row, results[number], seed, out, settings)
            except CaswitError as error:
                log.info("%s, seed %d: not run: %s", row.row.name, seed, error)
                errors.append(error)
                results[number] = replace(results[number], error=str(error))
            _write(results, out)
    if not any(result.reports for result in results):
        raise errors[0]
    return results


def _run(row: TableRow, so_far: RowResult, seed: int, out: Path, settings: TableConfig) -> RowResult:
    """Train, score and measure one row with one seed; what is done already is read."""
    recipe = scaled_recipe(row, seed, out, settings)
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken)
    # Runs of another start lie beside those of the recipe's own.
    name = f"{slug(row.row.name)}{f'-{settings.start}' if _restarts(row, settings) else ''}-s{seed}"
    folder = out / "runs" / slug(dataset.name) / name
    model = _trained_model(recipe, row, folder)
    digest = file_digest(model)
    split = settings.split or ("test" if settings.dataset == LANDSCAPES else row.row.split)
    protocol = settings.protocol or (None if settings.dataset else row.row.protocol)
    scoring = {f.name: getattr(settings, f.name) for f in fields(EvaluateConfig)} | {
        "protocol": protocol,
        "workers": settings.workers or recipe.data.workers,
    }
    scores = out / "scores" / slug(dataset.name) / f"{name}-{slug(split)}"
    report = _scored_report(model, digest, dataset, scores, split, EvaluateConfig(**scoring), recipe.tile.tile_px)
    memory = so_far.memory
    if settings.measure_memory and memory is None:
        memory = _memory(model, digest, out / "memory" / slug(dataset.name) / f"{name}.json", settings)
    config: _Trained = checked(_Trained, read_json(model / "config.json"), str(model / "config.json"))
    steps = config["provenance"]["step"]
    return replace(so_far, steps=steps, reports={**so_far.reports, seed: report}, memory=memory)


def scaled_recipe(row: TableRow, seed: int, out: Path, settings: TableConfig) -> Recipe:
    """Return a row's recipe at the scale of the table."""
    recipe = row.recipe
    if settings.skip_broken:
        recipe = replace(recipe, data=replace(recipe.data, skip_broken=True))
    learning: dict[str, Any] = {"seed": seed}
    if settings.max_steps is not None:
        learning["max_steps"] = settings.max_steps
    if settings.dataset is not None:
        learning["keep"] = "last"  # another dataset has no validation split by which the best could be chosen
        dataset = settings.dataset
        if dataset == LANDSCAPES:
            dataset = str(_landscapes(out / LANDSCAPES / f"seed-{seed}", seed))
        recipe = replace(recipe, data=replace(recipe.data, dataset=dataset, val_split=None))
    recipe = _started(recipe, settings)
    if settings.size is not None:
        model = replace(recipe.model, encoder_weights=None)
        if model.arch == "caswit":
            model = replace(model, size=scaled_size(model.size, settings.size))
        recipe = replace(recipe, model=model)
        # Published weights have the size of the paper's model; only our own can be pretrained at another size.
        if recipe.start is not None and recipe.start.source != "caswit" and settings.start != "imagenet":
            recipe = replace(recipe, init=None)
    if settings.pretrained is not None and recipe.start is not None and recipe.start.source == "caswit":
        known = dict(recipe.init) if not isinstance(recipe.init, str) else {"from": "caswit"}  # type: ignore[arg-type]
        recipe = replace(recipe, init=known | {"path": settings.pretrained.replace("{seed}", str(seed))})
    return replace(recipe, train=replace(recipe.train, **learning))


def scaled_size(size: Size, base: Size) -> Size:
    """Return the size that takes the place of ``size`` in a table whose base is ``base``."""
    # One step up or down at most: a table at small scale keeps the order of its rows, and its largest stays affordable.
    order: tuple[Size, ...] = get_args(Size)
    distance = order.index(size) - order.index("base")
    step = (distance > 0) - (distance < 0)
    return order[min(max(order.index(base) + step, 0), len(order) - 1)]


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _started(recipe: Recipe, settings: TableConfig) -> Recipe:
    """Return a recipe with the start that the table asks for; rows that start from weights of caswit keep theirs."""
    if settings.start is None or (recipe.start is not None and recipe.start.source == "caswit"):
        return recipe
    scratch = settings.start == "scratch"
    if recipe.model.arch != "caswit":
        weights = None if scratch else "imagenet"
        return replace(recipe, model=replace(recipe.model, encoder_weights=weights))
    return replace(recipe, init=None if scratch else {"from": "timm", "timm": True})


def _restarts(row: TableRow, settings: TableConfig) -> bool:
    """Return whether a row starts otherwise in this table than its recipe says."""
    return _started(row.recipe, settings) != row.recipe


def _printed(row: TableRow, settings: TableConfig) -> RowConfig:
    """Return a row as it is printed: named by what is trained, without the paper's classes on other data than its."""
    model, name = row.recipe.model, row.row.name
    if settings.size is not None and model.arch == "caswit":
        name = sized_name(name, model.size, scaled_size(model.size, settings.size))
    if _restarts(row, settings):
        name += ", from scratch" if settings.start == "scratch" else ", from ImageNet"
    paper = row.row.paper if settings.dataset is None else replace(row.row.paper, per_class=None)
    return replace(row.row, name=name, paper=paper)


def sized_name(name: str, was: Size, now: Size) -> str:
    """Return the name of a row for another size, with the paper's: CASWiT-Nano (for CASWiT-Base), All-stage, Nano."""
    if was == now:
        return name
    ours = now.capitalize()
    # As the paper writes sizes: Base, and B after Swin.
    renamed = re.sub(rf"\b{was.capitalize()}\b|(?<=Swin-){was[0].upper()}\b", ours, name)
    return f"{renamed} (for {name})" if renamed != name else f"{name}, {ours}"


def _landscapes(folder: Path, seed: int) -> Path:
    file = folder / "dataset.yaml"
    return file if file.is_file() else write_landscapes(folder, seed).path


def _missing_start(recipe: Recipe, row: TableRow, path: Path) -> str:
    """Return the message for a row whose pretraining is missing."""
    if row.recipe.start is not None and recipe.start != row.recipe.start:
        return f"{row.file}: --pretrained names {path}, which does not exist; docs/tables.md shows how to make it"
    if recipe.model.size != row.recipe.model.size:
        # The recipe's own pretraining is of the paper's size.
        return (
            f"{row.file}: starts from a pretraining; name one of size {recipe.model.size} with --pretrained "
            "(docs/tables.md shows how to make it)"
        )
    return (
        f"{row.file}: starts from {path}, which does not exist; make it with: "
        f"caswit pretrain {row.row.pretraining or 'RECIPE'} --out {path}, or name it with --pretrained"
    )


def _trained_model(recipe: Recipe, row: TableRow, folder: Path) -> Path:
    """Return the model of a finished run, or train it."""
    run = RunFolder(folder)
    if run.finished(recipe):
        log.info("%s: already trained", folder)
        return run.model
    # Rows of a table are compared, so none of them may be a shorter run that was made longer.
    run.check(recipe, resume=True, longer=False)
    start = recipe.start
    if start is not None and start.source == "caswit" and start.path is not None:
        # A variable that is not set stays in the path, which then does not exist: one message for both.
        path = Path(os.path.expandvars(start.path)).expanduser()
        if not path.exists() and not is_on_hub(start.path):
            raise ConfigError(_missing_start(recipe, row, path))
    log.info("%s: training", folder)
    if recipe.train.devices == 1:
        return train(recipe, folder, resume=True)
    _train_in_subprocess(recipe, folder)
    return run.model


def _train_in_subprocess(recipe: Recipe, folder: Path) -> None:
    """Train with a command of its own, because data-parallel processes start by running the command line again."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    plain = json.loads(json.dumps(asdict(recipe)))  # YAML has no tuples
    atomic_write_bytes(file, yaml.safe_dump(plain, sort_keys=False).encode())
    words = [sys.executable, "-m", "caswit", "train", str(file), "--out", str(folder), "--resume"]
    with noting_signals():
        process = subprocess.Popen(words)
        forwarded = None
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.2)
            # A terminal sends Ctrl-C to both; a second one would end the training before it has saved.
            if forwarded is None and (forwarded := stop_signal()) not in (None, signal.SIGINT):
                process.send_signal(forwarded)
    if forwarded is not None or (process.returncode == 0 and not RunFolder(folder).finished(recipe)):
        raise Stopped(f"{folder}: its training stopped", interrupted=forwarded is signal.SIGINT)
    if process.returncode != 0:
        raise ConfigError(f"{folder}: its training stopped, see above; the same table command continues it")


def _scored_report(
    model: Path, digest: str, dataset: Dataset, out: Path, split: str, settings: EvaluateConfig, tile_px: int
) -> dict[str, Any]:
    """Return the report.json of this evaluation, or evaluate."""
    wanted = {
        "dataset": dataset.name,
        "split": split,
        "protocol": settings.protocol,
        "model_sha256": digest,
        "band_px": band_width_px(tile_px, settings),
    }
    report = _read_json(out / "report.json")
    if any(report.get("evaluated", {}).get(key) != value for key, value in wanted.items()):
        evaluate(model, dataset.path, out, split=split, settings=settings)
        report = _read_json(out / "report.json")
    return report


def _memory(model: Path, digest: str, file: Path, settings: TableConfig) -> PeakMemory:
    wanted = {"model_sha256": digest, "device": settings.device, "precision": settings.precision}
    measured = _read_json(file)
    if any(measured.get(key) != value for key, value in wanted.items()):
        peak = peak_memory(model, device=settings.device, precision=settings.precision)
        measured = wanted | {"peak": asdict(peak)}
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, json.dumps(measured, indent=2).encode())
    return PeakMemory(**measured["peak"])


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist or is damaged, so that it is made again."""
    try:
        content = read_json(file)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(results: Sequence[RowResult], out: Path) -> None:
    files = {"table.md": markdown(results), "table.csv": scores_csv(results), "classes.csv": classes_csv(results)}
    for name, text in files.items():
        atomic_write_bytes(out / name, text.encode())
