"""Pixels and coordinates."""

import warnings

import pytest
import rasterio
from rasterio.control import GroundControlPoint

from caswit.errors import DataError
from caswit.raster.georef import ground_of, lonlat_of, pixel_at, pixel_at_lonlat
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
