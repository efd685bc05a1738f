"""caswit quantize: make the eight-bit form of a model on training tiles, and compare it with the model on others."""

import copy
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from caswit import __version__
from caswit.config import IGNORE_INDEX, ComputeConfig, EvaluateConfig, check
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.evaluation.evaluate import band_width_px, scored_tiles
from caswit.evaluation.metrics import Counts, score
from caswit.evaluation.protocols import scored_classes
from caswit.evaluation.tile_pictures import grid_tiles
from caswit.inference.cpu.int8 import Quantised, check_can_be_int8, import_nncf, stored_network, versions
from caswit.inference.cpu.network import ArrangedCASWiT
from caswit.inference.cpu.timing import about
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Forward, Predictor
from caswit.progress import Progress
from caswit.raster.windows import some_of
from caswit.weights.int8 import ABOUT, PARTS, Comparison, Int8, digests, write_about
from caswit.weights.model_folder import LoadedModel, load_model, model_folder

log = logging.getLogger(__name__)

TRAIN = "train"
"""Split whose tiles are calibrated on."""


def quantize(model: Path | str, dataset: Path, out: Path, *, split: str = "val", tiles: int = 300) -> Int8:
    """Write a copy of a model folder with the eight-bit form of its network in it.

    Args:
        model: Model folder, hf:owner/name, or the name of a model in the zoo.
        dataset: dataset.yaml; ranges are taken from tiles of its split train.
        out: Folder to write; complete or absent, and not there before.
        split: Split on which the two forms are compared.
        tiles: Tiles to calibrate on, at most, evenly spread.

    Raises:
        CaswitError: The model, the data or the folder cannot be used, or a package is missing.
    """
    check(tiles >= 1, f"tiles must be at least 1, got {tiles}; try 300")
    check(not out.exists(), f"{out}: is there already; give the name of a new folder")
    loaded, folder = load_model(model), model_folder(model)
    network = check_can_be_int8(loaded)
    import_nncf()  # a missing package is reported at once, not after minutes of reading
    data = load_dataset(dataset).for_model(loaded.info.model, loaded.info.bands, loaded.info.tile.read_gsd_m)
    scored_classes(loaded.info.classes, data, None)  # refuse before anything is computed
    learned, compared = data.split(TRAIN, labelled=False), data.split(split)
    with _new_folder(out) as partial:
        plain = load_predictor(loaded, ComputeConfig(device="cpu", batch=1))
        assert isinstance(plain.arranged, ArrangedCASWiT)
        seen = _seen(plain, data, learned, loaded.info.tile.tile_px, tiles)
        log.info("quantising %s on %d tiles: a minute or two for a small network", loaded.name, len(seen))
        Quantised(network, loaded.info.tile, seen).write(partial)
        for file in folder.iterdir():
            if file.is_file() and file.name not in (ABOUT, *PARTS):
                shutil.copyfile(file, partial / file.name)
        other = copy.copy(plain)
        other.arranged, other.int8 = stored_network(loaded, partial, bf16=plain.bf16), True
        int8 = Int8(
            model_sha256=loaded.digest,
            model_config=loaded.config_digest,
            tile_px=loaded.info.tile.tile_px,
            calibrated_on=data.name,
            tiles=len(seen),
            versions={"caswit": __version__, **versions()},
            files=digests(partial),
            comparison=compare(plain, other, loaded, data, compared, split),
        )
        write_about(partial, int8)
    return int8


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write to, which gets its name at the end and is removed on an exception."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: lies in a file; give another folder") from error
    try:
        yield partial
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _seen(predictor: Predictor, data: Dataset, scenes: Sequence[Scene], tile_px: int, count: int) -> list[list[Tensor]]:
    """Return what the network is handed for tiles of some scenes, as evaluation reads them."""
    network = predictor.arranged
    assert isinstance(network, ArrangedCASWiT)
    seen: list[list[Tensor]] = []
    chosen = some_of(grid_tiles(data, scenes, tile_px), count)
    with Progress(f"read {data.name} {TRAIN}", len(chosen), "tiles") as progress:
        for scene, tile in chosen:
            with open_dataset_scene(data, scene, labels=False) as opened:
                images = predictor.shown(opened, tile)
            seen.append(network.ready([x for x in images if x is not None]))
            progress.advance(1)
    return seen


class _Timed:
    """Runs a network and adds up the seconds that it takes, but for the first run, which also compiles it."""

    def __init__(self, run: Forward) -> None:
        self.run, self.spent = run, [0.0]
        # With one thread the processor's own seconds leave out what else runs on the machine.
        self.clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def __call__(self, hr: Tensor, context: Tensor | None) -> Tensor:
        began_s = self.clock()
        logits = self.run(hr, context)
        self.spent.append(self.clock() - began_s)
        return logits

    @property
    def seconds(self) -> float:
        """The median of all runs but the first."""
        return float(np.median(self.spent[2:] or self.spent[1:]))


def compare(
    plain: Predictor, quantised: Predictor, loaded: LoadedModel, data: Dataset, scenes: Sequence[Scene], split: str
) -> Comparison:
    """Label scenes with both forms of a network, tile by tile in turn, and count where they agree and are right."""
    tile_px = loaded.info.tile.tile_px
    band_px = band_width_px(tile_px, EvaluateConfig())
    classes = scored_classes(loaded.info.classes, data, None)
    timed, results = [], []
    for each in (plain, quantised):
        assert each.arranged is not None
        timed.append(_Timed(each.arranged))
        each.arranged = timed[-1]
        results.append(scored_tiles(each, data, scenes, tile_px=tile_px, band_px=band_px, scored=classes))
    counts = [Counts.zeros(len(classes.classes)) for _ in results]
    alike = pixels = tiles = 0
    with Progress(f"compare on {data.name} {split}", len(grid_tiles(data, scenes, tile_px)), "tiles") as progress:
        for both in zip(*results, strict=True):
            labelled = both[0].truth != IGNORE_INDEX
            alike += int((both[0].prediction == both[1].prediction)[labelled].sum())
            pixels, tiles = pixels + int(labelled.sum()), tiles + 1
            counts = [total + one.counts for total, one in zip(counts, both, strict=True)]
            progress.advance(1)
    check(tiles > 0, f"{data.path}: split {split} has no labelled pixel to compare on")
    before, after = (score(each) for each in counts)
    facts = about(check_can_be_int8(loaded), tile_px, bf16=plain.bf16)
    return Comparison(
        dataset=data.name,
        split=split,
        tiles=tiles,
        beside=plain.precision,
        pixels_alike=alike / pixels,
        miou=(before.miou, after.miou),
        iou=dict(zip(classes.classes.names, zip(before.iou.tolist(), after.iou.tolist(), strict=True), strict=True)),
        times_as_long=timed[1].seconds / timed[0].seconds,
        processor=f"{facts['processor']}; threads: {facts['threads']}",
    )


def lines(found: Comparison) -> Iterator[str]:
    """Yield what was found, for people."""
    yield f"{found.tiles} tiles of {found.dataset} ({found.split}), beside {found.beside}:"
    yield f"same class  {100 * found.pixels_alike:.2f} % of the labelled pixels"
    (before, after), times = found.miou, found.times_as_long
    yield f"mIoU        {before:.4f}, with int8 {after:.4f} ({100 * (after - before):+.2f} points)"
    name, (its, now) = max(found.iou.items(), key=lambda item: abs(item[1][1] - item[1][0]))
    yield f"most for    {name}: IoU {its:.4f}, with int8 {now:.4f}"
    yield f"time        {times:.2f} times as long as {found.beside} here ({found.processor})"
