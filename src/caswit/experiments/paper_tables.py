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
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import yaml

from caswit.config import EvaluateConfig, Recipe, ScoreConfig, TableConfig, TilingConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.folds import HELD_OUT
from caswit.data.reader import scene_areas
from caswit.errors import CaswitError, ConfigError, DataError, Stopped
from caswit.evaluation.evaluate import band_width_px
from caswit.evaluation.run import evaluate
from caswit.experiments.memory import PeakMemory, peak_memory
from caswit.experiments.table_format import FoldRun, RowResult, Run, classes_csv, folds_csv, markdown, scores_csv
from caswit.experiments.table_scale import (
    LANDSCAPES,
    TableRow,
    common_px,
    fitting_px,
    method_tiling,
    pretrains_itself,
    printed,
    restarts,
    scaled_pretraining,
    scaled_recipe,
    size_of,
    start_of,
)
from caswit.files import atomic_write_bytes, checked, read_json
from caswit.training.fabric import is_first_process, noting_signals, srun_tasks, stop_signal
from caswit.training.pretrain import pretrain
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train
from caswit.weights.hub import is_on_hub
from caswit.weights.model_folder import file_digest, read_info

log = logging.getLogger(__name__)


class _Steps(TypedDict):
    """The part of a model's provenance that a table states."""

    step: int


class _Trained(TypedDict):
    """The part of a config.json that a table reads."""

    provenance: _Steps


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
    results = [RowResult(row=printed(row, settings), common_px=common_px(rows, settings)) for row in rows]
    said: set[str] = set()
    # The outer loop, so that an interrupted table compares rows of the same seeds and folds.
    for run in _runs(settings):
        for number, row in enumerate(rows):
            try:
                results[number] = _run(row, results[number], run, out, settings)
            except CaswitError as error:
                # What is wrong with many rows or seeds alike is said once; the table has it beside each row.
                if str(error) not in said and len(rows) > 1:
                    log.info("%s, %s: not run: %s", row.row.name, _said(run), error)
                said.add(str(error))
                results[number] = replace(results[number], error=str(error))
            _write(results, out)
    if not any(result.reports for result in results):
        reasons = f"none of the {len(rows)} rows could be run; the reasons are above and in {out / 'table.md'}"
        raise ConfigError(str(results[0].error) if len(rows) == 1 else reasons)
    return results


def _runs(settings: TableConfig) -> list[Run]:
    """Return the runs of each row: its seeds, or with each seed its folds."""
    if settings.folds is None:
        return list(settings.seeds)
    return [FoldRun(seed, fold) for seed in settings.seeds for fold in range(1, settings.folds + 1)]


def _said(run: Run) -> str:
    return f"fold {run.fold}, seed {run.seed}" if isinstance(run, FoldRun) else f"seed {run}"


def _run(row: TableRow, so_far: RowResult, run: Run, out: Path, settings: TableConfig) -> RowResult:
    """Train, score and measure one row with one seed, and in one fold; what is done already is read."""
    seed, fold = run if isinstance(run, FoldRun) else (run, None)
    recipe = scaled_recipe(row, seed, out, settings, fold)
    data = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken)
    split = settings.split or _split(row, settings)
    data.split(split)  # refuses what could not be scored, before hours of training
    # Runs of another start lie beside those of the recipe's own.
    name = f"{slug(row.row.name)}{f'-{settings.start}' if restarts(row, settings) else ''}-s{seed}"
    folder = _shared(out / "runs" / slug(data.name) / name, recipe)
    if pretrains_itself(recipe, settings):
        _pretrain(recipe)
    model = _trained_model(recipe, row, folder)
    one = _Model(model, file_digest(model), data, split)
    tiling = method_tiling(row, recipe.tile)
    alike = TilingConfig(tile_px=fitting_px(so_far.common_px, recipe.tile))
    own_px = recipe.tile.tile_px
    # One width of the band of Boundary IoU for all rows, or it would not compare.
    common = {} if own_px == so_far.common_px else {"boundary_px": band_width_px(so_far.common_px, settings)}
    scoring = {f.name: getattr(settings, f.name) for f in fields(ScoreConfig)} | {
        "protocol": settings.protocol or (None if settings.dataset else row.row.protocol),
        "workers": settings.workers or recipe.data.workers,
        **common,
    }
    scores = out / "scores" / slug(data.name) / f"{folder.name}-{slug(one.split)}"
    report = _scored_report(one, scores, EvaluateConfig(**scoring, **asdict(tiling)), own_px)
    if (tiling.tile_px or own_px, tiling.overlap_px) == (alike.tile_px, 0):
        report_alike = report
    else:
        beside = scores.with_name(f"{scores.name}-{alike.tile_px}px")
        report_alike = _scored_report(one, beside, EvaluateConfig(**scoring | {"pictures": 0}, **asdict(alike)), own_px)
    memory = so_far.memory
    if settings.measure_memory and memory is None:
        memory = _memory(one, out / "memory" / slug(data.name) / f"{folder.name}.json", settings, tiling)
    config: _Trained = checked(_Trained, read_json(model / "config.json"), str(model / "config.json"))
    return replace(
        so_far,
        steps={**so_far.steps, run: config["provenance"]["step"]},
        size=size_of(recipe.model),
        start=start_of(recipe),
        reports={**so_far.reports, run: report},
        reports_alike={**so_far.reports_alike, run: report_alike},
        held_out=so_far.held_out if fold is None else {**so_far.held_out, fold: _held_out(data)},
        folds=settings.folds,
        memory=memory,
    )


