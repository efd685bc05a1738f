"""Damaged and hostile files through the command line: one line and status 2, never a traceback, a half file or a hang.

Every input is a function of a seed, so a failure is repeated with ``CASWIT_ATTACK_SEED=N CASWIT_ATTACK=1``.
``CASWIT_ATTACK`` is the number of inputs; without it a bounded share of them runs.
"""

import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import rasterio
import torch
import yaml

from conftest import CLASSES, georeference, picture
from forked import Ended, Forks

FIRST = int(os.environ.get("CASWIT_ATTACK_SEED", "0"))
INPUTS = int(os.environ.get("CASWIT_ATTACK", "0"))
SHARE_S = float(os.environ.get("CASWIT_ATTACK_S", "12"))
"""Seconds in which as many inputs are tried as can be; ``make attack`` gives it more."""
LIMIT_S = 20.0, 120.0
"""Seconds of the processor, and of the clock, that one input may take."""
MOST_BYTES = 2 << 30
"""Bytes of memory that may be used: resident ones, the package's own included."""
ROOM = 1400 << 20
"""Bytes of memory that may be asked for beyond what the imported package holds: a damaged recipe may be a good one of a
network for larger machines, which then has to end in one line."""
_LONGEST = 2100
RECIPE: dict[str, Any] = {
    "data": {"dataset": "dataset.yaml", "val_split": "test", "workers": 0},
    "model": {"size": "pico", "decoder_channels": 8},
    "tile": {"tile_px": 32, "context_factor": 2},
    "train": {"batch": 2, "max_steps": 1, "accelerator": "cpu", "precision": "fp32", "pictures": 0},
}
AOI = {
    "type": "FeatureCollection",
    "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::2154"}},
    "features": [
        {
            "type": "Feature",
            "properties": {},
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[700005, 6599990], [700030, 6599990], [700030, 6599970], [700005, 6599990]]],
            },
        }
    ],
}

# ------------------------------------------------------------------------------------------------ mutations


def deep(levels: int) -> Any:
    found: Any = 1
    for _ in range(levels):
        found = [found]
    return found


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 256, 65_536, 2**31, 2**63, 10**30, 10**400),
    *(0.0, -0.5, 1e-300, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "1", "0.5", "x" * 100_000, "a\nb", "\x1b[31m", "\x00", "é", "../..", "/dev/null", "/", "$HOME", "nan"),
    *(
        [],
        {},
        [1],
        [1, 2, 3],
        ["1", "2", "3"],
        [None],
        [[]],
        {"a": 1},
        {"": None},
        list(range(5000)),
        deep(30),
        deep(300),
    ),
)


