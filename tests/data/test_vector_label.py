"""Labels that are vector files: a window is a part of the whole, and the whole is what independent code draws."""

import json
import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyproj import Transformer
from rasterio.features import rasterize

from caswit.cli.main import main
from caswit.data.dataset import load_dataset
from caswit.data.reader import open_dataset_scene
from caswit.errors import DataError
from caswit.raster.georef import Grid
from caswit.raster.vector_drawing import Drawing
from caswit.raster.vector_index import ShapeIndex, Shapes
from caswit.raster.windows import Window, tile_grid
from conftest import georeference, picture

HEIGHT, WIDTH = 90, 130
GSD, WEST, NORTH = 0.5, 700_000, 6_600_000
WITH_BACKGROUND = [
    {"id": 0, "name": "background"},
    {"id": 1, "name": "building"},
    {"id": 7, "name": "road"},
    {"id": 9, "name": "doubtful", "ignore": True},
]
WITHOUT = WITH_BACKGROUND[1:]
IGNORED = 255
BACKGROUND, BUILDING, ROAD = 0, 1, 2
GRID = Grid(HEIGHT, WIDTH, rasterio.CRS.from_epsg(2154), georeference()["transform"], ([], None))
"""Indices with a background."""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CASWIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def on_ground(shapes):
    """Bring shapes in pixels (x: column, y: row) to the ground of ``georeference()``."""
    return shapely.transform(np.array(shapes), lambda p: np.stack([WEST + GSD * p[:, 0], NORTH - GSD * p[:, 1]], 1))


