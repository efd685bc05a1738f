"""SIGKILL of predict and train at random moments: the same results to the bit, and no half file under a final name.

A run is killed and started again many times before it may finish. Half of the kills come by the clock, the others at a
call that changes files or a few milliseconds after it: while parts and checkpoints are written, files get their names,
polygons and overviews are made. After every kill, whatever has its final name must be what an undisturbed run wrote.

``CASWIT_KILLS`` is the number of kills of each command, ``CASWIT_ATTACK_SEED`` the seed.
"""

import csv
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from caswit.mapping.journal import finished_parts
from caswit.mapping.seal import EMPTY, is_sealed
from conftest import CLASSES, georeference, picture
from forked import Ended, Forks

KILLS = int(os.environ.get("CASWIT_KILLS", "3"))
SEED = int(os.environ.get("CASWIT_ATTACK_SEED", "0"))
MOST_IN_A_RUN = 12
PLAIN = ["--device", "cpu", "--precision", "fp32"]
OUTPUTS = ["--vector", "map.gpkg", "--confidence", "sure.tif", "--probabilities", "all.tif"]
PREDICT = ["predict", "image.tif", "map.tif", "--model", "model", *PLAIN, "--block-px", "32", *OUTPUTS]
TRAIN = ["train", "recipe.yaml", "--out", "run", "--resume"]
STEPS = 6
RECIPE: dict[str, Any] = {
    "data": {"dataset": "dataset.yaml", "val_split": "test", "workers": 0},
    "model": {"size": "pico", "decoder_channels": 8},
    "tile": {"tile_px": 32, "context_factor": 2},
    "train": {
        "batch": 2,
        "max_steps": STEPS,
        "val_every_steps": 2,
        "val_tiles": 2,
        "save_every_s": 0.001,
        "ema_decay": 0.9,
        "accelerator": "cpu",
        "precision": "fp32",
        "pictures": 1,
    },
}
OF_A_MAP = ("map.gpkg", "sure.tif", "all.tif", "map.qml", "map.stac.json", "map.tif")
"""In the order in which they are made; there are styles of others too."""
OF_A_TRAINING = ("checkpoints/last.pt", "checkpoints/best.pt", "model/model.safetensors", "model/config.json")
MARKS = {
    # Each output is begun when the one before has its name: part, polygons, confidence, probabilities, style, map.
    "predict": (
        *(rf"os.rename .*/\.{re.escape(name)}\." for name in ("0000014.tif", *OF_A_MAP)),
        *(r"open .*\.vrt", "os.remove .*map.tif.parts", "os.rmdir"),
    ),
    # A checkpoint follows the log, the best weights a picture.
    "train": (
        *(rf"os.rename .*/\.{re.escape(Path(name).name)}\." for name in OF_A_TRAINING),
        *(r"open .*log\.csv", r"os.rename .*\.png", r"os.rename .*/\.recipe\.yaml\."),
    ),
}
"""Calls that change files at which a run is killed more often, as regular expressions: what follows matters most."""
_TIMES = {"TIFFTAG_DATETIME", "tiles_per_s", "elapsed_s", "datetime", "created", "updated"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A folder with an image, a dataset, a recipe and a model."""
    folder = tmp_path_factory.mktemp("kills")
    pixels = {
        "image.tif": picture(90, 130),
        "label.tif": np.array([1, 2, 7], np.uint8)[np.indices((90, 130)).sum(0) % 3],
    }
    for name, values in pixels.items():
        bands = values if values.ndim == 3 else values[None]
        shape = {"count": len(bands), "height": 90, "width": 130, "dtype": "uint8"}
        with rasterio.open(folder / name, "w", driver="GTiff", **shape, **georeference()) as dst:
            dst.write(bands)
    scene = {"image": "image.tif", "label": "label.tif"}
    scenes = [{**scene, "split": "train"}, {**scene, "split": "test"}]
    content = {"name": "killed", "classes": CLASSES.to_dicts(), "scenes": scenes}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    ended = forks.run(["train", "recipe.yaml", "--out", "first"], folder)
    assert ended.status == 0, ended
    (folder / "first" / "model").rename(folder / "model")
    return folder


# ------------------------------------------------------------------------------------------------ what a file holds


def without_times(tree: Any) -> Any:
    """Return JSON or the like without what differs between two undisturbed runs."""
    if isinstance(tree, dict):
        return {key: without_times(value) for key, value in tree.items() if key not in _TIMES}
    return [without_times(value) for value in tree] if isinstance(tree, list | tuple) else tree


def content(file: Path) -> Any:
    """Return all that a file holds but times, as plain values that can be compared. Raises if it is not complete."""
    match file.suffix:
        case ".tif":
            with rasterio.open(file) as src:
                levels = [src.overviews(band) for band in src.indexes]
                about = src.profile["transform"], str(src.crs), src.dtypes, src.nodata, src.descriptions, levels
                return src.read().tobytes(), about, without_times(src.tags())
        case ".gpkg":
            with closing(sqlite3.connect(file)) as base:
                assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
                tables = [name for (name,) in base.execute("select name from sqlite_master where type = 'table'")]
                skipped = {"gpkg_contents", "sqlite_sequence", "layer_styles"}  # these hold times
                rows = {t: base.execute(f'select * from "{t}"').fetchall() for t in tables if t not in skipped}
                return sorted((table, sorted(map(repr, found))) for table, found in rows.items())
        case ".pt":
            return plain(without_times(torch.load(file, weights_only=True)))
        case ".safetensors":
            return plain(load_file(file))
        case ".json":
            return without_times(json.loads(file.read_text()))
        case ".csv":
            with file.open(newline="") as lines:
                return [without_times(row) for row in csv.DictReader(lines)]
        case ".png":
            with Image.open(file) as opened:
                return np.asarray(opened).tobytes()
    return file.read_bytes()


def plain(tree: Any) -> Any:
    """Return a tree with the bytes of its tensors."""
    if isinstance(tree, torch.Tensor):
        return tree.dtype, tuple(tree.shape), tree.numpy().tobytes()
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list | tuple) else tree


def check_map(folder: Path, wanted: dict[str, Any]) -> None:
    """Assert that every output that is there is whole, and every part as it was sealed."""
    for name in wanted:
        if (folder / name).exists():
            assert content(folder / name) == wanted[name], f"{name} is not that of an undisturbed run"
    parts = folder / "map.tif.parts"
    for number, file in finished_parts(parts) if parts.exists() else ():
        assert is_sealed(file, number), f"{file.name} is half a part"
        assert file.suffix in (".tif", EMPTY)


def check_training(folder: Path, wanted: dict[str, Any]) -> None:
    """Assert that checkpoints and pictures that are there can be read whole, and that a model is the finished one."""
    run = folder / "run"
    for name in OF_A_TRAINING[:2]:
        if (run / name).exists():
            assert content(run / name)["model"].keys() == wanted[name]["model"].keys()
    for name in OF_A_TRAINING[2:]:
        if (run / name).exists():
            assert content(run / name) == wanted[name], f"{name} is not that of an undisturbed run"
    for file in (run / "pictures").glob("*.png") if run.exists() else ():
        assert content(file) == wanted[f"pictures/{file.name}"], file


def outcome(folder: Path) -> dict[str, Any]:
    """Return the content of all files of a finished run, by name."""
    files = {str(f.relative_to(folder)): f for f in folder.rglob("*") if f.is_file()}
    # TensorBoard's files are as many as starts, and the lock is held by nobody.
    kept = {name: f for name, f in files.items() if "tfevents" not in name and f.name != "lock"}
    return {name: content(file) for name, file in kept.items()}


# ------------------------------------------------------------------------------------------------ kills


class Killed(NamedTuple):
    """What a series of kills came to."""

    kills: int
    runs: int
    found: Counter[str]
    """Files that had been begun when a kill came."""


def moment(rng: random.Random, whole: Ended, marks: tuple[str, ...]) -> dict[str, Any]:
    """Draw when to kill a run."""
    then_s = rng.choice([0.0, rng.uniform(0, 0.03)])
    match rng.randrange(4):
        case 0 | 1:
            return {"kill_after_s": rng.uniform(0, 0.9 * whole.wall_s)}
        case 2:
            return {"kill_at_file": rng.randint(1, whole.files), "then_s": then_s}
        case _:
            return {"kill_at_name": rng.choice(marks), "then_s": then_s}


def kill_again_and_again(
    forks: Forks,
    folder: Callable[[], Path],
    words: list[str],
    check: Callable[[Path, dict[str, Any]], None],
    result: Callable[[Path], dict[str, Any]],
) -> Killed:
    """Kill runs of a command until it has been killed ``KILLS`` times; every run must end as an undisturbed one."""
    rng, kills, runs, found = random.Random(f"{SEED} {words[0]}"), 0, 0, Counter[str]()
    undisturbed = folder()
    whole = forks.run(words, undisturbed)
    assert whole.status == 0, whole
    wanted = result(undisturbed)
    began_s = time.monotonic()
    while kills < KILLS:
        here, ended, runs = folder(), None, runs + 1
        for _ in range(rng.randint(1, MOST_IN_A_RUN)):
            when = moment(rng, whole, MARKS[words[0]])
            ended = forks.run(words, here, **when)
            assert ended.status in (0, -signal.SIGKILL), (when, ended)
            assert "Traceback" not in ended.said, (when, ended)
            if ended.status == 0 or kills >= KILLS:
                break
            kills += 1
            found.update(
                {f.name.split(".")[1] + " half written" for f in here.rglob(".*.tmp")} or {"nothing half written"}
            )
            check(here, wanted)
        if ended is None or ended.status:
            ended = forks.run(words, here)
            assert ended.status == 0, ended
        got = result(here)
        assert got.keys() == wanted.keys()
        assert [name for name in wanted if got[name] != wanted[name]] == []
        shutil.rmtree(here)
    said = ", ".join(f"{name}: {count}" for name, count in found.most_common(12))
    sys.stdout.write(
        f"{words[0]}: {kills} kills in {runs} runs, {time.monotonic() - began_s:.0f} s, seed {SEED}; {said}\n"
    )
    return Killed(kills, runs, found)


@pytest.fixture
def fresh(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """A function that makes a folder with links to the inputs, for one run."""

    def make() -> Path:
        folder = tmp_path_factory.mktemp("run")
        for name in ("image.tif", "label.tif", "dataset.yaml", "recipe.yaml", "model"):
            (folder / name).symlink_to(world / name)
        return folder

    return make


@pytest.mark.e2e
@pytest.mark.timeout(0)
def test_a_map_survives_kills(forks: Forks, fresh: Callable[[], Path]) -> None:
    def result(folder: Path) -> dict[str, Any]:
        found = [file for file in folder.iterdir() if not file.is_symlink()]
        assert all(file.is_file() and not file.name.startswith(".") for file in found), found
        assert {file.name for file in found} >= {*OF_A_MAP}
        return {file.name: content(file) for file in found}

    killed = kill_again_and_again(forks, fresh, PREDICT, check_map, result)
    assert killed.kills == KILLS


@pytest.mark.e2e
@pytest.mark.timeout(0)
def test_a_training_survives_kills(forks: Forks, fresh: Callable[[], Path]) -> None:
    def result(folder: Path) -> dict[str, Any]:
        return outcome(folder / "run")

    killed = kill_again_and_again(forks, fresh, TRAIN, check_training, result)
    assert killed.kills == KILLS


@pytest.mark.e2e
def test_a_half_file_under_a_final_name_would_be_seen(forks: Forks, fresh: Callable[[], Path]) -> None:
    """The check is one: cut a finished output, a part and a checkpoint, and it fails."""
    folder = fresh()
    assert forks.run(PREDICT, folder).status == 0
    wanted = {name: content(folder / name) for name in OF_A_MAP}
    check_map(folder, wanted)
    for name in OF_A_MAP:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises((AssertionError, rasterio.errors.RasterioError, sqlite3.Error, ValueError)):
            check_map(folder, wanted)
        (folder / name).write_bytes(whole)
