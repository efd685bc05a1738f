"""Mapping images of any size: plan, blocks, journal, outputs."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import ConfigError
from caswit.mapping.blocks import Bands, Job, meaning, overlap_of
from caswit.mapping.journal import Journal, open_journal
from caswit.mapping.local import Engine, LocalEngine, Planned
from caswit.mapping.outputs import Targets, write_outputs
from caswit.mapping.plan import fingerprint, list_images
from caswit.progress import Progress
from caswit.raster.georef import Grid
from caswit.raster.mosaic import build_mosaic
from caswit.raster.reader import bounded_cache, quiet
from caswit.raster.windows import block_windows
from caswit.weights.model_folder import LoadedModel, load_model
from caswit.weights.zoo import choose

if TYPE_CHECKING:  # needs caswit[vector]
    from caswit.raster.aoi import AreaOfInterest

log = logging.getLogger(__name__)

_GSD_OFF = 1.5
"""Ground sizes of a pixel that differ by more than this factor are worth a warning."""


class MapResult(NamedTuple):
    """What became of a run."""

    out: Path
    skipped: tuple[str, ...]
    """Blocks that could not be read and are nodata, as "rows 0-4096, columns 0-4096: why"."""


def predict(
    images: str | Path | Sequence[str | Path],
    out: Path,
    model: Path | str | None = None,
    settings: PredictConfig | None = None,
    outputs: OutputConfig | None = None,
    run: MapRunConfig | None = None,
) -> MapResult:
    """Write the class map of images of any size as a Cloud-Optimized GeoTIFF on their grid.

    Memory does not grow with the images. Finished blocks are kept in OUT.parts: the same call goes on where an earlier
    one was interrupted. ``out`` appears under its name only when it is complete; then the parts are removed,
    unless blocks were skipped.

    Args:
        images: A raster, an address, a folder, a pattern, a list in a text file, or several of them: one mosaic.
        out: GeoTIFF to write; its folder must exist.
        model: Model folder, or a name; None chooses one of the package by the ground size of the image's pixels.
        settings: How to read, cut and compute.
        outputs: What to write beside the map.
        run: How to go about it.

    Raises:
        CaswitError: The images, the model, the settings or the place to write to cannot be used.
    """
    settings, outputs, run = settings or PredictConfig(), outputs or OutputConfig(), run or MapRunConfig()
    names = list_images([str(i) for i in ([images] if isinstance(images, str | Path) else images)])
    targets = Targets.of(out, outputs, names)
    surveyed = None
    if model is None:
        surveyed = build_mosaic(names, settings.bands or (1, 2, 3), meaning(settings))
        model = _chosen(settings.gsd_m or surveyed[1].source_gsd_m, names)
    loaded = load_model(model)
    overlap_of(settings, loaded.info.tile.tile_px)  # refuses early
    start_engine = _starter(run)  # so does this
    sources, grid = surveyed or build_mosaic(names, settings.bands or loaded.info.bands, meaning(settings))
    job = Job(
        sources=sources,
        grid=grid,
        model=str(model),
        settings=settings,
        read_at_m=_read_at(loaded, settings, grid),
        area=_area(run, grid),
        bands=Bands(outputs.confidence is not None, outputs.probabilities is not None),
    )
    targets.check(grid, settings.gsd_m, outputs)
    with ExitStack() as stack:
        stack.enter_context(bounded_cache())
        stack.enter_context(quiet())  # here, once: filters of warnings are shared by the threads that read and write
        plan = _plan(job, loaded)
        engine = stack.enter_context(start_engine(job, loaded))
        manifest = _manifest(job, loaded, run, names, engine.precision)
        journal = stack.enter_context(open_journal(targets.map, manifest, restart=run.restart, beside=targets.beside()))
        _map_blocks(plan, engine, journal, run, f"predict {Path(names[0]).name} with {loaded.name}")
        write_outputs(targets, outputs, plan, journal, job, loaded, engine.precision)
        if not journal.skipped:
            journal.remove()
    by_number = {block.number: block for block in plan}
    skipped = tuple(_described(by_number[number], why) for number, why in sorted(journal.skipped.items()))
    return MapResult(out, skipped)


def _starter(run: MapRunConfig) -> Callable[[Job, LoadedModel], Engine]:
    if run.engine == "local":
        return LocalEngine
    from caswit.mapping.ray.engine import RayEngine

    return lambda job, loaded: RayEngine(job, loaded, run)


def _map_blocks(plan: Sequence[Planned], engine: Engine, journal: Journal, run: MapRunConfig, label: str) -> None:
    todo = [block for block in plan if block.number not in journal.done]
    total, left = _mpx(plan), _mpx(todo)
    with Progress(label, total, "Mpx", done=total - left) as progress:
        if len(todo) < len(plan):
            progress.say(f"{label}: going on, {len(plan) - len(todo)} of {len(plan)} blocks are done")
        for count, outcome in enumerate(engine.run(todo, journal), len(plan) - len(todo) + 1):
            if outcome.error is not None:
                if run.on_error == "stop":
                    raise outcome.error
                journal.skip(outcome.block.number, str(outcome.error))
                progress.say(f"{label}: skipped {_described(outcome.block, str(outcome.error))}")
            progress.advance(_mpx([outcome.block]), f"{count} of {len(plan)} blocks")


def _plan(job: Job, loaded: LoadedModel) -> list[Planned]:
    """Every block that the area touches, row by row. Numbers count all blocks, so they do not depend on the area."""
    tile_px = loaded.info.tile.tile_px
    with job.open(loaded) as scene:
        block_px = max(1, round(job.settings.block_px / scene.ratio))
        windows = block_windows(scene.height, scene.width, tile_px, overlap_of(job.settings, tile_px), block_px)
        blocks = (Planned(number, window, scene.native(window)) for number, window in enumerate(windows))
        return [block for block in blocks if job.area is None or job.area.touches(block.native)]


def _manifest(job: Job, loaded: LoadedModel, run: MapRunConfig, names: Sequence[str], precision: str) -> dict[str, str]:
    """All that a pixel of the map depends on."""
    settings = job.settings
    area = "none" if run.aoi is None else f"{run.aoi} ({fingerprint([run.aoi])})"
    return {
        "images": f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''} ({fingerprint(names)})",
        "model": f"{loaded.name} ({loaded.digest})",
        "bands": str(settings.bands or loaded.info.bands),
        "rescale": str(settings.rescale),
        "nodata": str(settings.nodata),
        "gsd_m": str(settings.gsd_m),
        "read_at_m": str(job.read_at_m),
        "tile_px": str(loaded.info.tile.tile_px),
        "overlap_px": str(overlap_of(settings, loaded.info.tile.tile_px)),
        "blend": str(settings.blend),
        "block_px": str(settings.block_px),
        "turns": str(settings.tta),
        "min_confidence": str(settings.min_confidence),
        "precision": precision,
        "aoi": area,
        "confidence": str(job.bands.confidence),
        "probabilities": str(job.bands.probabilities),
    }


def _chosen(gsd_m: float | None, names: Sequence[str]) -> str:
    """Name of the model of the package that fits the images."""
    model, reason = choose(gsd_m, Path(names[0]).name)
    log.info("model: %s (%s)", model.name, reason)
    return model.name


def _read_at(loaded: LoadedModel, settings: PredictConfig, grid: Grid) -> float | None:
    """Ground size in metres of the pixels to read; a warning where the image's own are far from the model's."""
    trained_m, native_m = loaded.info.trained_gsd_m, settings.gsd_m or grid.source_gsd_m
    if settings.gsd_m and grid.source_gsd_m and not 1 / _GSD_OFF <= settings.gsd_m / grid.source_gsd_m <= _GSD_OFF:
        log.warning("the image says its pixels are %.3g m; --gsd-m %g is taken", grid.source_gsd_m, settings.gsd_m)
    if loaded.info.tile.read_gsd_m is not None:
        if native_m and native_m > 2 * _GSD_OFF * loaded.info.tile.read_gsd_m:
            log.warning(
                "the image has pixels of %.3g m, the model sees %g m: expect a poor map",
                native_m,
                loaded.info.tile.read_gsd_m,
            )
        return loaded.info.tile.read_gsd_m
    if settings.match_gsd:
        if trained_m is None or native_m is None:
            which = "the model was trained on" if trained_m is None else "the image has"
            raise ConfigError(f"match_gsd: nobody knows the ground size of a pixel that {which}; leave it out")
        return trained_m
    if trained_m and native_m and not 1 / _GSD_OFF <= native_m / trained_m <= _GSD_OFF:
        log.warning(
            "the image has pixels of %.3g m, the model was trained on %.3g m: expect a poor map; --match_gsd "
            "resamples while reading", native_m, trained_m,
        )  # fmt: skip
    return None


def _area(run: MapRunConfig, grid: Grid) -> "AreaOfInterest | None":
    if run.aoi is None:
        return None
    from caswit.raster.aoi import read_aoi

    return read_aoi(Path(run.aoi), grid)


def _mpx(blocks: Sequence[Planned]) -> float:
    return sum(block.native.height * block.native.width for block in blocks) / 1e6


def _described(block: Planned, why: str) -> str:
    row, col, height, width = block.native
    return f"rows {row}-{row + height}, columns {col}-{col + width}: {why}"
