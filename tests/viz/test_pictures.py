import base64
import io

import numpy as np
import pytest
from PIL import Image

from caswit.viz import pictures

COLOURS = np.array([[200, 10, 20], [30, 220, 40], [50, 60, 240]], np.uint8)
CLASSES = np.array([[0, 1], [2, 255]])


@pytest.fixture
def photo():
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def decode(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def test_colourise_paints_each_class_and_what_is_none():
    picture = pictures.colourise(CLASSES, COLOURS, ignore_colour=(1, 2, 3))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [
        [[200, 10, 20], [30, 220, 40]],
        [[50, 60, 240], [1, 2, 3]],
    ]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_colourise_takes_any_integer_type(dtype):
    classes = np.array([[0, 3, 254]], dtype)
    picture = pictures.colourise(classes, COLOURS)
    assert picture.tolist() == [[[200, 10, 20], [*pictures.IGNORED_COLOUR], [*pictures.IGNORED_COLOUR]]]


def test_overlay_mixes_classes_and_leaves_the_image_where_there_is_none():
    image = np.full((2, 2, 3), 100, np.uint8)
    picture = pictures.overlay(image, CLASSES, COLOURS, opacity=0.25)
    assert picture[0, 0].tolist() == [125, 78, 80]
    assert picture[1, 1].tolist() == [100, 100, 100]
    assert (image == 100).all()


def test_error_map_is_grey_where_right_red_where_wrong_hatched_where_ignored(photo):
    wrong, ignored = np.zeros((2, 40, 60), bool)
    wrong[:10] = True
    ignored[30:] = True
    picture = pictures.error_map(photo, wrong=wrong, ignored=ignored).astype(int)
    red, right, hatched = picture[:10], picture[10:30], picture[30:]
    assert (red[..., 0] > red[..., 1] + 50).all()
    assert (right == right[..., :1]).all()
    assert right.mean() < photo.mean()
    assert len(np.unique(hatched.reshape(-1, 3), axis=0)) == 2


def test_draw_box_outlines_the_window_and_may_reach_off_the_image(photo):
    before = photo.copy()
    picture = pictures.draw_box(photo, (10, 20, 8, 9), colour=(9, 8, 7), line_px=1)
    changed = np.argwhere((picture != photo).any(axis=2))
    assert changed.min(axis=0).tolist() == [10, 20]
    assert changed.max(axis=0).tolist() == [17, 28]
    assert (picture[10, 20:29] == (9, 8, 7)).all()
    assert np.array_equal(picture[13:15, 24:26], photo[13:15, 24:26])
    assert pictures.draw_box(photo, (-5, -5, 100, 100)).shape == photo.shape
    assert np.array_equal(photo, before)


def test_shrink_averages_images_and_never_enlarges(photo):
    small = pictures.shrink(photo, 30)
    assert small.shape == (20, 30, 3)
    assert abs(int(small[0, 0, 0]) - photo[:2, :2, 0].mean()) <= 1
    assert np.array_equal(pictures.shrink(photo, 600), photo)


def test_shrink_keeps_the_classes_of_a_class_map():
    classes = np.random.default_rng(0).choice([0, 4, 255], (37, 91))
    small = pictures.shrink(classes, 13)
    assert small.shape == (5, 13)
    assert set(np.unique(small)) == {0, 4, 255}
    assert np.array_equal(pictures.shrink(np.arange(9).reshape(1, 9), 3), [[1, 4, 7]])


def test_strip_sets_panels_of_one_height_side_by_side(photo):
    picture = pictures.strip([("image", photo), ("twice as tall", np.zeros((80, 10, 3), np.uint8))])
    header = picture.shape[0] - 80 - 6
    assert header > 12
    assert (picture[-6:] == 255).all()
    first = picture[header : header + 80, 6 : 6 + 120]
    assert np.array_equal(first[::2, ::2], photo)
    assert (picture[:header] < 100).any()  # the titles
    assert (picture[header : header + 80, 132:142] == 0).all()


def test_strip_never_cuts_a_title():
    image = np.zeros((40, 4, 3), np.uint8)
    long = pictures.strip([("a title much wider than its image", image)])
    short = pictures.strip([("a", image)])
    assert long.shape[1] > short.shape[1] + 100
    assert (long[:, -3:] == 255).all()


def test_stack_joins_pictures_on_white(photo):
    picture = pictures.stack([photo, photo[:, :10]])
    assert picture.shape == (80, 60, 3)
    assert np.array_equal(picture[:40], photo)
    assert (picture[40:, 10:] == 255).all()


def test_legend_shows_every_colour_and_wraps():
    names = ["building", "water", "herbaceous vegetation"]
    wide, narrow = (pictures.legend(names, COLOURS, width=width) for width in (900, 200))
    for picture in (wide, narrow):
        pixels = picture.reshape(-1, 3)
        assert all((pixels == colour).all(axis=1).sum() > 100 for colour in COLOURS)
    assert narrow.shape[0] > wide.shape[0]
    assert narrow.shape[1] == 200


def test_png_is_exact_and_jpeg_is_close():
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    assert np.array_equal(decode(pictures.png_bytes(smooth)), smooth)
    assert abs(decode(pictures.jpeg_bytes(smooth)).astype(int) - smooth).mean() < 5


@pytest.mark.parametrize(("photo_like", "kind"), [(False, "png"), (True, "jpeg")])
def test_data_uri_holds_the_image(photo, photo_like, kind):
    prefix, content = pictures.data_uri(photo, photo=photo_like).split(",")
    assert prefix == f"data:image/{kind};base64"
    assert decode(base64.b64decode(content)).shape == photo.shape


def test_pictures_show_red_green_and_blue_by_name():
    """A model of near infrared first was drawn in false colours; without names the first three bands show, or grey."""
    image = np.arange(5 * 6, dtype=np.uint8).reshape(5, 2, 3)
    names = ("nir", "red", "dsm", "green", "blue")
    np.testing.assert_array_equal(pictures.channels_last(image, names), np.moveaxis(image[[1, 3, 4]], 0, -1))
    for others in ((), ("a", "b", "c", "d", "e"), ("red", "green", "x", "y", "z")):
        np.testing.assert_array_equal(pictures.channels_last(image, others), np.moveaxis(image[:3], 0, -1))
    np.testing.assert_array_equal(pictures.channels_last(image[:1], ("nir",)), np.repeat(image[0][..., None], 3, -1))
