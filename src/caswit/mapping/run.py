"""Mapping images of any size: list the images, plan, map the blocks, write the outputs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

from caswit.config import MapRunConfig, OutputConfig, PredictConfig, check
from caswit.errors import ConfigError, DataError
from caswit.inference.confidence import Confidence
from caswit.mapping.blending import blending
from caswit.mapping.blocks import CONFIDENCE
from caswit.mapping.disk import bytes_of_parts, bytes_to_come, saying_what_is_needed
from caswit.mapping.journal import Begun, Journal, open_journal
from caswit.mapping.local import Engine, LocalEngine
from caswit.mapping.outputs import Targets, is_finished, write_outputs
from caswit.mapping.plan import ImageState, MapPlan, PlannedBlock, make_plan
from caswit.mapping.summary import Trust, named
from caswit.progress import Progress
from caswit.raster.cog import is_part, read_tags
from caswit.raster.ground import ClassArea, class_areas
from caswit.raster.image_list import list_images
from caswit.raster.reader import quiet
from caswit.weights.model_folder import LoadedModel, load_model

log = logging.getLogger(__name__)
_MANY_BLOCKS = 1_000_000
"""Blocks that are begun without being asked for: four countries of the size of Switzerland at 10 cm."""
_ATTEMPTS = 3
"""How often blocks whose parts do not last are computed before the disk is blamed."""


class MapResult(NamedTuple):
    """A finished run."""

    out: Path
    skipped: tuple[str, ...]
    """Blocks that could not be read and are nodata, as "rows 0-4096, columns 0-4096: why"."""
    files: tuple[Path, ...]
    """Every file that was written, the map first."""
    areas: Mapping[str, ClassArea]
    """What each class covers, in the order of the class table."""
    trust: Trust
    """How far the model can be trusted here."""
    rescaled: tuple[float, float] | None
    """Values that became 0 and 255; None where pixels are taken as they are."""


def predict(
    images: str | Path | Sequence[str | Path],
    out: Path,
    model: Path | str | None = None,
    settings: PredictConfig | None = None,
    outputs: OutputConfig | None = None,
    run: MapRunConfig | None = None,
    *,
    load: Callable[[str], LoadedModel] = load_model,
    keep: bool = False,
) -> MapResult:
    """Write the class map of images of any size as a Cloud-Optimized GeoTIFF on their grid.

    Memory does not grow with the images. Finished blocks are kept in OUT.parts: the same call goes on where an earlier
    one was interrupted. ``out`` appears under its name only when it is complete; then the parts are removed,
    unless blocks were skipped.

    Args:
        images: A raster, an address, a folder, a pattern, a list in a text file, or several of them: one mosaic.
        out: GeoTIFF to write; its folder must exist.
        model: Model folder, or a name; None chooses one of the zoo by the ground size of the image's pixels.
        settings: How to read, cut and compute.
        outputs: What to write beside the map.
        run: How to go about it.
        load: Loads a model by its folder or name; one that remembers loads it once for many maps.
        keep: Leave a map alone that the same call has finished before.

    Raises:
        CaswitError: The images, the model, the settings or the place to write to cannot be used.
    """
    settings, outputs, run = settings or PredictConfig(), outputs or OutputConfig(), run or MapRunConfig()
    names = list_images([str(i) for i in ([images] if isinstance(images, str | Path) else images)])
    inputs = [*names, run.aoi] if run.aoi else names
    targets = Targets.of(out, outputs, inputs, overwrite=run.overwrite)
    # Everything that a user can have got wrong is refused from here to the journal: before hours of work, not after.
    start_engine = _engine(run, settings.device)
    plan, loaded = make_plan(names, None if model is None else str(model), settings, outputs, run, load)
    if not run.restart:
        plan = plan.going_on(Begun.of(targets.map), settings)
    if plan.settings.blend and (why := blending(loaded, settings).why) is not None:
        log.info("tiles are blended, so that no lines show between them: %s (--blend false: each keeps its part)", why)
    _check_size(plan)
    blocks = plan.blocks()
    with ExitStack() as stack:
        stack.enter_context(quiet())  # here, once: filters of warnings are shared by the threads that read and write
        engine = stack.enter_context(start_engine(plan, loaded))
        plan = plan.computed_in(engine.precision)
        if keep and is_finished(targets, plan.digest(loaded)):
            log.info("%s: kept, since the same call has finished it before", out)
            return _result(out, targets, plan, blocks, loaded, {})
        manifest = plan.manifest(loaded)
        shapes = {b.number: (plan.bands.count(len(loaded.info.classes)), *b.native[2:]) for b in blocks}
        journal = stack.enter_context(
            open_journal(
                targets.map,
                manifest,
                restart=run.restart,
                beside=targets.beside(),
                is_part=lambda number, file: number in shapes and is_part(file, shapes[number]),
            )
        )
        for attempt in range(_ATTEMPTS):
            with saying_what_is_needed(journal.folder, partial(bytes_to_come, journal, blocks)):
                _map_blocks(blocks, engine, journal, run, f"predict {Path(names[0]).name} with {loaded.name}")
            _check_images(names, plan, journal)
            _check_weights(loaded, plan, journal)
            # What lay on a disk for days may have been damaged or deleted since: GDAL would make map of it.
            damaged = journal.discard_damaged()
            if not damaged:
                break
            if attempt == _ATTEMPTS - 1:
                raise DataError(
                    f"{journal.folder}: the parts of {len(damaged)} blocks were missing or damaged {_ATTEMPTS} times "
                    "after they were written; check the disk, then repeat the same call"
                )
        # Hours may have passed: somebody may have put a file in the place of an output.
        targets.check_replaced(inputs, overwrite=run.overwrite)
        with saying_what_is_needed(targets.map, partial(bytes_of_parts, journal)):
            write_outputs(targets, plan, blocks, journal, loaded)
        # A run that skipped blocks keeps its parts: the same call tries those blocks alone again.
        if not journal.skipped:
            journal.remove()
        return _result(out, targets, plan, blocks, loaded, journal.skipped)


def _result(
    out: Path,
    targets: Targets,
    plan: MapPlan,
    blocks: Sequence[PlannedBlock],
    loaded: LoadedModel,
    skipped: Mapping[int, str],
) -> MapResult:
    """Return what there is to say of a map that is written."""
    told_m = None if plan.source_gsd_m == plan.grid.source_gsd_m else plan.source_gsd_m
    confidence = Confidence.from_text(read_tags(targets.map).get(CONFIDENCE), len(loaded.info.classes))
    return MapResult(
        out=out,
        skipped=tuple(_described(b, skipped[b.number]) for b in blocks if b.number in skipped),
        files=tuple(_as_given(file, out) for file in (targets.map, *targets.beside())),
        areas=named(class_areas(targets.map, told_m), {c.id: c.name for c in loaded.info.classes.mapped}),
        trust=Trust.of(loaded, plan.grid, confidence),
        rescaled=plan.settings.rescale if isinstance(plan.settings.rescale, tuple) else None,
    )


def _as_given(file: Path, out: Path) -> Path:
    """Return a resolved path as a user would write it who wrote ``out``."""
    return out.parent / file.name if file.parent == out.parent.resolve() else file


def _check_size(plan: MapPlan) -> None:
    """Raise ConfigError if there are more blocks than a country has, before a list of them fills the memory."""
    count, layout = plan.layout.number_of_blocks(), plan.layout
    if count > _MANY_BLOCKS and not plan.run.yes:
        raise ConfigError(
            f"{plan.title}: {layout.height:,} x {layout.width:,} pixels are {count:,} blocks; if that is the size of "
            "the image, take a larger --block-px, or begin with --yes"
        )


def _check_images(names: Sequence[str], plan: MapPlan, journal: Journal) -> None:
    """Raise DataError, and discard the parts, if an image was changed since the plan was made."""
    if ImageState.of(names) != plan.state:
        # Nobody knows which of the blocks are of the old image, so no later run may go on from them.
        journal.remove()
        raise DataError(
            f"{plan.title}: was changed while the map was made, or a file beside it or a source of it was, so blocks "
            "may be of either version; they are discarded: repeat the same call once the image stays as it is"
        )


def _check_weights(loaded: LoadedModel, plan: MapPlan, journal: Journal) -> None:
    """Raise DataError, and discard the parts, if somebody wrote to the file that the network reads its weights from."""
    if loaded.weights is not None and loaded.weights.changed():
        journal.remove()
        raise DataError(
            f"{plan.model}: its weights were written over while the map was made, so blocks may be of either version; "
            "they are discarded: repeat the same call once the model stays as it is"
        )


def _engine(run: MapRunConfig, device: str) -> Callable[[MapPlan, LoadedModel], Engine]:
    if run.devices is not None:
        both = f"{device} and {run.devices}"
        check(device == "auto", f"both --device and --devices say where to compute, got {both}; give one of them")
        from caswit.mapping.processes import ProcessEngine

        return ProcessEngine
    if run.engine == "local":
        return LocalEngine
    from caswit.mapping.ray.engine import RayEngine

    return RayEngine


def _map_blocks(
    blocks: Sequence[PlannedBlock], engine: Engine, journal: Journal, run: MapRunConfig, label: str
) -> None:
    """Map the blocks that are not done and show progress.

    Raises:
        DataError: A block cannot be read, and the run is to stop there.
    """
    todo = [block for block in blocks if block.number not in journal.done]
    total, left = _mpx(blocks), _mpx(todo)
    with Progress(label, total, "Mpx", done=total - left) as progress:
        if len(todo) < len(blocks):
            progress.say(f"{label}: going on, {len(blocks) - len(todo)} of {len(blocks)} blocks are done")
        for count, outcome in enumerate(engine.run(todo, journal), len(blocks) - len(todo) + 1):
            if outcome.error is not None:
                if run.on_error == "stop":
                    raise outcome.error
                journal.skip(outcome.block.number, str(outcome.error))
                progress.say(f"{label}: skipped {_described(outcome.block, str(outcome.error))}")
            progress.advance(_mpx([outcome.block]), f"{count} of {len(blocks)} blocks")


def _mpx(blocks: Sequence[PlannedBlock]) -> float:
    return sum(block.native.height * block.native.width for block in blocks) / 1e6


def _described(block: PlannedBlock, why: str) -> str:
    row, col, height, width = block.native
    return f"rows {row}-{row + height}, columns {col}-{col + width}: {why}"