def places(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every node of a tree."""
    yield at
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from places(value, (*at, key))
    elif isinstance(tree, list):
        for number, value in enumerate(tree[:20]):
            yield from places(value, (*at, number))


def changed_tree(rng: random.Random, tree: Any) -> Any:
    """Replace, remove, rename or repeat a node."""
    at = rng.choice([*places(tree)])
    if not at:
        return rng.choice(ODD)
    parent = tree
    for key in at[:-1]:
        parent = parent[key]
    match rng.randrange(5):
        case 0:
            del parent[at[-1]]
        case 1 if isinstance(parent, dict):
            parent[rng.choice(["x", "", "\n", 1, "x" * 1000])] = parent.pop(at[-1])
        case 2 if isinstance(parent, list):
            parent += [parent[at[-1]]] * rng.choice([1, 10, 1000])
        case _:
            parent[at[-1]] = rng.choice(ODD)
    return tree


def changed_bytes(rng: random.Random, content: bytes) -> bytes:
    """Flip, cut, blank, insert or repeat bytes; headers more often than the rest."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        end = len(data) if rng.random() < 0.4 else min(len(data), 600)
        at = rng.randrange(end) if end else 0
        match rng.randrange(6):
            case 0 | 1 if data:
                data[at] = rng.randrange(256)
            case 2:
                del data[at:]
            case 3:
                size = min(rng.choice([4, 16, 300]), len(data) - at)
                data[at : at + size] = bytes([rng.choice([0, 255])]) * size
            case 4:
                data[at:at] = rng.randbytes(rng.choice([1, 8, 200]))
            case _:
                del data[at : at + rng.choice([1, 4, 100])]
    return bytes(data)


def mutate_json(rng: random.Random, file: Path) -> None:
    tree = json.loads(file.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        tree = changed_tree(rng, tree) if isinstance(tree, dict | list) else tree
    write_text(file, tree)


def mutate_yaml(rng: random.Random, file: Path) -> None:
    if rng.random() < 0.1:
        laughs = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        odd = [
            "name: 2024-13-45",
            "a0: &a0 [1]\n" + laughs,
            "&a [*a]",
            "a: !!int ''",
            "? [1]\n: 2",
            "[" * 9999,
            "\t",
            "%",
        ]
        file.write_text(rng.choice(odd) + "\n")
        return
    tree = yaml.safe_load(file.read_text())
    for _ in range(rng.choice([1, 1, 2])):
        tree = changed_tree(rng, tree) if isinstance(tree, dict | list) else tree
    write_text(file, tree)


def write_text(file: Path, tree: Any) -> None:
    """Write a tree as JSON, which is YAML too."""
    # Python writes no number of more than 4,300 digits, which is fewer than a file may hold.
    file.write_text(json.dumps(tree).replace('"1" ', "1"), encoding="utf-8")


def mutate_bytes(rng: random.Random, file: Path) -> None:
    file.write_bytes(changed_bytes(rng, file.read_bytes()))


NUMBERS = (0.0, 1.0, -1.0, 0.5, 1e-9, 1e-300, 1e9, 1e300, 7e5, math.nan, math.inf, -math.inf)


def mutate_raster(rng: random.Random, file: Path) -> None:
    """Write the raster anew with another header."""
    with rasterio.open(file) as src:
        pixels, profile = src.read(), dict(src.profile)
    numbers = [*profile["transform"]][:6]
    for _ in range(rng.choice([0, 1, 1, 2])):
        numbers[rng.randrange(6)] = rng.choice(NUMBERS)
    if rng.random() < 0.1:
        numbers = [numbers[n] for n in (1, 0, 2, 4, 3, 5)]
    profile["transform"] = rasterio.Affine(*numbers)
    match rng.randrange(8):
        case 0:
            profile["crs"] = rng.choice([None, "EPSG:4326", "EPSG:3857", "EPSG:4978", 'LOCAL_CS["x"]', "EPSG:32601"])
        case 1:
            profile["dtype"] = rng.choice(
                ["uint16", "int16", "float32", "float64", "complex64", "int8", "uint32", "int64"]
            )
        case 2:
            profile["nodata"] = rng.choice([0, 255, 7])
        case 3:
            pixels = pixels[:, : rng.choice([1, 2, 31]), : rng.choice([1, 2, 200])]
        case 4:
            pixels = np.repeat(pixels[:1], rng.choice([1, 2, 4, 5]), axis=0)
        case 5:
            pixels = rng.choice([pixels * 0, pixels * 0 + 255, pixels[:, ::-1]])
    pixels = pixels.astype(profile["dtype"])
    profile |= {"count": pixels.shape[0], "height": pixels.shape[1], "width": pixels.shape[2]}
    for key in ("blockxsize", "blockysize", "tiled", "photometric", "interleave"):
        profile.pop(key, None)
    file.unlink()
    with rasterio.open(file, "w", **profile) as dst:
        dst.write(pixels)


def mutate_vrt(rng: random.Random, file: Path) -> None:
    """Replace the raster by a virtual one over it, whose text is damaged."""
    inner = file.with_name("inner.tif")
    file.rename(inner)
    with rasterio.open(inner) as src:
        sizes, numbers, bands = (src.width, src.height), src.transform.to_gdal(), src.count
    text = f'<VRTDataset rasterXSize="{sizes[0]}" rasterYSize="{sizes[1]}"><SRS>EPSG:2154</SRS>'
    text += f"<GeoTransform>{', '.join(map(str, numbers))}</GeoTransform>"
    for band in range(1, bands + 1):
        text += (
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">inner.tif'
        )
        text += f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
    text += "</VRTDataset>"
    found = [*re.finditer(r"[\w.]+", text)]
    for where in sorted(rng.sample(found, rng.choice([1, 1, 2])), key=lambda m: -m.start()):
        odd = rng.choice(["0", "-1", "nan", "1e300", "x", "é", "", "3", "file.tif", "UInt16", "Float32", "\n"])
        text = text[: where.start()] + odd + text[where.end() :]
    file.write_text(text)


def mutate_checkpoint(rng: random.Random, file: Path) -> None:
    tree = torch.load(file, weights_only=True)
    for name in rng.sample(sorted(tree), min(len(tree), rng.choice([1, 1, 2]))):
        value = tree[name]
        if isinstance(value, dict) and value and rng.random() < 0.8:
            key = rng.choice(sorted(value, key=str))
            odd = [None, torch.zeros(()), torch.zeros(3, 3), torch.full((2,), math.nan), -1, "x", {}, []]
            value[key] = rng.choice(odd)
            if rng.random() < 0.3:
                del value[key]
        elif rng.random() < 0.3:
            del tree[name]
        else:
            tree[name] = rng.choice([None, -1, 10**30, "x", [], {}, math.nan, True])
    torch.save(tree if rng.random() < 0.9 else rng.choice([[], None, 3]), file)


# ------------------------------------------------------------------------------------------------ targets

Mutator = Callable[[random.Random, Path], None]
# The plain network: arranging it for the processor takes a second in each process, and reads none of these files.
PLAIN = ["--device", "cpu", "--precision", "fp32"]
PREDICT = ["predict", "image.tif", "map.tif", "--model", "model", *PLAIN, "--block-px", "64"]
INSPECT = ["inspect", "dataset.yaml", "--out", "pages"]
EVALUATE = ["evaluate", "model", "dataset.yaml", "--out", "scores", *PLAIN]
RESUME = ["predict", "image.tif", "late.tif", "--model", "model", *PLAIN, "--block-px", "64"]
TRAIN = ["train", "recipe.yaml", "--out", "new"]
GO_ON = ["train", "recipe.yaml", "--out", "run", "--resume"]
TARGETS: dict[str, tuple[str, tuple[Mutator, ...], tuple[list[str], ...]]] = {
    "image": ("image.tif", (mutate_bytes, mutate_raster, mutate_vrt), (PREDICT, INSPECT)),
    "label": (
        "label.tif",
        (mutate_bytes, mutate_raster, mutate_vrt),
        (EVALUATE, INSPECT),
    ),
    "dataset": ("dataset.yaml", (mutate_yaml, mutate_yaml, mutate_bytes), (INSPECT,)),
    "recipe": ("recipe.yaml", (mutate_yaml, mutate_yaml, mutate_bytes), (TRAIN,)),
    "config": ("model/config.json", (mutate_json, mutate_json, mutate_bytes), (["info", "model"], PREDICT)),
    "weights": ("model/model.safetensors", (mutate_bytes,), (["info", "model"], PREDICT)),
    "manifest": ("late.tif.parts/manifest.json", (mutate_json, mutate_bytes), (RESUME,)),
    "part": ("late.tif.parts/0000000.tif", (mutate_bytes,), (RESUME,)),
    "checkpoint": ("run/checkpoints/last.pt", (mutate_checkpoint, mutate_checkpoint, mutate_bytes), (GO_ON,)),
    "log": ("run/log.csv", (mutate_bytes,), (GO_ON,)),
    "run recipe": ("run/recipe.yaml", (mutate_yaml, mutate_bytes), (GO_ON,)),
    "run config": ("run/model/config.json", (mutate_json, mutate_bytes), (GO_ON, ["info", "run/model"])),
    "area": ("area.geojson", (mutate_json, mutate_json, mutate_bytes), ([*PREDICT, "--aoi", "area.geojson"],)),
    "area file": ("area.gpkg", (mutate_bytes,), ([*PREDICT, "--aoi", "area.gpkg"],)),
}


def fault(ended: Ended, folder: Path) -> str | None:
    """Return what is wrong with the end of a command, or None."""
    status, said = ended.status, ended.said
    # Its run folder has the recipe: it was accepted, and is that of a training that takes long.
    if (ended.late or status == -signal.SIGPROF) and (folder / "new" / "recipe.yaml").exists():
        return None
    if ended.late or status == -signal.SIGPROF:
        return f"took longer than {LIMIT_S} s\n{said}"
    if status not in (0, 2, 3):
        return f"exit status {status}\n{said}"
    lines = said.splitlines()
    if "Traceback" in said:
        return f"a traceback was printed: {said}"
    if status == 2 and (not lines or not lines[-1].startswith("caswit: ") or len(lines[-1]) > _LONGEST):
        return f"no line for the user: {said[-3000:]!r}"
    if sum(line.startswith("caswit: ") for line in lines) != (status == 2):
        return f"more than one line: {said[-3000:]!r}"
    if ended.peak_bytes > MOST_BYTES:
        return f"{ended.peak_bytes / 2**30:.2f} GiB of memory\n{said}"
    half = [str(file) for file in folder.rglob("*") if ".tmp" in file.name or file.name.endswith(".partial")]
    return f"half files left: {half}" if half else None


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Path:
    """A folder with a file of every kind, all of them good."""
    import pyogrio
    import shapely

    folder = tmp_path_factory.mktemp("world") / "work"
    folder.mkdir()
    for name, pixels in (
        ("image.tif", picture(90, 130)),
        ("label.tif", np.array([1, 2, 7], np.uint8)[(np.indices((90, 130)).sum(0) // 9) % 3][None]),
    ):
        count, height, width = pixels.shape
        shape = {"count": count, "height": height, "width": width, "dtype": "uint8"}
        with rasterio.open(folder / name, "w", driver="GTiff", **shape, **georeference()) as dst:
            dst.write(pixels)
    scene = {"image": "image.tif", "label": "label.tif"}
    scenes = [{**scene, "split": "train"}, {**scene, "split": "test"}]
    content = {"name": "attacked", "classes": CLASSES.to_dicts(), "scenes": scenes}
    (folder / "dataset.yaml").write_text(yaml.safe_dump(content))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    (folder / "area.geojson").write_text(json.dumps(AOI))
    polygon = shapely.box(700_005, 6_599_970, 700_030, 6_599_990)
    wkb, none = shapely.to_wkb(np.array([polygon])), np.array([], object)
    pyogrio.raw.write(folder / "area.gpkg", wkb, [], none, crs="EPSG:2154", geometry_type="Polygon", driver="GPKG")
    assert forks.run(["train", "recipe.yaml", "--out", "run"], folder).status == 0
    shutil.copytree(folder / "run" / "model", folder / "model")
    # All blocks are finished, and the first of the outputs is about to get its name.
    assert forks.run(RESUME, folder, kill_at_name=r"os.rename .*/\.late\.qml\.").status == -signal.SIGKILL
    for left in folder.glob(".late*.tmp"):
        left.unlink()
    assert (folder / "late.tif.parts" / "0000000.tif").exists()
    shutil.copytree(folder, folder.with_name("good"))
    return folder


def renew(world: Path) -> None:
    """Make all files good again, where they were: a journal names its image by its whole path."""
    shutil.rmtree(world)
    shutil.copytree(world.with_name("good"), world)


class Tried(NamedTuple):
    """One input, and how it ended."""

    seed: int
    kind: str
    status: int | str
    peak_bytes: int = 0
    wall_s: float = 0.0
    wrong: str | None = None
    short: bool = False
    """It ended because there was not enough memory."""


def attack(forks: Forks, folder: Path, seed: int) -> Tried:
    """Try one input."""
    rng = random.Random(seed)
    kind = [*TARGETS][seed % len(TARGETS)]
    name, mutators, commands = TARGETS[kind]
    mutator, words = rng.choice(mutators), rng.choice(commands)
    renew(folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mutator(rng, folder / name)
    except (ValueError, OverflowError, rasterio.errors.RasterioError, TypeError):
        return Tried(seed, kind, "not made")  # no library writes such a file
    ended = forks.run(words, folder, limits_s=LIMIT_S, room=ROOM)
    wrong = fault(ended, folder)
    about = f"seed {seed}, {mutator.__name__} of {name}, caswit {' '.join(words)}"
    said = None if wrong is None else f"{about}\n{wrong}"
    short = "not enough memory" in ended.said
    return Tried(seed, kind, ended.status, ended.peak_bytes, ended.wall_s, said, short)


@pytest.mark.e2e
@pytest.mark.timeout(0)
def test_damaged_files_give_one_line(world: Path, forks: Forks) -> None:
    """Kind by kind, until the number of inputs or the ordinary run's share of time is reached."""
    tried: list[Tried] = []
    began_s, seed = time.monotonic(), FIRST
    while seed - FIRST < INPUTS if INPUTS else time.monotonic() - began_s < SHARE_S:
        tried.append(attack(forks, world, seed))
        seed += 1
    statuses = Counter((one.kind, "wrong" if one.wrong else one.status) for one in tried)
    counts = "\n".join(f"{kind}: {status}: {count}" for (kind, status), count in sorted(statuses.items(), key=str))
    most, slowest = max(tried, key=lambda one: one.peak_bytes), max(tried, key=lambda one: one.wall_s)
    took_s, short = time.monotonic() - began_s, sum(one.short for one in tried)
    sys.stdout.write(
        f"{len(tried)} inputs, seeds {FIRST} to {seed - 1}, in {took_s:.0f} s; {short} short of memory; at most "
        f"{most.peak_bytes / 2**20:.0f} MiB (seed {most.seed}) and {slowest.wall_s:.1f} s (seed {slowest.seed})\n"
        f"{counts}\n"
    )
    wrong = [one.wrong for one in tried if one.wrong]
    assert not wrong, f"{len(wrong)} of {len(tried)} inputs\n" + "\n\n".join(wrong)


def test_the_world_is_good(world: Path, forks: Forks) -> None:
    """Every command ends well on files that are not damaged: otherwise the attack would attack nothing."""
    for words in {" ".join(words): words for _, _, commands in TARGETS.values() for words in commands}.values():
        renew(world)
        ended = forks.run(words, world, room=ROOM)
        assert ended.status == 0, (words, ended)
