"""Polygons over blocks, against polygons of the whole."""

import json
from tempfile import TemporaryFile

import numpy as np
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import rasterize, shapes

from caswit.errors import ConfigError
from caswit.raster.georef import Grid
from caswit.raster.polygons import ClassPolygon, Merger, fragments
from caswit.raster.vector_files import Ground, PolygonWriter, check_vector
from caswit.raster.windows import Window

CUTS = st.lists(st.integers(1, 39), max_size=3, unique=True)


def classes_of(seed: int, size: int, kinds: int) -> np.ndarray:
    """(40, 50): random squares of some classes and nodata."""
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 2, 255][:kinds], (40 // size + 1, 50 // size + 1))
    return small.repeat(size, 0).repeat(size, 1)[:40, :50].astype(np.uint8)


def by_blocks(classes, rows, cols, simplify_px=0.0, leave_out=(), confidence=None) -> list[ClassPolygon]:
    height, width = classes.shape
    tops, lefts = [0, *sorted(rows), height], [0, *sorted(cols), width]
    found = []
    with TemporaryFile() as file:
        merger = Merger(file, height, width)
        for i in range(len(tops) - 1):
            for j in range(len(lefts) - 1):
                window = Window(tops[i], lefts[j], tops[i + 1] - tops[i], lefts[j + 1] - lefts[j])
                if (i, j) in leave_out:
                    continue
                inside = window.inside(Window(0, 0, height, width))
                sure = None if confidence is None else confidence[inside]
                found += merger.add(window, fragments(classes[inside], window, simplify_px, sure))
        found += merger.finish()
        assert not merger._parent
        assert not merger._groups
    return found


def of_whole(classes) -> list[ClassPolygon]:
    found = shapes(classes, mask=classes != 255, connectivity=4)
    return [ClassPolygon(int(value), shapely.geometry.shape(shape)) for shape, value in found]


def keyed(polygons: list[ClassPolygon]) -> dict:
    """Polygons by class and a point inside."""
    return {(p.class_id, *p.shape.bounds, p.shape.area): p.shape for p in polygons}


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3, 7]), st.sampled_from([2, 3, 4]), CUTS, CUTS)
def test_blocks_leave_no_trace(seed, size, kinds, rows, cols):
    """The same polygons with the same corners, however the map is cut."""
    classes = classes_of(seed, size, kinds)
    expected, found = keyed(of_whole(classes)), keyed(by_blocks(classes, rows, cols))
    assert found.keys() == expected.keys()
    for key, shape in found.items():
        assert shape.is_valid
        assert shape.equals(shapely.make_valid(expected[key]))
        assert len(shapely.get_coordinates(shape)) <= len(shapely.get_coordinates(expected[key])) + 2


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from([2, 3, 7]), CUTS, CUTS, st.floats(0.5, 4))
def test_simplified_neighbours_neither_part_nor_overlap(seed, size, rows, cols, simplify_px):
    classes = classes_of(seed, size, 4)
    exact, found = by_blocks(classes, rows, cols), by_blocks(classes, rows, cols, simplify_px)
    assert len(found) <= len(exact)
    shapes_found = [p.shape for p in found]
    covered = shapely.union_all(shapes_found).area
    assert sum(shape.area for shape in shapes_found) == pytest.approx(covered, abs=1e-6)  # no overlap
    with_nodata = classes.copy()
    with_nodata[classes == 255] = 9
    everything = [p.shape for p in by_blocks(with_nodata, rows, cols, simplify_px)]
    assert shapely.union_all(everything).area == pytest.approx(40 * 50, abs=1e-6)  # no gap
    assert sum(shape.area for shape in everything) == pytest.approx(40 * 50, abs=1e-6)


def test_simplifying_straightens_stairs():
    rows, cols = np.indices((40, 50))
    stairs = (rows > cols * 0.7).astype(np.uint8)
    exact, found = by_blocks(stairs, [20], [25]), by_blocks(stairs, [20], [25], 2.0)
    corners = [sum(len(shapely.get_coordinates(p.shape)) for p in some) for some in (exact, found)]
    assert corners[1] < corners[0] / 3
    for one, other in zip(sorted(exact), sorted(found), strict=True):
        assert one.shape.area == pytest.approx(other.shape.area, rel=0.05)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from([1, 3, 7]), CUTS, CUTS, st.sampled_from([0.0, 2.0]))
