"""Rows of tables, from recipes to the page."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import caswit.experiments.paper_tables
import caswit.experiments.table_scale as scale
from caswit.cli.main import main
from caswit.cli.recipe import parse_recipe, parse_row, read_recipe
from caswit.config import DataConfig, Recipe, TableConfig, TileConfig, TilingConfig
from caswit.data.dataset import load_dataset
from caswit.errors import CaswitError, ConfigError, DataError
from caswit.experiments.memory import peak_memory
from caswit.experiments.paper_tables import table
from caswit.experiments.table_scale import (
    TableRow,
    common_px,
    fitting_px,
    method_tiling,
    scaled_pretraining,
    scaled_recipe,
    scaled_size,
    scaled_tile,
    sized_name,
    start_of,
)
from caswit.weights.model_folder import load_pretrained

pytestmark = [pytest.mark.e2e, pytest.mark.usefixtures("shallow")]

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL = {
    "data": {"val_split": None, "sampling": "random"},
    "tile": {"tile_px": 32},
    "train": {"batch": 2, "max_steps": 2, "lr": 1e-3, "accelerator": "cpu", "deterministic": True},
}


@pytest.fixture
def recipes(tmp_path, dataset_file):
    """base.yaml and rows above it: a network without and with context, PSPNet, one that starts from elsewhere."""
    base = SMALL | {"data": SMALL["data"] | {"dataset": str(dataset_file)}, "row": {"table": "9"}}
    nano = {"size": "pico", "decoder_channels": 16}
    contents = {
        "base": base,
        "alone": {"model": nano | {"fusion_stages": []}, "row": {"name": "Alone", "paper": {"miou": 60.0}}},
        "seeing": {"model": nano | {"fusion_stages": [4]}, "row": {"name": "Seeing", "paper": {"miou": 61.5}}},
        "pspnet": {"model": {"arch": "pspnet", "encoder": "resnet18"}, "row": {"name": "PSPNet"}},
        "ssl": {
            "model": nano,
            "init": {"from": "caswit", "path": str(tmp_path / "pretrained")},
            "row": {"name": "SSL", "pretraining": "recipes/p.yaml"},
        },
    }
    for name, content in contents.items():
        inherited = {} if name == "base" else {"base": "base.yaml"}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(inherited | content))
    return tmp_path


def rows(folder, *names) -> list[TableRow]:
    files = [folder / f"{name}.yaml" for name in names]
    contents = [read_recipe(file) for file in files]
    return [
        TableRow(file=file, row=parse_row(content, file), recipe=parse_recipe(content, file))
        for file, content in zip(files, contents, strict=True)
    ]


FAST = TableConfig(seeds=(0, 1), device="cpu", precision="fp32", measure_memory=False, pictures=0)


def test_rows_are_trained_scored_and_found_again(recipes, monkeypatch):
    out = recipes / "out"
    results = table(rows(recipes, "alone", "seeing", "pspnet"), out, FAST)
    assert [sorted(r.reports) for r in results] == [[0, 1]] * 3
    assert all(r.steps == {0: 2, 1: 2} and r.error is None for r in results)
    scores = [r.reports[0]["confusion"]["pixels"] for r in results]
    assert scores[0] != scores[1]
    page = (out / "table.md").read_text()
    assert "| Seeing | pico | scratch | 61.50 | " in page
    assert " | +1.50 | " in page
    assert (out / "table.csv").read_text().count("\n") == 1 + 6
    assert (out / "classes.csv").read_text().count("\n") == 1 + 6 * 3

    def never(*_, **__):
        raise AssertionError("already done")

    monkeypatch.setattr(caswit.experiments.paper_tables, "train", never)
    monkeypatch.setattr(caswit.experiments.paper_tables, "evaluate", never)
    again = table(rows(recipes, "seeing", "alone"), out, FAST)
    assert [r.reports for r in again] == [results[1].reports, results[0].reports]


def test_what_is_missing_is_made_again(recipes):
    """A report that is gone, a checkpoint that is gone: only the report is computed, and it is the same."""
    out, row = recipes / "out", rows(recipes, "alone")
    settings = dataclasses.replace(FAST, seeds=(0,))
    before = table(row, out, settings)[0].reports[0]
    model = out / "runs" / "stripes" / "alone-s0" / "model" / "model.safetensors"
    made_ns = model.stat().st_mtime_ns
    shutil.rmtree(out / "scores")
    shutil.rmtree(out / "runs" / "stripes" / "alone-s0" / "checkpoints")
    after = table(row, out, settings)[0].reports[0]
    assert model.stat().st_mtime_ns == made_ns
    assert after["confusion"] == before["confusion"]
    wider = dataclasses.replace(settings, boundary_px=3)  # other settings are another report
    assert table(row, out, wider)[0].reports[0]["evaluated"]["band_px"] == 3


def test_an_interrupted_run_goes_on(recipes, monkeypatch):
    """Stopped at step 2 of 4 it ends with the weights of a run that was not."""
    settings = dataclasses.replace(FAST, seeds=(0,), max_steps=4)
    whole = table(rows(recipes, "alone"), recipes / "whole", settings)[0].reports[0]
    row = rows(recipes, "alone")[0]
    recipe = scaled_recipe(row, 0, recipes / "out", settings)
    quick = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, save_every_s=1e-6))
    run = recipes / "out" / "runs" / "stripes" / "alone-s0"

    with monkeypatch.context() as patch:
        steps = []

        def count(self, row, writer):
            steps.append(row)
            if len(steps) == 3:
                raise KeyboardInterrupt

        patch.setattr("caswit.training.loop.Loop._log", count)
        with pytest.raises(KeyboardInterrupt):
            caswit.experiments.paper_tables.train(quick, run, resume=True)
    assert not (run / "model").exists()
    resumed = table([row], recipes / "out", settings)[0].reports[0]
    assert resumed["evaluated"]["model_sha256"] == whole["evaluated"]["model_sha256"]


@pytest.fixture
def four_scenes(recipes, dataset_file):
    """The recipes, of four scenes for training and validation and a test scene of its own."""
    content = yaml.safe_load(dataset_file.read_text())
    one, rows = content["scenes"][0], []
    for name, split in (("a", "train"), ("b", "train"), ("c", "valid"), ("d", "valid"), ("e", "test")):
        (recipes / f"{name}.tif").write_bytes((recipes / "scene.tif").read_bytes())
        rows.append(one | {"image": f"{name}.tif", "split": split})
    dataset_file.write_text(yaml.safe_dump(content | {"scenes": rows}))
    base = yaml.safe_load((recipes / "base.yaml").read_text())
    base["data"]["val_split"] = "valid"
    base["train"] |= {"patience": 2}
    (recipes / "base.yaml").write_text(yaml.safe_dump(base))
    return recipes


def test_folds_are_trained_scored_pooled_and_found_again(four_scenes, monkeypatch):
    """Every scene of training and validation is scored once, by a network that has not seen it; test is left alone."""
    out, settings = four_scenes / "out", dataclasses.replace(FAST, seeds=(3,), folds=4)
    alone, seeing = results = table(rows(four_scenes, "alone", "seeing"), out, settings)
    assert [sorted(run.fold for run in each.reports) for each in results] == [[1, 2, 3, 4]] * 2
    assert all(run.seed == 3 for run in alone.reports)
    scored = [image for fold in sorted(alone.held_out) for image in alone.held_out[fold]]
    assert sorted(scored) == [str(four_scenes / f"{name}.tif") for name in "abcd"]
    for fold, (image,) in alone.held_out.items():
        run = out / "runs" / f"stripes-fold-{fold}-of-4" / "alone-s3"
        learned = load_dataset(yaml.safe_load((run / "recipe.yaml").read_text())["data"]["dataset"]).split("train")
        assert len(learned) == 3
        assert image not in {str(scene.image) for scene in learned}
    page = (out / "table.md").read_text()
    values = list(alone.score("miou").values())
    assert f"| {np.mean(values):.2f} ± {np.std(values, ddof=1):.2f} |" in page
    tiles = sum(report["evaluated"]["tiles"] for report in alone.reports.values())
    assert f"4 folds of scenes, each held out once, 2 steps, seed 3, {tiles} tiles of" in page
    assert all(f"- fold {fold} of 4 scored {Path(image).stem}\n" in page for fold, (image,) in alone.held_out.items())
    pixels = sum(np.array(report["confusion"]["pixels"]) for report in seeing.reports.values())
    right = pixels.diagonal()
    iou = right / np.maximum(1, pixels.sum(0) + pixels.sum(1) - right)
    assert "Seeing, seed 3: the scenes of all 4 folds together" in page
    assert f"learn from it: mIoU {100 * iou.mean():.2f}" in page.partition("Seeing, seed 3")[2]
    table_csv = (out / "table.csv").read_text().splitlines()
    assert table_csv[0].startswith("table,row,seed,fold,dataset,")
    assert len(table_csv) == 1 + 8
    assert len((out / "folds.csv").read_text().splitlines()) == 1 + 8

    def never(*_, **__):
        raise AssertionError("already done")

    monkeypatch.setattr(caswit.experiments.paper_tables, "train", never)
    monkeypatch.setattr(caswit.experiments.paper_tables, "evaluate", never)
    again = table(rows(four_scenes, "alone", "seeing"), out, settings)
    assert [r.reports for r in again] == [r.reports for r in results]


def test_more_folds_than_scenes_and_folds_of_a_split(four_scenes):
    with pytest.raises(ConfigError, match="5 folds need as many images with labels, got 4; try 4 folds"):
        table(rows(four_scenes, "alone"), four_scenes / "out", TableConfig(folds=5))
    with pytest.raises(ConfigError, match="there is no split to name, got 'test'; leave out --split or --folds"):
        TableConfig(folds=4, split="test")
    with pytest.raises(ConfigError, match="folds must be at least 2, got 1"):
        TableConfig(folds=1)


def test_folds_of_another_dataset_take_the_splits_that_it_has(four_scenes, dataset_file):
    row = dataclasses.replace(rows(four_scenes, "alone")[0], recipe=Recipe(data=DataConfig(dataset="nowhere.yaml")))
    settings = TableConfig(folds=2, dataset=str(dataset_file))
    made = scaled_recipe(row, 0, four_scenes, settings, 2)  # val is not there, valid is no split of this recipe
    assert (made.data.train_split, made.data.val_split, made.train.keep) == ("train", None, "last")
    assert {s.image.stem for s in load_dataset(made.data.dataset).scenes} == {"a", "b"}


def test_a_row_that_cannot_start_says_so_and_the_others_run(recipes, caplog):
    settings = dataclasses.replace(FAST, seeds=(0,))
    with caplog.at_level("INFO"):
        alone, ssl = table(rows(recipes, "alone", "ssl"), recipes / "out", settings)
    assert alone.reports
    assert not ssl.reports
    assert "which does not exist; make it with: caswit pretrain recipes/p.yaml --out " in ssl.error
    assert "\n" not in ssl.error
    assert f"- SSL: not run: {ssl.error}" in (recipes / "out" / "table.md").read_text()
    assert any("SSL, seed 0: not run: " in message for message in caplog.messages)


def test_a_small_table_makes_its_pretraining_once(recipes, dataset_file, monkeypatch):
    """All rows of a table ended but those that start from a pretraining, which nobody has at a small size."""
    content = yaml.safe_load((recipes / "ssl.yaml").read_text())
    content["model"] |= {"decoder": "segformer"}
    (recipes / "other.yaml").write_text(yaml.safe_dump(content | {"row": {"name": "Other"}}))
    settings = dataclasses.replace(FAST, seeds=(0,), dataset=str(dataset_file), size="pico", measure_memory=False)
    ssl, other = table(rows(recipes, "ssl", "other"), recipes / "out", settings)
    assert ssl.reports
    assert other.reports
    assert ssl.start == "pretrained here"
    (made,) = (recipes / "out" / "pretraining").iterdir()
    assert load_pretrained(made / "model").info.provenance["step"] == 2
    monkeypatch.setattr("caswit.experiments.paper_tables.pretrain", None)
    table(rows(recipes, "ssl"), recipes / "out", settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"pretrained": "nowhere/p"}, "--pretrained names nowhere/p, which does not exist"),
        ({"size": "tiny"}, "name one of size nano with --pretrained"),
    ],
)
def test_a_missing_pretraining_of_another_table_is_not_the_papers(recipes, settings, said):
    with pytest.raises(ConfigError, match=said) as error:
        table(rows(recipes, "ssl"), recipes / "out", dataclasses.replace(FAST, seeds=(0,), **settings))
    assert "recipes/p.yaml" not in str(error.value)


def test_a_split_that_is_not_there_is_refused_before_training(recipes):
    with pytest.raises(CaswitError, match="no scene has split 'nowhere'"):
        table(rows(recipes, "alone"), recipes / "table", dataclasses.replace(FAST, split="nowhere"))
    assert not (recipes / "table" / "runs").exists()


def test_a_table_of_which_nothing_runs_is_an_error(recipes):
    with pytest.raises(CaswitError, match="which does not exist"):
        table(rows(recipes, "ssl"), recipes / "out", FAST)


class TestScale:
    def row(self, recipes, name="ssl", **model) -> TableRow:
        row = rows(recipes, name)[0]
        return dataclasses.replace(
            row, recipe=dataclasses.replace(row.recipe, model=dataclasses.replace(row.recipe.model, **model))
        )

    def test_sizes(self):
        assert [scaled_size(size, "nano") for size in ("tiny", "small", "base", "large")] == [
            "pico",
            "pico",
            "nano",
            "tiny",
        ]
        assert [scaled_size(size, "tiny") for size in ("tiny", "base", "large")] == ["nano", "tiny", "small"]
        assert scaled_size("tiny", "pico") == "pico"

    @pytest.mark.parametrize(
        ("name", "was", "now", "printed"),
        [
            ("CASWiT-Base", "base", "nano", "CASWiT-Nano (for CASWiT-Base)"),
            ("CASWiT-Base-SSL-aug", "base", "nano", "CASWiT-Nano-SSL-aug (for CASWiT-Base-SSL-aug)"),
            ("CASWiT-Tiny", "tiny", "pico", "CASWiT-Pico (for CASWiT-Tiny)"),
            ("Swin-B + UPerNet", "base", "nano", "Swin-Nano + UPerNet (for Swin-B + UPerNet)"),
            ("Swin-S + UPerNet", "small", "pico", "Swin-Pico + UPerNet (for Swin-S + UPerNet)"),
            ("Baseline (no CA)", "base", "nano", "Baseline (no CA), Nano"),
            ("All-stage", "base", "base", "All-stage"),
        ],
    )
    def test_rows_are_named_by_what_they_are(self, name, was, now, printed):
        assert sized_name(name, was, now) == printed

    def test_both_starts(self, recipes):
        """Section 4.5 of the paper says "trained from scratch"; its Swin-Base equals one that started from ImageNet."""
        timm = {"from": "timm", "timm": True}
        row = self.row(recipes, "alone", size="base")
        seeing = dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, init=timm))
        pspnet, ssl = rows(recipes, "pspnet", "ssl")
        scratch, imagenet = TableConfig(start="scratch"), TableConfig(start="imagenet")
        assert scaled_recipe(seeing, 0, recipes, scratch).init is None
        assert scaled_recipe(row, 0, recipes, imagenet).init == timm
        assert scaled_recipe(row, 0, recipes, TableConfig(start="imagenet", size="tiny")).init == timm
        assert scaled_recipe(pspnet, 0, recipes, scratch).model.encoder_weights is None
        assert scaled_recipe(pspnet, 0, recipes, imagenet).model.encoder_weights == "imagenet"
        for start in (scratch, imagenet):
            assert scaled_recipe(ssl, 0, recipes, start).init == ssl.recipe.init
        with pytest.raises(ConfigError, match="timm has no weights for size nano"):
            TableConfig(start="imagenet", size="nano")

    def test_another_dataset_size_and_length(self, recipes):
        settings = TableConfig(dataset="x.yaml", size="nano", max_steps=7, seeds=(5,))
        made = scaled_recipe(self.row(recipes, size="base"), 5, recipes, settings)
        assert (made.data.dataset, made.data.val_split, made.train.keep) == ("x.yaml", None, "last")
        assert (made.model.size, made.train.max_steps, made.train.seed) == ("nano", 7, 5)
        assert made.init["path"].startswith(str(recipes / "pretraining" / "-nano-s5-"))  # x.yaml lies in no folder
        larger = dataclasses.replace(settings, size="tiny")
        assert scaled_recipe(self.row(recipes, size="base"), 5, recipes, larger).init["path"].endswith("/pretrained")

    def test_an_equal_time_for_all_rows_ends_trainings_and_pretrainings(self, recipes):
        settings = TableConfig(dataset="x.yaml", size="nano", max_minutes=0.5)
        made = scaled_recipe(self.row(recipes, size="base"), 0, recipes, settings)
        for train in (made.train, scaled_pretraining(made).train):
            assert (train.max_minutes, train.max_steps) == (0.5, 10**6)
        both = scaled_recipe(self.row(recipes), 0, recipes, dataclasses.replace(settings, max_steps=7))
        assert (both.train.max_minutes, both.train.max_steps) == (0.5, 7)
        with pytest.raises(ConfigError, match="max_minutes must be above 0, got 0"):
            TableConfig(max_minutes=0)

    def test_weights_of_others_have_their_own_size(self, recipes):
        row = self.row(recipes, size="base")
        row = dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, init={"from": "timm", "timm": True}))
        assert scaled_recipe(row, 0, recipes, TableConfig(size="nano")).init is None
        assert scaled_recipe(row, 0, recipes, TableConfig()).init == {"from": "timm", "timm": True}

    def test_a_slip_in_the_name_of_the_landscapes(self, recipes):
        with pytest.raises(DataError, match=r"^landscape: no such dataset file; did you mean landscapes\?$"):
            scaled_recipe(self.row(recipes), 0, recipes, TableConfig(dataset="landscape"))

    def test_pretrained_elsewhere(self, recipes):
        made = scaled_recipe(self.row(recipes), 3, recipes, TableConfig(pretrained="p-{seed}/model"))
        assert made.init == {"from": "caswit", "path": "p-3/model"}
        assert scaled_recipe(self.row(recipes, "alone"), 0, recipes, TableConfig(pretrained="p/model")).init is None

    def test_a_baseline_keeps_its_encoder_and_downloads_nothing(self, recipes):
        row = self.row(recipes, "pspnet", encoder_weights="imagenet")
        made = scaled_recipe(row, 0, recipes, TableConfig(size="nano"))
        assert made.model == rows(recipes, "pspnet")[0].recipe.model

    def test_landscapes_are_drawn_once_for_each_seed(self, recipes, monkeypatch):
        drawn = []

        def draw(folder, seed):
            drawn.append(seed)
            folder.mkdir(parents=True)
            (folder / "dataset.yaml").write_text("")
            return type("Drawn", (), {"path": folder / "dataset.yaml"})

        monkeypatch.setattr(scale, "write_landscapes", draw)
        settings = TableConfig(dataset="landscapes")
        made = [scaled_recipe(self.row(recipes), seed, recipes / "out", settings).data.dataset for seed in (0, 1, 0)]
        assert drawn == [0, 1]
        assert made == [str(recipes / "out" / "landscapes" / f"seed-{seed}" / "dataset.yaml") for seed in (0, 1, 0)]


def test_the_command(recipes, capsys):
    over = recipes / "over.yaml"
    over.write_text("train: {lr: 0.002}")
    words = ["table", recipes / "alone.yaml", "--out", recipes / "out", "--over", over, "--max-steps", "1"]
    words += ["--seeds", "3", "4", "--device", "cpu", "--measure_memory", "false", "--boundary_px", "2"]
    main([str(word) for word in words])
    said = capsys.readouterr().out
    assert "| Alone | pico | scratch | 60.00 | " in said
    assert "1 steps, seeds 3, 4, " in said
    assert "boundary band 2 px" in said
    made_by = json.loads((recipes / "out" / "runs" / "stripes" / "alone-s4" / "model" / "config.json").read_text())
    assert made_by["provenance"]["recipe"]["train"]["lr"] == 0.002
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in [*words, "--seeds", "3", "3"]])
    assert stop.value.code == 2
    assert "seeds must differ, got [3, 3]" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["04-glnet.yaml", "05-fctl.yaml"])
def test_a_rate_for_every_row_is_that_of_all_its_phases(monkeypatch, tmp_path, file):
    found = []

    def seen(rows, out, settings):
        found.extend(rows)
        raise ConfigError("seen")

    monkeypatch.setattr(caswit.experiments.paper_tables, "table", seen)
    over = tmp_path / "over.yaml"
    words = ["table", str(RECIPES / "table2" / file), "--out", str(tmp_path), "--over", str(over)]
    for text in ("train: {lr: 0.002}", "train: {min_lr: 0}"):
        over.write_text(text)
        with pytest.raises(SystemExit):
            main(words)
    ours, own = (row.recipe.train for row in found)
    assert [phase.lr for phase in ours.phases] == [None] * len(ours.phases)
    assert [(p.name, p.share) for p in ours.phases] == [(p.name, p.share) for p in own.phases]
    assert own.phases == parse_recipe(read_recipe(RECIPES / "table2" / file), Path(file)).train.phases


def test_train_takes_the_same_recipes(recipes, capsys):
    main(["train", str(recipes / "alone.yaml"), "--out", str(recipes / "run"), "--train.max_steps=1"])
    assert (recipes / "run" / "model" / "config.json").is_file()
    resolved = yaml.safe_load((recipes / "run" / "recipe.yaml").read_text())
    assert resolved["model"]["fusion_stages"] == []
    assert set(resolved) == {field.name for field in dataclasses.fields(Recipe)}


def test_memory_of_a_model(make_model):
    """With a context branch it needs more; both need more than Python and torch alone."""
    peak = peak_memory(make_model((1, 2, 3, 4)), device="cpu", precision="fp32")
    assert (peak.device, peak.precision, peak.allocated_mb) == ("cpu", "fp32", None)
    assert 50 < peak.before_mb < peak.resident_mb < peak.before_mb + 2000
    with pytest.raises(CaswitError, match="none: no such model folder"):
        peak_memory(make_model((1, 2, 3, 4)).parent / "none", device="cpu")


def test_runs_of_both_starts_lie_side_by_side(recipes):
    out, settings = recipes / "out", dataclasses.replace(FAST, seeds=(0,), measure_memory=False)
    (row,) = rows(recipes, "alone")
    row = dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, init={"from": "timm", "timm": True}))
    scratch = dataclasses.replace(settings, start="scratch", size="nano")
    (result,) = table([row], out, scratch)
    assert (out / "runs" / "stripes" / "alone-scratch-s0" / "model").is_dir()
    assert result.row.name.endswith(", from scratch")
    assert f"| {result.row.name} |" in (out / "table.md").read_text()


class TestTilesOfMethods:
    def row(self, recipes, own_px=None, **inference) -> TableRow:
        (row,) = rows(recipes, "alone")
        tile = TileConfig(tile_px=own_px or 512)
        recipe = dataclasses.replace(row.recipe, tile=tile)
        printed = dataclasses.replace(row.row, inference=TilingConfig(**inference))
        return dataclasses.replace(row, recipe=recipe, row=printed)

    def test_on_landscapes_tiles_are_a_quarter_and_whole_images_stay(self, recipes):
        settings = TableConfig(dataset="landscapes")
        patches = self.row(recipes, 504, tile_px=508, overlap_px=50)
        tile = scaled_tile(patches, settings)
        assert tile.tile_px == 128
        assert method_tiling(patches, tile) == TilingConfig(tile_px=128, overlap_px=13)
        crops = self.row(recipes, 2560, tile_px="whole")
        assert scaled_tile(crops, settings).tile_px == 640
        assert method_tiling(crops, scaled_tile(crops, settings)) == TilingConfig(tile_px="whole")
        assert scaled_tile(self.row(recipes, 5120), settings).tile_px == 1024  # all of a landscape
        assert common_px([patches, crops], settings) == 128

    def test_the_scale_of_tiles_is_asked_for_on_other_data(self, recipes):
        """With 0.25 a row is cut, and learns in batches, as on landscapes; without, as its recipe says."""
        dataset = str(recipes / "stripes" / "dataset.yaml")
        row = self.row(recipes, 2560, tile_px="whole")
        asked = TableConfig(dataset=dataset, tile_scale=0.25)
        assert scaled_tile(row, asked).tile_px == 640
        assert scaled_tile(self.row(recipes, 5120), asked).tile_px == 1280  # not bounded by the side of a landscape
        assert common_px([row], asked) == 128
        assert scaled_tile(row, TableConfig(dataset=dataset)).tile_px == 2560
        assert scaled_tile(row, TableConfig(dataset="landscapes", tile_scale=0.125)).tile_px == 320

    @pytest.mark.parametrize("wrong", [0, -1, 2])
    def test_scales_that_are_none(self, wrong):
        with pytest.raises(ConfigError, match=rf"tile_scale must be above 0 .* got {wrong}; try 0.25"):
            TableConfig(dataset="landscapes", tile_scale=wrong)
        with pytest.raises(ConfigError, match="needs --dataset"):
            TableConfig(tile_scale=0.25)

    def test_tiles_that_over_names_are_not_scaled_again_but_inference_follows_them(self, recipes):
        row = dataclasses.replace(
            self.row(recipes, 128, tile_px=508, overlap_px=50), own_tile_px=508, fixed=frozenset({"tile.tile_px"})
        )
        settings = TableConfig(dataset="landscapes")
        assert scaled_tile(row, settings).tile_px == 128
        assert method_tiling(row, scaled_tile(row, settings)) == TilingConfig(tile_px=128, overlap_px=13)

    def test_at_full_size_nothing_is_scaled(self, recipes):
        row = self.row(recipes, 504, tile_px=508, overlap_px=50)
        assert method_tiling(row, scaled_tile(row, TableConfig())) == row.row.inference

    def test_one_side_for_all(self, recipes):
        alone, whole = self.row(recipes, 256), self.row(recipes, 2560, tile_px="whole")
        assert common_px([alone, whole], TableConfig()) == 256
        assert common_px([whole], TableConfig()) == 512
        assert common_px([alone, self.row(recipes, 512), whole], TableConfig()) == 512
        assert common_px([alone, whole], TableConfig(tile_px=320)) == 320

    @pytest.mark.parametrize(("side", "factor", "fits"), [(512, 2, 512), (127, 2, 128), (256, 4, 256), (100, 2, 96)])
    def test_sides_fit_contexts_and_strides(self, side, factor, fits):
        assert fitting_px(side, TileConfig(tile_px=fits, context_factor=factor)) == fits

    def test_a_small_machine(self, recipes):
        """On landscapes a row asks for one process and few tiles, whatever its recipe does on four GPUs."""
        (row,) = rows(recipes, "alone")
        train = dataclasses.replace(row.recipe.train, batch=20, devices=4)
        row = dataclasses.replace(row, recipe=dataclasses.replace(row.recipe, train=train))
        settings = TableConfig(dataset="landscapes")
        made = scaled_recipe(row, 0, recipes / "out", settings).train
        assert (made.batch, made.devices) == (8, 1)
        fixed = dataclasses.replace(row, fixed=frozenset({"train.batch"}))
        assert scaled_recipe(fixed, 0, recipes / "out", settings).train.batch == 20
        assert scaled_recipe(row, 0, recipes / "out", TableConfig()).train.devices == 4
        assert set(scale.SMALL) == {"stdc1", "stdc2", "glnet", "fctl", "isdnet", "wsdnet", "uhrs", "relay_tokens"}


def with_inference(row: TableRow, **inference) -> TableRow:
    return dataclasses.replace(row, row=dataclasses.replace(row.row, inference=TilingConfig(**inference)))


def test_a_row_is_scored_as_its_method_cuts_scenes_and_with_the_tiles_of_all(recipes, monkeypatch):
    out, settings = recipes / "out", dataclasses.replace(FAST, seeds=(0,))
    alone, pspnet = rows(recipes, "alone", "pspnet")
    found = table([alone, with_inference(pspnet, tile_px="whole")], out, settings)
    how = [(r.reports[0]["evaluated"]["tile_px"], r.reports_alike[0]["evaluated"]["tile_px"]) for r in found]
    assert how == [(32, 32), ("whole", 32)]
    bands = {report["evaluated"]["band_px"] for r in found for report in (r.reports[0], r.reports_alike[0])}
    assert len(bands) == 1
    # The column of all rows is what a row without a method of its own gets.
    (plain,) = table([pspnet], recipes / "plain", settings)
    assert found[1].reports_alike[0]["confusion"] == plain.reports[0]["confusion"]
    assert found[1].reports[0]["confusion"] != plain.reports[0]["confusion"]
    page = (out / "table.md").read_text()
    assert "| ours at 32 px tiles |" in page
    assert "1 whole images" in page

    def never(*_, **__):
        raise AssertionError("already done")

    monkeypatch.setattr(caswit.experiments.paper_tables, "evaluate", never)
    again = table([alone, with_inference(pspnet, tile_px="whole")], out, settings)
    assert [r.reports for r in again] == [r.reports for r in found]


def test_a_network_that_two_tables_name_differently_is_trained_once(recipes, monkeypatch):
    """Also by a later command; another seed, or another recipe, is another run."""
    out, settings = recipes / "out", dataclasses.replace(FAST, seeds=(0,))
    (alone,) = rows(recipes, "alone")
    named = dataclasses.replace(alone, row=dataclasses.replace(alone.row, name="Baseline", table="8"))
    first = table([alone], out, settings)
    with monkeypatch.context() as patch:
        patch.setattr(caswit.experiments.paper_tables, "train", lambda *_, **__: 1 / 0)
        patch.setattr(caswit.experiments.paper_tables, "evaluate", lambda *_, **__: 1 / 0)
        (again,) = table([named], out, settings)
    assert again.reports == first[0].reports
    assert again.row.name == "Baseline"
    table([named], out, dataclasses.replace(settings, seeds=(1,)))
    table([named], out, dataclasses.replace(settings, seeds=(2,), max_steps=1))
    assert sorted(f.name for f in (out / "runs" / "stripes").iterdir()) == ["alone-s0", "baseline-s1", "baseline-s2"]


def test_exit_status_and_messages_of_rows_that_were_left_out(recipes, capsys, caplog):
    """It was 0, and where no row ran the same line stood there twice."""
    words = [recipes / "alone.yaml", recipes / "ssl.yaml", "--out", recipes / "out", "--max-steps", "1"]
    words += ["--seeds", "0", "1", "--device", "cpu", "--measure-memory", "false", "--pictures", "0"]

    def stopped(words) -> tuple[int, str]:
        caplog.clear()
        with pytest.raises(SystemExit) as stop, caplog.at_level("INFO"):
            main(["table", *map(str, words)])
        return stop.value.code, capsys.readouterr().err + "\n".join(caplog.messages)

    status, said = stopped(words)
    assert status == 3
    assert "1 of 2 rows are not complete: SSL; the same command tries only these again" in said
    assert said.count("which does not exist") == 1
    status, said = stopped(words[1:])
    assert status == 2
    assert said.count("which does not exist") == 1
    (recipes / "ssl2.yaml").write_text("base: ssl.yaml\nrow: {name: SSL2}")
    status, said = stopped([recipes / "ssl2.yaml", *words[1:]])
    assert status == 2
    assert "none of the 2 rows could be run; the reasons are above and in " in said
    assert "SSL2, seed 0: not run: " in said


def test_starts_in_one_word(recipes):
    alone, ssl, pspnet = rows(recipes, "alone", "ssl", "pspnet")
    assert [start_of(row.recipe) for row in (alone, ssl, pspnet)] == ["scratch", "pretrained", "scratch"]
    assert start_of(dataclasses.replace(alone.recipe, init={"from": "timm", "timm": True})) == "imagenet"