class _Model(NamedTuple):
    """A trained model and what it is scored on."""

    folder: Path
    digest: str
    dataset: Dataset
    split: str


def _held_out(data: Dataset) -> tuple[str, ...]:
    return tuple(str(scene.image) for scene in data.split(HELD_OUT))


def _split(row: TableRow, settings: TableConfig) -> str:
    if settings.folds is not None:
        return HELD_OUT
    return "test" if settings.dataset == LANDSCAPES else row.row.split


def _shared(folder: Path, recipe: Recipe) -> Path:
    """Return the folder of a run of the same recipe that another row has made, or ``folder``."""
    # Two tables may name one network differently: the baseline of table 3 is the Swin-B of table 1.
    if folder.exists():
        return folder
    others = sorted(file.parent for file in folder.parent.glob("*/recipe.yaml"))
    return next((other for other in others if RunFolder(other).holds(recipe)), folder)


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


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
        return train(recipe, folder, resume=run.last.exists())
    _train_in_subprocess(recipe, folder)
    return run.model


def _pretrain(recipe: Recipe) -> None:
    """Make the pretraining that a small row starts from, unless it is there."""
    assert recipe.start is not None
    assert recipe.start.path is not None
    pretraining, folder = scaled_pretraining(recipe), Path(recipe.start.path)
    if RunFolder(folder).finished(pretraining):
        return
    log.info("%s: pretraining on the table's own imagery; --pretrained names another", folder)
    pretrain(pretraining, folder, resume=True)


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


def _scored_report(model: _Model, out: Path, settings: EvaluateConfig, own_px: int) -> dict[str, Any]:
    """Return the report.json of this evaluation, or evaluate."""
    wanted = {
        "dataset": model.dataset.name,
        "split": model.split,
        "protocol": settings.protocol,
        "model_sha256": model.digest,
        "band_px": band_width_px(own_px, settings),
        "tile_px": settings.tile_px or own_px,
        "overlap_px": settings.overlap_px,
    }
    report = _read_json(out / "report.json")
    # Reports of earlier versions do not say that tiles do not overlap.
    if any(({"overlap_px": 0} | report.get("evaluated", {})).get(key) != value for key, value in wanted.items()):
        evaluate(model.folder, model.dataset.path, out, split=model.split, settings=settings)
        report = _read_json(out / "report.json")
    return report


def _memory(model: _Model, file: Path, settings: TableConfig, tiling: TilingConfig) -> PeakMemory:
    """Return what the process that labels one tile holds, or one whole image where the method takes these."""
    wanted: dict[str, Any] = {"model_sha256": model.digest, "device": settings.device, "precision": settings.precision}
    sides: tuple[int, int] | None = None
    if tiling.tile_px == "whole":
        sides = _largest_px(model)
        wanted["sides_px"] = list(sides)
    elif tiling.tile_px is not None:
        sides = tiling.tile_px, tiling.tile_px
        wanted["sides_px"] = list(sides)
    measured = _read_json(file)
    if any(measured.get(key) != value for key, value in wanted.items()):
        peak = peak_memory(model.folder, device=settings.device, precision=settings.precision, sides_px=sides)
        measured = wanted | {"peak": asdict(peak)}
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, json.dumps(measured, indent=2).encode())
    return PeakMemory(**measured["peak"])


def _largest_px(model: _Model) -> tuple[int, int]:
    """Return height and width of the largest image of the split, in pixels that the model reads."""
    info = read_info(model.folder)
    data = model.dataset.for_model(info.model, info.bands, info.tile.read_gsd_m)
    areas = (area for scene in data.split(model.split) for area in scene_areas(data, scene))
    return max(((area.height, area.width) for area in areas), key=lambda sides: sides[0] * sides[1])


def _read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; empty if the file does not exist or is damaged, so that it is made again."""
    try:
        content = read_json(file)
    except DataError:
        return {}
    return content if isinstance(content, dict) else {}


def _write(results: Sequence[RowResult], out: Path) -> None:
    files = {"table.md": markdown(results), "table.csv": scores_csv(results), "classes.csv": classes_csv(results)}
    if folds := folds_csv(results):
        files["folds.csv"] = folds
    for name, text in files.items():
        atomic_write_bytes(out / name, text.encode())
