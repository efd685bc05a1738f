"""The models of the package: what their cards say is true of the files that are shipped."""

import re
from pathlib import Path

import pytest

from caswit.cli.main import main
from caswit.config import EvaluateConfig
from caswit.data.dataset import load_dataset
from caswit.evaluation.evaluate import scored_tiles
from caswit.evaluation.metrics import Counts, score
from caswit.evaluation.run import evaluate
from caswit.inference.load import load_predictor
from caswit.weights.model_folder import load_model, read_config
from caswit.weights.zoo import choose, zoo_models
from conftest import georeference, picture

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
NEEDED = 0.02
"""A CASWiT of the package loses at least so much mIoU, over the classes of the truth, when its context is masked."""
NAMES = [model.name for model in zoo_models()]
CELLS = re.compile(r"^\| \**([^|*]+?)\** \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def test_the_package_has_models_for_buildings_and_for_land_cover():
    assert NAMES == ["caswit-nano-france", "swin-nano-buildings", "swin-nano-dubai"]
    for gsd_m, name in ((0.13, "swin-nano-buildings"), (0.2, "caswit-nano-france"), (1.0, "swin-nano-dubai")):
        assert choose(gsd_m, "x")[0].name == name


@pytest.mark.parametrize("model", zoo_models(), ids=NAMES)
def test_a_model_is_called_after_what_it_does(model):
    """CASWiT reads its context, Swin does not."""
    assert load_model(model.folder).network.reads_context == model.reads_context == model.name.startswith("caswit-")


@pytest.mark.parametrize("model", zoo_models(), ids=NAMES)
def test_a_model_is_small_and_never_saw_the_scenes_that_score_it(model):
    assert (model.folder / "model.safetensors").stat().st_size <= 16_000_000
    config = read_config(model.folder / "config.json")
    assert config["provenance"]["recipe"]["data"]["train_split"] == "train"
    card = (model.folder / "README.md").read_text()
    for section in (
        "## Classes",
        "## Training data",
        "## Training",
        "## Scores",
        "## Limits",
    ):
        assert section in card
    for picture_file in re.findall(r"!\[.*?\]\((.*?)\)", card):
        assert (model.folder / picture_file).is_file()


def scores_of_card(model, real_data):
    """The dataset.yaml that a card's scores are from, and what the card says from there on."""
    said = (model.folder / "README.md").read_text().split("## Scores")[1].strip()
    name, split = said.split(",")[:2]
    assert split == " split val"
    own = ROOT / "recipes" / "zoo" / model.name / "score.yaml"
    return own if own.exists() else real_data / name / "dataset.yaml", said


@pytest.mark.parametrize("model", zoo_models(), ids=NAMES)
def test_the_shipped_file_has_the_scores_of_its_card_and_needs_its_context(model, real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("CASWIT_DATA", str(real_data))
    loaded = load_model(model.name)
    data, card = scores_of_card(model, real_data)
    said = {name: [float(x) for x in numbers] for name, *numbers in CELLS.findall(card)}
    settings = EvaluateConfig(pictures=0, masked_context=model.reads_context)
    found = evaluate(model.folder, data, tmp_path, split="val", settings=settings)
    scores = score(found.counts)
    expected = {"mean": [scores.miou, scores.mf1, scores.mbiou]}
    columns = (scores.iou, scores.f1, scores.biou)
    expected |= {name: [float(c[i]) for c in columns] for i, name in enumerate(loaded.info.classes.names)}
    if absent := scores.without_truth(loaded.info.classes.names):
        known = len(loaded.info.classes) - len(absent)
        expected[f"mean of the {known} in the labels"] = [float(c[scores.support > 0].mean()) for c in columns]
    assert said.keys() == expected.keys()
    for name, numbers in expected.items():
        assert said[name] == pytest.approx([100 * x for x in numbers], abs=0.5), name
    if model.reads_context:
        masked = score(found.masked_context_counts)
        assert scores.miou_truth - masked.miou_truth >= NEEDED
        own, without = re.findall(r"^\| (?:its own|masked: .*?) \| ([\d.]+) \|", card, re.MULTILINE)
        assert float(own) == pytest.approx(100 * scores.miou_truth, abs=0.5)
        assert float(without) == pytest.approx(100 * masked.miou_truth, abs=0.5)


@pytest.mark.parametrize("gsd_m", [0.15, 1.0])
def test_the_first_command_gives_a_map(gsd_m, make_raster, tmp_path, caplog):
    image = make_raster(picture(300, 300), "ortho.tif", **georeference(gsd_m))
    caplog.set_level("INFO")
    main(["predict", str(image), str(tmp_path / "map.tif")])
    assert f"model: {choose(gsd_m, 'x')[0].name}" in caplog.text
    assert (tmp_path / "map.tif").is_file()


@pytest.mark.parametrize("model", zoo_models(), ids=NAMES)
def test_the_arranged_network_labels_real_tiles_as_plain_fp32_does(model, real_data, monkeypatch):
    """bf16 where the processor has it, arranged for inference: 99.5 % of the pixels, mIoU within 0.1 point."""
    monkeypatch.setenv("CASWIT_DATA", str(real_data))
    loaded = load_model(model.folder)
    data = load_dataset(scores_of_card(model, real_data)[0])
    data = data.read_at(loaded.info.tile.read_gsd_m)
    ways = [load_predictor(loaded, EvaluateConfig(device="cpu", precision=name)) for name in ("fp32", "auto")]
    assert [way.arranged is None for way in ways] == [True, False]
    runs = [scored_tiles(way, data, data.split("val"), tile_px=loaded.info.tile.tile_px, band_px=7) for way in ways]
    counts, alike, pixels = [Counts.zeros(len(loaded.info.classes)) for _ in ways], 0, 0
    for plain, arranged in zip(*runs, strict=True):
        counts = [total + tile.counts for total, tile in zip(counts, (plain, arranged), strict=True)]
        alike, pixels = alike + int((plain.prediction == arranged.prediction).sum()), pixels + plain.prediction.size
    assert pixels > 1e6
    assert alike / pixels >= 0.995
    expected, found = (score(total).miou for total in counts)
    assert found == pytest.approx(expected, abs=0.001)
