"""Choose how to fine-tune a model on a dataset, without a recipe: crop, rate, steps and validation part by the data.

Each choice has a sentence that says why. The recipe that comes out is all there is to the run: ``caswit train`` repeats
it. Rules of thumb, measured on small scenes (docs/log.md).
"""

import json
from pathlib import Path
from typing import NamedTuple

from caswit.config import FinetuneConfig
from caswit.data.classes import known_and_new
from caswit.data.dataset import Dataset, load_dataset
from caswit.errors import one_line
from caswit.files import expand_path
from caswit.training.class_shares import ClassShares, class_shares
from caswit.training.fine_tuning import LARGE, SMALL, UNTRAINED, Usual, described, model_to_tune
from caswit.training.finetune_data import LabelledData, ground_of, hold_out, look
from caswit.training.run_folder import RunFolder, read_log
from caswit.weights.initialize import folder_of_start
from caswit.weights.model_folder import ModelInfo, PretrainedInfo, load_model

RECIPE = "finetune.yaml"
"""Name of the recipe in the run folder."""
_LONGEST = 2000
"""Characters of a comment in the recipe."""
_CROP_SIDES = (384, 256, 192, 128, 96, 64)
"""Sides of crops: multiples of 32, the side of a token of the last stage."""
_CROPS = 5
"""Crops that at least fit into the data, unless they are as small as can be."""
_PASSES, _LEAST_STEPS = 60, 60
"""Times that the data are seen, and the least number of steps."""
_FEW_CROPS = 32
"""Crops that data fill, below which they are few: at the usual rate the weights soon know them by heart."""
_LAYER_DECAY = 0.8
_LOSS = {"cross_entropy": 1.0, "dice": 1.0}
"""Where data are few: cross-entropy alone gives rare classes up."""
_START = 0.5
"""Share of the weights before in those after where data are few."""
_FORGETS = "their mean forgets less, and labels as few as these teach some things by chance"


class Choice(NamedTuple):
    """A recipe, and what was chosen for it."""

    recipe: str
    """As YAML text."""
    lines: list[str]
    """What was picked and why, a line for each choice."""


class _Picked(NamedTuple):
    """What was chosen."""

    info: ModelInfo | PretrainedInfo
    data: LabelledData
    usual: Usual
    """What fits the size of the network."""
    known: list[str]
    new: list[str]
    """Classes of the dataset that the model has, and the others."""
    labelled: list[str]
    unlabelled: list[str]
    """Classes that the labels have, and the others."""
    crop_px: int
    few: bool
    """The labels fill few crops."""
    fresh: bool
    """Something begins at random."""
    hold_out: float
    """Share of the training scenes that validates."""
    lr: float
    steps: int
    shares: ClassShares | None
    """Where labels are few: how often classes occur in them and around them."""

    @property
    def trained(self) -> bool:
        """The model has a decoder."""
        return isinstance(self.info, ModelInfo)

    @property
    def adapts(self) -> bool:
        """The labels are few, of classes that the model knows."""
        return self.few and not self.fresh

    @property
    def validates(self) -> bool:
        """There are labels that are not learned."""
        return self.data.validates or self.hold_out > 0

    @property
    def crops(self) -> float:
        """Number of crops that the labels which are learned fill."""
        return _crops(self.data, self.hold_out, self.crop_px)


def first_line(model: str, dataset: str, settings: FinetuneConfig) -> str:
    """Return the first line of the recipe: by it the same command finds its run again."""
    given = {"steps": settings.steps, "minutes": settings.minutes, "seed": settings.seed}
    options = [f"--{name} {value}" for name, value in given.items() if value is not None]
    return one_line(" ".join(("# caswit finetune", model, dataset, *options)), _LONGEST)


def choose(model: str, dataset: str, settings: FinetuneConfig | None = None) -> Choice:
    """Choose crop, rate, steps and validation part by the data.

    Args:
        model: Model or run folder, trained or pretrained, hf:owner/name, or a name of the zoo.
        dataset: A dataset.yaml with labels in its split ``train``.
        settings: What is not to be chosen.

    Raises:
        CaswitError: The model or the dataset cannot be used.
    """
    settings = settings or FinetuneConfig()
    picked = _pick(model, load_dataset(dataset), settings)
    lines = _reasons(model, picked, settings)
    head = [first_line(model, dataset, settings), *(f"# {one_line(line, _LONGEST)}" for line in lines)]
    sections = _sections(model, dataset, picked, settings)
    text = "".join(f"{line}\n" for line in head) + "".join(_section(*each) for each in sections.items())
    return Choice(text, lines)


