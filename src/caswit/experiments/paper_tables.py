"""Rows of the paper's tables: train what is not trained yet, score what is not scored yet, print beside the paper.

Every finished run, report and measurement is found again by what it was made from, so an interrupted table continues.
"""

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import yaml

from caswit.config import EvaluateConfig, Recipe, RowConfig, Size, TableConfig
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.synthetic import write_landscapes
from caswit.errors import CaswitError, ConfigError
from caswit.evaluation.evaluate import band_width_px
from caswit.evaluation.run import evaluate
from caswit.experiments.memory import PeakMemory, peak_memory
from caswit.experiments.table_format import RowResult, classes_csv, markdown, scores_csv
from caswit.files import atomic_write_bytes
from caswit.training.run_folder import RunFolder
from caswit.training.supervised import train
from caswit.weights.hub import is_on_hub
from caswit.weights.model_folder import file_digest

log = logging.getLogger(__name__)

LANDSCAPES = "landscapes"
"""Stands for a dataset.yaml: synthetic landscapes, drawn when first needed."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A recipe file and the row that it stands for."""

    file: Path
    row: RowConfig
    recipe: Recipe


def table(rows: Sequence[TableRow], out: Path, settings: TableConfig | None = None) -> list[RowResult]:
    """Run rows with every seed and write table.md, table.csv and classes.csv, anew after each run.

    Args:
        rows: In the order in which they are printed; differences are to the first of each table.
        out: Folder of runs, reports and tables.
        settings: Scale and seeds.

    Raises:
        CaswitError: No row could be run; otherwise what stands in a row's way is said in its line.
    """
    settings = settings or TableConfig()
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    results = [RowResult(row=_shown(row.row, settings)) for row in rows]
    troubles: list[CaswitError] = []
    for seed in settings.seeds:  # seeds outside, so that a table cut short has whole columns
        for number, row in enumerate(rows):
            try:
                results[number] = _run(row, results[number], seed, out, settings)
            except CaswitError as error:
                log.info("%s, seed %d: not run: %s", row.row.name, seed, error)
                troubles.append(error)
                results[number] = replace(results[number], trouble=str(error))
            _write(results, out)
    if not any(result.reports for result in results):
        raise troubles[0]
    return results


def _run(row: TableRow, so_far: RowResult, seed: int, out: Path, settings: TableConfig) -> RowResult:
    """Train, score and measure one row with one seed, as far as that is not done yet."""
    recipe = scaled(row, seed, out, settings)
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken)
    name = f"{slug(row.row.name)}-s{seed}"
    folder = out / "runs" / slug(dataset.name) / name
    model = _model(recipe, row, folder)
    digest = file_digest(model)
    split = settings.split or ("test" if settings.dataset == LANDSCAPES else row.row.split)
    protocol = settings.protocol or (None if settings.dataset else row.row.protocol)
    scoring = {f.name: getattr(settings, f.name) for f in fields(EvaluateConfig)} | {"protocol": protocol}
    scores = out / "scores" / slug(dataset.name) / f"{name}-{slug(split)}"
    report = _report(model, digest, dataset, scores, split, EvaluateConfig(**scoring), recipe.tile.tile_px)
    memory = so_far.memory
    if settings.measure_memory and memory is None:
        memory = _memory(model, digest, out / "memory" / slug(dataset.name) / f"{name}.json", settings)
    steps = json.loads((model / "config.json").read_text(encoding="utf-8"))["provenance"]["step"]
    return replace(so_far, steps=steps, reports={**so_far.reports, seed: report}, memory=memory)


def scaled(row: TableRow, seed: int, out: Path, settings: TableConfig) -> Recipe:
    """A row's recipe at the scale of the table.

    Another dataset has no validation during training, so the last weights are kept. Another size has no weights to
    start from but those of caswit, since everybody else's have a size of their own.
    """
    recipe = row.recipe
    if settings.skip_broken:
        recipe = replace(recipe, data=replace(recipe.data, skip_broken=True))
    learning: dict[str, Any] = {"seed": seed}
    if settings.max_steps is not None:
        learning["max_steps"] = settings.max_steps
    if settings.dataset is not None:
        learning["keep"] = "last"
        dataset = settings.dataset
        if dataset == LANDSCAPES:
            dataset = str(_landscapes(out / LANDSCAPES / f"seed-{seed}", seed))
        recipe = replace(recipe, data=replace(recipe.data, dataset=dataset, val_split=None))
    if settings.size is not None:
        model = replace(recipe.model, encoder_weights=None)
        if model.arch == "caswit":
            model = replace(model, size=stand_in(model.size, settings.size))
        recipe = replace(recipe, model=model)
        if recipe.start is not None and recipe.start.source != "caswit":
            recipe = replace(recipe, init=None)
    if settings.pretrained is not None and recipe.start is not None and recipe.start.source == "caswit":
        known = dict(recipe.init) if not isinstance(recipe.init, str) else {"from": "caswit"}  # type: ignore[arg-type]
        recipe = replace(recipe, init=known | {"path": settings.pretrained.replace("{seed}", str(seed))})
    return replace(recipe, train=replace(recipe.train, **learning))


