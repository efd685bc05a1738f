"""A sieved map against GDAL's sieve of the whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.features import sieve

from caswit.errors import DataError
from caswit.raster.cog import PlacedPart, encode_part, read_part
from caswit.raster.sieve import sieved_parts
from caswit.raster.windows import Window

CUTS = st.lists(st.integers(1, 39), max_size=3, unique=True)
WHOLE = Window(0, 0, 40, 50)


def in_parts(folder, classes, rows, cols, *, leave_out=()) -> list[PlacedPart]:
    tops, lefts = [0, *sorted(rows), 40], [0, *sorted(cols), 50]
    parts = []
    for i in range(len(tops) - 1):
        for j in range(len(lefts) - 1):
            window = Window(tops[i], lefts[j], tops[i + 1] - tops[i], lefts[j + 1] - lefts[j])
            if (i, j) not in leave_out:
                file = folder / f"{i}-{j}.tif"
                file.write_bytes(encode_part(classes[window.inside(WHOLE)][None]))
                parts.append(PlacedPart(window, file))
    return parts


def sieved(folder, parts, least_px) -> np.ndarray:
    found = np.full((40, 50), 255, np.uint8)
    with sieved_parts(folder, 40, 50, parts, least_px) as written:
        for window, file in written:
            found[window.inside(WHOLE)] = read_part(file)
    return found


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.sampled_from([1, 2, 3]), st.sampled_from([2, 3, 4]), st.integers(1, 60), CUTS, CUTS)
def test_the_result_is_that_of_the_whole_map_however_it_is_cut(tmp_path_factory, seed, size, kinds, least, rows, cols):
    rng = np.random.default_rng(seed)
    small = rng.choice([0, 1, 254, 255][-kinds:], (40 // size + 1, 50 // size + 1))
    classes = small.repeat(size, 0).repeat(size, 1)[:40, :50].astype(np.uint8)
    folder = tmp_path_factory.mktemp("parts")
    parts = in_parts(folder, classes, rows, cols)
    expected = sieve(classes, least, mask=classes != 255, connectivity=4)
    expected[classes == 255] = 255
    np.testing.assert_array_equal(sieved(folder, parts, least), expected)
    assert not [*folder.glob(".sieve*")]


def test_an_area_that_blocks_cut_counts_as_a_whole(tmp_path):
    """Sieving block by block would take it away: it has 8 pixels in each of two blocks."""
    classes = np.zeros((40, 50), np.uint8)
    classes[10:12, 21:29], classes[30, 25] = 1, 2
    parts = in_parts(tmp_path, classes, [20], [25])
    found = sieved(tmp_path, parts, 16)
    assert (found == 1).sum() == 16
    assert not (found == 2).any()
    assert not (sieved(tmp_path, parts, 17) == 1).any()


def test_blocks_without_data_stay_without(tmp_path):
    classes = np.ones((40, 50), np.uint8)
    classes[0, 0] = 3
    found = sieved(tmp_path, in_parts(tmp_path, classes, [20], [25], leave_out={(1, 0)}), 5)
    assert (found[20:, :25] == 255).all()
    assert (found == 1).sum() == 1500


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(DataError, match="could not be sieved; are 2e-06 GB free there"):
        sieved(tmp_path, in_parts(tmp_path, np.ones((40, 50), np.uint8), [], []), 5)
    assert not [*tmp_path.glob(".sieve*")]
