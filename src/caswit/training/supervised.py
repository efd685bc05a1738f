"""Supervised training (paper sections 3.4 and 4.3): the task that the loop of ``caswit.training.loop`` learns."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from caswit.config import ModelConfig, Recipe, TrainConfig
from caswit.data.classes import known_and_new
from caswit.data.dataset import Dataset
from caswit.data.label_counts import TileCounts, count_labels, median_frequencies
from caswit.data.reader import SceneReaders, band_layout, check_scenes, ground_size_m, open_dataset_scene
from caswit.data.sampler import TrainingSamples
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError, brief, did_you_mean
from caswit.evaluation.evaluate import scored_sample, scored_tiles
from caswit.evaluation.metrics import Counts, Scores, boundary_band_px, score
from caswit.evaluation.tile_pictures import grid_tiles, sheet, spread_tiles
from caswit.files import atomic_write_bytes
from caswit.inference.confidence import Confidence
from caswit.inference.devices import uses_bf16
from caswit.inference.predictor import Predictor
from caswit.nn.baselines.parts import BatchNorm
from caswit.nn.caswit import CASWiT
from caswit.nn.losses import named_losses, supervised_loss
from caswit.nn.network import Network
from caswit.raster.ground import Degrees, regions
from caswit.raster.windows import Tile
from caswit.training.fabric import all_sum, folder_for, launch, one_device, repeatable, stop_signal
from caswit.training.loggers import check_loggers
from caswit.training.loop import Batch, Loop, fit, load_data, settle_bands
from caswit.training.phases import check_phases
from caswit.training.run_folder import COLUMNS, RunFolder
from caswit.viz.pictures import png_bytes
from caswit.weights.initialize import Fit, info_of_start, start_from
from caswit.weights.model_folder import ModelInfo, PretrainedInfo, build, save_model

log = logging.getLogger(__name__)
T = TypeVar("T")
_CONFIDENCE_TILES = 100
"""Tiles over which the confidence of a finished model is averaged."""
_COUNTED_TILES = 5000
"""Training tiles whose labels are counted for class weights, spread over all."""
_MOST_SCENES = 500
"""Scenes whose places are looked up."""


def train(recipe: Recipe, out: Path, *, resume: bool = False) -> Path:
    """Train a model.

    Args:
        recipe: Every setting.
        out: Run folder to make, or to continue.
        resume: Continue the run in ``out`` where its last checkpoint is.

    Returns:
        The finished model folder, ``out / "model"``.

    Raises:
        CaswitError: The recipe, the data or the folder cannot be used.
        Stopped: A signal or ``stop_minutes`` ended it early; ``resume`` goes on there.
    """
    # Only a training in phases has a column that says in which a step is.
    columns = (*COLUMNS, "phase") if recipe.train.phases else COLUMNS
    folder = folder_for(recipe, out, columns, resume=resume)
    dataset, model = _data_and_network(recipe)
    with launch(recipe, folder, resume=resume) as fabric, repeatable(recipe.train, fabric.device):
        task = SupervisedTask(fabric, recipe, dataset, folder, model)
        fit(fabric, recipe, folder, task, _network(recipe, task.info, new=not folder.last.exists()))
    return folder.model


@contextmanager
def trial(recipe: Recipe) -> Iterator[tuple[Loop, "SupervisedTask"]]:
    """Set up a training on one device as ``train`` does, to take some of its steps with ``Loop.trial``.

    What it writes goes into a folder that is removed at the end.

    Raises:
        CaswitError: The recipe or the data cannot be used.
    """
    dataset, model = _data_and_network(recipe)
    with TemporaryDirectory() as scratch, one_device(recipe) as fabric, repeatable(recipe.train, fabric.device):
        folder = RunFolder(Path(scratch))
        task = SupervisedTask(fabric, recipe, dataset, folder, model)
        yield Loop(fabric, recipe, folder, task, _network(recipe, task.info, new=True)), task


def _data_and_network(recipe: Recipe) -> tuple[Dataset, ModelConfig]:
    """Return the dataset with the bands that are read, and the settings of the network; check the recipe first."""
    check_loggers(recipe.train.loggers)
    check_phases(recipe)
    named_losses(recipe.train.losses)  # says what is not installed before anything is written
    dataset = load_data(recipe)
    _check_by_class(recipe.train, dataset)
    scenes = dataset.split(recipe.data.train_split)
    start = info_of_start(recipe.start)
    # Bands are measured on many scenes, which takes minutes: what needs none of them is refused above.
    dataset, model = settle_bands(recipe, dataset, scenes, start)
    _check(recipe, dataset)
    _say_frozen_bands(recipe.train, model, start)
    return dataset, model


class SupervisedTask:
    """Learn the labels of tiles and, with a context head, those of their context.

    Args:
        fabric: Launched.
        recipe: Of the run.
        dataset: Holds the training split and, where the recipe names one, the validation split.
        folder: Of the run; pictures and the finished model are written there.
        model: Settings of the network with the numbers of its bands.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, dataset: Dataset, folder: RunFolder, model: ModelConfig) -> None:
        self.fabric, self.recipe, self.dataset, self.folder = fabric, recipe, dataset, folder
        settings = recipe.train
        self.samples = TrainingSamples(
            dataset, recipe.data, recipe.crop, recipe.augment, seed=settings.seed, context=recipe.model.reads_context
        )
        self.validation_scenes = dataset.split(recipe.data.val_split) if recipe.data.val_split else ()
        self.validation_sample = _validation_sample(recipe, dataset, self.validation_scenes)
        self.info = _info(recipe, dataset, model)
        self.named_absent = False
        weights = self._class_weights()
        self.losses = named_losses(
            settings.losses,
            weights=None if weights is None else torch.tensor(weights, dtype=torch.float32, device=fabric.device),
            offsets=_offsets(settings, dataset, fabric.device),
            label_smoothing=settings.label_smoothing,
            focal_gamma=settings.focal_gamma,
            ohem_share=settings.ohem_share,
        )

    def _class_weights(self) -> tuple[float, ...] | None:
        """Return the weights of the classes; count the training labels where they or the samples follow from them."""
        weights, names = self.recipe.train.class_weights, self.dataset.classes.names
        balanced, auto = self.recipe.data.sampling == "balanced", weights == "auto"
        if not (balanced or auto):
            return weights  # type: ignore[return-value]
        counts = self._label_counts(None if balanced else _COUNTED_TILES)
        missing = ", ".join(name for name, pixels in zip(names, counts.sum(0), strict=True) if not pixels)
        if not counts.any():
            raise DataError(f"{self.dataset.path}: the tiles of split {self.recipe.data.train_split} have no label")
        if missing:
            log.info("not in the training labels: %s", missing)
        if balanced:
            self.samples.balance(counts)
        if not auto:
            return weights  # type: ignore[return-value]
        found = median_frequencies(counts)
        said = ", ".join(f"{name} {weight:.3g}" for name, weight in zip(names, found, strict=True))
        log.info("class weights by median frequency in %d tiles: %s", len(counts), said)
        return found

    def _label_counts(self, most: int | None) -> TileCounts:
        """Return the pixels of each class in all tiles of the training grid, or in ``most`` spread over it."""
        # The first process counts, once: a resumed run takes what its folder has, and so draws the same tiles.
        tiles = self.samples.grid if most is None else _spread(self.samples.grid, most)
        counts: TileCounts | None = None
        if self.fabric.is_global_zero:
            counts = self.folder.label_counts((len(tiles), len(self.dataset.classes)))
            if counts is None:
                counts = count_labels(SceneReaders(self.dataset, self.samples.scenes), tiles)
                self.folder.save_label_counts(counts)
        sent: Any = counts
        found: TileCounts = self.fabric.broadcast(sent)
        return found

    def loss_normalizer(self, batch: Batch) -> Tensor:
        """Return the divisors of each loss for tile and context labels, one loss after the other.

        Of one loss these are 2, and 1 + N with N contexts: of cross-entropy the labelled pixels, or their weights.
        """
        around = batch["context_label"]
        labels = (batch["label"], *(around.unbind(1) if around.ndim == 4 else (around,)))
        return torch.stack([loss.divisor(label) for _, loss in self.losses for label in labels])

    def loss(self, model: nn.Module, batch: Batch, normalizer: Tensor) -> Tensor:
        """Return the loss of both heads (paper section 3.4), a sum of several, or the own one of a network."""
        # Batches have the same fields for every network; without a context branch that of the context is empty.
        images = batch["tile"], batch["context"] if batch["context"].numel() else None
        logits = model(*images, batch["label"]) if self.recipe.model.has_own_loss else model(*images)
        labels, alpha = (batch["label"], batch["context_label"]), self.recipe.train.alpha
        total: Tensor | None = None
        for (share, loss), divisors in zip(self.losses, normalizer.view(len(self.losses), -1), strict=True):
            divided = divisors[0], divisors[1] if len(divisors) == 2 else divisors[1:]
            part = supervised_loss(logits, labels, divided, alpha=alpha, loss=loss)
            part = part if share == 1 else share * part
            total = part if total is None else total + part
        assert total is not None
        return total

    def validate(self, network: Network, step: int) -> dict[str, float]:
        """Score the validation split and draw some of its tiles; nothing where the recipe names no such split."""
        if not self.validation_scenes:
            return {}
        predictor = self._predictor(network)
        counts = self._counts(predictor)
        if stop_signal() is not None:
            return {}
        scores = score(counts)
        if self.fabric.is_global_zero:
            self._name_absent(scores)
            self._write_picture(predictor, self.folder.pictures / f"step_{step:07}.png")
        network.train()
        return {
            "val_miou": scores.miou,
            "val_mf1": scores.mf1,
            "val_mbiou": scores.mbiou,
            "val_accuracy": scores.overall_accuracy,
        }

    def _name_absent(self, scores: Scores) -> None:
        """Name once the classes that no validation label has, which pull the means down."""
        if self.named_absent:
            return
        self.named_absent = True
        if names := scores.without_truth(self.dataset.classes.names):
            what = f"split {self.recipe.data.val_split}"
            what = what if self.validation_sample is None else f"the tiles of {what} that are scored"
            log.info("not in the truth of %s: %s, which count 0 in the means", what, ", ".join(names))

    def _predictor(self, network: Network) -> Predictor:
        settings, device = self.recipe.train, self.fabric.device
        smaller = min(1.0, self.recipe.crop.tile_px / self.recipe.tile.tile_px)
        return Predictor(
            network.eval(),
            context_factor=self.recipe.tile.context_factor,
            # The size of a training pass, which is known to fit into memory.
            batch=max(1, round(settings.batch // (settings.accumulate * settings.devices) * smaller**2)),
            device=device,
            bf16=uses_bf16(settings.precision, device),
        )

    def _confidence(self, network: Network) -> dict[str, Any]:
        """Return the mean confidence of the finished model over some tiles spread over the validation split."""
        # Of the model that is kept, which may be that of an earlier validation; some tiles tell a mean well enough.
        tile_px, names = self.recipe.tile.tile_px, self.dataset.classes.names
        tiles = _spread(grid_tiles(self.dataset, self.validation_scenes, tile_px), _CONFIDENCE_TILES)
        band_px = boundary_band_px(tile_px, tile_px)
        scored = scored_sample(self._predictor(network), self.dataset, tiles, band_px=band_px)
        values = sum((tile.confidence for tile in scored), start=Confidence.zeros(len(names))).values(names)
        return {"validation_confidence": values} if values else {}

    def _train_scenes(self) -> Sequence[Scene]:
        """Return the training scenes, or some hundreds spread over them: of half a million, opening all takes hours."""
        scenes = self.dataset.split(self.recipe.data.train_split)
        return scenes[:: -(-len(scenes) // _MOST_SCENES)]

    def _degrees(self, scene: Scene) -> Degrees | None:
        try:
            with open_dataset_scene(self.dataset.read_at(None), scene) as opened:
                return opened.image.grid.degrees
        except DataError:  # broken, which a dataset may allow
            return None

    def _counts(self, predictor: Predictor) -> Counts:
        """Count over the split or its sample, shared out over the devices of the run; every device gets the sum."""
        tile_px = self.recipe.tile.tile_px
        band_px = boundary_band_px(tile_px, tile_px)
        share: dict[str, Any] = {
            "part": (self.fabric.global_rank, self.fabric.world_size),
            "workers": self.recipe.data.workers,
        }
        if self.validation_sample is None:
            tiles = scored_tiles(
                predictor, self.dataset, self.validation_scenes, tile_px=tile_px, band_px=band_px, **share
            )
        else:
            tiles = scored_sample(predictor, self.dataset, self.validation_sample, band_px=band_px, **share)
        # A device that was told to stop counts no further; it still has to meet the others in the sum below.
        counted = (tile.counts for tile in takewhile(lambda _: stop_signal() is None, tiles))
        # Counts of every device's share add up to those of the split; means of scores would not.
        return _sum_over_devices(self.fabric, sum(counted, start=Counts.zeros(len(self.dataset.classes))))

    def _write_picture(self, predictor: Predictor, file: Path) -> None:
        """Draw a few tiles spread over the split: context, tile, truth, prediction, errors."""
        tile = self.recipe.tile
        tiles = spread_tiles(self.dataset, self.validation_scenes, tile.tile_px, self.recipe.train.pictures)
        if tiles:
            atomic_write_bytes(file, png_bytes(sheet(predictor, self.dataset, tiles, tile.context_factor)))

    def save(self, network: Network, provenance: dict[str, Any]) -> None:
        """Write the model folder, with where the model learned and how sure it is of validation data."""
        areas = regions(bounds for scene in self._train_scenes() if (bounds := self._degrees(scene)) is not None)
        provenance = {
            "dataset": self.dataset.name,
            "best_val_miou": None,
            "learned": {"areas": [[round(x, 4) for x in area] for area in areas]},
            **self._confidence(network),
            **provenance,
        }
        save_model(network, dataclasses.replace(self.info, provenance=provenance), self.folder.model)


def _network(recipe: Recipe, info: ModelInfo, *, new: bool) -> Network:
    """Return the network that is trained; a new run begins with the weights that the recipe names, if any."""
    # A run that resumes takes its weights from the checkpoint: what it once started from may be gone.
    torch.manual_seed(recipe.train.seed)
    network = build(info, context_head=recipe.train.alpha > 0)
    network.checkpoint_gradients(recipe.train.checkpoint_gradients)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    # Large crops are trained one by one, which the batch norm of ``parts`` allows.
    if recipe.model.kind == "table2" and not all(isinstance(norm, BatchNorm) for norm in norms):
        _check_tiles_per_pass(recipe)
    if new and recipe.model.encoder_weights is not None:
        network.load_state_dict(build(info, pretrained=True).state_dict())
    if new and recipe.start is not None:
        assert isinstance(network, CASWiT), recipe.model.arch  # the recipe refuses others
        names = info.classes.names, info.model.band_names
        fit = start_from(network, recipe.start, recipe.model.size, recipe.tile.tile_px, *names)
        if recipe.train.average_with_start is not None:
            _check_average(recipe, fit, info.classes.names)
    if recipe.train.frozen_stages or recipe.train.freeze_norms:
        assert isinstance(network, CASWiT), recipe.model.arch
        network.freeze(recipe.train.frozen_stages, norms=recipe.train.freeze_norms)
    return network


def _check(recipe: Recipe, dataset: Dataset) -> None:
    """Refuse scenes and tiles that would fail only after a while."""
    for split in (recipe.data.train_split, recipe.data.val_split):
        check_scenes(dataset, dataset.split(split) if split else ())
    if recipe.model.kind != "table2" and recipe.model.decoder_norm == "batch":  # those are asked once they are built
        _check_tiles_per_pass(recipe)


def _say_frozen_bands(settings: TrainConfig, model: ModelConfig, start: ModelInfo | PretrainedInfo | None) -> None:
    """Warn where a first convolution keeps weights that it never learned."""
    if start is None or not settings.frozen_stages:
        return
    if new := [name for name in model.band_names if name not in start.model.band_names]:
        log.warning(
            "train.freeze keeps the first convolution, so %s will be read as the mean of the bands that init knows; "
            "leave freeze out for new bands to be learned",
            ", ".join(new),
        )


def _check_average(recipe: Recipe, fit: Fit, classes: tuple[str, ...]) -> None:
    """Refuse a mean with a start that is no such model as will be learned."""
    # Halfway to weights that were random, a decoder reads nothing; the encoders alone would not fit to theirs.
    theirs = info_of_start(recipe.start)
    _, new = known_and_new(classes, theirs.classes.names if isinstance(theirs, ModelInfo) else classes)
    lacks = f"the class{'es'[: 2 * (len(new) > 1)]} {', '.join(new)}" if new else ", ".join(fit.missing[:3])
    if lacks:
        raise ConfigError(
            f"train.average_with_start: a mean with weights that init lacks is no model, got a start without {lacks}; "
            "leave it out, or start from a model that has them, with init.decoder: true"
        )


def _check_tiles_per_pass(recipe: Recipe) -> None:
    """Refuse passes of one tile in a network with batch norms."""
    # A batch norm of one tile, whose deepest maps may be a single pixel, has nothing to normalise by.
    if recipe.train.batch == recipe.train.devices * recipe.train.accumulate:
        other = ", or set model.decoder_norm=group" if recipe.model.kind == "caswit" else ""
        raise ConfigError(
            f"one tile per pass and device is too few for batch norm; raise batch{',' if other else ' or'} "
            f"lower accumulate{other}"
        )


def _check_by_class(settings: TrainConfig, dataset: Dataset) -> None:
    weights = settings.class_weights
    if weights not in (None, "auto") and len(weights) != len(dataset.classes):
        raise ConfigError(
            f"class_weights must have one weight for each of the {len(dataset.classes)} classes "
            f"({', '.join(dataset.classes.names)}), got {len(weights)}"
        )
    for name in settings.logit_adjustment or ():
        if name not in dataset.classes.names:
            known = ", ".join(dataset.classes.names)
            like = did_you_mean(name, dataset.classes.names)
            raise ConfigError(f"logit_adjustment: no class {brief(name)}; the dataset has {known}{like}")


def _offsets(settings: TrainConfig, dataset: Dataset, device: torch.device) -> Tensor | None:
    """Return what is added to the logits of each class (K,), or None."""
    said = settings.logit_adjustment
    if said is None:
        return None
    return torch.tensor([said.get(name, 0.0) for name in dataset.classes.names], device=device)


def _info(recipe: Recipe, dataset: Dataset, model: ModelConfig) -> ModelInfo:
    """Return what the model folder says of the network and its data."""
    # Taken from the first scene, since there may be thousands to open.
    first = dataset.split(recipe.data.train_split)[0]
    return ModelInfo(
        model=model,
        tile=recipe.tile,
        classes=dataset.classes,
        bands=dataset.bands,
        layout=band_layout(dataset, first),
        trained_gsd_m=ground_size_m(dataset, first),
    )


def _validation_sample(recipe: Recipe, dataset: Dataset, scenes: Sequence[Scene]) -> list[tuple[Scene, Tile]] | None:
    """Return the tiles that are scored during training, evenly spread over the split; None: all of them."""
    count = recipe.train.val_tiles
    if count is None:
        return None
    tiles = grid_tiles(dataset, scenes, recipe.tile.tile_px)
    # The same tiles each time, so that scores of one run can be compared.
    return None if count >= len(tiles) else _spread(tiles, count)


def _spread(tiles: list[T], count: int) -> list[T]:
    """Return at most ``count`` tiles, evenly spread."""
    return tiles if count >= len(tiles) else [tiles[i * len(tiles) // count] for i in range(count)]


def _sum_over_devices(fabric: Fabric, counts: Counts) -> Counts:
    parts = (counts.confusion, counts.boundary_intersection, counts.boundary_union)
    confusion, intersection, union = (all_sum(fabric, torch.from_numpy(p)).cpu().numpy() for p in parts)
    return Counts(confusion=confusion, boundary_intersection=intersection, boundary_union=union)
