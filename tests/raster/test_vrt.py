"""Mosaics written as virtual rasters: cut into sheets, they read like one list of files, to the bit."""

from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from caswit.errors import DataError
from caswit.raster import vrt
from caswit.raster.labels import file_at
from caswit.raster.reader import Raster
from caswit.raster.vrt import Part, mosaic_files
from caswit.raster.windows import Window
from trees import write_tiff

SIDE = 12
WHERE = {"transform": (0.2, 0, 700_000, 0, -0.2, 6_600_000), "crs": "EPSG:2154"}


def write(folder, name, parts, size, **options):
    """The mosaic's path and the number of its files."""
    files = mosaic_files(name, parts, size, **WHERE, **options)
    for file, xml in files.items():
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(xml)
    return folder / f"{name}.vrt", len(files)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Ten files of different content and size, four bands; one in three has a hole, which a nodata value declares."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("tiles")
    made = []
    for number in range(10):
        height, width = (int(side) for side in rng.integers(SIDE // 2, 2 * SIDE, 2))
        pixels = rng.integers(1, 255, (4, height, width), np.uint8)
        nodata = 0 if number % 3 == 0 else None
        if nodata is not None:
            pixels[:, 2:5, 1:4] = nodata
            pixels[0, 0, 0] = nodata  # in one band alone it is a colour
        write_tiff(folder / f"{number}.tif", pixels, x=0, y=0, nodata=nodata)
        made.append((str(folder / f"{number}.tif"), pixels, nodata))
    return made


def pasted(parts, tiles, window, *, filled):
    """The pixels of a window and where they are valid, from arrays: an independent mosaic."""
    image = np.zeros((4, window.height, window.width), np.uint8)
    valid = np.zeros((window.height, window.width), bool)
    for part in parts:
        pixels = next(p for path, p, _ in tiles if path == part.path)
        for row, col in np.ndindex(pixels.shape[1:]):
            at = row + part.window.row - window.row, col + part.window.col - window.col
            if 0 <= at[0] < window.height and 0 <= at[1] < window.width:
                image[:, *at] = pixels[:, row, col]
                valid[at] = filled or part.nodata is None or (pixels[:, row, col] != part.nodata).any()
    return image, valid


places = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 90), st.integers(0, 130)), min_size=5, max_size=60)


@pytest.mark.property
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], max_examples=60)
@given(places=places, side=st.integers(1, 3), kind=st.sampled_from(["filled", "masks", "nodata"]), data=st.data())
def test_a_mosaic_of_sheets_reads_like_one_list_of_files(tmp_path, tiles, places, side, kind, data):
    parts = [Part(tiles[n][0], Window(row, col, *tiles[n][1].shape[1:]), tiles[n][2]) for n, row, col in places]
    if kind == "masks":  # files with a nodata value do not overlap
        parts = [p for i, p in enumerate(parts) if not any(all(p.window.common(q.window)[2:]) for q in parts[:i])]
    size = max(p.window.row + p.window.height for p in parts), max(p.window.col + p.window.width for p in parts)
    options = {"filled": {"bands": 4, "filled": True}, "masks": {"bands": 4}, "nodata": {"bands": 1, "nodata": 255}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vrt, "SHEET_PARTS", 1000)
        flat, one = write(tmp_path, "flat", parts, size, **options[kind])
        patch.setattr(vrt, "SHEET_PARTS", side)
        cut, several = write(tmp_path, "cut", parts, size, **options[kind])
    assert one == 1
    assert several > 1 or len(parts) <= side**2
    row, col = (data.draw(st.integers(-20, length)) for length in size)
    window = Window(row, col, data.draw(st.integers(1, 80)), data.draw(st.integers(1, 80)))
    with Raster(flat) as expected, Raster(cut) as found:
        assert found.grid == expected.grid
        if kind == "nodata":
            inside = window.clipped(*size)
            if inside.height and inside.width:
                np.testing.assert_array_equal(found.read_band(inside, 255), expected.read_band(inside, 255))
            return
        image, valid = pasted(parts, tiles, window, filled=kind == "filled")
        for bands in ((1, 2, 3), (4, 1, 2)):
            truth = image[[band - 1 for band in bands]] * valid, valid
            for ours, theirs, true in zip(
                found.read_image(window, bands), expected.read_image(window, bands), truth, strict=True
            ):
                np.testing.assert_array_equal(ours, theirs)
                np.testing.assert_array_equal(ours, true)


