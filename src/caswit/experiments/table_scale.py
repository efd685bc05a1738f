"""A row of a table, and its recipe at the scale of the table: other data, sizes, starts, seeds and lengths.

Rows of one table are compared, so a small one must cost about the same for each: ``SMALL`` is the place to tune that.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from caswit.config import (
    AugmentConfig,
    DataConfig,
    ImageryConfig,
    ModelConfig,
    PretrainConfig,
    PretrainRecipe,
    Recipe,
    RowConfig,
    Size,
    TableConfig,
    TileConfig,
    TilingConfig,
)
from caswit.data.dataset import load_dataset
from caswit.data.folds import TRAIN
from caswit.data.synthetic import SCENE_PX, write_landscapes
from caswit.errors import DataError, did_you_mean
from caswit.files import atomic_write_bytes, expand_path

FOLDS = "folds"
"""Folder in a table's own, of the datasets that are folds of another."""
LANDSCAPES = "landscapes"
"""Name that takes the place of a dataset.yaml: synthetic landscapes, drawn when first needed."""
LANDSCAPES_SCALE = 1 / 4
"""Sides of tiles on landscapes, as a share of the recipe's: 128 px for 512, for which the landscapes are made."""
COMMON_PX = 512
"""Side of the tiles that all networks are compared on, where no row of the table has tiles of its own."""


@dataclass(frozen=True, kw_only=True)
class Small:
    """Settings by which a network of table 2 costs about what CASWiT-nano does in a step of 8 tiles of 128 px."""

    width: float
    """``model.width``."""
    batch: int
    """``train.batch`` with tiles a quarter as wide: two at least where a batch norm follows a global mean."""


SMALL: dict[str, Small] = {
    # Whole-image methods learn from crops of 256 to 1024 px there, so their batches shrink with the area of a crop, and
    # their widths with what is left. Measured on crops of landscapes, one thread, forward and backward: CASWiT-nano
    # 1.1 s; STDC1 0.5 s at half this batch, FCtL 1.0, ISDNet 1.1, WSDNet 1.1, UHRS 0.7, Relay Tokens 1.2. GLNet takes
    # 2.6 s: of an image it sees all and six patches, each at 508 px, and no channel count gets below 8.
    "stdc1": Small(width=0.5, batch=8),
    "stdc2": Small(width=0.5, batch=8),
    "glnet": Small(width=0.0625, batch=1),
    "fctl": Small(width=0.125, batch=4),
    "isdnet": Small(width=0.25, batch=2),
    "wsdnet": Small(width=0.25, batch=2),
    "uhrs": Small(width=0.375, batch=2),
    "relay_tokens": Small(width=0.5, batch=8),
}
PRETRAINING = "pretraining"
"""Folder in a table's own, of pretrainings that the table makes itself."""
_PRETRAIN_LR = 1e-3
"""As in recipes/pretrain-dubai-nano.yaml."""
_SMALL_SIZES: tuple[Size, ...] = ("pico", "nano")
_MORE_STEPS = 10**6
"""Steps that are never taken, where minutes end a training."""
_STRIDE_PX = 32
_SMALL_BATCH = 8
"""Tiles in a step at small scale, of every other network."""


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """A recipe and the row of the table that it reproduces."""

    file: Path
    row: RowConfig
    recipe: Recipe
    own_tile_px: int | None = None
    """Side of the tiles of the recipe itself, where ``--over`` names another; None: that of ``recipe``."""
    fixed: frozenset[str] = frozenset()
    """Settings, as section.name, that ``--over`` names, so that no scale changes them."""


