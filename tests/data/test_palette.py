"""Colours of classes that were given none."""

import colorsys
import itertools

import numpy as np
import pytest
import yaml

from caswit.data.classes import ClassTable
from caswit.data.dataset import load_dataset
from caswit.data.palette import IGNORED, OKABE_ITO, default_color
from caswit.data.published_classes import FLAIR_HUB_CLASSES
from caswit.errors import DataError
from caswit.viz.pictures import IGNORED_COLOUR
from caswit.weights.model_folder import load_model

# Severity 1 of Machado, Oliveira and Fernandes (2009), for linear RGB.
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of #rrggbb as someone sees it."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(seen) @ linear, 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    share = to_xyz @ linear / np.array([0.9505, 1, 1.089])
    f = np.where(share > 0.008856, np.cbrt(share), 7.787 * share + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def closest(colors, seen) -> float:
    places = [lab(color, seen) for color in colors]
    return min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(places, 2))


@pytest.mark.parametrize("who", SEEN_BY)
def test_eight_colours_are_told_apart_by_everyone(who):
    """A difference of 2.3 can just be seen; the bar is several times that, and red, green, brown would fail it."""
    assert closest([default_color(i) for i in range(8)], SEEN_BY[who]) > 9


def test_the_bar_can_be_missed():
    assert closest(["#d7301f", "#4f7d1f", "#8c5a2b"], SEEN_BY["deuteranopes"]) < 9


HUES = {"water": (190, 240), "vegetation": (90, 150), "building": (0, 20), "land": (25, 45)}
"""Degrees on the wheel: blue, green, red, tan."""


def test_the_model_of_dubai_has_colours_that_people_expect():
    for each in load_model("swin-nano-dubai").info.classes.predicted:
        hue, _, strength = colorsys.rgb_to_hls(*(v / 255 for v in each.rgb))
        if each.name == "road":
            assert strength == 0, "roads are grey"
        else:
            least, most = HUES[each.name]
            assert least <= 360 * hue <= most, each


@pytest.mark.parametrize("who", SEEN_BY)
def test_the_model_of_dubai_has_colours_that_everyone_tells_apart(who):
    """From each other, and from the grey of pixels without a label."""
    colors = [c.color for c in load_model("swin-nano-dubai").info.classes.predicted]
    assert closest(colors, SEEN_BY[who]) > 25
    assert closest([*colors, "#" + bytes(IGNORED_COLOUR).hex()], SEEN_BY[who]) > 20


@pytest.mark.data
def test_herault_has_the_colours_of_ign(real_data):
    table = load_dataset(real_data / "herault" / "dataset.yaml").classes
    assert [(c.id, c.color) for c in table.classes] == [(c.id, c.color) for c in FLAIR_HUB_CLASSES.classes]


def test_further_colours_differ():
    colors = [default_color(i) for i in range(40)]
    assert colors[:8] == list(OKABE_ITO)
    assert len(set(colors)) == 40


def test_a_class_table_may_leave_colours_out():
    rows = [
        {"id": 0, "name": "void", "ignore": True},
        {"id": 1, "name": "roof"},
        {"id": 2, "name": "tree", "color": "#102030"},
    ]
    rows += [{"id": 3, "name": "water"}]
    table = ClassTable.from_dicts(rows, "x")
    assert [c.color for c in table.classes] == [IGNORED, OKABE_ITO[0], "#102030", OKABE_ITO[2]]
    assert ClassTable.from_dicts(table.to_dicts(), "x") == table


def test_a_wrong_colour_is_still_refused():
    with pytest.raises(DataError, match="color must look like"):
        ClassTable.from_dicts([{"id": 1, "name": "roof", "color": "red"}], "x")


def test_a_dataset_without_colours_can_be_read(dataset_file):
    content = yaml.safe_load(dataset_file.read_text())
    for row in content["classes"]:
        del row["color"]
    dataset_file.write_text(yaml.safe_dump(content))
    assert load_dataset(dataset_file).classes.colors.shape == (3, 3)
