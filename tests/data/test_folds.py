"""Folds of scenes: every scene is held out once, always in the same fold."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from caswit.data.dataset import load_dataset
from caswit.data.folds import fold_scenes
from caswit.data.scene import Scene
from caswit.errors import DataError


def scenes(count: int) -> list[Scene]:
    return [
        Scene(image=Path(f"{i}.tif"), label=Path(f"{i}_label.tif"), split="val" if i % 3 == 2 else "train")
        for i in range(count)
    ]


@settings(deadline=None, max_examples=50, derandomize=True)
@given(folds=st.integers(2, 6), more=st.integers(0, 20))
def test_every_scene_is_held_out_once_and_learned_from_in_all_other_folds(folds, more):
    count = folds + more
    dealt = [fold_scenes(scenes(count), number, folds, "x") for number in range(1, folds + 1)]
    held_out = [{s.image for s in fold if s.split == "held_out"} for fold in dealt]
    learned = [{s.image for s in fold if s.split == "train"} for fold in dealt]
    assert sorted(image for fold in held_out for image in fold) == sorted(s.image for s in scenes(count))
    for out, rest in zip(held_out, learned, strict=True):
        assert out.isdisjoint(rest)
        assert len(out | rest) == count
    assert {len(fold) for fold in held_out} <= {count // folds, -(-count // folds)}
    assert dealt == [fold_scenes(scenes(count), number, folds, "x") for number in range(1, folds + 1)]


def test_an_image_in_two_splits_is_in_one_fold_and_once():
    twice = [*scenes(3), Scene(image=Path("0.tif"), label=Path("0_label.tif"), split="val")]
    for number in (1, 2, 3):
        found = fold_scenes(twice, number, 3, "x")
        assert [s.image.name for s in found] == ["0.tif", "1.tif", "2.tif"]


@pytest.mark.parametrize(("count", "hint"), [(3, "try 3 folds"), (1, "label more scenes")])
def test_fewer_scenes_than_folds(count, hint):
    with pytest.raises(DataError, match=f"x: 4 folds need as many images with labels, got {count}; {hint}"):
        fold_scenes(scenes(count), 1, 4, "x")


def write_fold(folder: Path, **changes) -> Path:
    fold = {"of": "dataset.yaml", "number": 1, "folds": 2, "splits": ["train"]} | changes
    file = folder / "fold.yaml"
    file.write_text(yaml.safe_dump({"name": "one", "fold": {k: v for k, v in fold.items() if v is not None}}))
    return file


@pytest.fixture
def two_scenes(dataset_file):
    content = yaml.safe_load(dataset_file.read_text())
    other = content["scenes"][0] | {"image": "other.tif"}
    (dataset_file.parent / "other.tif").write_bytes((dataset_file.parent / "scene.tif").read_bytes())
    dataset_file.write_text(yaml.safe_dump(content | {"scenes": [*content["scenes"], other]}))
    return dataset_file


def test_a_file_that_is_a_fold_of_another(two_scenes):
    whole, fold = load_dataset(two_scenes), load_dataset(write_fold(two_scenes.parent))
    assert (fold.name, fold.classes, fold.bands) == ("one", whole.classes, whole.bands)
    assert [(s.image.name, s.split) for s in fold.scenes] in (
        [("scene.tif", "train"), ("other.tif", "held_out")],
        [("scene.tif", "held_out"), ("other.tif", "train")],
    )
    assert len(fold.split("held_out")) == len(fold.split("train")) == 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"number": 3}, "needs a number from 1 to folds, and 2 folds or more, got 3 of 2"),
        ({"folds": 1}, "got 1 of 1"),
        ({"splits": ["nope"]}, "no scene has split 'nope'"),
        ({"of": "none.yaml"}, "no such dataset file"),
        ({"of": "fold.yaml"}, "is a fold itself; name a dataset of scenes"),
        ({"of": None}, "of"),
        ({"number": "x"}, "number"),
        ({"splits": ["unlabelled"]}, "has no label"),
    ],
)
def test_folds_that_are_described_wrongly(two_scenes, changes, says):
    with pytest.raises(DataError, match=says) as error:
        load_dataset(write_fold(two_scenes.parent, **changes))
    assert "\n" not in str(error.value)