def write(path: Path, shapes, columns=None, *, crs="EPSG:2154", kind="Unknown", **options) -> Path:
    columns = columns or {}
    wkb = np.array([None if s is None else shapely.to_wkb(s) for s in shapes], object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # says that there is no CRS
        fields = [np.array(values) for values in columns.values()]
        pyogrio.raw.write(path, wkb, fields, list(columns), crs=crs, geometry_type=kind, **options)
    return path


@pytest.fixture
def make(tmp_path, make_raster):
    """Function that writes an image and a dataset.yaml whose label is what is given."""

    def write_dataset(label, classes=WITH_BACKGROUND, **place) -> Path:
        make_raster(picture(HEIGHT, WIDTH), "image.tif", **(place or georeference()))
        scenes = [{"image": "image.tif", "label": label, "split": s} for s in ("train", "val", "test")]
        content = {"name": "drawn", "classes": classes, "scenes": scenes}
        (tmp_path / "dataset.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return tmp_path / "dataset.yaml"

    return write_dataset


def read(file, window: Window | None = None) -> np.ndarray:
    dataset = load_dataset(file)
    with open_dataset_scene(dataset, dataset.scenes[0]) as scene:
        window = window or scene.raster
        return scene.labels(window, np.ones((window.height, window.width), bool))


def refused(file) -> str:
    with pytest.raises(DataError) as caught:
        read(file)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def box(row, col, height, width):
    """A rectangle of pixels."""
    return shapely.box(col, row, col + width, row + height)


TWO = [box(10, 20, 30, 40), box(30, 40, 30, 40)]


class TestDrawing:
    def test_attributes_name_classes(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["Building", "road"]})
        found = read(make({"file": "a.gpkg", "attribute": "class"}))
        expected = np.full((HEIGHT, WIDTH), BACKGROUND)
        expected[10:40, 20:60] = BUILDING
        expected[30:60, 40:80] = ROAD  # later in the file, so on top
        np.testing.assert_array_equal(found, expected)

    @pytest.mark.parametrize("values", [[1, 7], [1.0, 7.0], ["1", "7"]])
    def test_ids_name_classes(self, make, tmp_path, values):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": values})
        found = read(make({"file": "a.gpkg", "attribute": "class"}))
        assert found[20, 30] == BUILDING
        assert found[50, 70] == ROAD

    def test_the_order_of_values_is_that_of_drawing(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["house", "street"]})
        label = {"file": "a.gpkg", "attribute": "class"}
        found = read(make({**label, "values": {"street": "road", "house": 1}}))
        assert found[35, 50] == BUILDING
        found = read(make({**label, "values": {"house": 1, "street": "road"}}))
        assert found[35, 50] == ROAD

    def test_beside_values_names_of_classes_still_name_them(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["Building", "quarry"]})
        found = read(make({"file": "a.gpkg", "attribute": "class", "values": {"quarry": None}}))
        assert found[35, 50] == BUILDING
        assert found[50, 70] == BACKGROUND

    def test_values_leave_out_ignore_and_stand_for_all_others(self, make, tmp_path):
        shapes = [box(0, 10 * i, 8, 8) for i in range(5)]
        write(tmp_path / "a.gpkg", on_ground(shapes), {"b": ["yes", "no", "ruin", None, "shed"]})
        values = {True: "building", "no": None, "ruin": "doubtful", None: "road", "*": "building"}
        found = read(make({"file": "a.gpkg", "attribute": "b", "values": values}))
        assert found[4, 4::10][:5].tolist() == [BUILDING, BACKGROUND, IGNORED, ROAD, BUILDING]

    def test_a_file_without_attribute_is_of_the_only_class(self, make, tmp_path):
        write(tmp_path / "a.geojson", on_ground(TWO))
        classes = WITH_BACKGROUND[:2]
        found = read(make("a.geojson", classes))
        assert (found == BUILDING).sum() == 2 * 30 * 40 - 10 * 20
        assert (found == BACKGROUND).sum() == HEIGHT * WIDTH - (2 * 30 * 40 - 10 * 20)
        assert (read(make({"file": "a.geojson", "class": "road"})) == ROAD).sum() == 2 * 30 * 40 - 10 * 20

    def test_elsewhere(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO[:1]))
        label = {"file": "a.gpkg", "class": "building"}
        assert read(make(label))[0, 0] == BACKGROUND
        assert read(make({**label, "elsewhere": "background"}))[0, 0] == BACKGROUND
        assert read(make({**label, "elsewhere": "ignore"}))[0, 0] == IGNORED
        assert read(make(label, WITHOUT))[0, 0] == IGNORED
        assert "the classes that are background are: 'none'" in refused(
            make({**label, "elsewhere": "background"}, WITHOUT)
        )

    def test_outside_of_annotated_areas_nothing_is_known(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO[:1]), layer="buildings")
        write(tmp_path / "a.gpkg", on_ground([box(0, 0, 20, WIDTH)]), layer="area", append=True)
        write(tmp_path / "area.geojson", on_ground([box(0, 0, 20, WIDTH)]))
        for annotated in ("area.geojson", {"file": "a.gpkg", "layer": "area"}):
            found = read(make({"file": "a.gpkg", "layer": "buildings", "class": 1, "annotated": annotated}))
            expected = np.full((HEIGHT, WIDTH), IGNORED)
            expected[:20] = BACKGROUND
            expected[10:20, 20:60] = BUILDING
            np.testing.assert_array_equal(found, expected)

    def test_lines_and_points_are_widened(self, make, tmp_path):
        line, point = shapely.LineString([(10, 20), (90, 20)]), shapely.Point(60, 60)
        write(tmp_path / "a.gpkg", on_ground([line, point, TWO[0]]), {"class": ["road", "tree", "road"]})
        label = {"file": "a.gpkg", "attribute": "class", "values": {"road": "road", "tree": "building"}}
        found = read(make({**label, "buffer_m": {"road": 2, "building": 5}}))
        assert (found[:, 80] == ROAD).sum() == 8  # 2 m to each side are 4 pixels
        assert (found == BUILDING).sum() == pytest.approx(np.pi * 10**2, rel=0.03)
        assert (found[:, 30] == ROAD).sum() == 30  # a polygon is no wider
        by_value = read(make({**label, "buffer_m": {"road": 2, "tree": 5}}))
        np.testing.assert_array_equal(found, by_value)
        for_all = read(make({**label, "buffer_m": 2}))
        assert (for_all == BUILDING).sum() == pytest.approx(np.pi * 4**2, rel=0.1)

    def test_nodata_of_the_image_is_ignored_and_so_is_all_around_it(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground([box(-50, -50, 300, 300)]))
        dataset = load_dataset(make({"file": "a.gpkg", "class": 1}))
        with open_dataset_scene(dataset, dataset.scenes[0]) as scene:
            valid = np.ones((40, 40), bool)
            valid[:, 30:] = False
            found = scene.native_labels(Window(-10, -10, 40, 40), valid)
        assert (found[10:, 10:30] == BUILDING).all()
        assert (found == BUILDING).sum() == 30 * 20
        assert (found == IGNORED).sum() == 40 * 40 - 30 * 20

    def test_an_image_without_georeference_is_drawn_on_in_pixels(self, make, tmp_path):
        """QGIS shows it below the x axis, GDAL's own programs above."""
        for sign in (1, -1):
            shapes = shapely.transform(np.array(TWO[:1]), lambda p, sign=sign: p * [1, sign])
            (tmp_path / "a.geojson").unlink(missing_ok=True)
            write(tmp_path / "a.gpkg", shapes, crs=None, layer=f"of{sign}", append=sign < 0)
            found = read(make({"file": "a.gpkg", "layer": f"of{sign}", "class": 1}, crs=None))
            assert (found[10:40, 20:60] == BUILDING).all()
            assert (found == BUILDING).sum() == 30 * 40


