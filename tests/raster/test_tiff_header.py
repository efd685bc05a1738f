"""Headers read without GDAL say what GDAL says."""

import numpy as np
import pytest
import rasterio

from caswit.errors import DataError
from caswit.raster.tiff_header import _nodata, read_header
from conftest import georeference


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"},
        {"compress": "lzw", "interleave": "band"},
        {"bigtiff": "yes"},
        {"endianness": "big"},
        {"bigtiff": "yes", "endianness": "big", "tiled": True, "blockxsize": 16, "blockysize": 16},
        {"crs": "EPSG:4326"},
        {"crs": "EPSG:2056"},
        {"transform": rasterio.Affine(0.5, 0.1, 700_000, 0.1, -0.5, 6_600_000)},
        {"nodata": 3, "photometric": "rgb", "alpha": "yes"},
    ],
)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_it_says_what_gdal_says(make_raster, options, dtype):
    pixels = np.arange(4 * 50 * 70).reshape(4, 50, 70).astype(dtype)
    path = make_raster(pixels, **{**georeference(), **options})
    header = read_header(path)
    with rasterio.open(path) as src:
        assert (header.height, header.width, header.bands, header.dtype) == (*src.shape, src.count, src.dtypes[0])
        assert header.transform == pytest.approx(tuple(src.transform)[:6])
        assert header.crs == src.crs.to_string()
        assert header.nodata == (None if src.nodata is None else int(src.nodata))


def test_pixel_is_point_and_tags_far_from_the_start(make_raster):
    path = make_raster(np.zeros((1, 3000, 8), np.uint8), **georeference(), blockysize=1)
    with rasterio.open(path, "r+") as dst:
        dst.update_tags(AREA_OR_POINT="Point")
        dst.update_tags(**{f"KEY_{i}": "x" * 200 for i in range(40)})  # moves the directory to the end
    with rasterio.open(path) as src:
        assert src.tags()["AREA_OR_POINT"] == "Point"
        assert read_header(path).transform == pytest.approx(tuple(src.transform)[:6])
    assert read_header(path).height == 3000


@pytest.mark.parametrize(
    ("nodata", "read"), [("0", 0), ("255", 255), (" 7 ", 7), ("-9999", None), ("nan", None), ("1.5", None), ("?", None)]
)
def test_a_nodata_value_is_one_that_a_byte_can_have(nodata, read):
    assert _nodata(nodata.encode() + b"\0") == read


def test_without_a_georeference(make_raster):
    header = read_header(make_raster(np.zeros((1, 8, 8), np.uint8)))
    assert header.transform is None
    assert header.crs == ""


def test_a_file_cut_anywhere_is_refused(make_raster, image):
    path = make_raster(image, **georeference(), compress="deflate")
    content = path.read_bytes()
    assert read_header(path).bands == 3
    for length in [*range(0, 600, 7), *range(600, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match="truncated"):
            read_header(path)


@pytest.mark.parametrize(
    "content", [b"no TIFF at all", b"II\x2a\x00\xff\xff\xff\xff", b"\x89PNG\r\n", b"MM\x00\x2b" * 9]
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(DataError, match="not a TIFF"):
        read_header(tmp_path / "x.tif")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_header(tmp_path / "none.tif")
