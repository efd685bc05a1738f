"""YAML and JSON that somebody wrote: read within bounds, and of the shape that its reader declares."""

import time
from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pytest

from caswit.config import ModelConfig, TileConfig
from caswit.errors import DataError, brief, one_line
from caswit.files import checked, read_json, read_yaml


@dataclass(frozen=True, kw_only=True)
class Point:
    x: float
    name: str = "a"


class Shape(TypedDict):
    point: Point
    bands: tuple[int, int, int]
    note: NotRequired[Literal["yes"]]


def refused(kind: Any, value: Any) -> str:
    with pytest.raises(DataError) as caught:
        checked(kind, value, "a.json", "try again")
    assert str(caught.value).startswith("a.json")
    assert str(caught.value).endswith("; try again")
    assert len(str(caught.value)) < 400
    return str(caught.value)


class TestChecked:
    def test_what_fits_is_made(self):
        made = checked(Shape, {"point": {"x": 1}, "bands": [1, 2, 3], "more": None}, "a.json")
        assert made == {"point": Point(x=1.0), "bands": (1, 2, 3), "more": None}

    @pytest.mark.parametrize(
        ("kind", "value", "words"),
        [
            (int, True, "a whole number, got True"),
            (int, 1.0, "a whole number, got 1.0"),
            (int, 10**400, "a whole number, got"),
            pytest.param(int, 10**5000, "a whole number, got a number of", id="huge"),
            (float, float("nan"), "a number, got nan"),
            (float, 10**400, "a number, got"),
            (float | None, "1", "a number or null, got '1'"),
            (bool, 1, "true or false, got 1"),
            (list[int], "123", "a list, each a whole number, got '123'"),
            (list[int], [1, "2"], "a.json: item 2: must be a whole number, got '2'"),
            (tuple[int, int, int], [1, 2], "a list of 3, each a whole number, got [1, 2]"),
            (dict[str, int], {1: 1}, "a mapping, got {1: 1}"),
            (dict[str, int], {"a": []}, "a.json: a: must be a whole number, got []"),
            (Literal["a", "b"], [], "one of a, b, got []"),
            (Point, [], "must be a mapping with x, got list"),
            (Point, {}, "missing x"),
            (Point, {"x": 1, "y": 2}, "unknown y; allowed: name, x"),
            (Shape, {"point": {"x": "1"}, "bands": [1, 2, 3]}, "a.json: point: x: must be a number, got '1'"),
            (Shape, {"point": {"x": 1}, "bands": "123"}, "a.json: bands: must be a list of 3"),
            (Shape, {"point": {"x": 1}}, "missing bands"),
            (TileConfig, {"tile_px": 33}, "tile_px must be a multiple"),
            (ModelConfig, {"fusion_stages": 1}, "fusion_stages: must be a list"),
        ],
    )
    def test_what_does_not_fit_is_named(self, kind, value, words):
        assert words in refused(kind, value)


LAUGHS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12))
"""100 billion values in a kilobyte."""


class TestBounds:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            (LAUGHS, "aliases"),
            ("&a [*a]", "contains itself"),
            ("[" * 5000, "nested deeper"),
            ("a: 2024-13-45", "not YAML"),
            ("a: !!bool x", "not YAML"),
            ("a: !!int ''", "not YAML"),
            ("a: " + "9" * 5000, "not YAML"),
            ("a: !!python/object/apply:os.system [x]", "not YAML"),
            ("? [a]\n: b", "not YAML"),
        ],
    )
    def test_yaml(self, tmp_path, text, words):
        file = tmp_path / "a.yaml"
        file.write_text(text)
        began_s = time.monotonic()
        with pytest.raises(DataError, match=words) as caught:
            read_yaml(file)
        assert time.monotonic() - began_s < 2
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_anchors_in_measure_are_welcome(self, tmp_path):
        file = tmp_path / "a.yaml"
        file.write_text("a: &a {x: 1}\nb: *a\nc:\n  <<: *a\n  y: 2\n")
        assert read_yaml(file) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}

    @pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"1" * 5000])
    def test_json(self, tmp_path, content):
        file = tmp_path / "a.json"
        file.write_bytes(content)
        with pytest.raises(DataError, match="not JSON"):
            read_json(file)

    def test_a_folder_is_no_file(self, tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_json(tmp_path)


class TestLines:
    def test_values_are_short_however_large(self):
        deep: list[Any] = []
        for _ in range(100):
            deep = [deep] * 10
        for value in (deep, "x" * 10**6, {i: i for i in range(10**5)}, 10**5000, b"\n" * 1000, "a\nb\x1b[31m"):
            text = brief(value)
            assert len(text) <= 120
            assert text.isprintable()

    def test_messages_are_one_printable_line(self):
        assert one_line("a\n  b\x1b[31mc") == "a b\\x1b[31mc"
        assert len(one_line("x" * 10**6)) == 200
