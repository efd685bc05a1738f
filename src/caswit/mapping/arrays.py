"""Maps of arrays in memory: the model that ``caswit.load_model`` returns.

An array goes through the plan and the blocks of ``predict``, so its map is that of a file with the same pixels.

Shapes: H x W pixels of the image, K classes.
"""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from caswit.config import MapRunConfig, OutputConfig, PredictConfig
from caswit.config.inference import Fill, TTAConfig
from caswit.config.keywords import keyword_settings
from caswit.errors import DataError
from caswit.inference.load import load_predictor
from caswit.inference.predictor import Predictor
from caswit.mapping.blocks import BlockMapper
from caswit.mapping.plan import make_plan
from caswit.raster.cog import NODATA
from caswit.raster.memory import in_memory
from caswit.raster.reader import Bool, UInt8
from caswit.weights.model_folder import LoadedModel
from caswit.weights.model_folder import load_model as load_weights


class Model(LoadedModel):
    """A trained model that labels arrays; ``caswit.load_model`` makes it.

    ``network`` is the ``torch.nn.Module``, ``info`` holds its settings, class table and origin.
    """

    source: Path | str = ""
    """The folder or name it was loaded from."""
    _last: tuple[tuple[TTAConfig, Fill | None], Predictor] | None = None

    @property
    def classes(self) -> dict[int, str]:
        """Name of each class by its value in maps."""
        return {c.id: c.name for c in self.info.classes.mapped}

    @overload
    def predict(
        self, image: ArrayLike, *, valid: ArrayLike | None = None, confidence: Literal[False] = False, **settings: Any
    ) -> UInt8: ...
    @overload
    def predict(
        self, image: ArrayLike, *, valid: ArrayLike | None = None, confidence: Literal[True], **settings: Any
    ) -> tuple[UInt8, UInt8]: ...
    def predict(
        self, image: ArrayLike, *, valid: ArrayLike | None = None, confidence: bool = False, **settings: Any
    ) -> UInt8 | tuple[UInt8, UInt8]:
        """Label every pixel of an image of any size.

        The result equals the map that ``caswit predict`` makes of a file with these pixels.

        Args:
            image: (bands, H, W) or (H, W, bands) uint8, or another type with ``rescale=(low, high)`` or
                ``rescale="auto"``. The axis that counts the bands is the shorter one of the first and the last.
            valid: (H, W): True where the image has data; None: everywhere.
            confidence: Also return the probability of the class in percent.
            settings: Options of ``caswit predict`` that say how to read and compute: ``gsd_m=0.25`` (the ground size
                of the pixels in metres, which an array does not say), ``tta=8``, ``bands=(4, 1, 2)``, ``nodata=255``,
                ``batch=16``, ``device="cuda"`` and others.

        Returns:
            (H, W) uint8: the class of each pixel as a key of ``classes``, 255 where the image has no data. With
            ``confidence`` a pair of these classes and (H, W) uint8 percentages, 255 where there is no data.

        Raises:
            DataError: The array is no image.
            ConfigError: There is no such setting, or its value is not allowed.
            ModelError: The network's scores are not finite.
        """
        config = keyword_settings("predict", settings, PredictConfig)
        pixels = bands_first(image)
        if pixels.dtype != np.uint8 and config.rescale is None and not all(self.info.model.ranges or [None]):
            low, high = np.percentile(pixels, (1, 99))
            raise DataError(
                f"the array holds {pixels.dtype}, uint8 is needed; give rescale=(low, high), the values that become "
                f'0 and 255 (98 of 100 lie in {low:.6g} to {high:.6g}), or rescale="auto"'
            )
        outputs = OutputConfig(confidence="confidence.tif" if confidence else None)  # nothing is written: its band
        with in_memory(pixels, _mask(valid, pixels)) as name:
            plan, _ = make_plan([name], self, config, outputs, MapRunConfig(yes=True))
            mapper = BlockMapper(plan, self, self._predictor(plan.settings))
            found = np.full((mapper.bands, *pixels.shape[1:]), NODATA, np.uint8)
            with mapper.scene:
                for planned in plan.blocks():
                    block = mapper.block(planned.window)
                    read = mapper.read(block)
                    if read is not None:
                        row, col, height, width = read.native
                        found[:, row : row + height, col : col + width] = mapper.compute(block, read).values
        return (found[0], found[1]) if confidence else found[0]

    __call__ = predict

    def _predictor(self, settings: PredictConfig) -> Predictor:
        """Return the predictor of these settings; that of the last call is kept, since arranging one takes time."""
        # Of its fields alone: the ground size may differ from image to image.
        needed = TTAConfig(**{f.name: getattr(settings, f.name) for f in fields(TTAConfig)}), settings.fill
        if self._last is None or self._last[0] != needed:
            self._last = needed, load_predictor(self, settings)
        return self._last[1]


def load_model(model: Path | str) -> Model:
    """Read a trained model, which is ready to label arrays.

    Args:
        model: Model folder, the name of a model in the zoo (``caswit models`` lists them), or hf:owner/name.

    Returns:
        The model; the network is in evaluation mode on the CPU.

    Raises:
        ModelError: There is no trained model, or its weights do not fit its config.
    """
    loaded = Model(*load_weights(model))
    loaded.source = model
    return loaded


def bands_first(image: ArrayLike) -> NDArray[Any]:
    """Return an image as (bands, H, W), given (bands, H, W) or (H, W, bands).

    Raises:
        DataError: It has not three axes, or no pixels, or its first and last axis are equally long.
    """
    pixels = np.asarray(image)
    if pixels.dtype.kind not in "uif":
        raise DataError(f"an image holds whole numbers or floats, got an array of {pixels.dtype}")
    if pixels.ndim != 3 or not pixels.size or pixels.shape[0] == pixels.shape[2]:
        raise DataError(
            f"an image is an array (bands, H, W) or (H, W, bands), got the shape {pixels.shape}; "
            "the shorter of its first and last axis counts the bands"
        )
    return pixels if pixels.shape[0] < pixels.shape[2] else np.moveaxis(pixels, 2, 0)


def _mask(valid: ArrayLike | None, pixels: NDArray[Any]) -> Bool | None:
    if valid is None:
        return None
    mask = np.asarray(valid, bool)
    if mask.shape != pixels.shape[1:]:
        raise DataError(f"valid must have the shape {pixels.shape[1:]} of the image, got {mask.shape}")
    return mask
