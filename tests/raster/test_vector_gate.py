"""The gate of the viewer for vector files: nothing outside the folder is reached."""

import sqlite3
from contextlib import closing

import numpy as np
import pyogrio
import pytest
import shapely

from caswit.errors import DataError
from caswit.raster.gate import Gate
from caswit.raster.vector_gate import check_vector


@pytest.fixture
def root(tmp_path):
    inside = tmp_path / "shown"
    inside.mkdir()
    return inside


def write(path):
    wkb = np.array([shapely.to_wkb(shapely.box(0, 0, 1, 1))], object)
    pyogrio.raw.write(path, wkb, [], [], crs="EPSG:2154", geometry_type="Polygon")
    return path


@pytest.mark.parametrize(("name", "driver"), [("a.gpkg", "GPKG"), ("a.fgb", "FlatGeobuf"), ("a.shp", "ESRI Shapefile")])
def test_plain_formats_pass_and_gdal_takes_them_for_what_they_are(root, name, driver):
    file = write(root / name)
    assert check_vector(Gate(root), file) == driver == pyogrio.read_info(file)["driver"]


def test_files_outside_and_links_to_them_are_refused(root, tmp_path):
    outside = write(tmp_path / "a.gpkg")
    (root / "b.gpkg").symlink_to(outside)
    for file in (outside, root / "b.gpkg", root / "none.gpkg"):
        with pytest.raises(DataError, match="not a file in the folder"):
            check_vector(Gate(root), file)


def test_links_beside_a_shapefile_are_refused(root, tmp_path):
    file = write(root / "a.shp")
    (root / "a.dbf").rename(tmp_path / "a.dbf")
    (root / "a.dbf").symlink_to(tmp_path / "a.dbf")
    with pytest.raises(DataError, match=r"a\.dbf beside it"):
        check_vector(Gate(root), file)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.vrt", '<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>/etc/passwd</SrcDataSource></OGRVRTLayer>'),
        ("a.gpkg", '<OGRVRTDataSource><OGRVRTLayer name="a"/></OGRVRTDataSource>'),
        ("a.json", '{"type": "gdal_streamed_alg", "command_line": "gdal vector pipeline ! read /etc/passwd"}'),
        ("a.geojson", '{"type": "FeatureCollection", "crs": {"type": "link", "properties": {"href": "http://x"}}}'),
        ("a.fgb", "fgb"),
        ("a.shp", "not a shapefile"),
        ("a.xml", '<OGRWFSDataSource><URL>http://127.0.0.1/</URL></OGRWFSDataSource>'),
    ],
)  # fmt: skip
def test_descriptions_of_other_places_are_refused(root, name, content):
    (root / name).write_text(content)
    with pytest.raises(DataError, match="neither GeoPackage, FlatGeobuf nor a shapefile"):
        check_vector(Gate(root), root / name)


@pytest.mark.parametrize(
    "computed",
    [
        "CREATE VIEW roofs AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT * FROM n",
        "CREATE VIRTUAL TABLE words USING fts4(text)",
    ],
)
def test_geopackages_that_compute_are_refused(root, computed):
    file = write(root / "a.gpkg")
    with closing(sqlite3.connect(file)) as db:
        db.execute(computed)
        db.commit()
    with pytest.raises(DataError, match="is no table, but computed"):
        check_vector(Gate(root), file)


def test_a_geopackage_that_is_written_to_is_refused(root):
    file = write(root / "a.gpkg")
    (root / "a.gpkg-journal").write_bytes(b"x")
    with pytest.raises(DataError, match="a program is writing to it"):
        check_vector(Gate(root), file)
