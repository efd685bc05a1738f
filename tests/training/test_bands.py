"""A training on bands of 16 bits and a raster beside the image: measured, learned, scored and continued."""

import dataclasses
import logging

import numpy as np
import pytest
import rasterio
import torch
import yaml

from caswit.cli.main import main
from caswit.config import RGB, DataConfig, EvaluateConfig, ModelConfig, Recipe, TileConfig, TrainConfig
from caswit.data.dataset import load_dataset
from caswit.data.statistics import measure
from caswit.errors import ConfigError, DataError
from caswit.evaluation.inspect import inspect
from caswit.evaluation.run import evaluate
from caswit.raster.stack import Further
from caswit.training.supervised import train
from caswit.weights.image_bands import bands_to_read
from caswit.weights.model_folder import load_model, read_info
from caswit.weights.publish import push
from conftest import georeference

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]
TILE = TileConfig(tile_px=32)
MODEL = {"size": "pico", "decoder_norm": "group", "decoder_channels": 16, "fusion_stages": (4,)}


@pytest.fixture
def dataset(tmp_path, make_raster):
    rng, scenes = np.random.default_rng(0), []
    for split in ("train", "val"):
        make_raster(rng.integers(300, 4000, (4, 64, 64)).astype(np.uint16), f"{split}.tif", **georeference())
        make_raster(rng.random((1, 64, 64)).astype(np.float32), f"{split}_dsm.tif", **georeference())
        make_raster(rng.integers(0, 2, (1, 64, 64)).astype(np.uint8), f"{split}_label.tif", **georeference())
        also = {"dsm": f"{split}_dsm.tif"}
        scenes.append({"image": f"{split}.tif", "label": f"{split}_label.tif", "split": split, "also": also})
    classes = [{"id": i, "name": name, "color": f"#0{i}0000"} for i, name in enumerate("ab")]
    file = tmp_path / "dataset.yaml"
    bands = {"red": 1, "green": 2, "blue": 3, "nir": 4}
    file.write_text(
        yaml.safe_dump({"name": "d", "bands": bands, "classes": classes, "scenes": scenes}, sort_keys=False)
    )
    return file


def recipe(dataset, steps=1, model=None, **others):
    settings = TrainConfig(batch=2, max_steps=steps, pictures=1, precision="fp32", accelerator="cpu")
    return Recipe(
        data=DataConfig(dataset=str(dataset)), model=ModelConfig(**MODEL, **(model or {})), tile=TILE, train=settings,
        **others,
    )  # fmt: skip


