"""A Cloud-Optimized GeoTIFF out of parts."""

import ctypes
import resource
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from rasterio.control import GroundControlPoint
from rio_cogeo import cog_validate

from caswit.errors import DataError
from caswit.raster.cog import PlacedPart, assemble, encode_part, read_part
from caswit.raster.georef import Grid
from caswit.raster.vrt import Band, TableRow
from caswit.raster.windows import Window

LAMBERT = rasterio.crs.CRS.from_epsg(2154)
PLACE = rasterio.Affine(0.5, 0, 700_000, 0, -0.5, 6_600_000)
CLASSES = Band(source=1, name="land cover class", palette={1: (1, 2, 3), 7: (4, 5, 6)}, tags={"CLASS_1": "a & <b>"})


@pytest.fixture
def values() -> np.ndarray:
    """(2, 1100, 700): class ids in patches, percent."""
    rng = np.random.default_rng(0)
    classes = rng.choice([1, 7], (110, 70)).repeat(10, 0).repeat(10, 1)
    return np.stack([classes, rng.integers(0, 101, classes.shape)]).astype(np.uint8)


def parts_of(values, folder, rows, cols, missing=()) -> list[PlacedPart]:
    folder.mkdir(exist_ok=True)
    found = []
    for top, bottom in pairwise(rows):
        for left, right in pairwise(cols):
            if (top, left) not in missing:
                file = folder / f"{top}-{left}.tif"
                file.write_bytes(encode_part(values[:, top:bottom, left:right]))
                found.append(PlacedPart(Window(top, left, bottom - top, right - left), file))
    return found


def test_parts_become_a_valid_file_with_everything_in_it(values, tmp_path):
    parts = parts_of(values, tmp_path / "parts", [0, 300, 800, 1100], [0, 333, 700], missing={(300, 333)})
    expected = values.copy()
    expected[:, 300:800, 333:] = 255
    out = tmp_path / "map.tif"
    assemble(
        out,
        tmp_path / "parts",
        Grid(1100, 700, LAMBERT, PLACE, ([], None)),
        parts,
        [CLASSES],
        {"CASWIT_MODEL": "m & <n>"},
    )
    assert cog_validate(out, strict=True, quiet=True) == (True, [], [])
    with rasterio.open(out) as found:
        np.testing.assert_array_equal(found.read(1), expected[0])
        assert (found.crs, found.transform, found.nodata) == (LAMBERT, PLACE, 255)
        assert found.colormap(1)[7] == (4, 5, 6, 255)
        assert found.tags()["CASWIT_MODEL"] == "m & <n>"
        tags = found.tags(1)
        assert (tags["CLASS_1"], tags["STATISTICS_MINIMUM"], tags["STATISTICS_MAXIMUM"]) == ("a & <b>", "1", "7")
        assert found.descriptions == ("land cover class",)
        assert found.overviews(1) == [2, 4]
    with rasterio.open(out, overview_level=0) as half:
        small = half.read(1)
    assert set(np.unique(small)) == {1, 7, 255}  # frequent classes, not means
    np.testing.assert_array_equal(small[:150, :150], expected[0, :300:2, :300:2])  # patches are 10 x 10
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.tif", "parts"]


def test_measured_values_have_means_in_overviews(values, tmp_path):
    parts = parts_of(values, tmp_path / "parts", [0, 1100], [0, 700])
    bands = [Band(source=2, name="confidence"), Band(source=1, name="other")]
    assemble(tmp_path / "c.tif", tmp_path / "parts", Grid(1100, 700, LAMBERT, PLACE, ([], None)), parts, bands, {})
    with rasterio.open(tmp_path / "c.tif") as found:
        np.testing.assert_array_equal(found.read(), values[::-1])
        assert found.descriptions == ("confidence", "other")
    with rasterio.open(tmp_path / "c.tif", overview_level=0) as half:
        mean = values[1].reshape(550, 2, 350, 2).mean((1, 3))
        assert np.abs(half.read(1) - mean).max() <= 0.5


def test_images_placed_by_control_points_or_not_at_all(values, tmp_path, recwarn):
    parts = parts_of(values[:, :50, :60], tmp_path / "parts", [0, 50], [0, 60])
    points = [GroundControlPoint(row=r, col=c, x=7 + c / 1e3, y=46 - r / 1e3) for r in (0, 50) for c in (0, 60)]
    placed = Grid(50, 60, None, rasterio.Affine.identity(), (points, rasterio.crs.CRS.from_epsg(4326)))
    assemble(tmp_path / "gcp.tif", tmp_path / "parts", placed, parts, [CLASSES], {})
    assemble(tmp_path / "none.tif", tmp_path / "parts", placed._replace(gcps=([], None)), parts, [CLASSES], {})
    assert not recwarn.list
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        assert rasterio.open(tmp_path / "none.tif").crs is None
    with rasterio.open(tmp_path / "gcp.tif") as found:
        there, crs = found.gcps
        assert crs.to_epsg() == 4326
        assert [(p.row, p.col, p.x, p.y) for p in there] == [(p.row, p.col, p.x, p.y) for p in points]


