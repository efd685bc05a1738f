"""Pretraining: repeatable, resumable, the same split over passes or devices; reconstructing; starting from it."""

import csv
import dataclasses
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import caswit.training.pretrain
from caswit.cli.commands import COMMANDS
from caswit.cli.main import main
from caswit.cli.parsing import make_parser
from caswit.cli.recipe import recipe_text
from caswit.config import (
    AugmentConfig,
    DataConfig,
    ImageryConfig,
    MaskConfig,
    ModelConfig,
    PretrainConfig,
    PretrainRecipe,
    Recipe,
    TileConfig,
    TrainConfig,
)
from caswit.data.classes import ClassTable
from caswit.data.dataset import Dataset, load_dataset
from caswit.data.scene import Scene
from caswit.errors import ConfigError, DataError, ModelError
from caswit.progress import Progress
from caswit.raster.windows import Window
from caswit.training.pretrain import MaskedSamples, _scenes, pretrain
from caswit.training.reconstruct import HIDDEN
from caswit.training.supervised import train
from caswit.weights.model_folder import load_model, load_pretrained
from shallow import COMMAND, ENVIRONMENT

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

TILE = TileConfig(tile_px=64, context_factor=2)


def make_recipe(dataset: Path, *, model: dict | None = None, data: dict | None = None, **settings) -> PretrainRecipe:
    defaults = {
        "batch": 2, "max_steps": 6, "lr": 1e-3, "lr_batch": None, "warmup_epochs": 0.0, "precision": "fp32",
        "accelerator": "cpu", "pictures": 1,
    }  # fmt: skip
    return PretrainRecipe(
        data=ImageryConfig(dataset=str(dataset), **(data or {})),
        model=ModelConfig(**{"size": "pico", "drop_path": 0.0, **(model or {})}),
        tile=TILE,
        augment=AugmentConfig(spatial=True, scale=0.25),
        mask=MaskConfig(mask_cell_px=16),
        train=PretrainConfig(**{**defaults, **settings}),
    )


