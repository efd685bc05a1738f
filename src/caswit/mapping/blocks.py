"""One block of a map: a pure function of the images, the model and the settings, whoever calls it.

Shapes: K classes, H x W native pixels of the block. A finished block is (bands, H, W) uint8, NODATA where nothing
is mapped: band 1 class ids, where the class is probable enough, then the probability of that class, then those of all
classes, in percent, as asked for.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from caswit.errors import ModelError
from caswit.inference.confidence import Confidence
from caswit.inference.load import load_predictor
from caswit.inference.predictor import BlockPixels, Prediction, Predictor
from caswit.inference.transfers import Fetched
from caswit.mapping.plan import MapPlan
from caswit.raster.cog import NODATA
from caswit.raster.reader import UInt8
from caswit.raster.windows import Block, Window, block_at
from caswit.weights.lazy import finite_numbers
from caswit.weights.model_folder import LoadedModel, load_model

CONFIDENCE = "CASWIT_CONFIDENCE"
"""Tag of a part: the sums of ``Confidence`` over its block."""


class MappedBlock(NamedTuple):
    """A block that was mapped."""

    values: UInt8
    """(bands, H, W)."""
    confidence: Confidence
    """Over all pixels with data, those that are not sure enough for the map among them."""

    @property
    def tags(self) -> dict[str, str]:
        """The tags of its part, by which the sums are in the journal."""
        return {CONFIDENCE: self.confidence.text()}


class BlockMapper:
    """Map blocks of one plan, with open images and a loaded model.

    One thread may read while another computes.

    Args:
        plan: Images, model and settings.
        loaded: The plan's model, where it is loaded already.
        predictor: Of that model and the plan's settings, where there is one already.
        may_time: It may be timed first what is fastest on this processor, if the map is large. Not where several
            processes compute side by side, each of which would disturb the others.
    """

    def __init__(
        self,
        plan: MapPlan,
        loaded: LoadedModel | None = None,
        predictor: Predictor | None = None,
        *,
        may_time: bool = False,
    ) -> None:
        self.plan = plan
        loaded = loaded or load_model(plan.model)
        self.predictor = predictor or load_predictor(loaded, plan.settings, plan.read_px if may_time else 0)
        self.ids = torch.from_numpy(loaded.info.classes.ids).to(self.predictor.device)
        self.classes = len(loaded.info.classes)
        self.bands = plan.bands.count(self.classes)
        self.scene = plan.open()

    @property
    def precision(self) -> str:
        """The precision of the network: int8, bf16 or fp32."""
        return self.predictor.precision

    def block(self, window: Window) -> Block:
        """Return the block of a window of the plan: its tiles and, to be blended, those that reach into it."""
        size = self.scene.height, self.scene.width
        return block_at(
            window, *size, self.plan.layout.tile_px, self.plan.layout.overlap_px, halo=bool(self.plan.settings.blend)
        )

    def read(self, block: Block) -> BlockPixels | None:
        """Read the pixels of a block and of its tiles' context; None where nothing is to be mapped.

        Raises:
            DataError: The images cannot be read.
        """
        native = self.scene.native(block.window)
        if self.scene.image.is_empty(native):
            return None
        pixels = self.predictor.read(self.scene, block)
        # The area limits the map, not the context: the network still sees the image beyond it.
        if self.plan.area is not None:
            pixels = pixels._replace(valid=pixels.valid & self.plan.area.mask(native))
        if not pixels.valid.any():
            return None
        self.predictor.send(pixels)
        return pixels

    def compute(self, block: Block, pixels: BlockPixels) -> MappedBlock:
        """Map a block that was read.

        Raises:
            ModelError: The network's scores are not finite.
        """
        return self.begin(block, pixels)()

    def begin(self, block: Block, pixels: BlockPixels) -> Callable[[], MappedBlock]:
        """Begin to map a block that was read; on a GPU this returns before it is mapped.

        Returns:
            What waits for the block and returns it; another thread may call it while the next block is begun.

        Raises:
            ModelError: The network's scores are not finite.
        """
        # Everything stays on the device until the block is whole: one copy, and nothing that waits for each tile.
        values = torch.full((2 + self.bands, *pixels.valid.shape), NODATA, dtype=torch.uint8, device=self.ids.device)
        values[:2] = 0
        finite = torch.ones((), dtype=torch.bool, device=values.device)
        for part in self.predictor.block(self.scene, block, pixels, blend=bool(self.plan.settings.blend)):
            finite &= finite_numbers(part.scores)
            values[:, *part.window.inside(pixels.native)] = self._values(part)
        fetched = self.predictor.transfers.fetch(finite), self.predictor.transfers.fetch(values)
        if values.device.type == "cuda":
            return lambda: self._finished(pixels, *fetched)
        mapped = self._finished(pixels, *fetched)
        return lambda: mapped

    def _finished(self, pixels: BlockPixels, finite: Fetched, values: Fetched) -> MappedBlock:
        # The argmax of NaN is the first class: a map that looks like one.
        if not finite.numpy():
            row, col, height, width = pixels.native
            raise ModelError(
                f"rows {row}-{row + height}, columns {col}-{col + width}: the model's scores are NaN or infinite; "
                f"{self.precision} may be too coarse for it: try --precision fp32, or another model"
            )
        indices, sure, *_ = found = values.numpy()
        out = found[2:]
        # The network labels every pixel that a tile owns, with data or without.
        out[:, ~pixels.valid] = NODATA
        return MappedBlock(out, Confidence.count(indices, sure, pixels.valid, self.classes))

    def _values(self, part: Prediction) -> Tensor:
        """Return class indices, confidence, and the bands that are stored of a part of a block: (2 + bands, H, W)."""
        indices, confidence = part.scores.argmax(0, keepdim=True), part.confidence()[None]
        values = [indices.byte(), confidence, self.ids[indices[0]][None]]
        # Compared after rounding, so that the map agrees with the confidence file at the limit.
        values[2][confidence < self.plan.settings.min_confidence] = NODATA
        values += [confidence] * self.plan.bands.confidence
        if self.plan.bands.probabilities:
            values.append((part.probabilities() * 100).round().byte())
        return torch.cat(values)
