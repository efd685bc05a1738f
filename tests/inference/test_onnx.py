"""Exported files against the network, by ONNX Runtime; what is around the network; refusals."""

import json
import re
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from caswit.cli.main import main
from caswit.config import RGB, ModelConfig, TileConfig
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.errors import ConfigError, ModelError, install
from caswit.inference.onnx import graphs, write
from caswit.inference.onnx.graphs import InSlices, averaged, deepness_window_px, make_graph
from caswit.inference.onnx.metadata import overlap_percent
from caswit.inference.onnx.write import export
from caswit.inference.predictor import Predictor
from caswit.nn.fusion import CrossAttention
from caswit.raster.resample import area_average
from caswit.raster.windows import Tile, Window, starts
from caswit.weights.model_folder import LoadedModel, ModelInfo, build, load_model, save_model
from conftest import CLASSES, picture

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("shallow")

TILE_PX = 64
"""Small, yet with windows that are shifted, and at the deepest stage with windows larger than the map."""


class File(NamedTuple):
    """A file and the model it was made of."""

    path: Path
    model: LoadedModel

    def run(self, *images: np.ndarray) -> np.ndarray:
        session = onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])
        names = [each.name for each in session.get_inputs()]
        (found,) = session.run(None, dict(zip(names, images, strict=True)))
        return found

    @property
    def metadata(self) -> dict:
        return {each.key: json.loads(each.value) for each in onnx.load(self.path).metadata_props}


def make_model(
    folder: Path, tile_px: int = TILE_PX, tile: TileConfig | None = None, numbers: tuple[int, ...] = (3, 2, 1), **config
) -> Path:
    """A model with random weights, whose batch norms are not the identity and whose context counts."""
    info = ModelInfo(
        model=ModelConfig(**config),
        tile=tile or TileConfig(tile_px=tile_px),
        classes=CLASSES,
        trained_gsd_m=0.26,
        bands=numbers,
        provenance={"dataset": "town", "recipe": {"data": {"dataset": "/home/me/secret/dataset.yaml"}}},
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(info)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.normal_(module.running_mean, std=0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 2)
            if isinstance(module, CrossAttention):
                torch.nn.init.normal_(module.proj.weight, std=0.5)  # else the context hardly matters
                if module.context_embedding is not None:
                    torch.nn.init.normal_(module.context_embedding)
    save_model(network, info, folder / "model")
    return folder / "model"


def make_file(folder: Path, form: graphs.Form, **config) -> File:
    """An exported file of such a model."""
    model = make_model(folder, **config)
    export(model, folder / "model.onnx", form)
    return File(folder / "model.onnx", load_model(model))


def images(batch: int, side: int, seed: int) -> np.ndarray:
    """(B, 3, side, side)."""
    return np.stack([picture(side, side, seed + i) for i in range(batch)])


def logits(model: LoadedModel, *given: np.ndarray) -> np.ndarray:
    """The result of the network in PyTorch."""
    with torch.inference_mode():
        return model.network(*map(torch.from_numpy, given)).numpy()


def test_tile_and_context_give_the_logits_of_the_network(tmp_path):
    """Patch stem, UPerNet, fusion after every stage."""
    file = make_file(tmp_path, "tile and context", size="pico")
    for batch in (1, 3):
        tile, context = images(batch, TILE_PX, 0), images(batch, TILE_PX, 10)
        expected = logits(file.model, tile, context)
        np.testing.assert_allclose(file.run(tile, context), expected, rtol=0, atol=1e-4)
        assert np.abs(expected - logits(file.model, tile, tile)).max() > 1e-2  # the context counts
    check_metadata(file)


@pytest.mark.parametrize("bands", [("nir",), (*RGB, "nir", "surface", "terrain")], ids=len)
def test_any_bands_give_the_logits_of_the_network(tmp_path, bands):
    count = len(bands)
    numbers = {"bands": bands, "mean": (110.0, 100.0, 90.0, 80.0, 70.0, 60.0)[:count], "std": (40.0,) * count}
    config = {"size": "pico", "decoder_channels": 16, "fusion_stages": (2,), **numbers}
    tile, context = (np.concatenate([images(2, TILE_PX, seed), images(2, TILE_PX, seed + 5)], 1) for seed in (0, 10))
    tile, context = tile[:, :count], context[:, :count]
    file = make_file(tmp_path, "tile and context", numbers=tuple(range(1, count + 1)), **config)
    expected = logits(file.model, tile, context)
    np.testing.assert_allclose(file.run(tile, context), expected, rtol=0, atol=1e-4)
    for band in range(count):  # every band shows in the result
        changed = tile.copy()
        changed[:, band] = 0
        assert np.abs(file.run(changed, context) - expected).max() > 1e-4
    assert file.metadata["band_names"] == list(bands)
    # The single input is the window around the tile, of the same bands.
    export(tmp_path / "model", tmp_path / "single.onnx", "single input")
    session = onnxruntime.InferenceSession(tmp_path / "single.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1] == count


def check_metadata(file: File) -> None:
    """The file says what it is, in numbers that many programs read, and nothing of its maker's folders."""
    assert file.metadata == {
        "form": "tile and context",
        "model_name": file.model.name,
        "model_sha256": file.model.digest,
        "tile_px": TILE_PX,
        "context_factor": 2,
        "bands": [3, 2, 1],
        "gsd_m": 0.26,
        "class_ids": [1, 2, 7],
        "class_colors": ["#3c1098", "#8429f6", "#e2a929"],
        "class_names": {"0": "building", "1": "land", "2": "water"},
        "provenance": {"dataset": "town", "recipe": {"data": {"dataset": "dataset.yaml"}}},
    }
    content = file.path.read_bytes()
    assert not any(word in content for word in (b"secret", b"site-packages", str(Path(write.__file__).parent).encode()))
    read = onnx.load(file.path)
    assert (read.producer_name, read.ir_version) == ("caswit", 8)
    assert [(each.domain, each.version) for each in read.opset_import] == [("", 18)]
    sides = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in read.graph.input]
    assert sides == [["batch", 3, TILE_PX, TILE_PX]] * 2


def test_a_single_input_reads_as_the_map_does(tmp_path, make_raster, monkeypatch, capsys):
    """Conv stem, SegFormer head, gates; a window over the border of a raster. Then what docs/export.md shows."""
    config = {"size": "pico", "stem": "conv", "decoder": "segformer", "fusion_stages": (1,), "gated": True}
    file = make_file(tmp_path, "single input", tile_px=32, **config)
    raster = make_raster(picture(150, 170))
    tile = Window(8, 90, 32, 32)
    predictor = Predictor(file.model.network, context_factor=2, batch=1, device=torch.device("cpu"), bf16=False)
    with SceneReader(Scene(image=raster, label=None, split="test")) as scene:
        region = scene.region(context_window(tile, 2))
    expected = predictor.logits(region, [Tile(tile, tile)]).numpy()
    assert not region.valid.all()
    np.testing.assert_allclose(file.run(region.image[None]), expected, rtol=0, atol=1e-4)
    three = images(3, 64, 5)
    single = np.concatenate([file.run(each[None]) for each in three])
    np.testing.assert_allclose(file.run(three), single, rtol=0, atol=1e-4)

    file.path.rename(tmp_path / "landcover.onnx")
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)
    assert example.count("\n") <= 12
    exec(compile(example, "export.md", "exec"), {})
    assert capsys.readouterr().out.strip() in ("building", "land", "water")


