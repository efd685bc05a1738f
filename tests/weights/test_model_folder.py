import hashlib
import json
import os
import pickle
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from caswit.config import MaskConfig, ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.errors import CaswitError, ModelError
from caswit.weights import model_folder
from caswit.weights.model_folder import (
    CONFIG,
    WEIGHTS,
    ModelInfo,
    PretrainedInfo,
    build,
    build_simmim,
    load_model,
    load_pretrained,
    save_model,
    save_pretrained,
    torch_load,
)

CLASSES = ClassTable(
    (
        LandClass(id=0, name="nothing", color="#000000", ignore=True),
        LandClass(id=7, name="water", color="#2060ff"),
        LandClass(id=3, name="forêt", color="#208040"),
    )
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def describe(**settings):
    settings = {"size": "nano", "decoder_channels": 16, "fusion_stages": (1, 2), **settings}
    return ModelInfo(
        model=ModelConfig(**settings),
        tile=TileConfig(tile_px=64, context_factor=4),
        classes=CLASSES,
        bands=(4, 3, 1),
        trained_gsd_m=0.25,
        provenance={"dataset": "somewhere", "step": 12, "best_val_miou": 0.5},
    )


INFO = describe(mean=(100.5, 110.0, 120.0), std=(50.0, 51.0, 52.0), gated=True, drop_path=0.2)


def photos(batch=1):
    return torch.randint(0, 256, (2, batch, 3, 48, 64), dtype=torch.uint8)


def trained(info=INFO):
    """A network as training leaves it: with a context head, and running statistics of its own."""
    network = build(info, context_head=True).train()
    with torch.no_grad():
        network(*photos(batch=3))
    return network


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_model(trained(), INFO, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A model folder to change at will."""
    return shutil.copytree(saved, tmp_path / "model")


def edit(folder, change):
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    change(content)
    (folder / CONFIG).write_text(json.dumps(content), encoding="utf-8")


def refusal(folder):
    with pytest.raises(CaswitError) as caught:
        load_model(folder)
    assert type(caught.value) is ModelError
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


# What comes back


@pytest.mark.parametrize(
    "info",
    [INFO, describe(fusion_stages=()), describe(fusion_stages=(4,), feed_forward=False, decoder_norm="group")],
    ids=["gated", "baseline", "not fed forward"],
)
@torch.no_grad()
def test_a_loaded_model_has_the_logits_of_the_saved_one(tmp_path, info):
    network = trained(info)
    save_model(network, info, tmp_path / "new" / "model")
    loaded = load_model(str(tmp_path / "new" / "model"))
    hr, context = photos()
    saved = network.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in loaded.network.state_dict().items())
    # Weights lie elsewhere, and kernels begin elsewhere.
    torch.testing.assert_close(loaded.network(hr, context), network.eval()(hr, context), rtol=1e-5, atol=1e-6)
    assert not loaded.network.training
    assert loaded.info == info
    assert loaded.name == "new"  # runs/new/model is called new


def test_the_context_head_is_left_out(folder):
    names = load_file(folder / WEIGHTS).keys()
    assert names == build(INFO).state_dict().keys()
    left_out = build(INFO, context_head=True).state_dict().keys() - names
    assert {n.split(".")[0] for n in left_out} == {"context_encoder", "context_norms", "context_decoder"}
    assert {n.split(".")[2] for n in left_out if n.startswith("context_encoder")} == {"2", "3"}  # fusion ends at 2


def test_config_carries_what_prediction_needs(folder):
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    assert content["classes"] == [
        {"id": 0, "name": "nothing", "color": "#000000", "ignore": True},
        {"id": 7, "name": "water", "color": "#2060ff"},
        {"id": 3, "name": "forêt", "color": "#208040"},
    ]
    assert content["tile"] == {"tile_px": 64, "context_factor": 4, "read_gsd_m": None}
    assert content["model"]["mean"] == [100.5, 110, 120]
    assert content["model"]["std"] == [50, 51, 52]
    assert content["bands"] == [4, 3, 1]
    assert content["trained_gsd_m"] == 0.25
    assert content["provenance"] == {"dataset": "somewhere", "step": 12, "best_val_miou": 0.5}
    assert {f.name for f in folder.iterdir()} == {CONFIG, WEIGHTS}


def test_digest_is_of_the_weights_alone(folder, tmp_path):
    digest = load_model(folder).digest
    assert digest == hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    edit(folder, lambda content: content.update(trained_gsd_m=None))
    assert load_model(folder).digest == digest
    torch.manual_seed(1)
    save_model(trained(), INFO, tmp_path / "other")
    assert load_model(tmp_path / "other").digest != digest


# As version 0.1.0 wrote it, but for line breaks.
CONFIG_0_1_0 = """{
  "format": 1, "software": "caswit 0.1.0",
  "model": {
    "arch": "caswit", "encoder": null, "encoder_weights": null, "size": "nano", "stem": "patch", "decoder": "upernet",
    "fusion_stages": [1, 2], "gated": true, "feed_forward": true, "decoder_channels": 16, "decoder_norm": "batch",
    "drop_path": 0.2, "mean": [100.5, 110.0, 120.0], "std": [50.0, 51.0, 52.0]
  },
  "tile": {"tile_px": 64, "context_factor": 4, "gsd_m": 0.2},
  "classes": [
    {"id": 0, "name": "nothing", "color": "#000000", "ignore": true},
    {"id": 7, "name": "water", "color": "#2060ff"},
    {"id": 3, "name": "for\\u00eat", "color": "#208040"}
  ],
  "bands": [4, 3, 1], "gsd_m": 0.25, "provenance": {"dataset": "somewhere", "step": 12, "best_val_miou": 0.5}
}
"""


def test_a_model_of_version_0_1_0_loads_with_both_of_its_ground_sizes(folder):
    (folder / CONFIG).write_text(CONFIG_0_1_0, encoding="utf-8")
    info = load_model(folder).info
    assert info == replace(INFO, tile=TileConfig(tile_px=64, context_factor=4, read_gsd_m=0.2))
    assert (info.trained_gsd_m, info.tile.read_gsd_m) == (0.25, 0.2)


def test_a_pretrained_model_of_version_0_1_0_loads(tmp_path):
    info = PretrainedInfo(
        model=ModelConfig(size="pico"), tile=TileConfig(tile_px=64, read_gsd_m=0.2), mask=MaskConfig()
    )
    save_pretrained(build_simmim(info), info, tmp_path)

    def rename(content):
        content["gsd_m"], content["tile"]["gsd_m"] = content.pop("trained_gsd_m"), content["tile"].pop("read_gsd_m")

    edit(tmp_path, rename)
    assert load_pretrained(tmp_path).info == info


# Replacing


def test_a_new_model_replaces_the_whole_folder(folder):
    (folder / "stale.txt").write_text("from an older model")
    partial = folder.with_name("model.partial")
    partial.mkdir()
    (partial / "left.bin").write_text("by a killed run")
    baseline = describe(fusion_stages=())
    save_model(trained(baseline), baseline, folder)
    assert load_model(folder).info == baseline
    assert {f.name for f in folder.iterdir()} == {CONFIG, WEIGHTS}
    assert not partial.exists()


def test_a_failed_save_leaves_the_older_model(folder, monkeypatch):
    before = load_model(folder).digest

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(model_folder, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_model(trained(), INFO, folder)
    assert load_model(folder).digest == before


# Folders that are none


@pytest.mark.parametrize("file", [CONFIG, WEIGHTS])
def test_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert f"no model folder, {file} is missing" in refusal(folder)


def test_missing_folder_is_named(tmp_path):
    assert "no such model folder, and no model of the package (caswit-nano-" in refusal(tmp_path / "nowhere")


def test_a_run_folder_stands_for_its_model(folder):
    given = load_model(folder.parent)
    assert given[2:5] == load_model(folder)[2:5]  # the same name and digests: a map goes on under either path
    assert model_folder.model_folder(folder.parent) == folder


def test_a_folder_of_its_own_is_taken_before_the_one_inside(folder):
    inner = folder / "model"
    shutil.copytree(folder, inner)
    assert model_folder.model_folder(folder) == folder


@pytest.mark.parametrize(
    ("given", "meant"),
    [("swin-nano-bildings", "swin-nano-buildings"), ("Caswit-Nano-France", "caswit-nano-france"), ("x/y", None)],
)
def test_a_misspelt_name_is_suggested(tmp_path, given, meant):
    said = refusal(given)
    assert said.endswith(f"; did you mean {meant}?") if meant else "did you mean" not in said


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_cut_weights_are_refused(folder, kept):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:kept])
    assert "does not hold the weights" in refusal(folder)


def test_pickled_weights_are_refused(folder):
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)
    assert "does not hold the weights" in refusal(folder)


def test_weights_of_another_network_are_refused(folder):
    save_file({"backbone.weight": torch.zeros(3)}, folder / WEIGHTS)
    assert "does not hold the weights" in refusal(folder)


def test_weights_of_another_width_are_refused(folder):
    edit(folder, lambda content: content["model"].update(decoder_channels=32))
    assert "size mismatch" in refusal(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", '"model"', '{"format": 1}', "\x00"])
def test_damaged_config_is_refused(folder, text):
    (folder / CONFIG).write_text(text)
    assert "not a caswit config" in refusal(folder)


def test_config_in_another_encoding_is_refused(folder):
    (folder / CONFIG).write_bytes("forêt".encode("latin-1"))
    assert "not a caswit config" in refusal(folder)


@pytest.mark.parametrize("key", ["format", "model", "tile", "classes", "bands", "trained_gsd_m", "provenance"])
def test_missing_key_is_named(folder, key):
    edit(folder, lambda content: content.pop(key))
    assert key in refusal(folder)


@pytest.mark.parametrize("key", ["model", "tile"])
def test_unknown_field_is_named(folder, key):
    edit(folder, lambda content: content[key].update(colour="blue"))
    assert "colour" in refusal(folder)


def test_format_of_a_later_version_is_refused(folder):
    edit(folder, lambda content: content.update(format=2))
    assert "format 2, this version reads format 1" in refusal(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", "giant"),
        ("decoder", "mask2former"),
        ("decoder_norm", "layer"),
        ("fusion_stages", [0, 5]),
        ("fusion_stages", 3),
        ("drop_path", 1.5),
        ("mean", [1.0, 2.0]),
        ("std", [1.0, 2.0, 3.0, 4.0]),
        ("std", [1.0, 0.0, 3.0]),
    ],
)
def test_impossible_setting_is_named(folder, field, value):
    """A model of a later version, with a size that this one does not know, ended in a traceback."""
    edit(folder, lambda content: content["model"].update({field: value}))
    message = refusal(folder)
    assert field in message or "not a caswit config" in message


@pytest.mark.parametrize(("field", "value"), [("best_val_miou", []), ("step", "many"), ("dataset", 3)])
def test_provenance_that_cannot_be_printed_is_refused(folder, field, value):
    """``caswit info`` ended in a traceback."""
    edit(folder, lambda content: content["provenance"].update({field: value}))
    assert f"provenance: {field}: must be" in refusal(folder)


# Checkpoints of torch


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("write", [torch.save, lambda x, file: file.write_bytes(pickle.dumps(x))], ids=["zip", "plain"])
def test_a_pickle_that_runs_code_is_refused_without_running_it(tmp_path, write):
    write({"weights": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    with pytest.raises(ModelError, match=r"bomb\.pt: cannot be read as a checkpoint") as caught:
        torch_load(tmp_path / "bomb.pt")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_the_bomb_is_live(tmp_path):
    torch.save({"weights": Bomb(tmp_path / "ran")}, tmp_path / "bomb.pt")
    torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


def test_tensors_and_plain_values_come_back(tmp_path):
    content = {"step": 3, "lr": 0.5, "name": "x", "nested": [{"w": torch.arange(6).view(2, 3)}], "none": None}
    torch.save(content, tmp_path / "last.pt")
    again = torch_load(tmp_path / "last.pt")
    assert torch.equal(again["nested"][0].pop("w"), content["nested"][0].pop("w"))
    assert again == content


@pytest.mark.parametrize("text", [None, b"", b"not a checkpoint"], ids=["missing", "empty", "text"])
def test_unreadable_checkpoint_is_refused_in_one_line(tmp_path, text):
    if text is not None:
        (tmp_path / "last.pt").write_bytes(text)
    with pytest.raises(ModelError, match=r"last\.pt: cannot be read") as caught:
        torch_load(tmp_path / "last.pt")
    assert "\n" not in str(caught.value)