def test_what_is_measured_is_in_the_model_and_prediction_needs_no_flag(dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    model = train(recipe(dataset), tmp_path / "run")
    info, data = read_info(model), load_dataset(dataset)
    found = measure(data, data.split("train"))
    assert info.model.band_names == (*RGB, "nir", "dsm")
    assert info.bands == (1, 2, 3, 4, "dsm")
    assert (info.model.ranges, info.model.mean, info.model.std) == (found.ranges, found.mean, found.std)
    assert "band dsm: 0.01" in caplog.text
    scores = evaluate(model, dataset, None, split="val", settings=EvaluateConfig())
    assert scores.counts.confusion.sum() == 64 * 64
    # A run of the same recipe goes on where it ended: what was measured is the same again.
    train(recipe(dataset), tmp_path / "run", resume=True)
    report = inspect(dataset, tmp_path / "inspected", tiles=1).read_text()
    assert f"| nir | {found.ranges[3][0]:g} to {found.ranges[3][1]:g} | {found.mean[3]:.2f} |" in report

    # From here, red and a band of another name: one keeps its numbers and weights, the other is new.
    caplog.clear()
    other = train(recipe(dataset, model={"bands": ("dsm", "red")}, init=str(tmp_path / "run")), tmp_path / "other")
    settings = read_info(other).model
    assert settings.ranges == (found.ranges[4], found.ranges[0])
    assert "init: bands of the first convolution: dsm, red by name; green, blue, nir not used" in caplog.text


@pytest.mark.parametrize("try_out", ["--dry-run", "--find-lr"])
def test_what_tries_a_training_out_reads_its_bands(try_out, dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("caswit.training.lr_range.STEPS", 24)
    sections = {"data": {"dataset": str(dataset)}, "model": {**MODEL, "fusion_stages": [4]}, "tile": {"tile_px": 32}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**sections, "train": {"batch": 2, "accelerator": "cpu"}}))
    main(["train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), try_out])
    assert {"--dry-run": "loss ", "--find-lr": "suggestion"}[try_out] in capsys.readouterr().out


def test_bands_that_only_the_dataset_names_are_mapped_in_their_order(dataset, tmp_path, caplog):
    content = yaml.safe_load(dataset.read_text())
    dataset.write_text(yaml.safe_dump(content | {"bands": ["blue", "green", "red", "nir"]}))
    info = read_info(train(recipe(dataset), tmp_path / "run"))
    dsm = (Further("dsm", str(tmp_path / "val_dsm.tif"), 1),)
    assert bands_to_read(tmp_path / "val.tif", info, further=dsm) == (1, 2, 3, 4, "dsm")
    assert "they are taken for blue, green, red, nir, in this order" in caplog.text
    with pytest.raises(DataError, match="lacks dsm"):
        bands_to_read(tmp_path / "val.tif", info)


def test_images_without_names_have_their_bands_as_the_named_images_that_were_learned(dataset, tmp_path, caplog):
    """The files call their bands otherwise than the list has them, and the map's image is such a file without names."""
    content = yaml.safe_load(dataset.read_text())
    dataset.write_text(yaml.safe_dump(content | {"bands": ["blue", "green", "red", "nir"]}))
    files = "nir", "red", "green", "blue"
    for split in ("train", "val"):
        with rasterio.open(tmp_path / f"{split}.tif", "r+") as image:
            image.descriptions = files
    model = train(recipe(dataset), tmp_path / "run")
    info = read_info(model)
    assert info.layout == files
    with rasterio.open(tmp_path / "val.tif") as image:
        pixels, profile = image.read(), image.profile
    for count, expected in ((4, (4, 3, 2, 1, "dsm")), (5, (1, 2, 3, 4, "dsm"))):
        unnamed = tmp_path / f"unnamed{count}.tif"
        with rasterio.open(unnamed, "w", **profile | {"count": count}) as image:
            image.write(np.concatenate((pixels, pixels[:1]))[:count])
        dsm = (Further("dsm", str(tmp_path / "val_dsm.tif"), 1),)
        assert bands_to_read(unnamed, info, further=dsm) == expected
    assert "they are taken for nir, red, green, blue, as in the images it learned from (--bands" in caplog.text
    assert "they are taken for blue, green, red, nir, in this order (--bands" in caplog.text
    maps = [tmp_path / "named_map.tif", tmp_path / "unnamed_map.tif"]
    for image, file in zip(("val.tif", "unnamed4.tif"), maps, strict=True):
        also = f"dsm={tmp_path / 'val_dsm.tif'}"
        words = ["predict", str(tmp_path / image), str(file), "--model", str(model), "--also", also, "--device", "cpu"]
        main([*words, "--probabilities", str(file.with_suffix(".p.tif"))])
    one, two = (rasterio.open(file.with_suffix(".p.tif")).read() for file in maps)
    assert np.array_equal(one, two)
    assert len(np.unique(one)) > 5


def test_what_needs_no_pixel_is_refused_before_bands_are_measured(dataset, tmp_path, monkeypatch):
    train(recipe(dataset), tmp_path / "run")

    def measured(*_):
        raise AssertionError("bands were measured")

    monkeypatch.setattr("caswit.training.loop.measure", measured)
    with pytest.raises(ConfigError, match="already holds a run"):
        train(recipe(dataset), tmp_path / "run")
    for wrong in ({"class_weights": (1.0,)}, {"logit_adjustment": {"c": 1.0}}):
        settings = dataclasses.replace(recipe(dataset).train, **wrong)
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            train(dataclasses.replace(recipe(dataset), train=settings), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_new_band_of_a_frozen_stem_is_said(dataset, tmp_path, caplog):
    start = train(recipe(dataset, model={"bands": RGB}), tmp_path / "start")
    caplog.clear()
    frozen = dataclasses.replace(recipe(dataset).train, freeze=1)
    train(dataclasses.replace(recipe(dataset, init=str(start)), train=frozen), tmp_path / "run")
    assert "so nir, dsm will be read as the mean of the bands that init knows" in caplog.text
    # And so it is: the first convolution of a frozen stem never moves.
    before, after = (load_model(m).network.state_dict() for m in (start, tmp_path / "run" / "model"))
    first = next(name for name, x in after.items() if x.ndim == 4 and x.shape[1] == 5)
    torch.testing.assert_close(after[first][:, 3], before[first].mean(1))
    caplog.clear()
    train(recipe(dataset, init=str(start)), tmp_path / "free")
    assert "train.freeze" not in caplog.text


def test_nothing_is_said_of_a_band_that_an_image_lacks(dataset, tmp_path, caplog, make_raster):
    info = read_info(train(recipe(dataset), tmp_path / "run"))
    make_raster(np.ones((4, 64, 64), np.uint8), "bytes.tif", **georeference())
    caplog.clear()
    with pytest.raises(DataError, match="lacks dsm"):
        bands_to_read(tmp_path / "bytes.tif", info)
    assert caplog.text == ""


def test_a_card_says_how_a_raster_beside_the_image_is_given(dataset, tmp_path):
    model = train(recipe(dataset), tmp_path / "run")
    push(model, str(tmp_path / "card"))
    card = (tmp_path / "card" / "README.md").read_text()
    assert "caswit predict ortho.tif landcover.tif --model card --also dsm=dsm.tif\n```" in card
    assert "bands 1, 2, 3, 4 as red, green, blue, nir |\n| on the same ground | dsm, in a raster of its own" in card