def as_deepness_maps(file: File, image: np.ndarray, rim: int) -> np.ndarray:
    """The map (H, W) that Deepness makes of an image (3, H, W) with a black rim, as its source cuts and joins windows.

    It sees black beyond the end of a layer. Written for this test; what it leaves out is QGIS's resampling.
    """
    size, percent = file.metadata["tile_size"], file.metadata["tiles_overlap"]
    overlap = int(size * percent / 100 * 2) // 2
    step, half = size - overlap, overlap // 2
    layer = np.pad(image, ((0, 0), (rim, rim), (rim, rim)))
    height, width = layer.shape[1:]
    rows, cols = (1 + max(0, -(-(length - size) // step)) for length in (height, width))
    more = [(0, 0)] + [(0, max(0, (n - 1) * step + size - side)) for n, side in ((rows, height), (cols, width))]
    layer = np.pad(layer, more)
    found = np.full(layer.shape[1:], -1)
    for i, j in np.ndindex(rows, cols):
        window = layer[:, i * step : i * step + size, j * step : j * step + size]
        best = file.run((window[None] / 255).astype(np.float32))[0].argmax(0)
        # The middle of a window is kept, and at the border of the layer what lies beyond it too.
        top, left = half * (i > 0), half * (j > 0)
        bottom, right = size - half * (i < rows - 1), size - half * (j < cols - 1)
        place = found[i * step + top : i * step + bottom, j * step + left : j * step + right]
        place[:] = best[top:bottom, left:right]
    return found[rim : rim + image.shape[1], rim : rim + image.shape[2]]


@pytest.fixture(scope="module", params=[(1,), ()], ids=["context", "tile alone"])
def for_deepness(request, tmp_path_factory) -> File:
    settings = {"tile_px": 32, "size": "pico", "decoder": "segformer", "decoder_norm": "group"}
    return make_file(tmp_path_factory.mktemp("deepness"), "deepness", **settings, fusion_stages=request.param)


# Larger than a window or not, at and around multiples of the step; one is smaller than a tile.
@pytest.mark.parametrize(("height", "width"), [(96, 131), (150, 57), (33, 200), (20, 64), (55, 32)])
def test_deepness_shows_the_network_what_predict_shows_it(for_deepness, height, width):
    """Every pixel is mapped, and as a tile of ``predict`` maps it: those at the right and below end with the image."""
    said, tile_px = for_deepness.metadata, 32
    assert (said["resolution"], said["model_type"]) == (26.0, "Segmentor")
    assert said["class_names"] == {"0": "not mapped", "1": "building", "2": "land", "3": "water"}
    image = picture(height, width, 3).clip(1)  # no pixel of the image is black
    found = as_deepness_maps(for_deepness, image, said["rim_px"]) - 1
    assert found.min() >= 0

    size = said["tile_size"]
    overlap = tile_px - (size - int(size * said["tiles_overlap"] / 100 * 2) // 2)
    factor = said["context_factor"]
    margin = (factor - 1) * tile_px // 2
    beyond = np.pad(image, ((0, 0), (margin, margin + tile_px), (margin, margin + tile_px)))
    by_tile = np.full((height, width), False)
    for row in starts(height, tile_px, overlap):
        for col in starts(width, tile_px, overlap):
            window = beyond[:, row : row + factor * tile_px, col : col + factor * tile_px]
            tile = np.ascontiguousarray(window[:, margin : margin + tile_px, margin : margin + tile_px])
            given = (tile[None], area_average(window, factor)[None])[: 1 + (factor > 1)]
            here = np.s_[row : min(height, row + tile_px), col : min(width, col + tile_px)]
            classes = logits(for_deepness.model, *given)[0].argmax(0)[: height - row, : width - col]
            by_tile[here] |= classes == found[here]
    assert by_tile.mean() > 0.999  # ties of the two most probable classes apart
    assert len(np.unique(found)) >= 2


def test_without_the_rim_a_strip_is_not_mapped(for_deepness):
    image = picture(96, 96, 3).clip(1)
    found = as_deepness_maps(for_deepness, image, 0)
    assert (found[: for_deepness.metadata["rim_px"]] == 0).all()


def test_probabilities_add_up_and_each_image_of_a_batch_is_on_its_own(for_deepness):
    size, rim = for_deepness.metadata["tile_size"], for_deepness.metadata["rim_px"]
    windows = images(3, size, 3)
    windows[1, :, :, : rim + 9] = 0  # the image begins inside the tile
    windows[2, :, size - rim - 7 :] = 0  # or ends there
    given = (windows / 255).astype(np.float32)
    found = for_deepness.run(given)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(found, np.concatenate([for_deepness.run(each[None]) for each in given]), atol=1e-5)
    places = [np.argwhere(each[0] == 0) for each in found]
    assert [(p.min(0).tolist(), p.max(0).tolist()) for p in places] == [
        ([rim, rim], [rim + 31, rim + 31]),
        ([rim, rim + 9], [rim + 31, rim + 40]),
        ([rim - 7, rim], [rim + 24, rim + 31]),
    ]


def test_a_model_without_context_takes_the_tile_alone(tmp_path):
    config = {"size": "pico", "stem": "conv", "decoder_norm": "group", "fusion_stages": ()}
    file = make_file(tmp_path, "tile and context", tile_px=32, **config)
    assert file.metadata["context_factor"] == 1
    tile = images(3, 32, 0)
    np.testing.assert_allclose(file.run(tile), logits(file.model, tile), rtol=0, atol=1e-4)


def test_architectures_of_others(tmp_path):
    pytest.importorskip("segmentation_models_pytorch")
    file = make_file(tmp_path, "single input", arch="unet", encoder="resnet18")
    tile = images(1, TILE_PX, 0)
    np.testing.assert_allclose(file.run(tile), logits(file.model, tile), rtol=0, atol=1e-4)


@pytest.mark.parametrize("factor", range(1, 17))
def test_the_graph_averages_as_reading_does(factor):
    rng = np.random.default_rng(factor)
    window = rng.integers(0, 256, (3, 16 * factor, 16 * factor), np.uint8)
    window[0] = rng.integers(0, 2, window[0].shape)  # means around one half
    window[1, : 8 * factor] = 255
    found = averaged(torch.from_numpy(window)[None], factor)[0].numpy()
    np.testing.assert_array_equal(found, area_average(window, factor))


def test_slices_of_attention_are_the_whole(monkeypatch):
    torch.manual_seed(0)
    attention = CrossAttention(8, 2).eval()
    hr, context = torch.randn(2, 7, 5, 8), torch.randn(2, 4, 6, 8)
    monkeypatch.setattr(graphs, "SCORES", 3 * 5 * 24)  # three rows at once, then three, then one
    calls = []
    attention.register_forward_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(InSlices(attention)(hr, context), attention(hr, context))
    assert len(calls) == 3 + 1


@pytest.mark.parametrize(("tile_px", "factor"), [(256, 1), (256, 2), (512, 2), (96, 3), (512, 4), (256, 8), (512, 16)])
def test_with_the_proposed_overlap_only_tiles_are_kept(tile_px, factor):
    window_px, percent = deepness_window_px(tile_px, factor), overlap_percent(tile_px, factor)
    overlap = window_px * percent // 100
    margin = (window_px - tile_px) // 2
    assert overlap // 2 >= margin + tile_px // 8 - 1
    assert overlap < window_px
    assert window_px - overlap <= 3 * tile_px // 4  # no window ends farther outside than a tile can be moved
    assert (window_px - overlap) * 2 > tile_px  # and yet more than half of each


def test_the_model_is_left_as_it_was(model_folder):
    model = load_model(model_folder)
    before = {name: type(module) for name, module in model.network.named_modules()}
    make_graph(model, "deepness")
    assert {name: type(module) for name, module in model.network.named_modules()} == before
    assert all(p.requires_grad for p in model.network.parameters())


def test_targets_that_cannot_be_written_are_refused_at_once(tmp_path, model_folder, capsys):
    def refused(says: str, *words: str) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["export", str(model_folder), *words])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert says in message

    refused("out must end in .onnx, got model.pt", "model.pt")
    (tmp_path / "folder.onnx").mkdir()
    refused("is a folder; give the name of a file in it", str(tmp_path / "folder.onnx"))
    refused("there is no folder", str(tmp_path / "nowhere" / "model.onnx"))
    refused("not both", str(tmp_path / "model.onnx"), "--single-input", "--deepness")
    assert not (tmp_path / "model.onnx").exists()


def test_a_missing_extra_is_named(tmp_path, model_folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit):
        main(["export", str(model_folder), str(tmp_path / "model.onnx")])
    message = f"caswit: export needs onnx, which comes with the extra export: {install('export')}\n"
    assert capsys.readouterr().err == message


def test_what_differs_or_is_too_large_is_not_written(tmp_path, model_folder, monkeypatch):
    out = tmp_path / "model.onnx"
    monkeypatch.setattr(write, "MOST_BYTES", 1000)
    with pytest.raises(ModelError, match="an ONNX file holds 2; export a smaller model"):
        export(model_folder, out)
    monkeypatch.undo()
    other = write.Exported(1, {}, {}, difference=float("nan"), largest=1.0)
    monkeypatch.setattr(write, "onnx_bytes", lambda *_: b"")
    monkeypatch.setattr(write, "_compare", lambda *_: other)
    with pytest.raises(ModelError, match="not written, ONNX Runtime and PyTorch give different results"):
        export(model_folder, out)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError):
        export(model_folder, tmp_path)


def test_several_contexts_go_in_narrowest_first(tmp_path, make_raster):
    """As one input, or cut by the graph out of the widest window."""
    factors = (2, 4)
    tile = TileConfig(tile_px=32, context_factor=factors)
    config = {"size": "pico", "fusion_stages": (2,), "decoder": "segformer"}
    file = make_file(tmp_path, "tile and context", tile=tile, **config)
    assert file.metadata["context_factor"] == [2, 4]
    hr, contexts = images(3, 32, 0), np.stack([images(3, 32, 10), images(3, 32, 20)], 1)
    expected = logits(file.model, hr, contexts)
    np.testing.assert_allclose(file.run(hr, contexts), expected, rtol=0, atol=1e-4)
    assert np.abs(expected - logits(file.model, hr, contexts[:, ::-1].copy())).max() > 1e-3
    window = Window(8, 90, 32, 32)
    with SceneReader(Scene(image=make_raster(picture(150, 170)))) as scene:
        region = scene.region(context_window(window, factors))
        graph = make_graph(file.model, "single input").module
        with torch.inference_mode():
            found = graph(torch.from_numpy(region.image)[None]).numpy()
        sample = scene.read(window, factors)
    np.testing.assert_allclose(found, logits(file.model, sample.tile[None], sample.context[None]), rtol=0, atol=1e-5)