ends = st.integers(-20 * 8, 150 * 8).map(lambda n: n / 8)
starts, sides = st.integers(-30, 120), st.integers(1, 140)
triangles = st.lists(st.tuples(ends, ends), min_size=3, max_size=7)


def polygons(corners) -> list:
    made = [shapely.make_valid(shapely.Polygon(points)) for points in corners]
    parts = [part for shape in made for part in shapely.get_parts(shape) if part.geom_type == "Polygon"]
    # Corners on the grid of drawing, so that the oracle below draws the same shapes.
    return [shapely.transform(p, lambda xy: np.round(xy * 256) / 256) for p in parts]


def numbers(drawing: Drawing, window: Window) -> np.ndarray:
    """Return which shape is on top: its place in the file from 1, 0 where there is none."""
    ranks, values = drawing.draw(window)
    return np.array([0, *map(int, values)])[ranks]


class Memory:
    """Shapes as a ``ShapeIndex`` answers, without files: properties are tried on many."""

    def __init__(self, shapes) -> None:
        self.file, self.crs = Path("a.gpkg"), "EPSG:2154"
        self.shapes = on_ground(shapes)
        self.boxes = shapely.box(*shapely.bounds(self.shapes).T)
        self.bounds = tuple(shapely.total_bounds(self.shapes))

    def within(self, bounds, least=(0, 0), most=-1) -> Shapes:
        found = np.flatnonzero(shapely.intersects(self.boxes, shapely.box(*bounds)))
        return Shapes([*found], [str(n + 1) for n in found], self.shapes[found])


