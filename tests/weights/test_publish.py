"""Handing models on: the card, a folder, a fake hub."""

import json
import shutil
import statistics
from pathlib import Path

import huggingface_hub
import pytest
import yaml
from safetensors.torch import load_file

from caswit.cli.main import main
from caswit.config import EvaluateConfig
from caswit.errors import ConfigError, DataError, ModelError
from caswit.evaluation.metrics import score
from caswit.evaluation.run import evaluate
from caswit.weights.learned import Learned
from caswit.weights.model_folder import load_model
from caswit.weights.publish import model_card, public_config, push

REPORT = {
    "miou": 0.5, "mf1": 0.6, "mbiou": 0.25,
    "per_class": {"land": {"iou": 0.5, "f1": 0.6, "biou": 0.25}},
    "evaluated": {"dataset": "town", "split": "test", "tiles": 7, "band_px": 3},
}  # fmt: skip


class FakeHub:
    """Repositories as folders; stands in for the hub at the two places where it is talked to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}

    def create_repo(self, repository, *, private, exist_ok):
        assert exist_ok
        self.private[repository] = private
        return f"https://hub/{repository}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        assert commit_message
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def snapshot_download(self, repository, *, revision, allow_patterns):
        if not (self.root / repository).is_dir() or revision not in (None, "v1"):
            raise OSError("404 Client Error.\n\nRepository Not Found")
        assert allow_patterns
        return str(self.root / repository)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


@pytest.fixture
def report(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    return tmp_path / "report.json"


def test_a_pushed_model_is_a_model_again(hub, model_folder, report, capsys):
    main(["push", str(model_folder), "someone/town", "--report", str(report), "--license", "mit", "--private"])
    assert capsys.readouterr().out.strip() == "https://hub/someone/town"
    assert hub.private == {"someone/town": True}
    assert {f.name for f in (hub.root / "someone/town").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    there, here = load_model("hf:someone/town@v1"), load_model(model_folder)
    assert (there.info, there.digest) == (here.info, here.digest)
    assert there.name == "hf:someone/town@v1"
    main(["info", "hf:someone/town"])
    assert "CASWiT-nano" in capsys.readouterr().out


def test_the_card_says_what_the_model_expects_and_scores(model_folder, report, tmp_path):
    assert push(model_folder, str(tmp_path / "town"), report=report, license_name="mit") == str(tmp_path / "town")
    card = (tmp_path / "town" / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    tags = yaml.safe_load(header)
    assert (tags["library_name"], tags["license"], tags["pipeline_tag"]) == ("caswit", "mit", "image-segmentation")
    assert "| 7 | water | #e2a929 |" in body
    assert "unlabelled" not in body
    assert "| **mean** | 50.00 | 60.00 | 25.00 |" in body
    assert "0.5 m" in body
    assert "caswit predict ortho.tif landcover.tif --model town" in body
    push(model_folder, str(tmp_path / "bare"))
    bare = (tmp_path / "bare" / "README.md").read_text()
    assert "license" not in bare.split("---\n")[1]
    assert "No scores were given" in bare


def test_what_a_model_says_badly_of_itself_hides_nothing_else():
    said = {
        "learned": {"areas": [[3.2, 43.2, 3.7, 43.9]]},
        "validation_confidence": {"mean": 79.0, "classes": {"water": 97.0}},
        "context_report": {"own": 0.42, "masked": 0.4},
    }
    whole = Learned.of(said)
    assert (whole.areas, whole.confidence, round(whole.masking_costs, 6)) == (((3.2, 43.2, 3.7, 43.9),), 79.0, 2.0)
    bad = {name: Learned.of(said | {name: 3}) for name in said}
    assert bad["learned"] == whole._replace(areas=())
    assert bad["validation_confidence"] == whole._replace(confidence=None, confidence_of_classes={})
    assert bad["context_report"] == whole._replace(masking_costs=None)


def test_the_card_says_what_the_context_is_for(dataset_file, model_folder, tmp_path):
    found = evaluate(model_folder, dataset_file, tmp_path, settings=EvaluateConfig(context_report=True, pictures=0))
    report = json.loads((tmp_path / "report.json").read_text())
    push(model_folder, str(tmp_path / "all"), report=tmp_path / "report.json")
    card = (tmp_path / "all" / "README.md").read_text()
    for name, counts in (("its own", found.counts), ("another place's", found.context.swapped)):
        scores = score(counts)
        assert f"\n| {name} | {100 * scores.iou.mean():.2f} | {100 * scores.overall_accuracy:.2f} |\n" in card
    assert report["context_report"]["said"][0] in card
    # By this a map decides whether to blend its tiles.
    costs = 100 * (score(found.counts).miou_truth - score(found.masked_context_counts).miou_truth)
    assert Learned.of(load_model(tmp_path / "all").info.provenance).masking_costs == pytest.approx(costs, abs=0.011)
    assert "in the labels** |" not in card
    first, *others = report["per_class"].values()
    first["support"] = 0
    (tmp_path / "report.json").write_text(json.dumps(report))
    push(model_folder, str(tmp_path / "less"), report=tmp_path / "report.json")
    means = (100 * statistics.mean(row[key] for row in others) for key in ("iou", "f1", "biou"))
    expected = " | ".join(f"{mean:.2f}" for mean in means)
    assert f"\n| **mean of the 2 in the labels** | {expected} |\n" in (tmp_path / "less" / "README.md").read_text()


def test_a_folder_that_holds_a_model_is_not_overwritten_without_a_word(model_folder, tmp_path, capsys):
    mine, own = tmp_path / "mine", tmp_path / "own"
    for folder in (mine, own):
        folder.mkdir()
        (folder / "README.md").write_text("my notes")
    with pytest.raises(SystemExit) as left:
        main(["push", str(model_folder), str(mine)])
    assert left.value.code == 2
    assert f"{mine}: holds README.md already; give another folder, or add --overwrite" in capsys.readouterr().err
    assert [(f.name, f.read_text()) for f in mine.iterdir()] == [("README.md", "my notes")]
    main(["push", str(model_folder), str(mine), "--overwrite"])
    assert load_model(mine).digest == load_model(model_folder).digest
    assert "my notes" not in (mine / "README.md").read_text()


def test_folders_of_the_maker_are_not_handed_on(model_folder, tmp_path):
    private = tmp_path / "private"
    shutil.copytree(model_folder, private)
    config = json.loads((private / "config.json").read_text())
    recipe = {"data": {"dataset": "/home/me/secret/dataset.yaml"}, "init": {"from": "timm", "path": "/home/me/w.pth"}}
    config["provenance"] = {"recipe": recipe, "dataset": "town", "step": 3, "versions": {"caswit": "0"}}
    (private / "config.json").write_text(json.dumps(config))
    push(private, str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["provenance"]["recipe"] == {
        "data": {"dataset": "dataset.yaml"},
        "init": {"from": "timm", "path": "w.pth"},
    }
    assert load_file(private / "model.safetensors").keys() == load_file(tmp_path / "out" / "model.safetensors").keys()


def test_the_card_says_of_which_weights_a_model_is_the_mean_and_not_where_they_lay(model_folder, tmp_path):
    own = shutil.copytree(model_folder, tmp_path / "own")
    config = json.loads((own / "config.json").read_text())
    assert "mean of the weights" not in model_card(public_config(own), "me/toy", None)
    for init in ({"path": "/home/someone/runs/first", "decoder": True}, "/home/someone/runs/first"):
        config["provenance"] = {"dataset": "town", "step": 60, "versions": {"caswit": "0"}}
        config["provenance"]["recipe"] = {"train": {"average_with_start": 0.25}, "init": init}
        (own / "config.json").write_text(json.dumps(config))
        card = model_card(public_config(own), "me/toy", None)
        assert "Its weights are the mean of the weights of that step (75%) and of its start, first (25%)." in card
        assert "The training started from first, whose data and licence count too." in card
        assert "someone" not in card
    config["provenance"]["recipe"]["init"] = {"path": "hf:me/first"}
    (own / "config.json").write_text(json.dumps(config))
    assert "started from hf:me/first," in model_card(public_config(own), "me/toy", None)


def test_statements_that_are_not_there(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["push", str(model_folder), str(tmp_path / "town"), "--about", str(tmp_path / "none.yaml")])
    said = capsys.readouterr().err
    assert (end.value.code, said.count("\n")) == (2, 1)
    assert "none.yaml: cannot be read (No such file or directory)" in said
    assert not (tmp_path / "town").exists()


def test_refusals_are_one_line(hub, model_folder, tmp_path, monkeypatch):
    def refused(kind, says, call):
        with pytest.raises(kind, match=says) as caught:
            call()
        assert "\n" not in str(caught.value)

    nowhere = "hf:someone/nothing"
    refused(ModelError, rf"{nowhere}: cannot be fetched \(OSError: 404", lambda: load_model(nowhere))
    refused(ModelError, "hf:owner/name or hf:owner/name@revision", lambda: load_model("hf:nothing"))
    refused(ConfigError, "give owner/name on the hub, or a folder as ./name", lambda: push(model_folder, "town"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    refused(
        ConfigError, r"runs/card: a folder here, or .* write \./runs/card, or hf:runs/card",
        lambda: push(model_folder, "runs/card"),
    )  # fmt: skip
    refused(
        DataError, r"report.json: cannot be read \(No such file", lambda: push(model_folder, "a/b", report=tmp_path)
    )
    for text, says in (
        ("[]", "must be"),
        ("{}", "miou.*caswit evaluate"),
        ("[" * 100_000, "not JSON"),
        ("\x00", "not JSON"),
    ):
        (tmp_path / "bad.json").write_text(text)
        refused(DataError, says, lambda: push(model_folder, "a/b", report=tmp_path / "bad.json"))
    refused(ModelError, "no model folder", lambda: push(tmp_path, "a/b"))

    def no_network(*_, **__):
        raise OSError("no route\nto host")

    monkeypatch.setattr(hub, "create_repo", no_network)
    refused(ModelError, "a/b: cannot be uploaded .*no route to host.*hf auth login", lambda: push(model_folder, "a/b"))


@pytest.fixture
def about(tmp_path):
    for name in ("val.jpg", "sample.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    content = {
        "summary": "Roofs.",
        "gsd_m": [0.1, 0.5],
        "data": "A town, CC0.",
        "training": "Seed 0.",
        "limits": "Snow.",
        "pictures": {"val.jpg": "The town"},
        "sample": "sample.jpg",
        "sample_gsd_m": 0.2,
        "read_gsd_m": 0.3,
    }
    file = tmp_path / "about.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_what_its_maker_says_is_on_the_card(model_folder, about, report, tmp_path, capsys):
    out = tmp_path / "roofs"
    main(["push", str(model_folder), str(out), "--about", str(about), "--report", str(report), "--half"])
    card = (out / "README.md").read_text()
    for words in ("Roofs. For pixels of 0.1 to 0.5 m.", "![The town](val.jpg)", "A town, CC0.", "Seed 0.", "Snow."):
        assert words in card
    assert "--model roofs" in card
    assert (out / "val.jpg").read_bytes() == b"picture"
    assert load_model(out).info.tile.read_gsd_m == load_model(out).info.trained_gsd_m == 0.3
    assert json.loads((out / "config.json").read_text())["about"] == {
        "summary": "Roofs.",
        "gsd_m": [0.1, 0.5],
        "sample": "sample.jpg",
        "sample_gsd_m": 0.2,
    }


def test_the_old_name_of_a_key_keeps_working(model_folder, about, tmp_path, caplog):
    about.write_text(about.read_text().replace("read_gsd_m", "read_at_m"))
    push(model_folder, str(tmp_path / "out"), about=about)
    assert load_model(tmp_path / "out").info.tile.read_gsd_m == 0.3
    assert "about.read_at_m is now called about.read_gsd_m" in caplog.text


def test_where_it_learned_and_how_sure_it_is_go_into_the_config_and_on_the_card(model_folder, about, report, tmp_path):
    """The end of a map puts the confidence it has there beside that on the validation data."""
    confidence = {"mean": 91.4, "classes": {"building": 88.7, "water": 95.0}}
    scores = json.loads(report.read_text()) | {"confidence": confidence}
    (tmp_path / "scores.json").write_text(json.dumps(scores))
    place = {"place": "Banepa, Nepal", "area": [85.51, 27.63, 85.53, 27.64]}
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | place))
    push(model_folder, str(tmp_path / "out"), about=about, report=tmp_path / "scores.json")
    learned = Learned.of(load_model(tmp_path / "out").info.provenance)
    assert (learned.place, learned.areas) == ("Banepa, Nepal", ((85.51, 27.63, 85.53, 27.64),))
    assert (learned.confidence, learned.confidence_of_classes) == (91.4, confidence["classes"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Mean confidence on this split: 91.4 %; building 88.7 %, water 95.0 %." in card
    both = [place["area"], [3.2, 43.2, 3.7, 43.9]]
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | {"area": both}))
    push(model_folder, str(tmp_path / "two"), about=about, report=tmp_path / "scores.json")
    assert Learned.of(load_model(tmp_path / "two").info.provenance).areas == tuple(map(tuple, both))
    names = ["Banepa, Nepal", "Hérault, France"]
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | {"place": names}))
    push(model_folder, str(tmp_path / "named"), about=about)
    learned = Learned.of(load_model(tmp_path / "named").info.provenance)
    assert (
        learned.where((3.3, 43.5, 3.3, 43.5))
        == "learned in Hérault, France (where the image lies) and in Banepa, Nepal"
    )
    assert learned.where((85.0, 27.63, 85.0, 27.63)).startswith("learned in Banepa, Nepal (50 km from here) and in Hér")
    assert learned.where(None) == "learned in Banepa, Nepal, and Hérault, France"
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | {"place": [*names, "Dubai"]}))
    with pytest.raises(ConfigError, match="place must be one name, or one for each area, got 3 for 2 areas"):
        push(model_folder, str(tmp_path / "other"), about=about)
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | {"area": [85.53, 27, 85.51, 28]}))
    with pytest.raises(ConfigError, match="area must be west, south, east, north in degrees"):
        push(model_folder, str(tmp_path / "other"), about=about)


def test_half_the_size_is_the_same_network_but_for_rounding(model_folder, tmp_path):
    push(model_folder, str(tmp_path / "whole"))
    push(model_folder, str(tmp_path / "half"), half=True)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half")]
    assert sizes[1] < 0.55 * sizes[0]
    whole, half = (load_model(tmp_path / name).network.state_dict() for name in ("whole", "half"))
    assert all(half[name].dtype == x.dtype for name, x in whole.items())
    for name, x in whole.items():
        assert (half[name] - x).abs().max() <= 2**-11 * x.abs().max() + 2**-24


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"extra": 1},
            "must have exactly data, gsd_m, limits, pictures, read_gsd_m, sample, sample_gsd_m, summary, training",
        ),
        ({"limits": None}, "limits must be text, got None"),
        ({"gsd_m": [1, 0.5]}, r"gsd_m must be two numbers of metres, the lower one first, got \[1, 0.5\]"),
        ({"pictures": {"none.jpg": "x"}}, "none.jpg is not in the same folder"),
        ({"pictures": {"../val.jpg": "x"}}, "is not in the same folder"),
        ({"sample": "none.jpg"}, "none.jpg is not in the same folder"),
        ({"read_gsd_m": None}, "read_gsd_m must be metres within gsd_m, got None"),
        ({"sample_gsd_m": 1}, "sample_gsd_m must be metres within gsd_m, got 1"),
        ({"pictures": ["val.jpg"]}, "pictures must be files and their captions"),
    ],
)
def test_what_cannot_stand_on_a_card_is_refused_in_one_line(model_folder, about, tmp_path, change, says):
    about.write_text(yaml.safe_dump(yaml.safe_load(about.read_text()) | change))
    with pytest.raises(ConfigError, match=says):
        push(model_folder, str(tmp_path / "out"), about=about)
    assert not (tmp_path / "out").exists()


def test_a_card_goes_with_its_model(model_folder, about, report, tmp_path):
    """Pushed on without a word, a model keeps licence, scores, limits and pictures."""
    push(model_folder, str(tmp_path / "first"), about=about, report=report, license_name="odbl")
    push(tmp_path / "first", str(tmp_path / "second"), half=True)
    first, second = ({f.name for f in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert second == first >= {"README.md", "sample.jpg", "val.jpg"}
    assert (tmp_path / "second" / "README.md").read_text() == (tmp_path / "first" / "README.md").read_text()
    assert (tmp_path / "second" / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_card_names_all_bands_and_how_their_values_are_stretched(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    bands = {"bands": ["red", "green", "blue", "dsm"], "mean": [1.0] * 4, "std": [1.0] * 4}
    config |= {"bands": [1, 2, 3, 4], "model": config["model"] | bands}
    assert "| image | uint8, bands 1, 2, 3, 4 as red, green, blue, dsm |" in model_card(config, "a", None)
    config["model"]["ranges"] = [None, None, None, [-2.5, 400]]
    text = model_card(config, "a", None)
    assert "| image | bands 1, 2, 3, 4 as red, green, blue, dsm |\n" in text
    assert "| values that become 0 to 255 | dsm -2.5 to 400 |\n" in text
