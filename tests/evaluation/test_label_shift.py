"""Shifts of labels against their image are found to a pixel, and nothing is said where there is none."""

import cv2
import numpy as np
import pytest
import rasterio

from caswit.data.classes import ClassTable, LandClass
from caswit.data.dataset import load_dataset
from caswit.data.reader import SceneReader
from caswit.data.scene import Scene
from caswit.evaluation.label_shift import correlations, estimate_shift
from conftest import georeference

CLASSES = ClassTable((LandClass(id=0, name="land", color="#000000"), LandClass(id=1, name="roof", color="#ffffff")))
SIDE = 800


def roofs(seed):
    """(H, W) turned rectangles."""
    rng, found = np.random.default_rng(seed), np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(150):
        middle, sides, angle = rng.integers(0, SIDE, 2), rng.integers(15, 50, 2), rng.uniform(0, 90)
        box = cv2.boxPoints(((float(middle[0]), float(middle[1])), (float(sides[0]), float(sides[1])), angle))
        cv2.fillConvexPoly(found, box.astype(np.int32), 1)
    return found


def ground(mask, seed):
    """(3, H, W): roofs brighter or darker than the ground, with noise and shadows that are no outlines."""
    rng = np.random.default_rng(seed)
    _, each = cv2.connectedComponents(mask)
    tones = rng.integers(30, 230, each.max() + 1)
    tones[0] = 120
    clouds = cv2.GaussianBlur(rng.normal(0, 1, mask.shape), (0, 0), 6) * 200
    return (tones[each] + clouds + rng.normal(0, 12, (3, *mask.shape))).clip(0, 255).astype(np.uint8)


def shift_of(make_raster, image, label):
    image = make_raster(image, "a.tif", **georeference(0.2))
    label = make_raster(label[None], "a_label.tif", **georeference(0.2))
    with SceneReader(Scene(image=image, label=label), CLASSES) as opened:
        return estimate_shift(correlations(opened))


@pytest.mark.parametrize("by", [(0, 0), (1, -1), (3, 0), (5, -7), (-20, 13), (0, 40), (-60, 60)])
def test_known_shifts(make_raster, by):
    mask = roofs(1)
    found = shift_of(make_raster, ground(mask, 2), np.roll(mask, by, (0, 1)))
    assert (found.down_px, found.right_px) == pytest.approx(by, abs=0.6)
    assert found.sure > 0.95
    assert found.odd == (max(map(abs, by)) > 1)


@pytest.mark.parametrize("seed", range(4))
def test_labels_of_another_place_are_not_called_shifted(make_raster, seed):
    found = shift_of(make_raster, ground(roofs(10 + seed), seed), roofs(20 + seed))
    assert found.sure < 0.8
    assert not found.odd


def test_too_few_outlines_say_nothing(make_raster):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:300, :300] = 1
    assert shift_of(make_raster, ground(mask, 0), mask) is None


def test_words(make_raster):
    mask = roofs(1)
    found = shift_of(make_raster, ground(mask, 2), np.roll(mask, (5, -7), (0, 1)))
    said = found._replace(down_px=5.02, right_px=-7.0).said(0.2)
    assert said == "5.0 px too far down and 7.0 px too far left, 1.72 m"
    assert found._replace(down_px=-3.0, right_px=0.2).said(None) == "3.0 px too far up"
    assert found._replace(down_px=0.2, right_px=-0.1).said(0.2) == "in place within 0.2 px"


@pytest.mark.data
def test_banepa_as_it_is_and_shifted(real_data, tmp_path):
    """Footprints of OpenStreetMap over a drone's image: in place, and each way by known amounts."""
    data = load_dataset(real_data / "banepa" / "dataset.yaml")
    (scene,) = data.split("val")
    with rasterio.open(scene.label) as src:
        label, profile = src.read(), src.profile
    for by in ((0, 0), (-15, 21)):
        with rasterio.open(tmp_path / "label.tif", "w", **profile) as out:
            out.write(np.roll(label, by, (1, 2)))
        with SceneReader(Scene(image=scene.image, label=tmp_path / "label.tif"), data.classes) as opened:
            found = estimate_shift(correlations(opened))
        assert (found.down_px, found.right_px) == pytest.approx(by, abs=1), by
        assert found.sure > 0.95
        assert found.odd == (by != (0, 0))


@pytest.mark.data
@pytest.mark.parametrize(("name", "number"), [("herault", 1), ("dubai", 3)])
def test_careful_labels_are_in_place(real_data, name, number):
    data = load_dataset(real_data / name / "dataset.yaml")
    with SceneReader(data.scenes[number], data.classes) as opened:
        found = estimate_shift(correlations(opened))
    assert found.length_px < 1
    assert not found.odd