def order_of(shapes) -> dict[str, int]:
    return {str(n): 0 for n in range(1, len(shapes) + 1)}


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(corners=st.lists(triangles, min_size=1, max_size=6), row=starts, col=starts, height=sides, width=sides)
def test_a_window_is_a_part_of_the_whole(corners, row, col, height, width):
    """And the whole is what rasterio draws of all shapes in one call."""
    shapes = polygons(corners)
    if not shapes:
        return
    around, window = Window(-30, -30, HEIGHT + 60, WIDTH + 60), Window(row, col, height, width).clipped(HEIGHT, WIDTH)
    if not (window.height and window.width):
        return
    centres, touched = (Drawing(Memory(shapes), GRID, order_of(shapes), all_touched=t) for t in (False, True))
    for drawing in (centres, touched):
        np.testing.assert_array_equal(numbers(drawing, window), numbers(drawing, around)[window.inside(around)])
    whole = rasterize(
        [(shape, n) for n, shape in enumerate(shapes, 1)],
        out_shape=(around.height, around.width),
        transform=rasterio.Affine.translation(around.col, around.row),
        dtype="int32",
    )
    np.testing.assert_array_equal(numbers(centres, window), whole[window.inside(around)])


@pytest.mark.property
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(corners=st.lists(triangles, min_size=1, max_size=3))
def test_all_touched_draws_each_pixel_of_which_a_part_is_covered(corners):
    shapes = polygons(corners)
    if not shapes:
        return
    window = Window(20, 30, 40, 50)
    found = Drawing(Memory(shapes), GRID, order_of(shapes), all_touched=True).draw(window).ranks > 0
    rows, cols = np.indices((window.height, window.width)).reshape(2, -1)
    pixels = shapely.box(cols + 30, rows + 20, cols + 31, rows + 21)
    covered = shapely.area(shapely.intersection(pixels, shapely.union_all(shapes))).reshape(found.shape)
    assert found[covered > 1e-9].all()
    assert not found[covered == 0].any()


@pytest.mark.parametrize("touched", [False, True])
def test_tiles_of_a_file_make_up_the_whole(make, tmp_path, touched):
    """With thin triangles all over, one of them larger than the image, and lines."""
    rng = np.random.default_rng(0)
    shapes = [shapely.Polygon(rng.uniform(-10, 25, (3, 2)) + rng.uniform(0, 120, 2)) for _ in range(200)]
    shapes += [shapely.Polygon([(-900, 40), (900, 0), (900, 45)]), shapely.LineString([(-50, 80), (200, 20)])]
    write(tmp_path / "a.gpkg", on_ground(shapes), {"class": ["building", "road"] * 101})
    label = {"file": "a.gpkg", "attribute": "class", "buffer_m": 1, "all_touched": touched}
    file = make(label)
    whole = read(file)
    assert len(np.unique(whole)) == 3
    for tile in tile_grid(HEIGHT, WIDTH, 17, 3):
        np.testing.assert_array_equal(read(file, tile.window), whole[tile.window.inside(Window(0, 0, HEIGHT, WIDTH))])


def test_a_polygon_in_another_crs_lies_where_its_corners_do(make, tmp_path):
    """Within a quarter of a pixel: sides that are straight in degrees are curves on the image."""
    to_degrees = Transformer.from_crs(2154, 4326, always_xy=True)
    shape = shapely.Polygon([(20, 10), (100, 30), (60, 80)])
    degrees = shapely.transform(on_ground([shape]), lambda p: np.stack(to_degrees.transform(*p.T), 1))
    write(tmp_path / "a.geojson", degrees, crs="EPSG:4326")
    found = read(make({"file": "a.geojson", "class": "building"})) == BUILDING
    rows, cols = np.indices(found.shape)
    points = shapely.points(cols + 0.5, rows + 0.5)
    sure = shapely.distance(shape.exterior, points) > 0.25
    np.testing.assert_array_equal(found[sure], shapely.contains(shape, points)[sure])
    assert found.sum() > 1000