def losses(run: Path) -> list[float]:
    with (run / "log.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("pretrained")


@pytest.fixture
def run(shared, dataset_file) -> Path:
    """A finished run of six steps, made once."""
    folder = shared / "run"
    if not folder.exists():
        pretrain(make_recipe(dataset_file, max_steps=6), folder)
    return folder


def test_the_run_folder_holds_everything_and_the_loss_falls(run):
    assert {f.name for f in run.iterdir() if not f.name.startswith("events")} == {
        "recipe.yaml", "log.csv", "checkpoints", "pictures", "model", "lock"
    }  # fmt: skip
    with (run / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["step", "epoch", "loss", "lr", "tiles_per_s", "elapsed_s"]
    assert [int(r["step"]) for r in rows] == list(range(1, 7))
    assert losses(run)[-1] < losses(run)[0]
    # Four tiles of 64 px, so an epoch has three steps of two: pictures after it and at the end.
    assert sorted(f.name for f in (run / "pictures").iterdir()) == ["step_0000003.png", "step_0000006.png"]
    picture = np.asarray(Image.open(run / "pictures" / "step_0000003.png"))
    assert (picture == HIDDEN).all(-1).any()
    loaded = load_pretrained(run / "model")
    assert loaded.info.tile == TILE
    assert loaded.info.trained_gsd_m == 0.5
    assert loaded.info.provenance["step"] == 6


def test_a_folder_that_holds_a_run_is_refused_before_bands_are_measured(dataset_file, run, monkeypatch):
    def settled(*_):
        raise AssertionError("bands were measured")

    monkeypatch.setattr("caswit.training.pretrain.settle_bands", settled)
    with pytest.raises(ConfigError, match="already holds a run"):
        pretrain(make_recipe(dataset_file, max_steps=6), run)


def test_a_run_that_died_resumes_to_the_same_weights(dataset_file, run, tmp_path, monkeypatch):
    recipe = make_recipe(dataset_file, save_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", _die_at(3))
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe, tmp_path / "broken")
    pretrain(recipe, tmp_path / "broken", resume=True)
    assert losses(tmp_path / "broken") == losses(run)
    one, two = weights(run), weights(tmp_path / "broken")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)


def _die_at(step: int):
    def advance(self: Progress, amount: float, note: str = "") -> None:
        self.done += amount
        if self.done == step:
            raise KeyboardInterrupt

    return advance


@pytest.mark.slow
def test_two_processes_and_passes_have_the_loss_of_one(dataset_file, tmp_path):
    """Two devices of two passes each, one tile a pass, against one pass of four."""
    settings = {"batch": 4, "max_steps": 3}
    pretrain(make_recipe(dataset_file, **settings), tmp_path / "one")
    recipe = tmp_path / "recipe.yaml"
    plain = dataclasses.asdict(make_recipe(dataset_file, **settings, devices=2, accumulate=2))
    recipe.write_text(yaml.safe_dump(_plain(plain)))
    words = [*COMMAND, "pretrain", recipe, "--out", tmp_path / "two"]
    done = subprocess.run(words, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)


def _plain(value):
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_masks_and_tiles_depend_on_seed_and_number_alone(dataset_file):
    dataset = load_dataset(dataset_file)
    recipe = make_recipe(dataset_file)
    one, two = (MaskedSamples(recipe, dataset, dataset.scenes[:1]) for _ in range(2))
    for number in reversed(range(8)):
        sample, again = one[number], two[number]
        assert all(torch.equal(sample[name], again[name]) for name in sample)
        assert sample["mask"].sum() == 12 * 16  # three quarters of 16 cells of 16 tokens
    assert not torch.equal(one[0]["mask"], one[1]["mask"])
    other = MaskedSamples(make_recipe(dataset_file, seed=1), dataset, dataset.scenes[:1])
    assert not torch.equal(one[0]["mask"], other[0]["mask"])


def fine_tuning(dataset: Path, init: Path | None, **settings) -> Recipe:
    defaults = {"batch": 2, "max_steps": 2, "lr": 1e-9, "min_lr": 0, "precision": "fp32", "accelerator": "cpu"}
    return Recipe(
        data=DataConfig(dataset=str(dataset), val_split=None),
        model=ModelConfig(size="pico"),
        tile=TILE,
        train=TrainConfig(**{**defaults, **settings}),
        init=None if init is None else str(init),
    )


def test_a_training_starts_from_a_run(dataset_file, run, tmp_path, caplog):
    caplog.set_level("INFO")
    train(fine_tuning(dataset_file, run), tmp_path / "fine")
    assert "100% of the encoders" in caplog.text
    assert "; at random: decoder, context decoder; not used: context token, head, hr token, norm\n" in caplog.text
    before, after = weights(run), weights(tmp_path / "fine")
    both = [n for n in after if n in before]
    assert {n.split(".")[0] for n in both} == {"hr_encoder", "context_encoder", "fusion"}
    assert max((before[n] - after[n]).abs().max() for n in both) < 1e-6
    random = load_file(train(fine_tuning(dataset_file, None), tmp_path / "scratch") / "model.safetensors")
    assert max((random[n] - after[n]).abs().max() for n in both) > 1e-2


def test_a_resumed_training_needs_what_it_started_from_no_more(dataset_file, run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    recipe = fine_tuning(dataset_file, copy, max_steps=3, save_every_s=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", _die_at(2))
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "fine")
    shutil.rmtree(copy)
    train(recipe, tmp_path / "fine", resume=True)
    before, after = weights(run), weights(tmp_path / "fine")
    assert max((before[n] - after[n]).abs().max() for n in after if n in before) < 1e-6


def test_baselines_are_pretrained_too(dataset_file, tmp_path):
    model = pretrain(make_recipe(dataset_file, model={"fusion_stages": ()}, max_steps=2), tmp_path / "run")
    assert not load_pretrained(model).network.network.reads_context


def test_reconstruct_draws_what_is_masked(run, dataset_file, tmp_path, capsys):
    image, out = dataset_file.parent / "scene.tif", tmp_path / "r.png"
    main(["reconstruct", str(run / "model"), str(image), "--out", str(out), "--tiles", "2"])
    assert capsys.readouterr().out.strip() == str(out)
    picture = np.asarray(Image.open(out))
    # Two rows of three hidden quarters of a tile and one hidden quarter of a context.
    assert (picture == HIDDEN).all(-1).sum() == pytest.approx(2 * (0.75 + 0.25) * 64**2, rel=0.02)


class TestRefusals:
    def test_pretrained_weights_predict_nothing_and_models_reconstruct_nothing(self, run, model_folder):
        with pytest.raises(ModelError, match="it knows no classes; train with init: "):
            load_model(run / "model")
        with pytest.raises(ModelError, match="a trained model cannot reconstruct"):
            load_pretrained(model_folder)

    def test_a_warm_up_longer_than_the_run(self, dataset_file, tmp_path):
        with pytest.raises(ConfigError, match="warm-up of 30 steps does not end before the run of 6"):
            pretrain(make_recipe(dataset_file, warmup_epochs=10.0), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_fusion_that_would_learn_nothing(self, dataset_file):
        with pytest.raises(ConfigError, match=r"pretrain with model\.feed_forward=true"):
            make_recipe(dataset_file, model={"feed_forward": False})

    def test_a_split_that_is_not_there(self, dataset_file, tmp_path):
        with pytest.raises(DataError, match="no scene has split 'east'"):
            pretrain(make_recipe(dataset_file, data={"splits": ("east",)}), tmp_path / "run")

    def test_a_recipe_of_the_other_kind(self, dataset_file, tmp_path, capsys):
        recipe = tmp_path / "r.yaml"
        recipe.write_text(f"data: {{dataset: {dataset_file}, train_split: train}}\n")
        with pytest.raises(SystemExit):
            main(["pretrain", str(recipe), "--out", str(tmp_path / "run")])
        assert (
            "data: unknown train_split; allowed: bands, dataset, sampling, skip_broken, splits, workers"
            in capsys.readouterr().err
        )


def test_learning_rates_grow_with_the_batch_as_in_simmim():
    settings = PretrainConfig(batch=2048).resolve_schedule(steps_per_epoch=10, max_steps=1000)
    assert (settings.lr, settings.min_lr, settings.warmup_lr) == pytest.approx((8e-4, 4e-5, 4e-6))
    assert settings.warmup_steps == 100
    own = PretrainConfig(batch=8, lr_batch=None, warmup_steps=7).resolve_schedule(steps_per_epoch=10, max_steps=1000)
    assert (own.lr, own.warmup_steps) == (2e-4, 7)
    none = PretrainConfig(warmup_steps=0).resolve_schedule(steps_per_epoch=10, max_steps=1000)
    assert none.warmup_steps == 0
    assert PretrainConfig(warmup_steps=None).resolve_schedule(10, 1000).warmup_steps == 100


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("pretrain-*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda f: f.stem)
def test_the_recipes_of_the_repository_say_what_they_may(recipe):
    parser = make_parser(COMMANDS["pretrain"])
    text = recipe_text(recipe, PretrainRecipe)
    settings = parser.instantiate(parser.parse_args(["--recipe", text, "--out", "x"]))
    assert settings.model.drop_path == 0
    # Cells of 32 px show a network of this size one colour.
    own = {"ratio": 0.6, "mask_cell_px": 16} if recipe.stem == "pretrain-herault-nano" else {}
    assert settings.mask == MaskConfig(context_ratio=settings.mask.context_ratio, **own)


def test_drop_path_is_0_unless_the_recipe_says_otherwise(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("data: {dataset: x}\nmodel: {size: nano}\n")
    parser = make_parser(COMMANDS["pretrain"])
    settings = parser.instantiate(parser.parse_args(["--recipe", str(recipe), "--out", "x"]))
    assert (settings.model.size, settings.model.drop_path) == ("nano", 0.0)


@pytest.mark.parametrize("sampling", ["random", "grid"])
def test_parts_of_an_image_are_pretrained_on(dataset_file, tmp_path, sampling):
    """Windows drawn at random reach beyond an area, where labels do not count: there were none to leave out."""
    content = yaml.safe_load(dataset_file.read_text())
    scenes = [{"image": "scene.tif", "split": "unlabelled", "areas": [[0, 0, 80, 64], [0, 64, 80, 40]]}]
    dataset_file.write_text(yaml.safe_dump(content | {"scenes": scenes}))
    pretrain(make_recipe(dataset_file, data={"sampling": sampling}, max_steps=2), tmp_path / "run")


def test_every_area_of_a_mosaic_is_trained_on_and_an_image_in_two_splits_once():
    """Of a mosaic in two splits, such as a domain of FLAIR-HUB, only the areas of the last one were."""
    left, right = (Window(0, 0, 64, 64),), (Window(0, 64, 64, 64),)
    mosaic, whole = Path("mosaic.vrt"), Path("whole.tif")
    scenes = (
        Scene(image=mosaic, split="train", areas=left),
        Scene(image=mosaic, split="val", areas=right),
        Scene(image=whole, split="train"),
        Scene(image=whole, split="val"),
    )
    dataset = Dataset(name="x", path=Path("d.yaml"), classes=ClassTable(()), scenes=scenes)
    found = _scenes(PretrainRecipe(data=ImageryConfig(dataset="x")), dataset)
    assert sorted((s.image.name, s.areas) for s in found[:2]) == [("mosaic.vrt", left), ("mosaic.vrt", right)]
    assert [s.image for s in found[2:]] == [whole]


@pytest.mark.data
@pytest.mark.parametrize("name", ["dubai", "banepa"])
def test_the_recipes_of_the_repository_pretrain_on_every_image(name, tmp_path, real_data, monkeypatch):
    monkeypatch.setenv("CASWIT_DATA", str(real_data))
    seen = []
    monkeypatch.setattr(caswit.training.pretrain, "check_scenes", lambda _dataset, scenes: seen.extend(scenes))
    small = ["--tile.tile_px", "64", "--train.batch", "2", "--train.max_steps", "2", "--train.warmup_steps", "1"]
    recipe = next(r for r in RECIPES if name in r.stem)
    main(["pretrain", str(recipe), "--out", str(tmp_path / "run"), *small, "--train.accelerator", "cpu"])
    assert len(losses(tmp_path / "run")) == 2
    assert {s.image for s in seen} == {s.image for s in load_dataset(real_data / name / "dataset.yaml").scenes}


@pytest.mark.parametrize("said", [None, 0])
def test_a_run_of_version_0_1_0_keeps_its_warm_up(dataset_file, tmp_path, monkeypatch, said):
    """It wrote ``warmup_steps: 0`` for what is null now, and its checkpoint noted no warm-up."""
    settings = {"warmup_epochs": 1.0, "save_every_s": 0.0}
    pretrain(make_recipe(dataset_file, **settings), tmp_path / "whole")
    out = tmp_path / "old"
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", _die_at(2))
        with pytest.raises(KeyboardInterrupt):
            pretrain(make_recipe(dataset_file, **settings), out)
    last, recipe = out / "checkpoints" / "last.pt", out / "recipe.yaml"
    checkpoint = torch.load(last, weights_only=True)
    assert checkpoint.pop("warmup_steps") == 3
    torch.save(checkpoint, last)
    old = yaml.safe_load(recipe.read_text())
    old["train"]["warmup_steps"] = 0
    recipe.write_text(yaml.safe_dump(old))
    pretrain(make_recipe(dataset_file, warmup_steps=said, **settings), out, resume=True)
    assert losses(out) == losses(tmp_path / "whole")


def test_a_run_that_has_begun_keeps_its_warm_up(dataset_file, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "advance", _die_at(2))
        with pytest.raises(KeyboardInterrupt):
            pretrain(make_recipe(dataset_file, warmup_epochs=1.0, warmup_steps=0, save_every_s=0.0), tmp_path)
    with pytest.raises(ConfigError, match=r"warm-up of 0 steps, got 3; resume with --train.warmup_steps 0,"):
        pretrain(make_recipe(dataset_file, warmup_epochs=1.0, save_every_s=0.0), tmp_path, resume=True)
