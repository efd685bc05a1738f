"""What the values of a raster mean."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Meaning(NamedTuple):
    """What the values of a raster mean, where it does not say so itself."""

    rescale: tuple[float, float] | None = None
    """(low, high): what becomes 0 and 255, for pixels that are not uint8."""
    nodata: float | None = None
    """A pixel with this value in all bands that are read has no data."""


AS_IT_SAYS = Meaning()


def rescaled(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Values of any type as uint8: low and below 0, high and above 255, rounded between; NaN is 0."""
    scaled = (pixels.astype(np.float32) - low) * np.float32(255 / (high - low))
    return np.nan_to_num(np.clip(scaled + 0.5, 0, 255), nan=0).astype(np.uint8)