def result(out: Path) -> list[str]:
    """Return lines that say what a finished run has come to: its scores at the start and at the end, and which stay."""
    run = RunFolder(out)
    rows = [(int(row["step"]), float(row["val_miou"])) for row in read_log(run.log) if row.get("val_miou")]
    kept = int(load_model(run.model).info.provenance["step"])
    if not rows:
        return [
            f"validation: none; only labels that it has not learned tell whether {kept} steps made it better: score it "
            "and the model before with caswit evaluate"
        ]
    (first, start), (last, end) = rows[0], rows[-1]
    best = dict(rows).get(kept, end)
    if first > 0:
        which = "kept" if kept == last else f"{best:.4f} after {kept} is kept"
        return [f"validation: mIoU {end:.4f} after {last} steps, {which}; the model had other classes before"]
    said = f"validation: mIoU {start:.4f} at the start, {end:.4f} after {last} steps"
    if kept == 0:
        return [f"{said}: no better, so the model stays as it was; label more, or other places"]
    return [f"{said}; " + ("kept" if kept == last else f"the best, {best:.4f} after {kept}, is kept")]


def _pick(model: str, dataset: Dataset, settings: FinetuneConfig) -> _Picked:
    info = model_to_tune(model)
    data = look(dataset, info.bands, info.tile.tile_px, ground_of(dataset, info))
    usual = SMALL if info.model.size in ("pico", "nano") else LARGE
    crop_px = _crop_px(data, min(usual.tile_px, info.tile.tile_px), info.tile.step_px)
    known, new = _classes(info, dataset)
    # What begins at random does not get far at the rate of what only adapts.
    fresh, few = bool(new) or isinstance(info, PretrainedInfo), _crops(data, 0, crop_px) < _FEW_CROPS
    adapts = few and not fresh
    shares = None
    if adapts and not info.model.has_own_loss:
        shares = class_shares(load_model(folder_of_start(model)), data.opened, data.counts, settings.accelerator)
    # A part of so little would be missed in learning, and say by chance which weights are the best (docs/log.md).
    held_out = 0.0 if adapts else hold_out(data)
    least = _LEAST_STEPS * (UNTRAINED if fresh else 1)
    passes = _PASSES * _crops(data, held_out, crop_px) / usual.batch
    found = list(zip(dataset.classes.names, data.counts, strict=True))
    return _Picked(
        info=info,
        data=data,
        usual=usual,
        known=known,
        new=new,
        labelled=[name for name, pixels in found if pixels],
        unlabelled=[name for name, pixels in found if not pixels],
        crop_px=crop_px,
        few=few,
        fresh=fresh,
        hold_out=held_out,
        lr=UNTRAINED * usual.lr if fresh else usual.lr / 3 if few else usual.lr,
        steps=settings.steps or round(min(max(passes, least), usual.max_steps)),
        shares=shares,
    )


def _crops(data: LabelledData, hold_out: float, crop_px: int) -> float:
    return data.pixels * (1 - hold_out) / crop_px**2


