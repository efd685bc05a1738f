"""Models that come with the package: finding one, choosing one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import rasterio
import yaml

from caswit.cli.main import main
from caswit.errors import ConfigError, DataError, ModelError
from caswit.experiments.demo import map_zoo_samples
from caswit.raster.image_list import list_images
from caswit.weights import zoo
from caswit.weights.convert import find_weights
from caswit.weights.model_folder import load_model, read_info
from caswit.weights.zoo import ZooModel, choose
from caswit.weights.zoo.candidates import candidates
from conftest import georeference, picture


def zoo_model(name: str, low: float, high: float) -> ZooModel:
    return ZooModel(
        name=name,
        folder=zoo._FOLDER / name,
        summary="",
        gsd_m=(low, high),
        classes=("roof", "rest"),
        sample=zoo._FOLDER / "x.jpg",
        sample_gsd_m=low,
    )


FINE, COARSE, WIDE = zoo_model("fine", 0.1, 0.5), zoo_model("coarse", 0.6, 2), zoo_model("wide", 0.1, 2)


@pytest.fixture
def filled(tmp_path, monkeypatch, make_model, make_raster):
    """A package with two models, fine and coarse."""
    for name, gsd_m in (("fine", [0.1, 0.5]), ("coarse", [0.6, 2])):
        shutil.copytree(make_model(()), tmp_path / "models" / name)
        file = tmp_path / "models" / name / "config.json"
        file.write_text(
            json.dumps(
                json.loads(file.read_text())
                | {"about": {"summary": f"{name}!", "gsd_m": gsd_m, "sample": "sample.jpg", "sample_gsd_m": gsd_m[0]}}
            )
        )
        shutil.copy(make_raster(picture(80, 96), f"{name}.jpg"), file.with_name("sample.jpg"))
        file.with_name("README.md").write_text(f"card of {name}\n")
    monkeypatch.setattr(zoo, "_FOLDER", tmp_path / "models")
    zoo.zoo_models.cache_clear()
    yield tmp_path / "models"
    zoo.zoo_models.cache_clear()


@pytest.mark.parametrize(
    ("gsd_m", "name"), [(0.1, "fine"), (0.13, "fine"), (0.49, "fine"), (0.6, "coarse"), (1.9, "coarse")]
)
def test_the_ground_size_of_a_pixel_chooses(gsd_m, name):
    model, reason = choose(gsd_m, "a.tif", [FINE, COARSE])
    assert model.name == name
    assert f"{gsd_m:.3g} m" in reason


def test_of_several_the_one_with_the_most_classes_is_chosen():
    rich = dataclasses.replace(WIDE, classes=("roof", "road", "rest"))
    model, reason = choose(0.2, "a.tif", [FINE, rich])
    assert model.name == "wide"
    assert reason == "pixels of 0.2 m; it is for 0.1 to 2 m, and has more classes than fine"


def test_a_model_that_was_replaced_leads_to_its_successor(filled, monkeypatch, caplog):
    monkeypatch.setattr(zoo, "_RENAMED", {"old": "fine"})
    zoo._say_replaced.cache_clear()
    assert load_model("old").digest == load_model("fine").digest
    assert find_weights("old") == find_weights("fine")
    assert caplog.messages == ["old has been replaced by fine, which is taken"]


def test_finer_pixels_are_averaged_by_the_model_that_reads_the_finest():
    """2 cm was refused, although the model averages what it reads anyway."""
    fine, coarse = (dataclasses.replace(m, read_gsd_m=m.gsd_m[0]) for m in (FINE, COARSE))
    model, reason = choose(0.02, "a.tif", [coarse, fine])
    assert model.name == "fine"
    assert reason == "pixels of 0.02 m, which are averaged to the 0.1 m that it reads"
    assert choose(0.55, "a.tif", [coarse])[0].name == "coarse"
    assert not coarse.fits(0.3, [coarse, fine])[0]
    with pytest.raises(ConfigError, match="no model is meant"):
        choose(0.02, "a.tif", [FINE, COARSE])  # these read pixels as they are


@pytest.mark.parametrize(
    ("gsd_m", "models", "says"),
    [
        (
            None,
            [FINE, COARSE],
            r"ground size .* unknown.*--gsd-m METRES, or --model NAME \(fine, coarse\); caswit predict IMAGE --list",
        ),
        (
            10,
            [FINE, COARSE],
            r"no model is meant for pixels of 10 m.*--model NAME \(fine, coarse\); caswit predict IMAGE --list",
        ),
        (0.2, [FINE, WIDE], "several models are meant for pixels of 0.2 m"),
        (0.2, [], "none"),
    ],
)
def test_where_nothing_can_be_chosen_the_models_are_listed(gsd_m, models, says):
    with pytest.raises(ConfigError, match=says) as caught:
        choose(gsd_m, "a.tif", models)
    assert len(str(caught.value)) < 250


def test_a_model_has_a_name_unless_a_folder_has_it(filled, tmp_path, monkeypatch, make_model):
    assert load_model("fine").name == "fine"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(make_model((2,)), tmp_path / "fine")
    assert load_model("fine").network.reads_context
    with pytest.raises(ModelError, match=r"no model of the package \(coarse, fine\)"):
        load_model("fin")


@pytest.mark.parametrize("model", zoo.zoo_models(), ids=lambda model: model.name)
def test_a_card_begins_with_what_a_reader_wants(model):
    """What it is, how good, what it is bad at, how to use it, whose data; how it was trained comes last."""
    card = (model.folder / "README.md").read_text(encoding="utf-8")
    info = read_info(model.folder)
    name = "CASWiT-nano" if model.reads_context else "Swin-nano + UPerNet (no context)"
    assert info.model.title == name
    first = f"{name}: labels every pixel of an orthophoto as one of {len(info.classes)} classes."
    assert f"# {model.name}\n\n{first}\n" in card
    headings = [line for line in card.splitlines() if line.startswith("## ")]
    before = ["## Scores", *["## What its context is for"] * model.reads_context, "## Limits"]
    assert headings == [*before, "## How to use it", "## Training data", "## Training"]
    about = yaml.safe_load((model.folder / "about.yaml").read_text(encoding="utf-8"))
    assert all(about[name].strip() in card for name in ("summary", "data", "training", "limits"))
    assert all(f"| {c.id} | {c.name} | {c.color} |" in card for c in info.classes.predicted)


def test_class_names_of_the_zoo_are_words():
    """One had an underscore beside names with spaces."""
    assert not [name for model in zoo.zoo_models() for name in model.classes if "_" in name]


def test_models_lists_them_and_prints_a_card(filled, capsys):
    main(["models"])
    text = capsys.readouterr().out
    assert text.index("coarse  (") < text.index("fine  (")
    assert "pixels of 0.1 to 0.5 m; classes: building, land, water" in text
    main(["models", "fine"])
    assert capsys.readouterr().out == "card of fine\n"


def test_a_card_is_printed_without_what_is_for_the_hub(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["models", str(model_folder)])
    assert "README.md: no such file, the model has no card; caswit push writes one" in capsys.readouterr().err
    main(["push", str(model_folder), str(tmp_path / "pushed"), "--license", "cc0-1.0"])
    capsys.readouterr()
    main(["models", str(tmp_path / "pushed")])
    text = capsys.readouterr().out
    assert text.startswith("# pushed\n")
    assert (tmp_path / "pushed" / "README.md").read_text() == (
        "---\n" + (tmp_path / "pushed" / "README.md").read_text().split("---\n")[1] + "---\n" + text
    )


def test_predict_chooses_says_so_and_maps_the_same_as_with_the_name(filled, make_raster, tmp_path, caplog):
    image = make_raster(picture(64, 64), "ortho.tif", **georeference(0.2))
    caplog.set_level("INFO")
    main(["predict", str(image), str(tmp_path / "chosen.tif")])
    assert "model: fine (pixels of 0.2 m; it is for 0.1 to 0.5 m)" in caplog.text
    main(["predict", str(image), str(tmp_path / "named.tif"), "--model", "fine"])
    with rasterio.open(tmp_path / "chosen.tif") as chosen, rasterio.open(tmp_path / "named.tif") as named:
        np.testing.assert_array_equal(chosen.read(), named.read())
        assert chosen.tags()["CASWIT_MODEL"] == "fine"


def test_a_picture_of_unknown_scale_asks_and_takes_a_ground_size(filled, make_raster, tmp_path, capsys, caplog):
    photo = make_raster(picture(64, 64), "photo.jpg")
    with pytest.raises(SystemExit) as caught:
        main(["predict", str(photo), str(tmp_path / "map.tif")])
    assert caught.value.code == 2
    assert "photo.jpg: the ground size of its pixels is unknown" in capsys.readouterr().err
    assert not (tmp_path / "map.tif").exists()
    caplog.set_level("INFO")
    main(["predict", str(photo), str(tmp_path / "map.tif"), "--gsd-m", "1"])
    assert "model: coarse (pixels of 1 m" in caplog.text


def test_the_ground_size_that_is_given_decides_how_finely_is_read(filled, make_raster, tmp_path):
    """An image that does not say its ground size, with --gsd-m, is mapped as one that says it."""
    file = filled / "fine" / "config.json"
    config = json.loads(file.read_text())
    config["tile"]["read_gsd_m"] = 0.4
    file.write_text(json.dumps(config))
    maps = []
    for name, options, words in (("said.tif", georeference(0.2), []), ("unsaid.tif", {}, ["--gsd-m", "0.2"])):
        image = make_raster(picture(96, 96), name, **options)
        main(["predict", str(image), str(tmp_path / f"map-{name}"), *words])
        with rasterio.open(tmp_path / f"map-{name}") as found:
            maps.append(found.read())
            assert found.tags()["CASWIT_READ_GSD_M"] == "0.4"
    np.testing.assert_array_equal(*maps)


def test_a_training_starts_from_one_by_its_name(filled):
    assert find_weights("fine") == filled / "fine" / "model.safetensors"


def test_every_sample_is_mapped(filled, tmp_path):
    samples = map_zoo_samples(tmp_path / "zoo")
    assert [s.model.name for s in samples] == ["coarse", "fine"]
    for one in samples:
        with rasterio.open(one.map) as found:
            assert found.shape == (80, 96)
        assert [name for name, _ in one.legend] == ["building", "land", "water"]
        assert len(one.panels) == 3


def test_a_ground_size_against_the_images_own_is_taken_and_said(filled, make_raster, tmp_path, caplog):
    image = make_raster(picture(64, 64), "ortho.tif", **georeference(0.2))
    main(["predict", str(image), str(tmp_path / "map.tif"), "--gsd-m", "1"])
    assert "the image says its pixels are 0.2 m; --gsd-m 1 is used instead" in caplog.text
    with rasterio.open(tmp_path / "map.tif") as found:
        assert found.tags()["CASWIT_GSD_M"] == "1"
        assert found.tags()["CASWIT_MODEL"] == "coarse"


def test_pixels_far_coarser_than_the_model_sees_are_said(filled, make_raster, tmp_path, caplog):
    file = filled / "fine" / "config.json"
    config = json.loads(file.read_text())
    config["tile"]["read_gsd_m"] = 0.3
    file.write_text(json.dumps(config))
    image = make_raster(picture(32, 32), "ortho.tif", **georeference(1.0))
    main(["predict", str(image), str(tmp_path / "map.tif"), "--model", "fine"])
    assert "the image has pixels of 1 m, the model reads 0.3 m: expect a poor map" in caplog.text


def test_images_of_a_folder_are_listed_by_ground_size(make_raster, image, tmp_path):
    for name, gsd in (("a.tif", 0.2), ("b.tif", 1.0), ("c.tif", 0.2)):
        make_raster(image, name, **georeference(gsd))
    (tmp_path / "d.png").write_bytes(b"nothing")
    lines = candidates(list_images([str(tmp_path)]))
    heads = [line for line in lines if line.startswith(("a.tif", "b.tif", "c.tif"))]
    assert [head.split(", 3 bands")[0] for head in heads] == ["a.tif: pixels of 0.2 m", "b.tif: pixels of 1 m"]
    assert heads[0].endswith("(2 images; this is the first)")
    assert not heads[1].endswith(")")
    chosen = [line.split()[0] for line in lines if "  chosen: " in line]
    assert chosen == ["caswit-nano-france", "swin-nano-dubai"]
    assert lines[-1].startswith(f"broken: {tmp_path}/d.png: not a raster")
    assert candidates([str(tmp_path / "b.tif")]) == lines[lines.index(heads[1]) : -2]
    with pytest.raises(DataError, match=r"d.png: not a raster"):
        candidates([str(tmp_path / "d.png")])