def regular(tmp_path, rows, cols):
    """Parts beside one another, each of its own value, and the values of the whole."""
    values = np.arange(1, rows * cols + 1, dtype=np.uint8).reshape(rows, cols)
    parts = []
    for (row, col), value in np.ndenumerate(values):
        path = tmp_path / f"{row}-{col}.tif"
        write_tiff(path, np.full((1, SIDE, SIDE), value, np.uint8), x=0, y=0)
        parts.append(Part(str(path), Window(row * SIDE, col * SIDE, SIDE, SIDE)))
    return parts, values.repeat(SIDE, 0).repeat(SIDE, 1)


def test_a_large_mosaic_is_cut_and_a_small_one_is_not(tmp_path):
    parts, values = regular(tmp_path, 9, 10)
    _, count = write(tmp_path, "small", parts[:64], values.shape, bands=1, nodata=255)
    assert count == 1
    large, count = write(tmp_path, "large", parts, values.shape, bands=1, nodata=255)
    assert count == 1 + 4
    with Raster(large) as raster:
        np.testing.assert_array_equal(raster.read_band(Window(0, 0, *values.shape), 0), values)
    # The mosaic itself names no file but its sheets, so that opening it does not grow with the files.
    assert large.read_text().count("<SimpleSource>") == 4


def test_sheets_are_placed_where_they_lie(tmp_path):
    parts, values = regular(tmp_path, 9, 10)
    write(tmp_path, "large", parts, values.shape, bands=1, nodata=255)
    sheets = sorted(tmp_path.glob("large-*/*.vrt"))
    assert [s.name for s in sheets] == ["0-0.vrt", "0-96.vrt", "96-0.vrt", "96-96.vrt"]
    with rasterio.open(sheets[-1]) as sheet:
        assert sheet.transform * (0, 0) == pytest.approx((700_000 + 96 * 0.2, 6_600_000 - 96 * 0.2))
        np.testing.assert_array_equal(sheet.read(1), values[96:, 96:])


def test_another_mosaic_of_the_same_name_has_other_sheets(tmp_path):
    parts, values = regular(tmp_path, 9, 10)
    before = mosaic_files("large", parts, values.shape, bands=1, nodata=255, **WHERE)
    after = mosaic_files("large", parts[1:], values.shape, bands=1, nodata=255, **WHERE)
    assert before.keys() & after.keys() == {"large.vrt"}


def test_the_file_of_a_pixel_is_named_through_sheets(tmp_path):
    parts, values = regular(tmp_path, 9, 10)
    for name, some in (("small", parts[:30]), ("large", parts)):
        path, _ = write(tmp_path, name, some, values.shape, bands=1, nodata=255)
        for part in (some[0], some[17], some[-1]):
            assert file_at(str(path), part.window.row + 3, part.window.col + SIDE - 1) == part.path
    assert file_at(str(tmp_path / "small.vrt"), 100, 3) == str(tmp_path / "small.vrt")


@pytest.mark.parametrize("files", [30, 90])
@pytest.mark.parametrize("kind", ["filled", "masks"])
def test_a_file_that_cannot_be_opened_is_an_error_every_time(tmp_path, files, kind):
    """GDAL said so once; the next window that touched it was black there and in all files after it."""
    parts, values = regular(tmp_path, 9, 10)
    path, _ = write(tmp_path, "mosaic", parts[:files], values.shape, bands=3, filled=kind == "filled")
    for part in parts:
        with rasterio.open(part.path) as src:
            pixels = src.read().repeat(3, 0)
        write_tiff(Path(part.path), pixels, x=0, y=0)
    broken = Path(parts[12].path)
    content = broken.read_bytes()
    here, elsewhere = Window(0, 0, 30, 120), Window(0, 60, 12, 60)
    with Raster(path) as raster, Raster(path) as other:
        for damage in (content[:100], None):
            broken.unlink()
            if damage:
                broken.write_bytes(damage)
            for _ in range(3):
                for each in (raster, other):
                    with pytest.raises(DataError, match="cannot read rows 0-30, columns 0-120"):
                        each.read_image(here)
                    np.testing.assert_array_equal(each.read_image(elsewhere)[0][0], values[:12, 60:])
        broken.write_bytes(content)
        image, valid = raster.read_image(here)
    np.testing.assert_array_equal(image[0], values[:30])
    assert valid.all()
