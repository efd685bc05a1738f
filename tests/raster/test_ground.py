"""Areas of classes and distances on the ground."""

import numpy as np
import pytest
import rasterio
from pyproj import CRS, Geod, Transformer

from caswit.raster.georef import Grid
from caswit.raster.ground import class_areas, distance_km, regions, row_areas_m2

GEOD = Geod(ellps="WGS84")


def grid(crs: str, transform: rasterio.Affine, height: int = 40, width: int = 30) -> Grid:
    return Grid(height, width, rasterio.CRS.from_user_input(crs), transform, ([], None))


def geodesic_m2(of: Grid, row: int, steps: int = 50) -> float:
    """The area of a pixel in the middle of a row, by pyproj; edges of many corners, as parallels are no geodesics."""
    to_degrees = Transformer.from_crs(CRS.from_wkt(of.crs.to_wkt()), "OGC:CRS84", always_xy=True)
    along, col = np.linspace(0, 1, steps), of.width / 2
    cols = np.concatenate([col + along, np.full(steps, col + 1), col + 1 - along, np.full(steps, col)])
    rows = np.concatenate([np.full(steps, row), row + along, np.full(steps, row + 1), row + 1 - along])
    x, y = of.transform * (cols, rows)
    return abs(GEOD.polygon_area_perimeter(*to_degrees.transform(x, y))[0])


SOUTHWARDS = rasterio.Affine.scale(20, -20)
PLACES = {
    "degrees": ("EPSG:4326", rasterio.Affine(2e-3, 0, 85.5, 0, -1e-3, 61.6)),
    "Web Mercator": ("EPSG:3857", rasterio.Affine(150, 0, 9.52e6, 0, -150, 8.7e6)),
    "Mercator of an ellipsoid": ("EPSG:3395", rasterio.Affine(150, 0, 9.52e6, 0, -150, 8.7e6)),
    "rotated": ("EPSG:3857", rasterio.Affine.translation(9.52e6, 3.2e6) * rasterio.Affine.rotation(30) * SOUTHWARDS),
    "across 180": ("EPSG:4326", rasterio.Affine(2e-3, 0, 179.97, 0, -1e-3, -17.0)),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_rows_have_the_geodesic_area_of_their_pixels(place):
    of = grid(*PLACES[place])
    found = row_areas_m2(of)
    for row in (0, 17, 39):
        assert found[row] == pytest.approx(geodesic_m2(of, row), rel=1e-4 if place == "rotated" else 1e-6)
    assert found.shape == (40,)


def test_web_mercator_is_not_taken_for_metres():
    """At 61 degrees north a square of 150 m on the map is a fourth of that on the ground."""
    of = grid(*PLACES["Web Mercator"])
    assert row_areas_m2(of)[0] < 0.3 * 150**2


def test_projected_pixels_have_the_area_of_the_plane_in_square_metres():
    metres = grid("EPSG:2154", rasterio.Affine(0.2, 0, 7e5, 0, -0.2, 6.2e6))
    np.testing.assert_allclose(row_areas_m2(metres), 0.04)
    feet = grid("EPSG:2263", rasterio.Affine(1, 0, 1e6, 0, -1, 2e5))
    np.testing.assert_allclose(row_areas_m2(feet), (1200 / 3937) ** 2)


def test_what_the_user_says_of_pixels_wins_as_for_polygons():
    of = grid(*PLACES["degrees"])
    twice = row_areas_m2(of, 2 * of.source_gsd_m)
    np.testing.assert_allclose(twice, 4 * row_areas_m2(of))
    nowhere = of._replace(crs=None)
    assert row_areas_m2(nowhere) is None
    np.testing.assert_allclose(row_areas_m2(nowhere, 0.5), 0.25)


@pytest.mark.parametrize("place", ["degrees", "Web Mercator"])
def test_areas_of_classes_are_sums_over_their_pixels(make_raster, place, monkeypatch):
    monkeypatch.setattr("caswit.raster.ground._STRIP_PX", (16, 13))
    crs, transform = PLACES[place]
    ids = np.random.default_rng(0).choice([0, 3, 254, 255], (40, 30)).astype(np.uint8)
    ids[:20][ids[:20] == 3] = 0  # classes lie in different latitudes
    found = class_areas(make_raster(ids[None], nodata=255, crs=crs, transform=transform))
    assert found.keys() == {0, 3, 254}
    pixel = [geodesic_m2(grid(crs, transform), row) for row in range(40)]
    for i, area in found.items():
        assert area.pixels == (ids == i).sum()
        assert area.area_m2 == pytest.approx(sum(pixel[row] for row in np.nonzero(ids == i)[0]), rel=1e-6)


def test_without_georeference_there_are_pixels_alone(make_raster):
    ids = np.array([[1, 1, 255], [2, 1, 255]], np.uint8)
    found = class_areas(make_raster(ids[None], nodata=255))
    assert {i: tuple(area) for i, area in found.items()} == {1: (3, None), 2: (1, None)}


def test_distances_are_those_to_the_nearest_point_of_the_area():
    nepal, beziers = (85.51, 27.62, 85.53, 27.64), (3.1, 43.3, 3.2, 43.4)
    metres = GEOD.inv(3.15, 43.35, 85.51, 27.64)[2]
    assert distance_km(beziers, nepal) == pytest.approx(metres / 1000, rel=5e-3)
    assert distance_km((85.515, 27.625, 85.516, 27.626), nepal) == 0
    # Across the 180th meridian, from either side.
    assert distance_km((179.8, 0, 179.9, 0.1), (-179.9, 0, -179.0, 1)) == pytest.approx(27.8, abs=0.3)
    assert distance_km((179.9, -1, -179.9, 1), (170, -5, 175, 5)) == pytest.approx(555.9, abs=1)


def test_areas_near_each_other_are_one_region_and_others_are_not():
    """Between Nepal and France nothing was learned."""
    nepal, france = (85.5, 27.6, 85.6, 27.7), (3.2, 43.2, 3.7, 43.9)
    beside, between = (85.0, 27.5, 85.4, 27.6), (84.3, 27.5, 84.4, 27.6)
    assert regions([]) == []
    assert regions([nepal, france]) == [nepal, france]
    assert sorted(regions([nepal, france, beside])) == [france, (85.0, 27.5, 85.6, 27.7)]
    far = (83.4, 27.5, 83.5, 27.6)
    assert len(regions([beside, far])) == 2
    assert regions([beside, far, between]) == [(83.4, 27.5, 85.4, 27.6)]  # what lies between joins both