def test_pictures_of_any_size_show_the_labels(make, tmp_path):
    shapes = [*TWO, shapely.LineString([(5, 80), (120, 85)])]
    write(tmp_path / "a.gpkg", on_ground(shapes), {"class": ["building", "road", "road"]})
    write(tmp_path / "b.gpkg", on_ground([box(0, 0, HEIGHT, 100)]))
    label = {"file": "a.gpkg", "attribute": "class", "buffer_m": 2, "annotated": "b.gpkg"}
    dataset = load_dataset(make(label))
    with open_dataset_scene(dataset, dataset.scenes[0]) as scene:
        whole = scene.labels(scene.raster, np.ones((HEIGHT, WIDTH), bool))
        same = scene.drawn.read_coarse(scene.raster, HEIGHT, WIDTH)
        finer = scene.drawn.read_coarse(scene.raster, 3 * HEIGHT, 3 * WIDTH)
        outside = scene.drawn.read_coarse(Window(-30, -30, 60, 60), 20, 20)
    np.testing.assert_array_equal(same, whole)
    np.testing.assert_array_equal(finer[1::3, 1::3], whole)  # their centres are those of the image's pixels
    assert (outside[:10] == IGNORED).all()
    np.testing.assert_array_equal(outside[10:, 10:], whole[1:30:3, 1:30:3])


def test_coarser_pixels_take_the_nearest_label(make, tmp_path):
    write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["building", "road"]})
    dataset = load_dataset(make({"file": "a.gpkg", "attribute": "class"}))
    with open_dataset_scene(dataset.read_at(1.0), dataset.scenes[0]) as scene:
        found = scene.labels(scene.raster, np.ones((scene.height, scene.width), bool))
    assert found.shape == (45, 65)
    assert (found == ROAD).sum() == 15 * 20


