"""Many images to many maps: each its own, one failing image does not stop the others, finished maps are kept."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.errors import CaswitError, ConfigError
from caswit.mapping.run import MapResult, predict
from caswit.raster.image_list import list_images
from caswit.raster.reader import is_remote
from caswit.weights.model_folder import load_model

log = logging.getLogger(__name__)


def predict_each(
    images: Sequence[str],
    folder: Path,
    model: str | None = None,
    settings: PredictConfig | None = None,
    outputs: OutputConfig | None = None,
    run: MapRunConfig | None = None,
) -> Iterator[tuple[str, MapResult | CaswitError]]:
    """Map each image by itself, as ``predict`` does; yield it with its result, or with why there is none.

    A map that the same call finished before is kept, unless ``run.restart``.

    Args:
        images: As of ``predict``.
        folder: Folder of the maps, which is made if it is missing; a map has the name of its image, and ends in .tif.
        model: As of ``predict``; it is loaded once.
        settings: As of ``predict``.
        outputs: Names of files beside each map, which the name of the image is put before.
        run: As of ``predict``.

    Raises:
        CaswitError: Before the first map: nothing can be done with these names, this folder or this model.
        OSError: The disk is full.
    """
    outputs, run = outputs or OutputConfig(), run or MapRunConfig()
    names = list_images(images)
    maps = _maps(names, folder, outputs)
    load = cache(load_model)
    if model is not None:
        load(model)
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be the folder of the maps ({error.strerror}); give another") from error
    for number, name in enumerate(names, 1):
        log.info("%d of %d: %s", number, len(names), name)
        beside: dict[str, Any] = {kind: _beside(file, maps[name]) for kind, file in _files(outputs).items()}
        try:
            yield (
                name,
                predict(
                    [name],
                    maps[name],
                    model,
                    settings,
                    replace(outputs, **beside),
                    run,
                    load=load,
                    keep=not run.restart,
                ),
            )
        except CaswitError as error:
            yield name, error


def _maps(names: Sequence[str], folder: Path, outputs: OutputConfig) -> dict[str, Path]:
    """Return the map of each image.

    Raises:
        ConfigError: Two images would have one map, or maps and images would lie in one folder.
    """
    maps: dict[Path, str] = {}
    for name in names:
        # The end of an address may be a query: its name is what comes before.
        out = folder / f"{Path(name.partition('?')[0]).stem}.tif"
        if out in maps:
            raise ConfigError(f"{maps[out]} and {name}: both maps would be {out}; map them with two calls")
        maps[out] = name
        # The next call would take maps for images.
        if not is_remote(name) and Path(name).resolve().parent == folder.resolve():
            raise ConfigError(f"{folder}: is the folder of the images; give --out-dir another one")
    for kind, file in _files(outputs).items():
        if Path(file).name != file:
            raise ConfigError(
                f"--{kind} with --out-dir must be a name without folder, got {file}; try {Path(file).name}"
            )
    return {name: out for out, name in maps.items()}


def _files(outputs: OutputConfig) -> dict[str, str]:
    files = {kind: getattr(outputs, kind) for kind in ("confidence", "probabilities", "vector")}
    return {kind: file for kind, file in files.items() if file is not None}


def _beside(file: str, out: Path) -> str:
    return str(out.with_name(f"{out.stem}.{file}"))
