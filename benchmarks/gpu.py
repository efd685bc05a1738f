"""Measure caswit on one GPU: inference, training steps, a whole raster, resuming. ``gpu.sh`` calls it.

python benchmarks/gpu.py --out DIR [--size base] [--small]

ours: what ``caswit predict`` runs. plain: the network as it is trained, under bf16 autocast. (a): assembled from
transformers and torch's MultiheadAttention, under bf16 autocast, eager and compiled. The share is that of the best rate
of a large bf16 matrix product, measured first; arithmetic is counted for the network as the paper writes it, (a). What
takes longest to prepare, the compiled ones, comes last; both files are written anew after every measurement.
"""

import argparse
import gc
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from caswit.config import ComputeConfig, DataConfig, ModelConfig, PredictConfig, Recipe, TileConfig, TrainConfig
from caswit.data.synthetic import write_landscapes
from caswit.errors import Stopped
from caswit.experiments.memory import Driver
from caswit.files import atomic_write_bytes
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.mapping.run import predict
from caswit.training.supervised import train
from caswit.weights.model_folder import load_model
from common.clock import peak_mb, processor
from common.contestants import Run, assembled, filled, images, training
from common.drawn import orthophoto, random_model
from speed import arithmetic

MB = 2**20


class Book:
    """What was measured so far, as JSON and as a page."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.pages = folder, {"machine": [], "inference": [], "training": [], "raster": [], "resume": []}

    def add(self, page: str, row: dict[str, Any]) -> None:
        """Note a row and write both files."""
        self.pages[page].append(row)
        print(f"{page}: {json.dumps(row)}", flush=True)
        atomic_write_bytes(self.folder / "gpu.json", (json.dumps(self.pages, indent=2) + "\n").encode())
        atomic_write_bytes(self.folder / "gpu.md", self.page().encode())

    def page(self) -> str:
        """Return the tables of all that was measured."""
        lines = ["# caswit on a GPU", ""]
        for name, rows in self.pages.items():
            heads = list(dict.fromkeys(head for row in rows for head in row))
            cells = ([_cell(row.get(head)) for head in heads] for row in rows)
            table = [heads, ["---"] * len(heads), *cells]
            lines += [f"## {name}", "", *(f"| {' | '.join(row)} |" for row in table if rows), ""]
        return "\n".join(lines)

    @contextmanager
    def trying(self, page: str, **what: Any) -> Iterator[dict[str, Any]]:
        """Measure into a row; what fails is a row too, and the rest is still measured."""
        row = dict(what)
        try:
            yield row
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        self.add(page, row)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


class Measure:
    """Seconds and memory of something that is run again and again on a device."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds, self.on_gpu = device, seconds, device.type == "cuda"
        self.driver = Driver.of(torch.cuda.get_device_properties(device)) if self.on_gpu else None

    def __call__(self, run: Run, warm_up: int = 6) -> tuple[float, float, float | None]:
        """Return the median seconds of a run, its peak memory in MB, and the driver's MB of this process."""
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(warm_up if self.on_gpu else 1):  # graphs are captured, kernels chosen
            run()
        self.wait()
        times: list[float] = []
        ends = time.perf_counter() + self.seconds
        while time.perf_counter() < ends or len(times) < 2:
            times.append(self.once(run))
        peak = torch.cuda.max_memory_allocated(self.device) / MB if self.on_gpu else peak_mb()
        return statistics.median(times), peak, None if self.driver is None else self.driver.process_mb()

    def once(self, run: Run) -> float:
        """Return the seconds of a run, by the clock of the GPU where there is one."""
        if not self.on_gpu:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        run()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) / 1e3

    def wait(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def best_rate(measure: Measure, side: int) -> float:
    """Return the FLOP/s of a product of square bf16 matrices of noise."""
    one, other = (torch.randn(side, side, device=measure.device, dtype=torch.bfloat16) for _ in range(2))
    return float(2 * side**3 / measure(lambda: one @ other)[0])


def contestants(name: str, size: str, batch: int, side: int, folder: Path, device: torch.device) -> Run:
    """Return what labels a batch that is on the device already."""
    hr, context = (image.to(device) for image in images(batch, side, side))
    if name.startswith("(a)"):
        model: Any = filled(assembled(size)).to(device)
        model = torch.compile(model) if "compiled" in name else model

        def theirs() -> Tensor:
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16):
                logits: Tensor = model(hr, context)
            return logits.float()

        return theirs
    predictor = predictor_of(name, folder, device, batch)
    return lambda: predictor.image_logits(hr, context)


def predictor_of(name: str, folder: Path, device: torch.device, batch: int) -> Predictor:
    """Return the predictor of ``ours``, or that of the plain network under autocast."""
    loaded = load_model(folder)
    if name == "ours":
        return load_predictor(loaded, ComputeConfig(device=str(device), batch=batch))
    factor = loaded.info.tile.context_factor
    return Predictor(loaded.network, context_factor=factor, batch=batch, device=device, bf16=True)


def inference(book: Book, measure: Measure, setup: Any, rate: float, names: list[str]) -> None:
    """Measure contestants at every batch, and whether ours labels as the plain network does."""
    for batch in setup.batches:
        for name in names:
            with book.trying("inference", network=name, batch=batch) as row:
                run = contestants(name, setup.size, batch, setup.side, setup.model, measure.device)
                seconds, peak, listed = measure(run)
                row |= {"ms per tile": 1e3 * seconds / batch, "tiles/s": batch / seconds, "peak MB": peak}
                row |= {"driver MB": listed, "share of best rate": setup.gflop * 1e9 * batch / seconds / rate}
                if name == "ours":
                    other = contestants("plain", setup.size, batch, setup.side, setup.model, measure.device)
                    row["pixels as plain"] = float((run().argmax(1) == other().argmax(1)).float().mean())