class TestRefusals:
    """One line each, and exit status 2 where a user runs a command."""

    def test_unknown_values_are_listed_with_a_way_out(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground([*TWO, box(0, 0, 5, 5)]), {"k": ["buildings", "buildings", "road"]})
        said = refused(make({"file": "a.gpkg", "attribute": "k"}))
        assert "attribute 'k' has values that are no class: 'buildings' (2 shapes); classes are 0 background" in said
        assert "values: {buildings: building}" in said
        said = refused(make({"file": "a.gpkg", "attribute": "k", "values": {"buildings": "house"}}))
        assert "'house' is no class; classes are 0 background, 1 building" in said

    def test_every_unknown_value_has_its_own_way_out(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"k": ["rood", "quarry"]})
        assert "values: {rood: road, quarry: null}" in refused(make({"file": "a.gpkg", "attribute": "k"}))

    def test_beside_values_numbers_that_they_do_not_list_are_no_ids(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"k": [5, 1]})
        said = refused(make({"file": "a.gpkg", "attribute": "k", "values": {5: "building"}}))
        assert "has values that are no class: '1' (1 shape)" in said

    def test_an_unknown_attribute(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["building", "road"]})
        said = refused(make({"file": "a.gpkg", "attribute": "klass"}))
        assert "has no attribute 'klass'; it has 'class'" in said

    def test_an_unknown_layer_or_none_of_several(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), layer="roofs")
        said = refused(make({"file": "a.gpkg", "layer": "roads", "class": 1}))
        assert "has no layer of shapes 'roads'; it has 'roofs'" in said
        write(tmp_path / "a.gpkg", on_ground(TWO), layer="walls", append=True)
        assert "has 2 layers, 'roofs, walls'; say which" in refused(make({"file": "a.gpkg", "class": 1}))

    def test_no_crs(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), crs=None)
        assert "has no CRS, its image has one" in refused(make({"file": "a.gpkg", "class": 1}))
        write(tmp_path / "b.gpkg", on_ground(TWO))
        assert "its image has none" in refused(make({"file": "b.gpkg", "class": 1}, crs=None))

    @pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326", "EPSG:2056"])
    def test_a_wrong_crs(self, make, tmp_path, crs):
        write(tmp_path / "a.gpkg", on_ground(TWO), crs=crs)
        assert "its shapes lie outside the image (700010.0 65999" in refused(make({"file": "a.gpkg", "class": 1}))

    def test_nothing_in_it(self, make, tmp_path):
        write(tmp_path / "a.gpkg", [], kind="Polygon")
        assert "has no shapes" in refused(make({"file": "a.gpkg", "class": 1}))
        write(tmp_path / "b.gpkg", [None, shapely.Polygon()], kind="Polygon")
        assert "has no shapes" in refused(make({"file": "b.gpkg", "class": 1}))

    def test_invalid_rings(self, make, tmp_path):
        bow = shapely.Polygon([(0, 0), (50, 50), (50, 0), (0, 50)])
        write(tmp_path / "a.gpkg", on_ground([*TWO, bow, bow]))
        said = refused(make({"file": "a.gpkg", "class": 1}))
        assert "has 2 shapes that cannot be drawn: feature 3: Self-intersection[" in said
        assert "feature 4" in said
        ring = "POLYGON((0 0,1 0,nan 1,0 0))"
        (tmp_path / "b.csv").write_text(f'n,WKT\n1,"{ring}"\n2,"POLYGON((0 0,1 0,1 1,0 0))"\n')
        assert "feature 1: Invalid Coordinate" in refused(make({"file": "b.csv", "class": 1}, crs=None))

    def test_curves(self, make, tmp_path):
        (tmp_path / "a.csv").write_text('n,WKT\n1,"CURVEPOLYGON(CIRCULARSTRING(0 0,5 5,10 0,5 -5,0 0))"\n')
        assert "has curves" in refused(make({"file": "a.csv", "class": 1}, crs=None))

    def test_no_vector_file(self, make, tmp_path):
        (tmp_path / "a.gpkg").write_text("roofs")
        assert "not a vector file that GDAL reads" in refused(make({"file": "a.gpkg", "class": 1}))
        assert "not a vector file that GDAL reads" in refused(make({"file": "image.tif", "class": 1}))
        assert "no such file" in refused(make({"file": "b.gpkg", "class": 1}))
        assert "no such file" in refused(make({"file": "image.tif", "class": 1, "annotated": "b.gpkg"}))

    def test_a_damaged_file(self, make, tmp_path):
        file = write(tmp_path / "a.gpkg", on_ground(TWO * 500))
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2])
        refused(make({"file": "a.gpkg", "class": 1}))

    def test_lines_without_a_width(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground([TWO[0].exterior]), {"k": ["road"]})
        said = refused(make({"file": "a.gpkg", "attribute": "k"}))
        assert (
            "lines or points cover no pixels, and 1 shape of class 'road' are such; add buffer_m: {road: METRES}"
            in said
        )
        said = refused(make({"file": "a.gpkg", "attribute": "k", "buffer_m": {"raod": 2, "road": 1}}))
        assert "buffer_m names 'raod'" in said
        write(tmp_path / "b.gpkg", on_ground(TWO))
        said = refused(make({"file": "b.gpkg", "class": 1, "annotated": "a.gpkg"}))
        assert "annotated areas are polygons" in said

    def test_which_class_is_unknown(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO))
        said = refused(make("a.gpkg"))
        assert "which class are its shapes?" in said
        assert "add attribute: COLUMN" in said

    @pytest.mark.parametrize(
        ("entry", "says"),
        [
            ({"layer": "a"}, "missing file"),
            ({"file": "a.gpkg", "colour": "red"}, "unknown colour"),
            ({"file": "a.gpkg", "values": {"a": "road"}}, "values need attribute: COLUMN"),
            ({"file": "a.gpkg", "attribute": "k", "class": 1}, "leave out class or attribute"),
            ({"file": "a.gpkg", "annotated": "b", "elsewhere": "ignore"}, "leave out annotated or elsewhere"),
            ({"file": "a.gpkg", "elsewhere": "nothing"}, "must be one of background, ignore"),
            ({"file": "a.gpkg", "buffer_m": {"road": -1}}, "metres must be above 0"),
            ({"file": "a.gpkg", "buffer_m": "3 m"}, "buffer_m: must be a mapping, got '3 m'"),
            ({"file": "a.gpkg", "attribute": "k", "values": ["a"]}, "values: must be a mapping"),
            ({"file": "a.gpkg", "all_touched": "yes please"}, "all_touched: must be true or false"),
            ({"file": ["a", "b"]}, "file: must be text"),
        ],
    )
    def test_entries(self, make, tmp_path, entry, says):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"k": ["road", "road"]})
        assert says in refused(make(entry))


