"""Recipes that inherit, and the shipped ones against the paper."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import get_args

import pytest
import yaml

from caswit.cli.main import main
from caswit.cli.recipe import merge, parse_recipe, parse_row, read_recipe
from caswit.config import Recipe
from caswit.errors import CaswitError, ConfigError

RECIPES = Path(__file__).parents[2] / "recipes"
ROWS = sorted(RECIPES.glob("table*/*.yaml"))
UHR = {"stdc1", "glnet", "fctl", "isdnet", "wsdnet", "uhrs"}
"""Networks of table 2 that are trained and tested as their own papers do."""


def write(file: Path, **content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(content))
    return file


def settings(name: str):
    file = RECIPES / name
    return parse_recipe(read_recipe(file), file)


def flat(recipe) -> dict:
    """Every setting of the sections of a recipe by its name."""
    sections = {name: section for name, section in dataclasses.asdict(recipe).items() if isinstance(section, dict)}
    return {f"{name}.{key}": value for name, section in sections.items() for key, value in section.items()}


class TestInheritance:
    def test_fields_replace_fields(self, tmp_path):
        write(tmp_path / "base.yaml", data={"dataset": "x"}, train={"lr": 1.0, "batch": 3}, model={"size": "tiny"})
        file = write(tmp_path / "a" / "row.yaml", base="../base.yaml", train={"lr": 2.0})
        assert read_recipe(file) == {
            "data": {"dataset": "x"},
            "train": {"lr": 2.0, "batch": 3},
            "model": {"size": "tiny"},
        }

    def test_later_bases_win_over_earlier_ones_and_bases_have_bases(self, tmp_path):
        write(tmp_path / "root.yaml", data={"dataset": "x", "workers": 1}, train={"batch": 1})
        write(tmp_path / "left.yaml", base="root.yaml", train={"lr": 1.0})
        write(tmp_path / "right.yaml", train={"lr": 2.0, "batch": 4})
        file = write(tmp_path / "row.yaml", base=["left.yaml", "right.yaml"], data={"workers": 2})
        assert read_recipe(file) == {"data": {"dataset": "x", "workers": 2}, "train": {"lr": 2.0, "batch": 4}}

    def test_init_is_replaced_as_a_whole(self):
        merged = merge({"init": {"from": "timm", "timm": True}}, {"init": {"from": "caswit", "path": "p"}})
        assert merged == {"init": {"from": "caswit", "path": "p"}}
        assert merge({"init": {"from": "timm"}}, {"init": None}) == {"init": None}

    def test_a_sum_of_losses_is_replaced_as_a_whole(self, tmp_path):
        write(tmp_path / "base.yaml", data={"dataset": "x"}, train={"loss": {"cross_entropy": 1, "dice": 1}, "lr": 1.0})
        file = write(tmp_path / "row.yaml", base="base.yaml", train={"loss": {"focal": 2}})
        recipe = parse_recipe(read_recipe(file), file)
        assert (recipe.train.losses, recipe.train.lr) == ({"focal": 2.0}, 1.0)

    def test_a_file_without_base_is_what_it_says(self, tmp_path):
        assert read_recipe(write(tmp_path / "r.yaml", data={"dataset": "x"})) == {"data": {"dataset": "x"}}


class TestLosses:
    def recipe(self, tmp_path, model=None, **train) -> Recipe:
        file = write(tmp_path / "r.yaml", data={"dataset": "x"}, train=train, model=model or {})
        return parse_recipe(read_recipe(file), file)

    @pytest.mark.parametrize(
        ("loss", "losses"),
        [
            ("dice", {"dice": 1.0}),
            ({"cross_entropy": 1, "lovasz": 0.5}, {"cross_entropy": 1.0, "lovasz": 0.5}),
        ],
    )
    def test_a_name_or_a_sum(self, tmp_path, loss, losses):
        assert self.recipe(tmp_path, loss=loss).train.losses == losses
        assert self.recipe(tmp_path).train.losses == {"cross_entropy": 1.0}

    @pytest.mark.parametrize("weights", [[0.5, 2.0], "auto", None])
    def test_class_weights(self, tmp_path, weights):
        found = self.recipe(tmp_path, class_weights=weights).train.class_weights
        assert found == (tuple(weights) if isinstance(weights, list) else weights)

    @pytest.mark.parametrize(
        ("train", "words"),
        [
            ({"loss": "iou"}, "train.loss"),
            ({"loss": {"iou": 1}}, "train.loss must be one of cross_entropy, dice, focal, lovasz, ohem, or weights of"),
            ({"loss": {"dice": -1}}, "the weight of dice must be above 0, got -1.0"),
            ({"loss": {}}, "train.loss needs at least one"),
            (
                {"loss": "dice", "class_weights": "auto"},
                "class_weights: only the losses cross_entropy, focal, ohem take",
            ),
            (
                {"loss": "lovasz", "label_smoothing": 0.1},
                "label_smoothing: only the losses cross_entropy, ohem take it",
            ),
            ({"label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1"),
            ({"ohem_share": 0.0}, "ohem_share must be above 0 and at most 1"),
            ({"focal_gamma": -1.0}, "focal_gamma must be in"),
            (
                {"class_weights": [1.0, -1.0]},
                "numbers from 0, not all of them 0, got [1.0, -1.0]",
            ),
            ({"class_weights": [0.0, 0.0]}, "class_weights must be numbers from 0, not all of them 0"),
            ({"class_weights": [1.0, float("nan")]}, "class_weights must be numbers from 0"),
            ({"class_weights": "square"}, "class_weights"),
            (
                {"logit_adjustment": {"water": -30.0}},
                "logit_adjustment of 'water' must be in [-20, 20], got -30.0",
            ),
            (
                {"logit_adjustment": {"water": float("nan")}},
                "logit_adjustment of 'water' must be in [-20, 20], got nan",
            ),
        ],
    )
    def test_losses_that_make_no_sense(self, tmp_path, train, words):
        with pytest.raises(ConfigError, match=re.escape(words)) as error:
            self.recipe(tmp_path, **train)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("train", [{"loss": "dice"}, {"label_smoothing": 0.1}, {"loss": {"cross_entropy": 2.0}}])
    @pytest.mark.parametrize("model", [{"arch": "stdc1"}, {"decoder": "mask2former"}])
    def test_networks_with_a_loss_of_their_own_refuse_another(self, tmp_path, train, model):
        with pytest.raises(ConfigError, match=r"train\.loss is for networks without a loss of their own, got"):
            self.recipe(tmp_path, model, **train)
        assert self.recipe(tmp_path, model).model.has_own_loss
        smp = {"arch": "unet", "encoder": "resnet18"}
        assert self.recipe(tmp_path, smp, **train).train.losses

    def test_networks_with_a_loss_of_their_own_are_not_adjusted(self, tmp_path):
        with pytest.raises(ConfigError, match=r"logit_adjustment is for networks without a loss .*, and stdc1 has one"):
            self.recipe(tmp_path, {"arch": "stdc1"}, logit_adjustment={"water": 1.0})


class TestMistakes:
    def refused(self, file: Path, words: str):
        with pytest.raises(CaswitError) as caught:
            read_recipe(file)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_base_that_is_not_there(self, tmp_path):
        file = write(tmp_path / "r.yaml", base="../none.yaml")
        self.refused(file, f"{file}: base {tmp_path}/../none.yaml: no such recipe file; a base is relative to the file")

    def test_circle(self, tmp_path):
        write(tmp_path / "a.yaml", base="b.yaml")
        file = write(tmp_path / "b.yaml", base="a.yaml")
        self.refused(file, "the recipe is its own base")

    def test_base_of_the_wrong_type(self, tmp_path):
        self.refused(write(tmp_path / "r.yaml", base=[1]), "base must be a recipe or a list of them, got [1]")

    def test_unknown_field_in_a_base_names_the_base(self, tmp_path):
        write(tmp_path / "b.yaml", train={"learning_rate": 1})
        self.refused(write(tmp_path / "r.yaml", base="b.yaml"), "b.yaml: train: unknown learning_rate")
        self.refused(tmp_path / "r.yaml", "; did you mean lr?")

    def test_unknown_field_of_the_row(self, tmp_path):
        self.refused(write(tmp_path / "r.yaml", row={"title": "x"}), "row: unknown title; allowed: inference, name, ")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ({"data": {"dataset": "x"}, "model": {"size": "huge"}}, "model.size: expected pico, nano, "),
            ({"data": {"dataset": "x"}, "model": {"arch": "pspnet"}}, "arch pspnet needs an encoder; try encoder: "),
            ({"model": {"size": "nano"}}, "data"),
        ],
    )
    def test_value_that_is_not_allowed_names_the_file(self, tmp_path, content, words):
        file = write(tmp_path / "r.yaml", **content)
        with pytest.raises(ConfigError) as caught:
            parse_recipe(read_recipe(file), file)
        assert str(caught.value).startswith(f"{file}: ")
        assert words in str(caught.value)

    @pytest.mark.parametrize("setting", ["train.batch", "tile.tile_px", "train.accumulate", "train.max_steps"])
    def test_numbers_beyond_all_counting(self, tmp_path, capsys, setting):
        """10 to the 400th is no float, and was divided to propose a number that fits."""
        section, field = setting.split(".")
        file = write(tmp_path / "r.yaml", **{"data": {"dataset": "x"}, section: {field: 10**400}})
        with pytest.raises(SystemExit):
            main(["train", str(file), "--out", str(tmp_path / "out")])
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("section", "field"),
        [
            (section.name, field.name)
            for section in dataclasses.fields(Recipe)
            if dataclasses.is_dataclass(section.type)
            for field in dataclasses.fields(section.type)
            if field.name != "dataset" and type(None) not in get_args(field.type)
        ],
    )
    def test_null_where_there_is_no_null(self, tmp_path, section, field):
        """``batch: null`` was compared with 1; jsonargparse lets null through wherever there is a default."""
        content = {"data": {"dataset": "x"}} | {section: {"dataset": "x"} if section == "data" else {}}
        content[section][field] = None
        file = write(tmp_path / "r.yaml", **content)
        with pytest.raises(ConfigError, match=rf"^{file}: {section}.{field}: must not be null; leave it out for"):
            parse_recipe(read_recipe(file), file)


@pytest.mark.parametrize("file", ROWS, ids=lambda f: f"{f.parent.name}/{f.stem}")
class TestShippedRows:
    def test_section_4_3_holds_for_every_row(self, file):
        """The settings that the paper states for all of them; batch 20 on URUR, augmentation in the -aug rows only."""
        recipe = settings(file.relative_to(RECIPES))
        if recipe.model.arch in UHR:
            pytest.skip("trained as its own paper says")
        train = recipe.train
        urur = file.parent.name == "table2"
        assert (train.lr, train.min_lr, train.weight_decay, train.epochs) == (6e-5, 1e-6, 0.01, 20)
        assert (train.batch, train.devices) == (20 if urur else 16, 4)
        assert train.batch // train.devices == (5 if urur else 4)
        assert (recipe.tile.tile_px, recipe.tile.context_factor) == (
            (256, 4) if recipe.model.arch == "relay_tokens" else (512, 2)
        )
        assert train.max_steps is None
        assert recipe.data.dataset == f"$CASWIT_DATA/{'urur' if urur else 'flair_hub'}/dataset.yaml"
        augmented = "aug" in parse_row(read_recipe(file), file).name
        assert (recipe.augment.spatial, recipe.augment.gamma > 0) == (augmented, augmented)
        if recipe.model.arch == "caswit" and recipe.model.fusion_stages and "alpha0" not in file.stem:
            assert train.alpha == 0.5

    def test_row(self, file):
        row = parse_row(read_recipe(file), file)
        assert f"table{row.table}" == file.parent.name
        assert row.protocol == ("urur8" if row.table == "2" else "flair15")
        assert row.split == ("val" if row.table == "3" else "test")
        if "not in the paper" in row.note:
            assert row.paper.miou is None
        else:
            assert (row.paper.miou or row.quoted.miou) is not None
        assert ("SSL" in row.name) == (row.pretraining is not None)
        per_class = row.paper.per_class
        if per_class and "Swin" not in row.name:  # the paper's baseline column does not add up
            assert len(per_class) == (8 if row.table == "2" else 15)
            assert sum(per_class.values()) / len(per_class) == pytest.approx(row.paper.miou, abs=0.06)


FIGURES = {
    "PSPNet": (32.0, 5482), "ResNet18 + DeepLabv3+": (33.1, 5508), "STDC": (42.0, 7617), "GLNet": (41.2, 3063),
    "FCtL": (43.1, 4508), "ISDNet": (45.8, 4920), "WSDNet": (46.9, 4510), "Boosting Dual-branch": (48.2, 3682),
    "CASWiT-Base": (48.7, 3530), "CASWiT-Base-SSL": (49.1, 3530),
}  # fmt: skip
"""Table 2 of the paper: mIoU and memory, in its order."""


def test_table_2_has_the_papers_rows_in_its_order():
    contents = [yaml.safe_load(file.read_text())["row"] for file in ROWS if file.parent.name == "table2"]
    names = [row.get("name", "CASWiT-Base") for row in contents]
    assert names[:10] == list(FIGURES)
    assert names[10:] == ["CASWiT-Base-SSL, SegFormer decoder", "Relay Tokens"]
    assert [(row["paper"]["miou"], row["paper"]["memory_mb"]) for row in contents[:10]] == list(FIGURES.values())


@pytest.mark.parametrize(
    ("stem", "inference"),
    [
        ("03-stdc", "whole"),
        ("04-glnet", "whole"),
        ("06-isdnet", "whole"),
        ("09-caswit-base", None),
        ("01-pspnet-r18", None),
    ],
)
def test_methods_of_table_2_cut_scenes_as_their_papers_do(stem, inference):
    content = yaml.safe_load((next((RECIPES / "table2").glob(f"{stem}*.yaml"))).read_text())
    assert content["row"].get("inference", {}).get("tile_px") == inference


def test_phases_are_those_of_the_methods():
    """GLNet: 120, 50 and 120 epochs; FCtL: four times 50."""
    for stem, shares, epochs in (
        ("04-glnet", {"global": 120, "local": 50, "global_again": 120}, 290),
        ("05-fctl", {"plain": 50, "context2": 50, "context3": 50, "all": 50}, 200),
    ):
        train = yaml.safe_load((RECIPES / "table2" / f"{stem}.yaml").read_text())["train"]
        assert train["epochs"] == epochs
        found = {phase["name"]: phase["share"] * epochs for phase in train["phases"]}
        assert found == pytest.approx(shares, abs=0.1)


def test_rows_of_table_1_quote_the_official_figures():
    rows = [parse_row(read_recipe(file), file) for file in ROWS if file.parent.name == "table1"]
    quoted = [(row.name, row.quoted.miou, row.quoted.mf1) for row in rows if row.quoted]
    assert quoted == [
        ("Swin-T + UPerNet", 62.01, 75.27),
        ("Swin-S + UPerNet", 61.87, 75.11),
        ("Swin-B + UPerNet", 64.05, 76.88),
        ("Swin-L + UPerNet", 63.36, 76.35),
    ]


def test_table_3_varies_what_the_paper_varies():
    models = [
        (r.model, r.train.alpha) for r in (settings(f.relative_to(RECIPES)) for f in ROWS if f.parent.name == "table3")
    ]
    assert [(m.fusion_stages, m.gated, alpha, m.size) for m, alpha in models] == [
        ((), False, 0.0, "base"),
        ((1, 2, 3, 4), True, 0.0, "base"),
        ((1, 2, 3, 4), False, 0.0, "base"),
        ((1,), False, 0.5, "base"),
        ((4,), False, 0.5, "base"),
        ((1, 2, 3, 4), False, 0.5, "tiny"),
        ((1, 2, 3, 4), False, 0.5, "base"),
        ((1, 2, 3, 4), False, 0.5, "base"),
    ]


def test_table_3_shares_runs_with_table_1():
    assert settings("table3/1-baseline.yaml") == settings("table1/3-swin-b.yaml")
    assert settings("table3/7-base.yaml") == settings("table1/5-caswit-base.yaml")
    assert settings("table3/8-base-ssl.yaml") == settings("table1/6-caswit-base-ssl.yaml")


def test_rows_on_herault_differ_in_context_or_network_alone():
    rows = [settings(file.relative_to(RECIPES)) for file in sorted((RECIPES / "herault").glob("*.yaml"))]
    assert [(r.model.arch, r.model.fusion_stages, r.tile.tile_px, r.tile.context_factor) for r in rows] == [
        ("caswit", (), 256, 4),
        ("caswit", (2, 3, 4), 256, 2),
        ("caswit", (2, 3, 4), 256, 4),
        ("caswit", (2, 3, 4), 256, 8),
        ("caswit", (2, 3, 4), 256, (2, 8)),
        ("caswit", (), 512, 4),
        ("unet", (1, 2, 3, 4), 256, 4),
    ]
    for row in rows:
        assert row.train.batch * row.tile.tile_px**2 == 8 * 256**2
        assert (row.data, row.augment, row.init) == (rows[0].data, rows[0].augment, None)
        assert dataclasses.replace(row.train, batch=8) == rows[0].train


def test_each_row_of_the_ablation_on_herault_changes_what_its_name_says():
    with_context = flat(settings("herault/3-context-4.yaml"))
    found = {}
    for file in sorted((RECIPES / "herault" / "ablation").glob("*.yaml")):
        row = flat(settings(file.relative_to(RECIPES)))
        found[file.stem] = {name for name, value in row.items() if value != with_context[name]}
    assert found == {
        "1-taken-away": {"augment.context_dropout", "augment.context_swap", "augment.context_tint"},
        "2-last-stage": {"model.fusion_stages"},
        "3-all-stages": {"model.fusion_stages"},
        "4-gated": {"model.gated"},
        "5-no-context-loss": {"train.alpha"},
        "6-patch-stem": {"model.stem"},
        "7-mild-light": {f"augment.{name}" for name in ("brightness", "contrast", "gamma", "tint", "saturation")},
    }


def test_a_row_moved_elsewhere_says_what_it_misses(tmp_path):
    shutil.copy(RECIPES / "table3" / "4-stage1.yaml", tmp_path / "row.yaml")
    with pytest.raises(CaswitError, match=r"row\.yaml: base .*caswit\.yaml: no such recipe file"):
        read_recipe(tmp_path / "row.yaml")
