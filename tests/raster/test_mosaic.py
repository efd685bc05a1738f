"""Many files read as one."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caswit.errors import DataError
from caswit.raster.mosaic import Mosaic, build_mosaic, open_image
from caswit.raster.windows import Window
from conftest import georeference

GSD = 0.5


def at(row: int, col: int) -> dict:
    """Georeference of a file that begins at this pixel of the whole."""
    return georeference(GSD, x=700_000 + GSD * col, y=6_600_000 - GSD * row)


@pytest.fixture
def cut(make_raster, image):
    """Function that writes parts of the (90, 130) image to files and returns their names."""

    def write(*parts: Window, **options) -> list[str]:
        names = []
        for number, part in enumerate(parts):
            rows, cols = part.inside(Window(0, 0, 90, 130))
            options_here = {**at(part.row, part.col), **options}
            names.append(str(make_raster(image[:, rows, cols], f"part{number}.tif", **options_here)))
        return names

    return write


QUARTERS = Window(0, 0, 40, 70), Window(0, 70, 40, 60), Window(40, 0, 50, 70), Window(40, 70, 50, 60)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(st.integers(-20, 100), st.integers(-20, 140), st.integers(1, 60), st.integers(1, 60))
def test_files_side_by_side_read_as_the_whole(cut, image, row, col, height, width):
    padded = np.pad(image, ((0, 0), (60, 160), (60, 160)))
    with open_image(*build_mosaic(cut(*QUARTERS))) as mosaic:
        pixels, valid = mosaic.read_image(Window(row, col, height, width))
    expected = padded[:, row + 60 : row + 60 + height, col + 60 : col + 60 + width]
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, expected.any(axis=0))  # the picture is nowhere 0


def test_the_grid_is_that_of_all_files_whatever_their_order(cut):
    for names in (cut(*QUARTERS), cut(*QUARTERS)[::-1]):
        _, grid = build_mosaic(names)
        assert (grid.height, grid.width) == (90, 130)
        assert tuple(grid.transform)[:6] == pytest.approx((GSD, 0, 700_000, 0, -GSD, 6_600_000))


def test_gaps_are_not_valid_and_surely_empty(cut):
    names = cut(QUARTERS[0], QUARTERS[3])
    with open_image(*build_mosaic(names)) as mosaic:
        _, valid = mosaic.read_image(Window(0, 0, 90, 130))
        assert mosaic.is_empty(Window(0, 70, 40, 60))
        assert not mosaic.is_empty(Window(0, 60, 40, 60))
    assert valid[:40, :70].all()
    assert valid[40:, 70:].all()
    assert valid.sum() == 40 * 70 + 50 * 60


def test_the_later_file_lies_on_top_where_it_has_data(make_raster):
    below = np.full((3, 10, 20), 50, np.uint8)
    above = np.full((3, 10, 20), 90, np.uint8)
    above[:, :, 5:] = 0  # nodata
    names = [str(make_raster(below, "a.tif", **at(0, 0))), str(make_raster(above, "b.tif", nodata=0, **at(0, 10)))]
    with open_image(*build_mosaic(names)) as mosaic:
        pixels, valid = mosaic.read_image(Window(0, 0, 10, 30))
    assert pixels[0, 0].tolist() == [50] * 10 + [90] * 5 + [50] * 5 + [0] * 10
    assert valid[0].tolist() == [True] * 20 + [False] * 10
    with open_image(*build_mosaic(names[::-1])) as mosaic:
        assert mosaic.read_image(Window(0, 0, 10, 30))[0][0, 0].tolist() == [50] * 20 + [0] * 10


def test_at_most_some_files_are_open(cut, monkeypatch):
    monkeypatch.setattr("caswit.raster.mosaic._OPEN_FILES", 2)
    names = cut(*QUARTERS)
    with Mosaic(*build_mosaic(names)) as mosaic:
        once = mosaic.read_image(Window(0, 0, 90, 130))[0]
        assert len(mosaic._open) == 2
        np.testing.assert_array_equal(mosaic.read_image(Window(0, 0, 90, 130))[0], once)


def test_a_broken_file_is_named(cut, tmp_path):
    names = cut(*QUARTERS, tiled=True, blockxsize=16, blockysize=16, compress="deflate")
    (tmp_path / "part2.tif").write_bytes((tmp_path / "part2.tif").read_bytes()[:4000])
    with open_image(*build_mosaic(names)) as mosaic, pytest.raises(DataError, match=r"part2\.tif: cannot read rows"):
        mosaic.read_image(Window(0, 0, 90, 130))


class TestRefusals:
    def refused(self, *names) -> str:
        with pytest.raises(DataError) as caught:
            build_mosaic([str(name) for name in names])
        return str(caught.value)

    def test_another_crs(self, make_raster, image):
        one = make_raster(image, "a.tif", **at(0, 0))
        other = make_raster(image, "b.tif", **georeference(crs="EPSG:32632"))
        assert "b.tif: its CRS is EPSG:32632, that of " in self.refused(one, other)

    def test_another_size_of_pixel(self, make_raster, image):
        one = make_raster(image, "a.tif", **at(0, 0))
        other = make_raster(image, "b.tif", **georeference(0.25))
        assert "px off the grid of" in self.refused(one, other)

    def test_half_a_pixel_off(self, make_raster, image):
        one = make_raster(image, "a.tif", **at(0, 0))
        other = make_raster(image, "b.tif", **georeference(GSD, x=700_000 + 50.25))
        assert "0.5 px off the grid" in self.refused(one, other)

    def test_no_georeference(self, make_raster, image):
        message = self.refused(make_raster(image, "a.tif"), make_raster(image, "b.tif"))
        assert "has no georeference" in message

    def test_a_file_with_too_few_bands(self, make_raster, image):
        one = make_raster(image, "a.tif", **at(0, 0))
        assert "b.tif: has 2 bands" in self.refused(one, make_raster(image[:2], "b.tif", **at(0, 130)))