def test_confidence_is_the_mean_over_the_pixels_of_each_polygon(seed, size, rows, cols, simplify_px):
    """However blocks cut it; simplified edges do not change which pixels are its own."""
    classes = classes_of(seed, size, 4)
    percent = np.random.default_rng(seed).integers(0, 101, classes.shape).astype(np.uint8)
    found = by_blocks(classes, rows, cols, simplify_px, confidence=percent)
    means = []
    for value, shape, _ in of_whole(classes):  # independently: the pixels whose centres lie in the polygon
        inside = rasterize([shape], out_shape=classes.shape).astype(bool)
        assert set(classes[inside]) == {value}
        means.append((value, percent[inside].mean()))
    got = [(p.class_id, p.confidence) for p in found]
    np.testing.assert_allclose(np.reshape(sorted(got), (-1, 2)), np.reshape(sorted(means), (-1, 2)), rtol=1e-12)


def test_without_confidence_there_is_none():
    assert all(np.isnan(p.confidence) for p in by_blocks(classes_of(0, 3, 4), [20], [25]))


def test_blocks_that_never_come_end_polygons():
    classes = np.ones((40, 50), np.uint8)
    found = by_blocks(classes, [20], [25], leave_out={(0, 1), (1, 0)})
    assert sorted(p.shape.area for p in found) == [500, 500]
    assert by_blocks(classes, [20], [25], leave_out={(1, 0)})[0].shape.area == 1500


def grid(crs: str | None, gsd: float = 1.0, x: float = 0.0, y: float = 0.0) -> Grid:
    transform = rasterio.Affine(gsd, 0, x, 0, -gsd, y)
    return Grid(40, 50, rasterio.crs.CRS.from_string(crs) if crs else None, transform, ([], None))


SQUARE = np.array([shapely.box(0, 0, 10, 20)])


@pytest.mark.parametrize(
    ("where", "area_m2"),
    [
        (grid("EPSG:2154", 0.5, 700_000, 6_600_000), 50),
        (grid("EPSG:2263", 2, 980_000, 200_000), 800 * (1200 / 3937) ** 2),  # US feet
        (grid("EPSG:4326", 1e-4, 7, 46), 200 * 8.6e1),  # 11.1 m x 7.75 m each
        (grid("EPSG:3857", 2, 0, 8_399_738), 800 / 4),  # 60 degrees north: half as long
    ],
)
def test_areas_are_metres_on_the_ground(where, area_m2):
    ground = Ground(where)
    assert ground.areas_m2(ground.place(SQUARE))[0] == pytest.approx(area_m2, rel=0.01)
    told = Ground(where, 3 * where.source_gsd_m)  # the user contradicts the file
    assert told.areas_m2(told.place(SQUARE))[0] == pytest.approx(9 * ground.areas_m2(ground.place(SQUARE))[0])


@pytest.mark.parametrize("where", [grid(None), grid(None, 0.5, 30, 40)], ids=["pixels", "coordinates of nowhere"])
def test_areas_without_a_crs_need_to_be_told_the_size_of_a_pixel(where):
    assert np.isnan(Ground(where).areas_m2(Ground(where).place(SQUARE))[0])
    told = Ground(where, 0.25)
    assert told.areas_m2(told.place(SQUARE))[0] == pytest.approx(200 / 16)


