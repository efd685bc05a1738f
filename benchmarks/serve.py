"""Print how long tiles of ``caswit serve`` take when 50 are asked for at once, with and without a prediction beside it.

python benchmarks/serve.py [--side 8192] [--rounds 6]: makes a raster with overviews and a map of it, starts the server,
asks for 50 different tiles at once, again and again, no tile twice; then does the same while ``caswit predict`` maps
the raster on the same cores. Prints the median, the 95th percentile and the slowest of all requests, and the ratio.
"""

import argparse
import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import numpy as np
import rasterio
from rasterio.enums import Resampling

from caswit.data.classes import ClassTable, LandClass
from caswit.data.synthetic import CLASSES, landscape
from caswit.raster.reader import write_raster
from common.drawn import random_model

CONCURRENT = 50


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make(folder, arguments.side)
        with serving(folder / "shown") as address:
            alone = asyncio.run(ask(address, arguments.rounds))
        with serving(folder / "shown") as address, predicting(folder, model):
            beside = asyncio.run(ask(address, arguments.rounds))
    for title, seconds in (("server alone", alone), ("while predicting", beside)):
        median, high = np.percentile(seconds, [50, 95])
        print(f"{title:17} {len(seconds)} tiles: median {median:.3f} s, p95 {high:.3f} s, slowest {max(seconds):.3f} s")
    print(f"p95 while predicting / alone: {np.percentile(beside, 95) / np.percentile(alone, 95):.2f}")


def make(folder: Path, side: int) -> Path:
    """Write the raster, a map of it, and a model; return the model."""
    shown = folder / "shown"
    shown.mkdir()
    part = landscape(0, 1024, 1024)
    repeat = -(-side // 1024)
    image, label = (np.tile(x, (1, repeat, repeat))[:, :side, :side] for x in (part.image, part.label[None]))
    write_raster(shown / "ortho.tif", image, crs="EPSG:2154", gsd_m=0.2)
    write_raster(shown / "ortho_map.tif", label, crs="EPSG:2154", gsd_m=0.2)
    for file, how in (("ortho.tif", Resampling.average), ("ortho_map.tif", Resampling.mode)):
        with rasterio.open(shown / file, "r+") as dst:
            dst.build_overviews([2, 4, 8, 16, 32], how)
    classes = ClassTable(tuple(LandClass(id=i, name=name, color=color) for i, name, color in CLASSES))
    return random_model(folder, tile_px=256, table=classes)


class serving:
    """A server that runs within a with block; gives its address."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> str:
        words = [sys.executable, "-m", "caswit", "serve", self.folder, "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        return re.search(r"http://\S+", self.server.stdout.readline())[0]

    def __exit__(self, *_: object) -> None:
        self.server.terminate()
        self.server.wait()


class predicting(serving):
    """A prediction that runs within a with block."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.words = [sys.executable, "-m", "caswit", "predict", folder / "shown" / "ortho.tif", folder / "out.tif"]
        self.words += ["--model", model]

    def __enter__(self) -> str:
        self.server = subprocess.Popen(self.words, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(10)  # until it computes
        assert self.server.poll() is None
        return ""


async def ask(address: str, rounds: int) -> list[float]:
    """Return the seconds of every request."""
    limits = httpx.Limits(max_connections=CONCURRENT)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        view = (await client.get("/api/views")).json()["views"][0]
        rng, zoom = np.random.default_rng(0), view["max_zoom"]
        side = -(-view["width"] // 256)
        places = [(zoom - k, col, row) for k in range(3) for col in range(side >> k) for row in range(side >> k)]
        keys = [layer["key"] for layer in view["layers"] if layer["kind"] in ("image", "map")]
        addresses = [
            f"/api/views/{view['key']}/layers/{keys[i % len(keys)]}/tiles/{'/'.join(map(str, places[j]))}"
            for i, j in enumerate(rng.permutation(len(places))[: CONCURRENT * rounds])
        ]

        async def one(path: str) -> float:
            began_s = time.perf_counter()
            reply = await client.get(path)
            assert reply.status_code == 200, reply.text
            return time.perf_counter() - began_s

        seconds: list[float] = []
        for first in range(0, len(addresses), CONCURRENT):
            seconds += await asyncio.gather(*(one(path) for path in addresses[first : first + CONCURRENT]))
        return seconds


if __name__ == "__main__":
    main()