def scaled_recipe(row: TableRow, seed: int, out: Path, settings: TableConfig, fold: int | None = None) -> Recipe:
    """Return a row's recipe at the scale of the table, in one of its folds."""
    recipe = row.recipe
    if settings.skip_broken:
        recipe = replace(recipe, data=replace(recipe.data, skip_broken=True))
    learning: dict[str, Any] = {"seed": seed}
    if settings.max_minutes is not None:
        learning |= {"max_minutes": settings.max_minutes, "max_steps": _MORE_STEPS}
    if settings.max_steps is not None:
        learning["max_steps"] = settings.max_steps
    if settings.dataset is not None:
        learning["keep"] = "last"  # another dataset has no validation split by which the best could be chosen
        recipe = _on_dataset(recipe, row, seed, out, settings)
    if fold is not None:
        assert settings.folds is not None
        recipe = folded(recipe, row.recipe.data, fold, settings.folds, out / FOLDS)
        learning["keep"] = "last"  # the fold is for the score: nothing may be chosen by it
    recipe = started(recipe, settings)
    if settings.size is not None:
        recipe = replace(recipe, model=scaled_model(recipe.model, settings.size))
        # Published weights have the size of the paper's model; only our own can be pretrained at another size.
        if recipe.start is not None and recipe.start.source != "caswit" and settings.start != "imagenet":
            recipe = replace(recipe, init=None)
    if settings.pretrained is not None and recipe.start is not None and recipe.start.source == "caswit":
        known = dict(recipe.init) if not isinstance(recipe.init, str) else {"from": "caswit"}  # type: ignore[arg-type]
        recipe = replace(recipe, init=known | {"path": settings.pretrained.replace("{seed}", str(seed))})
    recipe = replace(recipe, train=replace(recipe.train, **learning))
    if pretrains_itself(recipe, settings):
        # Rows that differ in their decoder alone share one.
        told_apart = hashlib.sha256(repr(scaled_pretraining(recipe)).encode()).hexdigest()[:8]
        name = f"{Path(recipe.data.dataset).parent.name}-{recipe.model.size}-s{seed}-{told_apart}"
        recipe = replace(recipe, init={"from": "caswit", "path": str(out / PRETRAINING / name)})
    return recipe


def _on_dataset(recipe: Recipe, row: TableRow, seed: int, out: Path, settings: TableConfig) -> Recipe:
    """Return a recipe for the dataset of the table, which may have no validation split, at the scale of its tiles."""
    dataset = str(settings.dataset)
    if dataset == LANDSCAPES:
        dataset = str(_landscapes(out / LANDSCAPES / f"seed-{seed}", seed))
    elif not expand_path(dataset).exists() and (meant := did_you_mean(dataset, [LANDSCAPES])):
        raise DataError(f"{dataset}: no such dataset file{meant}")
    if tile_scale(settings) != 1:
        recipe = replace(_for_two_cores(recipe, row.fixed), tile=scaled_tile(row, settings))
    return replace(
        recipe,
        data=replace(recipe.data, dataset=dataset, val_split=None),
        train=replace(recipe.train, patience=None),
    )


def folded(recipe: Recipe, own: DataConfig, fold: int, folds: int, out: Path) -> Recipe:
    """Return a recipe that learns from all folds but one; the file that describes them is written.

    Args:
        recipe: With the dataset of the table.
        own: Data of the row's own recipe, which names the splits that are dealt into folds.
        fold: Number of the fold that is held out, from 1.
        folds: Number of folds.
        out: Folder of such files.
    """
    dataset = load_dataset(recipe.data.dataset, skip_broken=recipe.data.skip_broken)
    there = {scene.split for scene in dataset.scenes}
    # Another dataset, and landscapes, need not have the splits of the recipe.
    splits = [split for split in dict.fromkeys((own.train_split, own.val_split)) if split in there]
    whole = str(dataset.path.resolve())
    described = {"of": whole, "number": fold, "folds": folds, "splits": splits or [own.train_split]}
    text = yaml.safe_dump({"name": fold_name(dataset.name, fold, folds), "fold": described}, sort_keys=False)
    # Datasets of one name in two folders have files of their own.
    told_apart = hashlib.sha256(whole.encode()).hexdigest()[:8]
    file = out / f"{told_apart}-{fold}-of-{folds}.yaml"
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(file, text.encode())
    data = replace(recipe.data, dataset=str(file), train_split=TRAIN, val_split=None)
    return replace(recipe, data=data, train=replace(recipe.train, patience=None))