def steps(book: Book, measure: Measure, setup: Any, rate: float, names: list[str]) -> None:
    """Measure training steps: forward, backward, AdamW; both heads."""
    for name in names:
        with book.trying("training", network=name, batch=setup.train_batch) as row:
            run = training(name, setup.size, setup.train_batch, setup.side, str(measure.device))
            seconds, peak, listed = measure(run)
            row |= {"ms per step": 1e3 * seconds, "tiles/s": setup.train_batch / seconds, "peak MB": peak}
            row |= {"driver MB": listed}
            row["share of best rate"] = setup.train_gflop * 1e9 * setup.train_batch / seconds / rate


class Watch:
    """How busy the GPU is, by the driver: the share of the last moments in which a kernel ran."""

    def __init__(self, driver: Driver | None) -> None:
        self.driver, self.shares, self._over = driver, list[float](), threading.Event()

    def __enter__(self) -> "Watch":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.driver is not None and not self._over.wait(0.1):
            with suppress(Exception):  # NVML's own kinds
                self.shares.append(self.driver.nvml.nvmlDeviceGetUtilizationRates(self.driver.handle).gpu / 100)


def raster(book: Book, measure: Measure, setup: Any, folder: Path) -> None:
    """Map a raster from the file to the file."""
    with book.trying("raster", side_px=setup.raster_px, batch=setup.batches[-1]) as row:
        image = orthophoto(folder / "image.tif", setup.raster_px)
        settings = PredictConfig(device=str(measure.device), batch=setup.batches[-1])
        run = contestants("ours", setup.size, setup.batches[-1], setup.side, setup.model, measure.device)
        tile_s = measure(run)[0] / setup.batches[-1]
        del run
        began = time.perf_counter()
        with Watch(measure.driver) as watch:
            predict(image, folder / "map.tif", setup.model, settings)
        wall_s = time.perf_counter() - began
        step = setup.side - setup.side // 4  # what a tile adds where neighbours overlap by a quarter
        tiles = max(1, -(-(setup.raster_px - setup.side // 4) // step)) ** 2
        row |= {"s": wall_s, "Mpx/s": setup.raster_px**2 / wall_s / 1e6, "tiles": tiles}
        row["share of time in the network"] = tiles * tile_s / wall_s
        row["GPU waits, by the driver"] = 1 - statistics.mean(watch.shares) if watch.shares else None


def resume(book: Book, setup: Any, folder: Path) -> None:
    """Train, and train again in two parts: how far apart are the weights?"""
    write_landscapes(folder / "scenes", 0)
    for exact in (False, True):
        with book.trying("resume", deterministic=exact) as row:
            recipe = Recipe(
                data=DataConfig(dataset=str(folder / "scenes" / "dataset.yaml"), val_split=None),
                model=ModelConfig(size=setup.resumed, drop_path=0.1),
                tile=TileConfig(tile_px=setup.resumed_px),
                train=TrainConfig(batch=4, max_steps=4, pictures=0, deterministic=exact, ema_decay=0.9),
            )
            whole, halves = folder / f"whole-{exact}", folder / f"halves-{exact}"
            train(recipe, whole)
            with suppress(Stopped):
                train(replace(recipe, train=replace(recipe.train, stop_minutes=1e-9)), halves)
            train(recipe, halves, resume=True)
            one, other = (load_file(run / "model" / "model.safetensors") for run in (whole, halves))
            row["largest difference"] = max(float((one[n].double() - other[n].double()).abs().max()) for n in one)


def main(arguments: argparse.Namespace) -> None:
    """Measure everything, the quickest first."""
    small = arguments.small
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not small:
        raise SystemExit("torch finds no GPU; --small tries everything on a CPU")
    setup = argparse.Namespace(
        size="pico" if small else arguments.size,
        side=64 if small else 512,
        batches=[1, 2] if small else [1, 4, 16],
        train_batch=2 if small else 8,
        raster_px=200 if small else 20_000,
        resumed="pico" if small else "tiny",
        resumed_px=64 if small else 256,
    )
    book, measure = Book(arguments.out), Measure(device, 0.0 if small else 1.0)
    setup.gflop = arithmetic(setup.size, train=False, side=setup.side)
    setup.train_gflop = arithmetic(setup.size, train=True, side=setup.side)
    rate = best_rate(measure, 256 if small else 8192)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    about = {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "best bf16 TFLOP/s": rate / 1e12}
    book.add("machine", {**about, "network": setup.size, "tile px": setup.side, "GFLOP a tile": setup.gflop})
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        setup.model = random_model(folder, size=setup.size, tile_px=setup.side)
        parts: list[Callable[[], None]] = [
            lambda: inference(book, measure, setup, rate, ["ours", "plain", "(a) eager"]),
            lambda: steps(book, measure, setup, rate, ["ours", "(a) eager"]),
            lambda: raster(book, measure, setup, folder),
            lambda: resume(book, setup, folder),
        ]
        if not small:  # minutes each, and a compiler
            parts += [
                lambda: inference(book, measure, setup, rate, ["(a) compiled"]),
                lambda: steps(book, measure, setup, rate, ["(a) compiled"]),
            ]
        for part in parts:
            part()
    print(book.page())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--size", default="base", help="size of the network")
    parser.add_argument("--small", action="store_true", help="a narrow network and a tiny raster, also on a CPU")
    main(parser.parse_args())
