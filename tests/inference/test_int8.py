"""The network in eight-bit integers: what it is made of, what it labels, and what is refused."""

import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
import yaml

from caswit.cli.main import main
from caswit.config import (
    ComputeConfig,
    EvaluateConfig,
    ExplainConfig,
    MapRunConfig,
    ModelConfig,
    OutputConfig,
    PredictConfig,
    TableConfig,
    TileConfig,
)
from caswit.errors import CaswitError, ConfigError, ModelError
from caswit.evaluation.quantize import lines, quantize
from caswit.inference.cpu.int8 import sizes_of
from caswit.inference.load import load_predictor
from caswit.mapping.plan import make_plan
from caswit.mapping.run import predict
from caswit.nn.caswit import CASWiT
from caswit.weights.int8 import ABOUT, GRAPH, PARTS, int8_of
from caswit.weights.model_folder import ModelInfo, load_model, save_model
from conftest import CLASSES, georeference

NEEDS_NNCF = pytest.mark.skipif(
    find_spec("nncf") is None or find_spec("openvino") is None, reason="NNCF or OpenVINO is not installed"
)
TILE = TileConfig(tile_px=64, context_factor=2)
SIDE = 320


def landscape(seed):
    """Smooth noise in three bands (3, H, W) uint8, and which band is brightest as ids of ``CLASSES`` (1, H, W)."""
    drawn = torch.Generator().manual_seed(seed)
    fields = torch.rand(1, 3, 21, 21, generator=drawn)
    image = torch.nn.functional.interpolate(fields, size=(SIDE, SIDE), mode="bicubic")[0].clamp(0.05, 1)
    ids = torch.tensor([1, 2, 7], dtype=torch.uint8)
    return (255 * image).byte().numpy(), ids[image.argmax(0)].numpy()[None]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a network that has learned which band is brightest, and a dataset of it."""
    import rasterio

    folder = tmp_path_factory.mktemp("int8")
    scenes = []
    for seed, split in enumerate(("train", "val")):
        for name, pixels in zip((split, f"{split}_label"), landscape(seed), strict=True):
            options = georeference() | {"driver": "GTiff", "count": len(pixels), "dtype": "uint8"}
            with rasterio.open(folder / f"{name}.tif", "w", height=SIDE, width=SIDE, **options) as dst:
                dst.write(pixels)
        scenes.append({"image": f"{split}.tif", "label": f"{split}_label.tif", "split": split})
    classes = CLASSES.to_dicts()
    (folder / "dataset.yaml").write_text(yaml.safe_dump({"name": "colours", "classes": classes, "scenes": scenes}))
    torch.manual_seed(0)
    model = ModelConfig(size="pico", fusion_stages=(1, 2), drop_path=0, decoder_channels=32)
    network = CASWiT(num_classes=3, context_head=False, **model.of_caswit)
    train(network)
    save_model(network.eval(), ModelInfo(model=model, tile=TILE, classes=CLASSES), folder / "model")
    return folder


def train(network):
    image, ids = landscape(0)
    truth = torch.from_numpy(np.searchsorted([1, 2, 7], ids[0]))
    pixels = torch.from_numpy(image)
    drawn = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    network.train()
    for _ in range(40):
        hr, context, right = [], [], []
        for row, col in drawn.integers(32, SIDE - 96, (4, 2)):
            wide = pixels[:, row - 32 : row + 96, col - 32 : col + 96].float()
            hr.append(wide[:, 32:96, 32:96])
            context.append(torch.nn.functional.avg_pool2d(wide, 2))
            right.append(truth[row : row + 64, col : col + 64])
        logits = network(torch.stack(hr), torch.stack(context)).hr
        loss = torch.nn.functional.cross_entropy(logits, torch.stack(right))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def made(place):
    """The model folder that ``quantize`` writes of it, and what it says."""
    return place / "int8", quantize(place / "model", place / "dataset.yaml", place / "int8", tiles=16)


INT8 = ComputeConfig(device="cpu", precision="int8")


@NEEDS_NNCF
def test_it_labels_as_the_network_does_once_trained(made):
    _, int8 = made
    found = int8.comparison
    assert found.miou[0] > 0.7  # it has learned
    assert found.pixels_alike > 0.97
    assert abs(found.miou[1] - found.miou[0]) < 0.01
    assert found.beside in ("fp32", "bf16")
    assert found.tiles == int8.tiles + 9  # 5 x 5 tiles of 64 px, 16 of which were asked for to calibrate on
    assert found.iou.keys() == {"building", "land", "water"}
    text = "\n".join(lines(found))
    assert f"{100 * found.pixels_alike:.2f} % of the labelled pixels" in text
    assert f"{found.miou[0]:.4f}, with int8 {found.miou[1]:.4f}" in text


@NEEDS_NNCF
def test_what_is_compared_is_what_evaluate_scores(made, place):
    from caswit.evaluation.metrics import score
    from caswit.evaluation.run import evaluate

    folder, int8 = made
    for precision, miou in zip(("auto", "int8"), int8.comparison.miou, strict=True):
        settings = EvaluateConfig(device="cpu", precision=precision)
        found = evaluate(folder, place / "dataset.yaml", None, split="val", settings=settings)
        assert score(found.counts).miou == pytest.approx(miou, abs=1e-9)


@NEEDS_NNCF
def test_every_layer_of_weights_is_in_eight_bits(made):
    """Not a copy of the fp32 graph: its linear layers and convolutions have weights of one byte, no attention has."""
    folder, _ = made
    graph = ElementTree.parse(folder / GRAPH).getroot()
    layers = {layer.get("id"): layer for layer in graph.iter("layer")}
    before = {}
    for edge in graph.iter("edge"):
        before.setdefault(edge.get("to-layer"), {})[edge.get("to-port")] = edge.get("from-layer")

    def second_input(layer):
        """The constant that reaches the weights of a layer through conversion and scale, or what else does."""
        at = before[layer.get("id")]["1"]
        while layers[at].get("type") in ("Convert", "Multiply", "Subtract", "Reshape", "FakeQuantize"):
            at = before[at]["0"]
        return layers[at]

    def kinds(name):
        sources = [second_input(x) for x in layers.values() if x.get("type") == name]
        return [x.find("data").get("element_type") if x.get("type") == "Const" else "result" for x in sources]

    network = load_model(folder).network
    assert kinds("Convolution")
    assert set(kinds("Convolution")) == {"i8"}
    products = kinds("MatMul")
    assert set(products) == {"i8", "result"}  # linear layers, and products of two results
    branches = sum(isinstance(x, torch.nn.Linear) for x in network.modules()) - 2  # those after the last fusion
    assert products.count("i8") > branches / 2
    assert sum(x.get("type") == "FakeQuantize" for x in layers.values()) > products.count("i8") / 3
    assert (folder / "int8.bin").stat().st_size < (folder / "model.safetensors").stat().st_size


@NEEDS_NNCF
def test_the_folder_is_the_model_with_files_more(made, place):
    folder, int8 = made
    names = {file.name for file in (place / "model").iterdir()}
    assert {file.name for file in folder.iterdir()} == names | {ABOUT, *PARTS}
    for name in names:
        assert (folder / name).read_bytes() == (place / "model" / name).read_bytes()
    assert int8_of(load_model(folder)) == int8
    assert not (place / "int8.partial").exists()


@NEEDS_NNCF
def test_the_same_tiles_give_the_same_files(made, place, tmp_path):
    """And what was there before is not asked, nor how many graphs this process has made."""
    folder, first = made
    again = quantize(folder, place / "dataset.yaml", tmp_path / "again", tiles=16)
    assert again.files == first.files
    assert again.digest == first.digest


@NEEDS_NNCF
def test_only_int8_reads_it(made):
    folder, _ = made
    loaded = load_model(folder)
    used = {p: load_predictor(loaded, replace(INT8, precision=p)) for p in ("auto", "bf16", "fp32", "int8")}
    assert [p for p, each in used.items() if each.int8] == ["int8"]
    assert used["int8"].precision == "int8"
    assert "int8" not in {used[p].precision for p in ("auto", "bf16", "fp32")}


@NEEDS_NNCF
def test_info_says_it_and_push_leaves_it_out(made, tmp_path):
    from caswit.weights.publish import push
    from caswit.weights.summary import describe

    folder = shutil.copytree(made[0], tmp_path / "model")
    (folder / "README.md").write_text("# a card of its own\n")
    assert "int8 weights   " in describe(folder)
    assert "% of the pixels of colours (val)" in describe(folder)
    push(folder, str(tmp_path / "pushed"))
    assert {file.name for file in (tmp_path / "pushed").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert "int8 weights" not in describe(tmp_path / "pushed")
    stale(folder)
    assert "int8 weights   cannot be used: " in describe(folder)


@NEEDS_NNCF
def test_a_map_says_so_and_goes_on_with_the_same_weights_alone(made, place, tmp_path):
    import rasterio

    folder, int8 = made
    image, out = [str(place / "val.tif")], tmp_path / "map.tif"
    settings = PredictConfig(device="cpu", precision="int8")
    predict(image, out, str(folder), settings=settings)
    with rasterio.open(out) as src:
        assert "int8" in json.dumps([src.tags(), src.tags(ns="caswit")])
        labels = src.read(1)
    assert (labels == landscape(1)[1][0]).mean() > 0.8
    loaded = load_model(folder)
    plan, _ = make_plan(image, loaded, settings, OutputConfig(), MapRunConfig())
    facts = {p: plan.computed_in(p).manifest(loaded) for p in ("int8", "fp32")}
    assert facts["int8"]["int8_weights"] == int8.digest
    assert {name for name in facts["int8"] if facts["int8"][name] != facts["fp32"].get(name)} == {
        "precision",
        "int8_weights",
    }


def stale(folder):
    loaded = load_model(folder)
    with torch.no_grad():
        next(loaded.network.parameters()).mul_(1.5)
    save_again(loaded, folder)


def save_again(loaded, folder):
    kept = {name: (folder / name).read_bytes() for name in (ABOUT, *PARTS)}
    save_model(loaded.network, loaded.info, folder)
    for name, content in kept.items():
        (folder / name).write_bytes(content)


def other_tile(folder):
    loaded = load_model(folder)
    save_again(loaded._replace(info=replace(loaded.info, tile=replace(TILE, tile_px=32))), folder)


def damaged(folder):
    content = bytearray((folder / "int8.bin").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "int8.bin").write_bytes(bytes(content))


def other_format(folder):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | {"format": 2}))


BROKEN = {
    "no int8 weights": lambda folder: (folder / ABOUT).unlink(),
    "made from other weights or settings": stale,
    "made from other weights": other_tile,
    "missing or damaged": damaged,
    "is missing or damaged": lambda folder: (folder / GRAPH).unlink(),
    "format": other_format,
}


@NEEDS_NNCF
@pytest.mark.parametrize("said", BROKEN)
def test_what_does_not_fit_is_refused(made, tmp_path, said):
    folder = shutil.copytree(made[0], tmp_path / "model")
    load_predictor(load_model(folder), INT8)
    BROKEN[said](folder)
    with pytest.raises(ModelError, match=f"{said}.*make (it|them) again|{said}.*caswit quantize MODEL DATASET"):
        load_predictor(load_model(folder), INT8)


def test_a_model_without_them_is_refused_in_one_line(model_folder):
    with pytest.raises(CaswitError) as caught:
        load_predictor(load_model(model_folder), INT8)
    assert "\n" not in str(caught.value)
    assert "has no int8 weights" in str(caught.value) or "OpenVINO, which is not installed" in str(caught.value)


def test_without_openvino(model_folder, monkeypatch):
    monkeypatch.setattr("caswit.inference.cpu.int8.has_openvino", lambda: False)
    with pytest.raises(ConfigError, match=r"OpenVINO, which is not installed: pip install .*\[fast\]"):
        load_predictor(load_model(model_folder), INT8)


@pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is not installed")
def test_without_nncf(model_folder, dataset_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(SystemExit) as end:
        main(["quantize", str(model_folder), str(dataset_file), "--out", str(tmp_path / "new")])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("caswit: quantize needs nncf, which comes with the extra int8: pip install")
    assert said.count("\n") == 1


def test_predict_says_in_one_line_how_to_make_them(model_folder, make_raster, image, tmp_path, capsys):
    file = make_raster(image, **georeference())
    words = ["predict", str(file), str(tmp_path / "map.tif"), "--model", str(model_folder), "--precision", "int8"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--device", "cpu"])
    assert end.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert "has no int8 weights" in said[0] or "OpenVINO, which is not installed" in said[0]
    assert not (tmp_path / "map.tif").exists()


def test_other_devices_and_networks(model_folder, monkeypatch):
    loaded = load_model(model_folder)
    monkeypatch.setattr("caswit.inference.load.pick_device", lambda _: torch.device("cuda:0"))
    with pytest.raises(ConfigError, match="runs on a processor, got device cuda:0; add --device cpu"):
        load_predictor(loaded, INT8)
    monkeypatch.undo()
    with pytest.raises(ModelError, match="arch caswit with decoder upernet or segformer"):
        load_predictor(loaded._replace(network=torch.nn.Conv2d(3, 4, 1)), INT8)


@NEEDS_NNCF
def test_other_sizes_are_refused(made, place):
    """A graph is of one size: no other network stands in for it."""
    loaded = load_model(made[0])
    predictor = load_predictor(loaded, INT8)
    assert sizes_of(loaded.network, 61) == ((64, 64), (64, 64))
    images = [torch.zeros(1, 3, 96, 96, dtype=torch.uint8)] * 2
    with pytest.raises(ModelError, match=r"for tiles of 64 px, got images of \(\(96, 96\), \(96, 96\)\)"):
        predictor.image_logits(*images)
    with pytest.raises(ConfigError, match="tile_px must be null with precision int8"):
        EvaluateConfig(precision="int8", tile_px=96)


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        (EvaluateConfig, {"context_report": True}, "leave out one of the two"),
        (ExplainConfig, {}, "read off the network as it was trained"),
        (TableConfig, {}, "rows are trained here"),
    ],
    ids=["context report", "attention", "table"],
)
def test_where_it_would_not_be_what_is_computed(config, settings, said):
    with pytest.raises(ConfigError, match=said):
        config(precision="int8", **settings)


@NEEDS_NNCF
def test_nothing_is_written_where_it_cannot_be_made(place, tmp_path):
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(ConfigError, match="is there already; give the name of a new folder"):
        quantize(place / "model", place / "dataset.yaml", there)
    with pytest.raises(ConfigError, match="tiles must be at least 1, got 0"):
        quantize(place / "model", place / "dataset.yaml", tmp_path / "new", tiles=0)
    with pytest.raises(CaswitError, match="no scene has split 'test'"):
        quantize(place / "model", place / "dataset.yaml", tmp_path / "new", split="test")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="lies in a file; give another folder"):
        quantize(place / "model", place / "dataset.yaml", tmp_path / "file" / "new", tiles=1)
    assert not list(tmp_path.glob("new*"))


SENDS_NOTHING = """
import sys
from caswit.inference.cpu.int8 import import_nncf
from caswit.inference.load import load_predictor
assert "nncf" not in sys.modules  # where it is needed alone
nncf = import_nncf()
import nncf.telemetry.wrapper, nncf.telemetry.decorator
for module in (nncf.telemetry.wrapper, nncf.telemetry.decorator):
    assert not isinstance(module.telemetry, nncf.telemetry.wrapper.NNCFTelemetry), module
assert not hasattr(nncf.telemetry.wrapper, "Telemetry")
assert sys.modules.get("openvino_telemetry", ...) is not None  # others may still import it
"""


@NEEDS_NNCF
def test_nncf_has_no_sender(tmp_path):
    """Not in a process that pytest is unknown in, where NNCF would make one; and none writes into the home folder."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST", "NNCF", "CI"))}
    paths = os.pathsep.join(path for path in sys.path if path)
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": paths}
    words = [sys.executable, "-W", "error", "-c", SENDS_NOTHING]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [*Path(tmp_path).glob("intel*")]


@NEEDS_NNCF
def test_handlers_that_others_share_are_left_alone():
    from caswit.inference.cpu.int8 import import_nncf

    shared = logging.NullHandler()
    logging.getLogger("nncf").addHandler(shared)
    try:
        import_nncf()
    finally:
        logging.getLogger("nncf").removeHandler(shared)
    assert shared.level == logging.NOTSET