def _sections(model: str, dataset: str, picked: _Picked, settings: FinetuneConfig) -> dict[str, dict[str, object]]:
    """Return the recipe by section."""
    info, data, usual, steps, lr = picked.info, picked.data, picked.usual, picked.steps, picked.lr
    return {
        "data": {
            "dataset": str(expand_path(dataset).resolve()),
            "val_split": "held_out" if picked.hold_out else "val" if picked.validates else None,
            **({"hold_out": picked.hold_out} if picked.hold_out else {}),
            "sampling": "labelled" if data.sparse else "random",
            "crop_px": picked.crop_px,
        },
        "tile": {"tile_px": info.tile.tile_px, "read_gsd_m": data.read_gsd_m},
        "augment": {"spatial": True, "brightness": 0.1, "contrast": 0.2, "gamma": 0.2},
        "train": {
            "seed": settings.seed,
            "batch": usual.batch,
            **({"accumulate": usual.accumulate} if usual.accumulate > 1 else {}),
            "max_steps": steps,
            **({"max_minutes": settings.minutes} if settings.minutes is not None else {}),
            **(
                {"val_every_steps": max(1, -(-steps // 4)), "validate_start": not picked.fresh}
                if picked.validates
                else {}
            ),
            "keep": "best" if picked.validates else "last",
            **({"average_with_start": _START} if picked.adapts else {}),
            **(
                {"loss": _LOSS, "logit_adjustment": picked.shares.logit_adjustment} if picked.shares is not None else {}
            ),
            "lr": lr,
            "min_lr": lr / 30,
            "warmup_steps": min(usual.warmup_steps, max(1, steps // 10)),
            "layer_decay": _LAYER_DECAY,
            **({"freeze_norms": True} if picked.trained else {}),
            "weight_decay": usual.weight_decay,
            "clip_norm": 5.0,
            "alpha": 0.0,
            "accelerator": settings.accelerator,
        },
        "init": {"path": _absolute(model), **({"decoder": True} if picked.trained else {})},
    }


def _crop_px(data: LabelledData, most_px: int, step_px: int) -> int:
    """Return the side of the crops: the largest that lies within every scene and of which some fit into the data."""
    sides = [most_px, *(side for side in _CROP_SIDES if side < most_px)]
    side = next((s for s in sides if s <= data.shortest_px and _CROPS * s**2 <= data.pixels), sides[-1])
    return max(step_px, side // step_px * step_px)


def _classes(info: ModelInfo | PretrainedInfo, data: Dataset) -> tuple[list[str], list[str]]:
    """Return the classes of a dataset that a model has by name, and the others."""
    return known_and_new(data.classes.names, info.classes.names if isinstance(info, ModelInfo) else ())


def _reasons(model: str, picked: _Picked, settings: FinetuneConfig) -> list[str]:
    """Return what was picked and why, a line for each choice."""
    info, data, usual, crop_px = picked.info, picked.data, picked.usual, picked.crop_px
    lines = [
        f"model:      {model}: {described(info.model)}; {_said_of_classes(picked)}",
        f"data:       {data.scenes} scene{'s' * (data.scenes != 1)} to learn from, {data.pixels / 1e6:.2f} Mpx "
        f"{data.why}{_said_of_labels(data)}",
        *_said_of_missing(picked),
        f"validation: {_said_of_validation(picked)}",
        f"crop:       {crop_px} px, {_said_of_crop(data, crop_px, usual.tile_px)}; maps keep tiles of "
        f"{info.tile.tile_px} px",
        *_said_of_context(info, data, crop_px),
        f"rate:       {picked.lr:.0e} for the decoder, {_said_of_rate(picked)}; {_LAYER_DECAY} times as much for each "
        "block of the encoders before it",
        f"steps:      {picked.steps} of {usual.batch} crops, {_said_of_steps(picked, settings)}",
    ]
    if picked.shares is not None:
        lines.append(f"classes:    as frequent as the model finds them in the whole images: {picked.shares.said()}")
        lines.append("loss:       cross-entropy and dice in equal parts, which gives rare classes their weight")
    if picked.adapts:
        lines.append(f"weights:    {_START:.0%} of those before and the rest of those after: {_FORGETS}")
    return lines


def _said_of_classes(picked: _Picked) -> str:
    known, new = picked.known, picked.new
    if not picked.trained:
        return "pretrained without labels, so the decoder begins at random"
    if not new:
        return f"it knows the classes {', '.join(known)}"
    return f"it knows {', '.join(known)}; new: {', '.join(new)}" if known else "no class has the name of one of its own"


def _said_of_labels(data: LabelledData) -> str:
    if not data.sparse:
        return ""
    return f", labelled on {data.labelled:.1%} of the ground: crops are drawn around labels"


def _said_of_missing(picked: _Picked) -> list[str]:
    if len(picked.labelled) == 1:
        return [
            f"labels:     all are {picked.labelled[0]}, so the model learns that everything is; label what is not "
            "(elsewhere: background, or annotated)"
        ]
    sampled = len(picked.data.opened.scenes) < picked.data.scenes
    if not picked.unlabelled or sampled:  # others may have what some lack
        return []
    return [
        f"labels:     none is {' or '.join(picked.unlabelled)}, of which nothing can be learned; label some, or leave "
        "it out of the classes"
    ]


def _said_of_validation(picked: _Picked) -> str:
    if picked.data.validates:
        return "split val of the dataset"
    if picked.adapts:
        return (
            f"none: a part of what fills {picked.crops:.0f} crops only would be missed, and judge by chance; "
            "all is learned"
        )
    if not picked.hold_out:
        return "none: an end of scenes that are labelled here and there may have no label; all is learned"
    whole = picked.data.scenes >= round(1 / picked.hold_out)
    of = "scenes" if whole else "each scene, at the end of its longer side"
    return f"{picked.hold_out:.0%} of {of}, since no split val has labels"


def _said_of_crop(data: LabelledData, crop_px: int, usual_px: int) -> str:
    if crop_px >= usual_px:
        return "as usual for networks of this size"
    larger = min(side for side in (usual_px, *_CROP_SIDES) if side > crop_px)
    what = "the smallest area to learn from is" if data.shortest_px < larger else "data of this size are"
    return f"below the usual {usual_px} since {what} too small for it"


def _said_of_context(info: ModelInfo | PretrainedInfo, data: LabelledData, crop_px: int) -> list[str]:
    side = crop_px * max(info.tile.context_factors)
    if not info.model.reads_context or side <= data.image_px:
        return []
    return [
        f"context:    {side} px, and the smallest scene has {data.image_px}: what lies outside is black; larger "
        "images, labelled in part, would show it"
    ]


def _said_of_rate(picked: _Picked) -> str:
    if picked.fresh:
        return "much, since some of it begins at random"
    return f"a third of the usual since the data fill {picked.crops:.0f} crops only" if picked.few else "as usual"


def _said_of_steps(picked: _Picked, settings: FinetuneConfig) -> str:
    times = max(1, round(picked.steps * picked.usual.batch / picked.crops))
    return f"{'as asked for, ' if settings.steps else ''}which see the data about {times} times"


def _section(name: str, values: dict[str, object]) -> str:
    return f"{name}:\n" + "".join(f"  {key}: {_yaml(value)}\n" for key, value in values.items())


def _yaml(value: object) -> str:
    # YAML 1.1 takes 3e-04 for a text, and 3.0e-04 for a number.
    return f"{value:.4e}" if isinstance(value, float) and 0 < value < 1e-2 else json.dumps(value)


def _absolute(model: str) -> str:
    """Return a path that holds wherever the recipe is used from; names of models stay as they are."""
    path = expand_path(model)
    return str(path.resolve()) if path.exists() else model