class TestIndex:
    def test_a_changed_file_is_read_again(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO[:1]))
        file = make({"file": "a.gpkg", "class": 1})
        first = read(file)
        np.testing.assert_array_equal(read(file), first)
        (tmp_path / "a.gpkg").unlink()
        write(tmp_path / "a.gpkg", on_ground(TWO[1:]))
        assert read(file)[50, 70] == BUILDING
        assert read(file)[20, 30] == BACKGROUND

    def test_a_file_that_changes_while_it_is_read(self, make, tmp_path, cache):
        """An index of other shapes is not taken for the one that was opened; nor is one that is gone."""
        write(tmp_path / "a.gpkg", on_ground(TWO[:1]))
        dataset = load_dataset(make({"file": "a.gpkg", "class": 1}))
        with open_dataset_scene(dataset, dataset.scenes[0]) as opened:
            (tmp_path / "a.gpkg").unlink()
            write(tmp_path / "a.gpkg", on_ground(TWO[1:]))
            ShapeIndex(tmp_path / "a.gpkg")
            with pytest.raises(DataError, match="was changed while it was read"):
                opened.labels(opened.raster, np.ones((HEIGHT, WIDTH), bool))
            next((cache / "vector").iterdir()).unlink()
            with pytest.raises(DataError, match=r"the index of .* cannot be read"):
                opened.labels(opened.raster, np.ones((HEIGHT, WIDTH), bool))

    def test_the_table_of_a_shapefile_belongs_to_it(self, make, tmp_path):
        write(tmp_path / "a.shp", on_ground(TWO), {"k": [1, 7]}, kind="Polygon")
        file = make({"file": "a.shp", "attribute": "k"})
        assert read(file)[20, 30] == BUILDING
        write(tmp_path / "b.shp", on_ground(TWO), {"k": [7, 1]}, kind="Polygon")
        (tmp_path / "b.dbf").replace(tmp_path / "a.dbf")
        assert read(file)[20, 30] == ROAD

    def test_it_is_made_once_and_shared(self, make, tmp_path, cache):
        write(tmp_path / "a.gpkg", on_ground(TWO))
        file = make({"file": "a.gpkg", "class": 1})
        read(file)
        (index,) = (cache / "vector").iterdir()
        before = index.stat().st_mtime_ns
        with multiprocessing.get_context("fork").Pool(2) as pool:
            both = pool.map(read, [file] * 4)
        assert all((each == both[0]).all() for each in both)
        assert [p.stat().st_mtime_ns for p in (cache / "vector").iterdir()] == [before]

    def test_a_damaged_index_is_made_again(self, make, tmp_path, cache):
        write(tmp_path / "a.gpkg", on_ground(TWO))
        file = make({"file": "a.gpkg", "class": 1})
        first = read(file)
        (index,) = (cache / "vector").iterdir()
        index.write_bytes(b"x" * 5000)
        np.testing.assert_array_equal(read(file), first)

    def test_only_shapes_near_the_window_are_read(self, tmp_path):
        shapes = [box(10 * i, 10 * i, 4, 4) for i in range(300)]
        index = ShapeIndex(write(tmp_path / "a.gpkg", on_ground(shapes)))
        seen = []
        within = index.within
        index.within = lambda *asked, **more: seen.append(within(*asked, **more)) or seen[-1]
        Drawing(index, GRID, {"": 0}).draw(Window(0, 0, 30, 30))
        assert seen[0].numbers == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["a.gpkg", "a.geojson", "a.fgb", "a.shp", "a.gml", "a.sqlite"])