TABLE = (TableRow(1, "a & <b>", (1, 2, 3, 0)), TableRow(7, "forêt", (4, 5, 6, 255)))


def with_and_without_table(values, folder: Path) -> tuple[Path, Path]:
    parts = parts_of(values, folder / "parts", [0, 1100], [0, 700])
    grid = Grid(1100, 700, LAMBERT, PLACE, ([], None))
    for name, band in (("plain", CLASSES), ("named", replace(CLASSES, table=TABLE))):
        assemble(folder / f"{name}.tif", folder / "parts", grid, parts, [band], {})
    return folder / "plain.tif", folder / "named.tif"


def test_a_table_of_names_lies_inside_and_changes_nothing_else(values, tmp_path):
    plain, named = with_and_without_table(values, tmp_path)
    assert not [file for file in tmp_path.iterdir() if ".aux" in file.name]
    assert cog_validate(named, strict=True, quiet=True) == (True, [], [])
    for level in ({}, {"overview_level": 0}):
        with rasterio.open(plain, **level) as one, rasterio.open(named, **level) as other:
            np.testing.assert_array_equal(one.read(), other.read())
            assert one.tags(1) == other.tags(1)  # versions of GDAL that do not know it pass over it
            assert one.profile == other.profile
            if not level:
                assert one.colormap(1) == other.colormap(1)
    content = named.read_bytes()
    assert content.count(b"<GDALRasterAttributeTable") == 1
    assert b'name="TABLE"' not in content


@pytest.mark.equivalence
def test_gdal_reads_the_table_from_the_file_alone(values, tmp_path):
    """GDAL does from 3.12 on: rasterio's is older, so that which pyogrio brings is asked."""
    _, named = with_and_without_table(values, tmp_path)
    alone = named.rename(tmp_path / "mailed.tif")
    libraries = list((Path(pyogrio.__file__).parents[1] / "pyogrio.libs").glob("libgdal*"))
    if not libraries or pyogrio.__gdal_version__ < (3, 12):
        pytest.skip("no GDAL from 3.12 on here")
    gdal = ctypes.CDLL(str(libraries[0]))
    for function in (gdal.GDALOpen, gdal.GDALGetRasterBand, gdal.GDALGetDefaultRAT):
        function.restype = ctypes.c_void_p
    gdal.GDALRATGetValueAsString.restype = ctypes.c_char_p
    gdal.GDALAllRegister()
    dataset = ctypes.c_void_p(gdal.GDALOpen(str(alone).encode(), 0))
    band = ctypes.c_void_p(gdal.GDALGetRasterBand(dataset, 1))
    table = ctypes.c_void_p(gdal.GDALGetDefaultRAT(band))
    assert table.value
    name, minmax, alpha = 2, 5, 9  # GDALRATFieldUsage
    columns = [gdal.GDALRATGetColOfUsage(table, usage) for usage in (minmax, name, 6, 7, 8, alpha)]
    rows = [
        tuple(gdal.GDALRATGetValueAsString(table, row, column).decode() for column in columns)
        for row in range(gdal.GDALRATGetRowCount(table))
    ]
    gdal.GDALClose(dataset)
    assert rows == [(str(r.value), r.name, *map(str, r.rgba)) for r in TABLE]


def test_no_part_at_all_is_nodata(tmp_path):
    out = tmp_path / "map.tif"
    (tmp_path / "parts").mkdir()
    assemble(out, tmp_path / "parts", Grid(40, 50, LAMBERT, PLACE, ([], None)), [], [CLASSES], {})
    with rasterio.open(out) as found:
        assert (found.read(1) == 255).all()


def test_a_full_disk_is_noticed(values, tmp_path, capfd):
    noise = np.random.default_rng(1).integers(0, 250, (1, 600, 600), dtype=np.uint8)
    parts = parts_of(noise, tmp_path / "parts", [0, 600], [0, 600])
    grid = Grid(600, 600, LAMBERT, PLACE, ([], None))
    assemble(tmp_path / "whole.tif", tmp_path / "parts", grid, parts, [CLASSES], {})
    size = (tmp_path / "whole.tif").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for share in (0.01, 0.5, 0.99, 0.9999):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), before[1]))
        try:
            with pytest.raises((DataError, OSError), match=r"is the disk full|File too large"):
                assemble(tmp_path / "cut.tif", tmp_path / "parts", grid, parts, [CLASSES], {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    capfd.readouterr()


def test_a_part_that_was_damaged(tmp_path):
    (tmp_path / "part.tif").write_bytes(b"II*junk")
    with pytest.raises(DataError, match="try --restart"):
        read_part(tmp_path / "part.tif")


def test_a_failure_of_gdal_without_a_word(values, tmp_path, monkeypatch):
    """Some damaged parts make rasterio raise SystemError, which was a traceback."""

    def fail(*_, **__):
        raise SystemError("Unknown GDAL Error")

    monkeypatch.setattr("rasterio.shutil.copy", fail)
    (tmp_path / "parts").mkdir()
    with pytest.raises(DataError, match="Unknown GDAL Error"):
        assemble(tmp_path / "map.tif", tmp_path / "parts", Grid(40, 50, LAMBERT, PLACE, ([], None)), [], [CLASSES], {})