def stand_in(size: Size, base: Size) -> Size:
    """The size that stands for ``size`` where ``base`` stands for the paper's base."""
    order: tuple[Size, ...] = get_args(Size)
    distance = order.index(size) - order.index("base")
    step = (distance > 0) - (distance < 0)
    return order[min(max(order.index(base) + step, 0), len(order) - 1)]


def slug(name: str) -> str:
    """A name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _shown(row: RowConfig, settings: TableConfig) -> RowConfig:
    """A row as it is printed: classes of another dataset are not the paper's, even where they share a name."""
    return row if settings.dataset is None else replace(row, paper=replace(row.paper, per_class=None))


def _landscapes(folder: Path, seed: int) -> Path:
    file = folder / "dataset.yaml"
    return file if file.is_file() else write_landscapes(folder, seed).path


def _model(recipe: Recipe, row: TableRow, folder: Path) -> Path:
    """The model of a finished run, or of one that is run now."""
    run = RunFolder(folder)
    if run.finished(recipe):
        log.info("%s: finished before", folder)
        return run.model
    start = recipe.start
    if start is not None and start.source == "caswit" and start.path is not None:
        # A variable that is not set stays as it is, and is not there either.
        path = Path(os.path.expandvars(start.path)).expanduser()
        if not path.exists() and not is_on_hub(start.path):
            recipe_file = row.row.pretraining or "RECIPE"
            raise ConfigError(
                f"{row.file}: starts from {path}, which is not there; make it with: "
                f"caswit pretrain {recipe_file} --out {path}, or name it with --pretrained"
            )
    log.info("%s: training", folder)
    if recipe.train.devices == 1:
        return train(recipe, folder, resume=True)
    _train_apart(recipe, folder)
    return run.model


def _train_apart(recipe: Recipe, folder: Path) -> None:
    """Train with a command of its own: data-parallel processes are started by running the command again."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    file = folder.with_name(f"{folder.name}.yaml")
    plain = json.loads(json.dumps(asdict(recipe)))  # tuples as lists
    atomic_write_bytes(file, yaml.safe_dump(plain, sort_keys=False).encode())
    words = [sys.executable, "-m", "caswit", "train", str(file), "--out", str(folder), "--resume"]
    if subprocess.run(words, check=False).returncode != 0:
        raise ConfigError(f"{folder}: its training stopped, see above; the same table command continues it")


def _report(
    model: Path, digest: str, dataset: Dataset, out: Path, split: str, settings: EvaluateConfig, tile_px: int
) -> dict[str, Any]:
    """report.json of this very evaluation, found or made."""
    wanted = {
        "dataset": dataset.name,
        "split": split,
        "protocol": settings.protocol,
        "model_sha256": digest,
        "band_px": band_width_px(tile_px, settings),
    }
    found = _read_json(out / "report.json")
    if any(found.get("evaluated", {}).get(key) != value for key, value in wanted.items()):
        evaluate(model, dataset.path, out, split=split, settings=settings)
        found = _read_json(out / "report.json")
    return found


def _memory(model: Path, digest: str, file: Path, settings: TableConfig) -> PeakMemory:
    wanted = {"model_sha256": digest, "device": settings.device, "precision": settings.precision}
    found = _read_json(file)
    if any(found.get(key) != value for key, value in wanted.items()):
        peak = peak_memory(model, device=settings.device, precision=settings.precision)
        found = wanted | {"peak": asdict(peak)}
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(file, json.dumps(found, indent=2).encode())
    return PeakMemory(**found["peak"])


def _read_json(file: Path) -> dict[str, Any]:
    """What a file says, nothing where it is not there or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write(results: Sequence[RowResult], out: Path) -> None:
    files = {"table.md": markdown(results), "table.csv": scores_csv(results), "classes.csv": classes_csv(results)}
    for name, text in files.items():
        atomic_write_bytes(out / name, text.encode())
