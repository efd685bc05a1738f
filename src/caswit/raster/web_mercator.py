"""Where the tiles of web maps lie over an image: a polynomial that a page computes, instead of a projection library."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from caswit.raster.georef import Grid, lonlat_of

_MESH = 11
"""Places along each side that are projected."""
_BEYOND = 0.5
"""Sides of the image that are covered around it."""
_WORST = 1 / 500
"""Share of the image's longer side that the polynomial may be wrong by."""


class MercatorFit(NamedTuple):
    """Two polynomials of third degree in (a, b), each with the terms of ``terms`` for both coordinates.

    Image coordinates are shares of width and height; world coordinates are shares of the square of Web Mercator, from
    its north-west corner, less ``origin`` and divided by ``scale``, which keeps their digits.
    """

    origin: tuple[float, float]
    scale: float
    to_world: list[list[float]]
    """(2, 10): from (column / width, row / height)."""
    to_image: list[list[float]]
    """(2, 10): back."""


def terms(a: Any, b: Any) -> NDArray[np.float64]:
    """Return the terms of the polynomials, along the last axis."""
    one = np.ones_like(np.asarray(a, float))
    return np.stack([one, a, b, a * a, a * b, b * b, a**3, a * a * b, a * b * b, b**3], axis=-1)


def mercator_fit(grid: Grid) -> MercatorFit | None:
    """Fit the polynomials; None where the place of the image is unknown or no polynomial comes close."""
    for beyond in (_BEYOND, 0.0):
        side = np.linspace(-beyond, 1 + beyond, _MESH)
        u, v = (each.ravel() for each in np.meshgrid(side, side))
        places = [lonlat_of(grid, b * grid.height, a * grid.width) for a, b in zip(u, v, strict=True)]
        degrees = np.array([(np.nan, np.nan) if place is None else place for place in places])
        # Web Mercator ends at 85 degrees.
        if np.isfinite(degrees).all() and np.abs(degrees[:, 1]).max() < 85:
            return _fit(grid, u, v, degrees)
    return None


def _fit(grid: Grid, u: NDArray[Any], v: NDArray[Any], degrees: NDArray[Any]) -> MercatorFit | None:
    x, y = degrees[:, 0] / 360 + 0.5, 0.5 - np.arctanh(np.sin(np.radians(degrees[:, 1]))) / (2 * np.pi)
    origin = float(x.mean()), float(y.mean())
    scale = float(max(np.ptp(x), np.ptp(y)))
    a, b = (x - origin[0]) / scale, (y - origin[1]) / scale
    image, world = np.stack([u, v], -1), np.stack([a, b], -1)
    to_world, to_image = (np.linalg.lstsq(terms(*p.T), q, rcond=None)[0].T for p, q in ((image, world), (world, image)))
    off = np.abs(terms(a, b) @ to_image.T - image) * [grid.width, grid.height]
    if off.max() > max(2, _WORST * max(grid.height, grid.width)):
        return None
    return MercatorFit(origin, scale, to_world.tolist(), to_image.tolist())