def test_an_area_in_degrees_is_that_of_the_ellipsoid():
    ground = Ground(grid("EPSG:4326", 1e-3, 7, 46))
    (placed,) = ground.place(SQUARE)
    expected = abs(pyproj.Geod(ellps="WGS84").geometry_area_perimeter(placed)[0])
    assert ground.areas_m2(np.array([placed]))[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_every_format_holds_the_same(tmp_path, suffix, count, monkeypatch):
    monkeypatch.setattr("caswit.raster.vector_files._AT_ONCE", 3)  # several writes
    file = tmp_path / f"v{suffix}"
    where = grid("EPSG:2154", 0.5, 700_000, 6_600_000)
    with PolygonWriter(file, suffix, Ground(where), {3: "water"}, 4) as writer:
        for i in range(count):
            writer.add(ClassPolygon(3, shapely.box(4 * i, 0, 4 * i + 4, 5)))
            writer.add(ClassPolygon(3, shapely.box(0, 30, 1, 31)))  # too small
    assert writer.count == count
    if suffix == ".geojson":
        features = json.loads(file.read_text())["features"]
        assert len(features) == count
        for feature in features:
            assert feature["properties"] == {"class": 3, "name": "water", "area_m2": 5.0}
            shape = shapely.geometry.shape(feature["geometry"])
            assert shapely.is_ccw(shape.exterior)
            assert (2.9, 46.4) < shape.centroid.coords[0] < (3.1, 46.6)
        return
    if suffix == ".parquet":
        import geopandas

        table = geopandas.read_parquet(file)
    else:
        table = pyogrio.read_dataframe(file)
    assert table.crs.to_epsg() == 2154
    assert len(table) == count
    if count:
        assert (table["class"] == 3).all()
        assert (table["name"] == "water").all()
        assert table.geometry.area.tolist() == table["area_m2"].tolist() == [5.0] * count
        assert tuple(table.total_bounds) == (700_000, 6_599_997.5, 700_000 + 2 * count, 6_600_000)


class TestRefusals:
    def test_another_format(self, tmp_path):
        with pytest.raises(ConfigError, match=r"written as \.gpkg, \.parquet, \.geojson"):
            check_vector(tmp_path / "a.shp")


@pytest.mark.parametrize("simplify_px", [0.0, 2.0])
@pytest.mark.parametrize(
    "where",
    [
        grid("EPSG:3857", 0.3, 9_520_461, 3_202_788),
        grid("EPSG:4326", 3e-6, 85.5, 27.6),
        grid("EPSG:32645", 0.3, 350_000, 3_055_000),
        grid("EPSG:2154", 0.2, 720_000, 6_250_000),
    ],
    ids=lambda g: g.crs.to_string(),
)
def test_areas_of_a_map_add_up_to_that_of_its_image(where, simplify_px):
    """Simplified holes were added instead of taken away (#17): they wind as GEOS left them."""
    rows, cols = np.indices((40, 50))
    rings = (np.hypot(rows - 20, cols - 25) // 4 % 3).astype(np.uint8)  # each inside the next
    ground = Ground(where)
    polygons = np.array([p.shape for p in by_blocks(rings, [], [], simplify_px)], object)
    assert any(len(shape.interiors) for shape in polygons)
    expected = 2000 * where.transform.a**2  # a projected CRS is taken at its word
    if ground.crs.to_epsg() in (3857, 4326):  # independently of any rule for rings: planar on an equal-area projection
        image = ground.place(np.array([shapely.box(0, 0, 50, 40)]))
        to_equal = pyproj.Transformer.from_crs(ground.crs, 6933, always_xy=True)
        expected = shapely.area(shapely.transform(image, to_equal.transform, interleaved=False))[0]
    assert ground.areas_m2(ground.place(polygons)).sum() == pytest.approx(expected, rel=1e-3)
    # The smallest area by its size too: --min-area compares this number.
    smallest = polygons[shapely.area(polygons).argmin()]
    share = shapely.area(smallest) / 2000
    assert ground.areas_m2(ground.place(np.array([smallest])))[0] == pytest.approx(expected * share, rel=2e-3)


def test_min_area_compares_the_area_without_the_holes(tmp_path):
    """A ring of 36 m2 around a hole of 64 m2 that winds the same way is smaller than 50 m2 (#17)."""
    ring = shapely.Polygon([(0, 0), (0, 10), (10, 10), (10, 0)], [[(1, 1), (1, 9), (9, 9), (9, 1)]])
    where = grid("EPSG:3857", 1.0, 0, 0)  # on the equator
    with PolygonWriter(tmp_path / "v.gpkg", ".gpkg", Ground(where), {3: "water"}, 50) as writer:
        writer.add(ClassPolygon(3, ring))
        writer.add(ClassPolygon(3, shapely.box(20, 0, 28, 8)))
    assert writer.count == 1


@pytest.mark.parametrize("suffix", [".gpkg", ".parquet", ".geojson"])
def test_polygons_of_an_image_without_georeference_lie_where_qgis_shows_it(tmp_path, suffix, monkeypatch, recwarn):
    """They were mirrored above it (#17): QGIS puts row r of such an image at y = -r."""
    monkeypatch.setattr("caswit.raster.vector_files._AT_ONCE", 1)  # appends, of which pyogrio warned
    file = tmp_path / f".v{suffix}.0.tmp"
    where = Grid(40, 50, None, rasterio.Affine.identity(), ([], None))
    with PolygonWriter(file, suffix, Ground(where), {3: "water"}, 0) as writer:
        for i in range(3):
            writer.add(ClassPolygon(3, shapely.box(10, 5 + i, 20, 6 + i)))
    assert not [str(warning.message) for warning in recwarn]
    file = file.rename(tmp_path / f"v{suffix}")
    if suffix == ".parquet":
        import geopandas

        table = geopandas.read_parquet(file)
    else:
        table = pyogrio.read_dataframe(file)
    assert tuple(table.total_bounds) == (10, -8, 20, -5)
