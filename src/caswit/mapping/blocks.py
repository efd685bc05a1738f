"""One block of a map: a pure function of the images, the model and the settings, whoever calls it.

Shapes: K classes, H x W native pixels of the block. A finished block is (bands, H, W) uint8, NODATA where nothing
is mapped: band 1 class ids, where the class is probable enough, then the probability of that class, then those of all
classes, in percent, as asked for.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import torch

from caswit.config import PredictConfig
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.errors import ConfigError
from caswit.inference.load import load_predictor
from caswit.inference.predictor import BlockPixels, Prediction
from caswit.raster.cog import NODATA
from caswit.raster.georef import Grid
from caswit.raster.mosaic import Source, open_image
from caswit.raster.reader import PixelEncoding, UInt8
from caswit.raster.windows import Block, Window, block_at
from caswit.weights.model_folder import LoadedModel, load_model

if TYPE_CHECKING:  # needs caswit[vector]
    from caswit.raster.aoi import AreaOfInterest


class Bands(NamedTuple):
    """What is asked for of a block."""

    confidence: bool = False
    probabilities: bool = False

    def first_probability(self) -> int:
        """The band of the first class's probability, from 1."""
        return 2 + self.confidence

    def count(self, classes: int) -> int:
        """Bands of a part."""
        return 1 + self.confidence + self.probabilities * classes


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that a process needs to map blocks. Can be sent to other machines that see the same files."""

    sources: tuple[Source, ...]
    grid: Grid
    model: str
    """Model folder."""
    settings: PredictConfig
    read_at_m: float | None = None
    """Ground size of the pixels to read; None: native."""
    area: "AreaOfInterest | None" = None
    bands: Bands

    def open(self, loaded: LoadedModel) -> SceneReader:
        """Open the images, as one, to be read as the model sees them."""
        return SceneReader(
            Scene(image=Path(self.sources[0].path)),
            bands=self.settings.bands or loaded.info.bands,
            read_gsd_m=self.read_at_m,
            image=open_image(self.sources, self.grid, meaning(self.settings)),
            source_gsd_m=self.settings.gsd_m,
        )


def meaning(settings: PredictConfig) -> PixelEncoding:
    """What the settings say of the values of the images."""
    return PixelEncoding(settings.rescale, settings.nodata)


class BlockMapper:
    """Map blocks of one job, with open images and a loaded model. Use as a context manager.

    One thread may read while another computes.

    Args:
        job: Images, model and settings.
        loaded: The job's model, where it is loaded already.
    """

    def __init__(self, job: Job, loaded: LoadedModel | None = None) -> None:
        self.job = job
        loaded = loaded or load_model(job.model)
        self.tile_px, self.overlap_px = loaded.info.tile.tile_px, overlap_of(job.settings, loaded.info.tile.tile_px)
        self.predictor = load_predictor(loaded, job.settings)
        self.ids = torch.from_numpy(loaded.info.classes.ids).to(self.predictor.device)
        self.bands = job.bands.count(len(loaded.info.classes))
        self.scene = job.open(loaded)

    @property
    def precision(self) -> str:
        """The precision of the network: bf16 or fp32."""
        return "bf16" if self.predictor.bf16 else "fp32"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.scene.close()

    def block(self, window: Window) -> Block:
        """Return the block of a window of the plan: its tiles and, to be blended, those that reach into it."""
        size = self.scene.height, self.scene.width
        return block_at(window, *size, self.tile_px, self.overlap_px, halo=self.job.settings.blend)

    def read(self, block: Block) -> BlockPixels | None:
        """Read the pixels of a block and of its tiles' context; None where nothing is to be mapped.

        Raises:
            DataError: The images cannot be read.
        """
        native = self.scene.native(block.window)
        if self.scene.image.is_empty(native):
            return None
        pixels = self.predictor.read(self.scene, block)
        if self.job.area is not None:
            pixels = pixels._replace(valid=pixels.valid & self.job.area.mask(native))
        return pixels if pixels.valid.any() else None

    def compute(self, block: Block, pixels: BlockPixels) -> UInt8:
        """Map a block that was read: (bands, H, W)."""
        out = np.full((self.bands, *pixels.valid.shape), NODATA, np.uint8)
        for part in self.predictor.block(self.scene, block, pixels, blend=self.job.settings.blend):
            out[:, *part.window.inside(pixels.native)] = self._values(part)
        out[:, ~pixels.valid] = NODATA
        return out

    def _values(self, part: Prediction) -> UInt8:
        """Return a part of a block as it is stored: (bands, H, W)."""
        values = [self.ids[part.scores.argmax(0)][None]]
        least = self.job.settings.min_confidence
        if least or any(self.job.bands):
            percent = (part.probabilities() * 100).round().byte()
            confidence = percent.amax(0, keepdim=True)
            values[0][confidence < least] = NODATA
            values += [confidence] * self.job.bands.confidence
            values += [percent] * self.job.bands.probabilities
        return torch.cat(values).cpu().numpy()


def overlap_of(settings: PredictConfig, tile_px: int) -> int:
    """Pixels by which tiles overlap: a quarter of them, half where they are blended, unless set."""
    if settings.overlap_px is None:
        return tile_px // 2 if settings.blend else tile_px // 4
    if settings.overlap_px >= tile_px:
        raise ConfigError(
            f"overlap_px must be below the model's tile_px={tile_px}, got {settings.overlap_px}; try {tile_px // 4}"
        )
    return settings.overlap_px
