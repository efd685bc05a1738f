"""Parts that tests share: small rasters, a dataset over them, models with random weights, the real imagery."""

import multiprocessing
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import rasterio
import torch
import yaml
from hypothesis import settings
from rasterio.errors import NotGeoreferencedWarning

from caswit.config import ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.inference.cpu import network as network_for_cpus
from caswit.inference.cpu.kernels import Kernels
from caswit.nn.caswit import SIZES, CASWiT
from caswit.weights.model_folder import ModelInfo, build, save_model
from shallow import PICO

if TYPE_CHECKING:
    from forked import Forks

settings.register_profile("caswit", deadline=None, derandomize=True)
settings.load_profile("caswit")

SIZE = 90, 130
TILE = TileConfig(tile_px=32, context_factor=2)
MOST_COMPILED = 8
DRIVERS = {".tif": "GTiff", ".png": "PNG", ".jpg": "JPEG"}
CLASSES = ClassTable(
    (
        LandClass(id=0, name="unlabelled", color="#9b9b9b", ignore=True),
        LandClass(id=1, name="building", color="#3c1098"),
        LandClass(id=2, name="land", color="#8429f6"),
        LandClass(id=7, name="water", color="#e2a929"),  # an id that is not its index
    )
)


def georeference(gsd: float = 0.5, *, x: float = 700_000, y: float = 6_600_000, crs: str = "EPSG:2154") -> dict:
    """CRS and transform of a north-up raster: options of ``make_raster``."""
    return {"crs": crs, "transform": rasterio.Affine(gsd, 0, x, 0, -gsd, y)}


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """(3, height, width): patches of colour with noise, nowhere 0."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(40, 216, (3, height // 7 + 1, width // 7 + 1))
    colours = patches.repeat(7, axis=1).repeat(7, axis=2)[:, :height, :width]
    return (colours + rng.integers(-39, 40, colours.shape)).astype(np.uint8)


@pytest.fixture
def make_raster(tmp_path) -> Callable[..., Path]:
    """Function that writes (bands, H, W) pixels to a file in ``tmp_path``; the suffix picks the driver."""

    def write(pixels: np.ndarray, name: str = "image.tif", *, mask=None, palette=None, **options) -> Path:
        path = tmp_path / name
        count, height, width = pixels.shape
        shape = {"count": count, "height": height, "width": width, "dtype": pixels.dtype}
        with warnings.catch_warnings(), rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(path, "w", driver=DRIVERS[path.suffix], **shape, **options) as dst:
                if palette is not None:
                    dst.write_colormap(1, palette)
                dst.write(pixels)
                if mask is not None:
                    dst.write_mask(mask)
        return path

    return write


class Killing:
    """Kills the reading processes of this one, once."""

    killed = 0

    def kill(self) -> None:
        """Kill those that run; nothing after the first time."""
        children = [] if self.killed else multiprocessing.active_children()
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        self.killed += len(children)


@pytest.fixture
def killing(monkeypatch) -> Killing:
    """Kills reading processes; torch looks for dead ones ten times a second instead of every 5 seconds."""
    waiting = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(waiting, "__defaults__", (0.1,))
    return Killing()


@pytest.fixture
def image() -> np.ndarray:
    """(3, 90, 130)."""
    return picture(*SIZE)


@pytest.fixture
def label() -> np.ndarray:
    """(1, 90, 130): stripes of the ids of ``CLASSES``, the ignored one included."""
    rows, cols = np.indices(SIZE)
    return np.array([0, 1, 2, 7], np.uint8)[(3 * rows + 2 * cols) // 17 % 4][None]


@pytest.fixture
def dataset_file(tmp_path, make_raster, image, label) -> Path:
    """A dataset.yaml whose one scene, scene.tif, is in all splits."""
    make_raster(image, "scene.tif", **georeference())
    make_raster(label, "scene_label.tif", **georeference())
    labelled = {"image": "scene.tif", "label": "scene_label.tif"}
    content = {
        "name": "stripes",
        "classes": CLASSES.to_dicts(),
        "scenes": [
            {**labelled, "split": "train"},
            {**labelled, "split": "test"},
            {"image": "scene.tif", "split": "unlabelled"},
        ],
    }
    file = tmp_path / "dataset.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session", autouse=True)
def compiled_once() -> Iterator[None]:
    """OpenVINO compiles a network once for each size of images, however often its folder is loaded: a second each."""
    compile_network, compiled = network_for_cpus._in_openvino, {}

    def once(network: CASWiT, bf16: bool, kernels: Kernels, sizes: tuple) -> Callable[..., torch.Tensor]:
        # What the graph follows from.
        values = [x.detach().numpy().tobytes() for x in (*network.parameters(), *network.buffers())]
        kind = repr(network), network.fusion_stages, network.feed_forward, network.contexts
        key = hash((*kind, bf16, kernels, tuple(sizes), *map(hash, values)))
        if key not in compiled:
            if len(compiled) == MOST_COMPILED:
                del compiled[next(iter(compiled))]
            compiled[key] = compile_network(network, bf16, kernels, sizes)
        return compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network_for_cpus, "_in_openvino", once)
        yield


@pytest.fixture(scope="session")
def make_model(tmp_path_factory) -> Callable[..., Path]:
    """Function from fusion stages (and a tile) to a model folder; weights are random, yet every class is found."""
    folders: dict[tuple[tuple[int, ...], TileConfig], Path] = {}

    def make(fusion_stages: tuple[int, ...], tile: TileConfig = TILE) -> Path:
        key = fusion_stages, tile
        if key not in folders:
            config = ModelConfig(size="nano", decoder_channels=16, fusion_stages=fusion_stages)
            info = ModelInfo(model=config, tile=tile, classes=CLASSES, trained_gsd_m=0.5)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                network = build(info).eval()
            # Random logits differ more between classes than between pixels: centred, no class wins everywhere.
            hr, context = (torch.from_numpy(picture(64, 64, seed))[None] for seed in (1, 2))
            if (several := len(tile.context_factors)) > 1:
                context = context[:, None].repeat(1, several, 1, 1, 1)
            with torch.no_grad():
                network.decoder.classify.bias -= network(hr, context).mean((0, 2, 3))
            folders[key] = tmp_path_factory.mktemp("models") / "model"
            save_model(network, info, folders[key])
        return folders[key]

    return make


@pytest.fixture(scope="session")
def model_folder(make_model) -> Path:
    """A model that reads its context after every stage."""
    return make_model((1, 2, 3, 4))


@pytest.fixture(scope="module")
def shallow() -> Iterator[None]:
    """Networks of size pico have few blocks in this process, so that training takes less than half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SIZES, "pico", PICO)
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real labelled imagery: $CASWIT_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("CASWIT_DATA") or Path(__file__).parents[2] / "shared" / "data").resolve()
    if not folder.is_dir():
        pytest.skip(f"no imagery in {folder}: set CASWIT_DATA to its folder")
    return folder


def pytest_collection_modifyitems(items) -> None:
    """Tests to which hypothesis hands their inputs are the ``property`` tests."""
    for item in items:
        if hasattr(getattr(item, "obj", None), "hypothesis"):
            item.add_marker("property")


@pytest.fixture(scope="session")
def forks() -> "Iterator[Forks]":
    """Commands in processes of their own, with the networks of ``shallow``; what they are forked from starts once."""
    from forked import Forks

    with Forks() as started:
        yield started