def test_any_format_gives_the_same_labels(make, tmp_path, name):
    write(tmp_path / name, on_ground(TWO), {"k": [1, 7]}, kind="Polygon")
    # FlatGeobuf writes shapes in an order of its own.
    found = read(make({"file": name, "attribute": "k", "values": {1: "building", 7: "road"}}))
    assert (found == ROAD).sum() == 30 * 40
    assert (found == BUILDING).sum() == 30 * 40 - 10 * 20


@pytest.mark.e2e
@pytest.mark.usefixtures("shallow")
class TestCommands:
    """Labels that are shapes, where a user meets them."""

    @pytest.fixture
    def file(self, make, tmp_path):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["building", "road"]})
        return make({"file": "a.gpkg", "attribute": "class", "elsewhere": "ignore"})

    def test_train_evaluate_inspect_and_figures(self, file, tmp_path, capsys, make_raster):
        """Scores and losses are those of the raster that the shapes make."""
        content = yaml.safe_load(file.read_text())
        mask = read(file)
        ids = np.choose(np.minimum(mask, 3), [0, 1, 7, 9]).astype(np.uint8)
        make_raster(ids[None], "drawn.tif", **georeference())
        for scene in content["scenes"]:
            scene["label"] = "drawn.tif"
        raster_file = tmp_path / "raster.yaml"
        raster_file.write_text(yaml.safe_dump(content))
        logs = []
        for dataset in (file, raster_file):
            out = tmp_path / dataset.stem
            recipe = {
                "data": {"dataset": str(dataset), "val_split": None, "sampling": "labelled"},
                "model": {"size": "pico"},
                "tile": {"tile_px": 64, "context_factor": 2},
                "train": {"batch": 2, "max_steps": 2, "warmup_steps": 0, "keep": "last", "precision": "fp32"},
            }
            (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
            main(["train", str(tmp_path / "recipe.yaml"), "--out", str(out)])
            rows = (out / "log.csv").read_text().splitlines()
            logs.append([row.split(",")[:3] for row in rows])
        assert logs[0] == logs[1]
        out, model = tmp_path / "out", f"{tmp_path}/dataset/model"
        main(["evaluate", model, str(file), "--split", "test", "--out", f"{out}/scores"])
        confusion = json.loads((out / "scores" / "report.json").read_text())["confusion"]["pixels"]
        assert np.sum(confusion, 1).tolist() == [(mask == index).sum() for index in range(3)]
        main(["inspect", str(file), "--out", f"{out}/inspected", "--n", "1", "--tile_px", "64"])
        assert f"| building | {(mask == BUILDING).sum():,} |" in capsys.readouterr().out
        assert (out / "inspected" / "tile-01.png").is_file()
        page = (out / "inspected" / "report.html").read_text()
        assert "shapes of a.gpkg: 1 building as building, 1 road as road, the rest ignored" in page
        figures = ["--split", "test", "--tiles", "1", "--candidates", "2", "--out", f"{tmp_path}/figures"]
        main(["figures", model, str(file), *figures])

    @pytest.mark.parametrize("command", ["inspect", "train"])
    def test_a_mistake_is_one_line(self, file, tmp_path, capsys, command):
        write(tmp_path / "a.gpkg", on_ground(TWO), {"class": ["building", "rood"]})
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(yaml.safe_dump({"data": {"dataset": str(file)}, "train": {"max_steps": 1}}))
        out = str(tmp_path / "out")
        words = {
            "inspect": [str(file), "--out", out],
            "train": [str(recipe), "--out", out],
        }
        with pytest.raises(SystemExit) as left:
            main([command, *words[command]])
        assert left.value.code == 2
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("caswit: ")]
        assert "attribute 'class' has values that are no class: 'rood' (1 shape)" in line
        assert "say e.g. values: {rood: road}" in line
