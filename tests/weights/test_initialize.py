"""The section ``init`` of a recipe."""

import pytest

from caswit.config import DataConfig, InitConfig, Recipe, parse_init
from caswit.errors import ConfigError


def test_a_plain_string_is_the_path_of_caswits_own_weights():
    assert parse_init("runs/a") == InitConfig(source="caswit", path="runs/a")
    assert Recipe(data=DataConfig(dataset="x"), init="runs/a").start == parse_init("runs/a")
    assert Recipe(data=DataConfig(dataset="x")).start is None


def test_from_names_the_library_and_timm_true_downloads():
    assert parse_init({"from": "smp", "path": "a.pt", "context": False}) == InitConfig(
        source="smp", path="a.pt", context=False
    )
    assert parse_init({"timm": True}) == InitConfig(source="timm", timm=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"from": "tim", "path": "x"}, "from must be one of caswit, timm"),
        ({"source": "timm", "path": "x"}, "unknown source; allowed: context, decoder, from"),
        ({"from": "timm"}, "needs path"),
        ({"from": "smp", "timm": True}, "leave out path and other values of from"),
        ({"timm": True, "path": "x"}, "leave out path"),
        ({"path": 3}, "a path"),
        ({"path": "x", "decoder": "yes"}, "true or false"),
        ({"path": "x", "rename": ["a"]}, "beginnings of names"),
        ({"path": "x", "min_matched": 2}, r"in \[0, 1\]"),
        ({"path": "x", "min_matched": "all"}, "a number"),
        ("", "needs path"),
        (["x"], "a path or a mapping"),
    ],
)
def test_anything_else_is_refused_in_one_line(given, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Recipe(data=DataConfig(dataset="x"), init=given)
    assert "\n" not in str(caught.value)