def fold_name(dataset: str, fold: int, folds: int) -> str:
    """Return the name of a fold of a dataset."""
    return f"{dataset}, fold {fold} of {folds}"


def pretrains_itself(recipe: Recipe, settings: TableConfig) -> bool:
    """Return whether a table makes the pretraining of a row: at small scale, on its data, where it is given none."""
    starts = recipe.start is not None and recipe.start.source == "caswit"
    return starts and settings.pretrained is None and settings.dataset is not None and settings.size in _SMALL_SIZES


def scaled_pretraining(recipe: Recipe) -> PretrainRecipe:
    """Return the pretraining on all imagery of a small row's data, as long as its training, with such batches."""
    train = recipe.train
    alike = ("seed", "batch", "accumulate", "epochs", "max_steps", "max_minutes")
    learning = {name: getattr(train, name) for name in alike}
    shared = {name: getattr(train, name) for name in ("precision", "accelerator", "devices", "save_every_s")}
    steps = 100 if train.max_steps is None else train.max_steps
    # Imagery has no classes by which it could be balanced.
    sampling: Literal["grid", "random"] = "grid" if recipe.data.sampling == "grid" else "random"
    return PretrainRecipe(
        data=ImageryConfig(dataset=recipe.data.dataset, sampling=sampling, workers=recipe.data.workers),
        model=replace(recipe.model, drop_path=0.0, decoder=ModelConfig.decoder, decoder_channels=None),
        tile=recipe.tile,
        augment=AugmentConfig(spatial=True),
        train=PretrainConfig(**learning, **shared, lr=_PRETRAIN_LR, lr_batch=None, warmup_steps=min(10, steps // 10)),
    )


def scaled_model(model: ModelConfig, base: Size) -> ModelConfig:
    """Return a network in the size that it has in a table whose base is ``base``."""
    changes: dict[str, Any] = {"encoder_weights": None}
    if model.arch == "caswit":
        changes["size"] = scaled_size(model.size, base)
    if model.arch in SMALL and base in _SMALL_SIZES:
        changes["width"] = SMALL[model.arch].width
    return replace(model, **changes)


def scaled_size(size: Size, base: Size) -> Size:
    """Return the size that takes the place of ``size`` in a table whose base is ``base``."""
    # One step up or down at most: a table at small scale keeps the order of its rows, and its largest stays affordable.
    order: tuple[Size, ...] = get_args(Size)
    distance = order.index(size) - order.index("base")
    step = (distance > 0) - (distance < 0)
    return order[min(max(order.index(base) + step, 0), len(order) - 1)]


def _for_two_cores(recipe: Recipe, fixed: frozenset[str]) -> Recipe:
    """Return a recipe with small batches for one machine without a GPU, but for what ``--over`` names."""
    model, train = recipe.model, recipe.train
    batch = SMALL[model.arch].batch if model.arch in SMALL else min(train.batch, _SMALL_BATCH)
    changes: dict[str, dict[str, Any]] = {
        "train": {"batch": batch, "devices": 1, "accumulate": 1},
        "data": {"workers": 0},
    }
    for section, values in changes.items():
        free = {name: value for name, value in values.items() if f"{section}.{name}" not in fixed}
        recipe = replace(recipe, **{section: replace(getattr(recipe, section), **free)})
    return recipe


def tile_scale(settings: TableConfig) -> float:
    """Return the sides of tiles as a share of the recipes' own."""
    if settings.tile_scale is not None:
        return settings.tile_scale
    return LANDSCAPES_SCALE if settings.dataset == LANDSCAPES else 1.0


def scaled_tile(row: TableRow, settings: TableConfig) -> TileConfig:
    """Return the tiles that a row is trained on at the scale of the table."""
    tile, scale = row.recipe.tile, tile_scale(settings)
    if scale == 1 or "tile.tile_px" in row.fixed:
        return tile
    side = fitting_px(tile.tile_px * scale, tile)
    return replace(tile, tile_px=min(side, SCENE_PX) if settings.dataset == LANDSCAPES else side)


def fitting_px(side: float, tile: TileConfig) -> int:
    """Return the side near ``side`` that contexts of these factors allow: a multiple of 32, which all networks take.

    Where no such side is near, as with contexts of 2 and 3 times, which want multiples of 12, the nearest allowed one.
    """
    step = tile.step_px
    coarse = lcm(step, _STRIDE_PX)
    if abs(round(side / coarse) * coarse - side) <= _STRIDE_PX / 2:
        step = coarse
    return max(-(-_STRIDE_PX // step), round(side / step)) * step


def method_tiling(row: TableRow, tile: TileConfig) -> TilingConfig:
    """Return how a method cuts scenes when it is tested, at the scale of its tiles; whole images stay whole."""
    asked = row.row.inference
    ratio = tile.tile_px / (row.own_tile_px or row.recipe.tile.tile_px)
    side = asked.tile_px
    if isinstance(side, int) and ratio != 1:
        side = fitting_px(side * ratio, tile)
    return TilingConfig(tile_px=side, overlap_px=round(asked.overlap_px * ratio))


def common_px(rows: Sequence[TableRow], settings: TableConfig) -> int:
    """Return the side of the tiles on which all networks of a table are compared."""
    if settings.tile_px is not None:
        return settings.tile_px
    own = {scaled_tile(row, settings).tile_px for row in rows if row.row.inference == TilingConfig()}
    if len(own) == 1:
        return own.pop()
    return round(COMMON_PX * tile_scale(settings))


def started(recipe: Recipe, settings: TableConfig) -> Recipe:
    """Return a recipe with the start that the table asks for; rows that start from weights of caswit keep theirs."""
    if settings.start is None or (recipe.start is not None and recipe.start.source == "caswit"):
        return recipe
    scratch = settings.start == "scratch"
    if recipe.model.arch != "caswit":
        weights = None if scratch else "imagenet"
        return replace(recipe, model=replace(recipe.model, encoder_weights=weights))
    return replace(recipe, init=None if scratch else {"from": "timm", "timm": True})


def restarts(row: TableRow, settings: TableConfig) -> bool:
    """Return whether a row starts otherwise in this table than its recipe says."""
    return started(row.recipe, settings) != row.recipe


def printed(row: TableRow, settings: TableConfig) -> RowConfig:
    """Return a row as it is printed: named by what is trained, without the paper's classes on other data than its."""
    model, name = row.recipe.model, row.row.name
    if settings.size is not None and model.arch == "caswit":
        name = sized_name(name, model.size, scaled_size(model.size, settings.size))
    if settings.size in _SMALL_SIZES and model.arch in SMALL:
        name += f", width {SMALL[model.arch].width:g}"
    if restarts(row, settings):
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


def size_of(model: ModelConfig) -> str:
    """Return the size of a network in one word: a Swin size, an encoder, or a width."""
    if model.arch == "caswit":
        return model.size
    return model.encoder or f"width {getattr(model, 'width', 1):g}"


def start_of(recipe: Recipe) -> str:
    """Return what a training starts from in one word: scratch, imagenet, pretrained, or the source of its weights."""
    if recipe.start is None:
        return recipe.model.encoder_weights or "scratch"
    if recipe.start.source == "caswit":
        return "pretrained here" if f"/{PRETRAINING}/" in str(recipe.start.path) else "pretrained"
    return "imagenet" if recipe.start.source == "timm" else recipe.start.source
