"""Pixels and coordinates."""

import warnings

import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS

from caswit.errors import DataError
from caswit.raster.georef import Grid, check_grid, ground_of, lonlat_of, pixel_at, pixel_at_lonlat
from caswit.raster.reader import Raster
from conftest import georeference


def grid(path):
    with Raster(path) as raster:
        return raster.grid


@pytest.mark.parametrize("crs", ["EPSG:2154", "EPSG:3857"])
def test_coordinates_lead_to_the_pixel_and_back(make_raster, image, crs):
    found = grid(make_raster(image, **georeference(0.5, crs=crs)))
    assert pixel_at(found, 700_000.1, 6_599_999.9, "") == (0, 0)
    assert pixel_at(found, 700_003.6, 6_599_994.9, "") == (10, 7)
    assert pixel_at(found, 699_999.9, 6_600_000.1, "") == (-1, -1)
    assert ground_of(found, 10.2, 7.2) == pytest.approx((700_003.6, 6_599_994.9))
    lon, lat = lonlat_of(found, 10.5, 7.5)
    assert pixel_at_lonlat(found, lon, lat, "") == (10, 7)


def test_degrees_are_longitude_then_latitude(make_raster, image):
    found = grid(make_raster(image, crs="EPSG:4326", transform=rasterio.Affine(1e-5, 0, 7, 0, -1e-5, 46)))
    assert pixel_at_lonlat(found, 7.000105, 45.999955, "") == (4, 10)
    assert lonlat_of(found, 0, 0) == pytest.approx((7, 46))


def test_ground_control_points_are_a_georeference(make_raster, image):
    corners = [(0, 0), (0, 130), (90, 0), (90, 130)]
    points = [GroundControlPoint(row, col, 700_000 + col, 6_600_000 - row) for row, col in corners]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = make_raster(image, gcps=points, crs="EPSG:2154")
    assert pixel_at(grid(path), 700_020.5, 6_599_989.5, "") == (10, 20)


def test_without_a_georeference_there_are_no_coordinates(make_raster, image):
    found = grid(make_raster(image, "photo.png"))
    assert ground_of(found, 1, 2) is None
    assert lonlat_of(found, 1, 2) is None
    with pytest.raises(DataError, match=r"photo\.png: has no georeference.*--row and --col"):
        pixel_at(found, 1, 2, "photo.png")


def test_a_longitude_beyond_the_crs(make_raster, image):
    found = grid(make_raster(image, **georeference()))
    with pytest.raises(DataError, match="outside what its CRS can express"):
        pixel_at_lonlat(found, 2, 400, "image.tif")


@pytest.mark.parametrize(
    "numbers",
    [
        (0.0, 0, 7, 0, -1, 7),
        (1.0, 1, 7, 1, 1, 7),
        (float("nan"), 0, 7, 0, -1, 7),
        (1, 0, float("inf"), 0, -1, 7),
        (1e-200, 0, 7, 0, -1e-200, 7),
        (1e9, 0, 7, 0, -1e9, 7),
        (1, 0, 1e300, 0, -1, 7),
    ],
)
def test_a_transform_that_places_pixels_nowhere_is_refused_when_the_raster_is_opened(numbers):
    """They were divided by: ZeroDivisionError, or 73.8 PiB of memory asked for."""
    with pytest.raises(DataError, match=r"a.tif: its (geotransform|pixels)") as caught:
        check_grid(Grid(90, 130, CRS.from_epsg(2154), rasterio.Affine(*numbers), ([], None)), "a.tif")
    assert "\n" not in str(caught.value)


def test_a_raster_is_checked_when_it_is_opened(make_raster, image):
    path = make_raster(image, crs="EPSG:2154", transform=rasterio.Affine(1e9, 0, 7, 0, -1e9, 7))
    with pytest.raises(DataError, match="its pixels would be 1e\\+09 m wide"):
        Raster(path)


def test_a_transposed_square_lies_elsewhere():
    """Both have the same diagonal, which was all that was compared."""
    up = Grid(90, 90, CRS.from_epsg(2154), rasterio.Affine(0.5, 0, 7, 0, -0.5, 7), ([], None))
    over = up._replace(transform=rasterio.Affine(0, 0.5, 7, -0.5, 0, 7))
    assert up.same_place(up)
    assert not up.same_place(over)


def test_oblong_pixels_are_said_once(make_raster, image, caplog):
    path = make_raster(image, crs="EPSG:2154", transform=rasterio.Affine(0.5, 0, 7, 0, -1, 7))
    for _ in range(8):
        Raster(path).close()
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: pixels are not square (0.5 x 1 in units of its CRS); read as squares of 0.7071 m"
    ]
