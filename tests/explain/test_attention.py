"""Attention of a pixel, and its class with masked and swapped context."""

import numpy as np
import pytest
import torch

from caswit.config import ComputeConfig, PredictConfig, TileConfig
from caswit.data.reader import SceneReader, context_window
from caswit.data.scene import Scene
from caswit.errors import ConfigError, ModelError
from caswit.explain.attention import AS_IS, MASKED, SWAPPED, explain_pixel, recorded_attention, share_on
from caswit.explain.figure import (
    LEAST_PEAK,
    explanation_figure,
    heatmap_over,
    heatmap_overlay,
    mark_pixel,
    normalise_heatmap,
    summary,
)
from caswit.inference.load import load_predictor
from caswit.inference.predictor import mask_context, swap_context
from caswit.mapping.run import predict
from caswit.nn.caswit import CASWiT
from caswit.nn.fusion import CrossAttention
from caswit.raster.reader import Raster
from caswit.raster.windows import Window, owner, tile_grid
from caswit.weights.model_folder import load_model
from conftest import CLASSES, TILE, georeference

EXACT = ComputeConfig(device="cpu", precision="fp32")


def full_matrix(attention: CrossAttention, hr, context):
    """(h, N, M): every weight of every token, as eq. 1-3 of section 3.2 have it, head by head."""
    channels = hr.shape[-1]
    depth = channels // attention.num_heads
    q = attention.to_q(attention.norm_hr(hr)).reshape(-1, channels)
    k = attention.to_kv(attention.norm_context(context))[..., :channels].reshape(-1, channels)
    parts = [slice(h * depth, (h + 1) * depth) for h in range(attention.num_heads)]
    return torch.stack([(q[:, p] @ k[:, p].T / depth**0.5).softmax(-1) for p in parts])


@pytest.mark.parametrize("heads", [1, 3])
def test_weights_of_a_token_are_its_row_of_the_full_matrix(heads):
    torch.manual_seed(0)
    attention = CrossAttention(12, heads)
    hr, context = torch.randn(1, 5, 6, 12), torch.randn(1, 7, 4, 12)
    with torch.no_grad():
        matrix = full_matrix(attention, hr, context)
        for row, col in ((0, 0), (2, 5), (4, 1)):
            found = attention.weights(hr, context, row, col)
            assert found.shape == (1, heads, 7, 4)
            torch.testing.assert_close(found[0].flatten(1), matrix[:, row * 6 + col], atol=1e-6, rtol=1e-5)


def test_recorded_attention_is_what_the_network_read():
    """At every stage, of the token that covers the pixel; and what the network returns stays the same."""
    torch.manual_seed(0)
    network = CASWiT(num_classes=3, size="nano", decoder_channels=16, context_head=False).eval()
    hr, context = torch.rand(1, 3, 64, 64) * 255, torch.rand(1, 3, 64, 64) * 255
    expected = {}

    def keep(stage, tokens_across):
        def hook(module, images):
            token = (37 * tokens_across // 64) * tokens_across + 50 * tokens_across // 64
            expected[stage] = full_matrix(module, *images)[:, token]

        return hook

    with torch.no_grad():
        hooks = [network.fusion[str(s)].attention.register_forward_pre_hook(keep(s, 32 // 2**s)) for s in (1, 2, 3, 4)]
        plain = network(hr, context)
        for hook in hooks:
            hook.remove()
        with recorded_attention(network, 37, 50, 64) as found:
            recorded = network(hr, context)
    assert torch.equal(plain, recorded)
    assert [s.stage for s in found] == [1, 2, 3, 4]
    for stage in found:
        np.testing.assert_allclose(stage.heads.reshape(len(stage.heads), -1), expected[stage.stage], atol=1e-6)
        np.testing.assert_allclose(stage.heads.sum((1, 2)), 1, rtol=1e-5)
    assert not any(f.attention._forward_pre_hooks for f in network.fusion.values())


@pytest.fixture
def scene(make_raster, image):
    with SceneReader(Scene(image=make_raster(image, **georeference()))) as opened:
        yield opened


@pytest.mark.parametrize("place", [(0, 0), (45, 70), (89, 129)])
def test_the_class_is_the_maps_class(scene, model_folder, tmp_path, place):
    settings = PredictConfig(device="cpu", precision="fp32", batch=1, fill="black", blend=False)
    predict(scene.scene.image, tmp_path / "map.tif", model_folder, settings)
    model = load_predictor(load_model(model_folder), EXACT)
    found = explain_pixel(model, scene, *place, TILE.tile_px)
    with Raster(tmp_path / "map.tif") as written:
        predicted = written.read_band(Window(*place, 1, 1), fill=255)[0, 0]
    assert CLASSES.ids[found.probabilities[AS_IS].argmax()] == predicted
    assert CLASSES.ids[found.classes[AS_IS][found.pixel]] == predicted
    assert set(found.probabilities) == {AS_IS, MASKED, SWAPPED}
    assert all(p.sum() == pytest.approx(1) for p in found.probabilities.values())
    np.testing.assert_array_equal(found.changed, found.classes[AS_IS] != found.classes[MASKED])


def test_masked_context_keeps_the_tile():
    context, other = torch.rand(1, 3, 32, 32), torch.rand(1, 3, 32, 32)
    masked, swapped = mask_context(context, 2), swap_context(context, other, 2)
    middle = (..., slice(8, 24), slice(8, 24))
    for changed in (masked, swapped):
        assert torch.equal(changed[middle], context[middle])
    masked[middle], swapped[middle], other[middle] = 0, 0, 0
    assert not masked.any()
    assert torch.equal(swapped, other)


@pytest.mark.parametrize("precision", ["fp32", "auto"])  # the network itself, and arranged for inference
def test_with_masked_context_nothing_depends_on_it(model_folder, precision):
    predictor = load_predictor(load_model(model_folder), ComputeConfig(device="cpu", precision=precision))
    masked = predictor.with_masked_context()
    hr, context = torch.rand(1, 3, 32, 32) * 255, torch.rand(1, 3, 32, 32) * 255
    other = swap_context(context, torch.rand(1, 3, 32, 32) * 255, 2)
    assert torch.equal(masked.image_logits(hr, context), masked.image_logits(hr, other))
    assert torch.equal(masked.image_logits(hr, context), predictor.image_logits(hr, mask_context(context, 2)))
    assert not torch.equal(predictor.image_logits(hr, context), predictor.image_logits(hr, other))


def test_a_raster_of_one_tile_has_no_context_to_swap(make_raster, image, model_folder):
    model = load_predictor(load_model(model_folder), EXACT)
    with SceneReader(Scene(image=make_raster(image[:, :20, :30], **georeference()))) as scene:
        found = explain_pixel(model, scene, 3, 4, TILE.tile_px)
    assert set(found.probabilities) == {AS_IS, MASKED}
    assert (found.classes[AS_IS][20:] == 255).all()


def test_places_that_cannot_be_explained(scene, make_raster, image, make_model, model_folder):
    model = load_predictor(load_model(model_folder), EXACT)
    with pytest.raises(ConfigError, match=r"row 90, column 3 lies outside image\.tif, which has rows 0-89"):
        explain_pixel(model, scene, 90, 3, TILE.tile_px)
    with pytest.raises(ModelError, match="reads no context"):
        explain_pixel(load_predictor(load_model(make_model(())), EXACT), scene, 3, 3, TILE.tile_px)
    mask = np.full((90, 130), 255, np.uint8)
    mask[:40] = 0
    with (
        SceneReader(Scene(image=make_raster(image, "holes.tif", mask=mask))) as holes,
        pytest.raises(ConfigError, match=r"holes\.tif has no data at row 3, column 3"),
    ):
        explain_pixel(model, holes, 3, 3, TILE.tile_px)


def test_owner_is_the_tile_of_the_grid():
    tiles = tile_grid(90, 130, 32, 8)
    for row, col in ((0, 0), (28, 27), (60, 129), (89, 64)):
        (expected,) = (t for t in tiles if _holds(t.owned, row, col))
        assert owner(90, 130, 32, 8, row, col) == expected


def _holds(window, row, col):
    return 0 <= row - window.row < window.height and 0 <= col - window.col < window.width


def test_the_figure_shows_every_stage(scene, model_folder):
    model = load_predictor(load_model(model_folder), EXACT)
    found = explain_pixel(model, scene, 40, 60, TILE.tile_px)
    whole = explanation_figure(found, CLASSES, "title")
    fewer = explanation_figure(found._replace(stages=found.stages[:2]), CLASSES, "title")
    assert whole.dtype == np.uint8
    assert whole.shape[0] > fewer.shape[0] + 400
    assert {tuple(c) for c in CLASSES.colors} <= {tuple(c) for c in whole[-40:].reshape(-1, 3)}  # the legend


def test_even_attention_looks_even_and_a_peak_bright():
    even, peaked = np.ones((8, 8)), np.zeros((8, 8))
    peaked[2, 3] = 1
    np.testing.assert_allclose(normalise_heatmap(even), 1 / LEAST_PEAK)
    assert normalise_heatmap(peaked).max() == 1
    image = np.full((64, 64, 3), 100, np.uint8)
    lit = heatmap_over(image, peaked).astype(int).sum(2)
    assert lit[16:24, 24:32].min() > 2 * lit[40:].max()
    assert heatmap_overlay(peaked)[2, 3, 3] > 200
    assert heatmap_overlay(peaked)[0, 0, 3] < 30


def test_a_mark_is_a_white_dot_at_its_place():
    picture = mark_pixel(np.zeros((40, 40, 3), np.uint8), 10, 30, 3)
    rows, cols = np.nonzero((picture == 255).all(2))
    assert (rows.mean(), cols.mean()) == (10, 30)


@pytest.mark.parametrize(("side", "tokens"), [(64, 16), (64, 2), (72, 18), (72, 9), (72, 5), (72, 3)])
def test_the_share_of_attention_on_padding_is_that_of_its_pixels(side, tokens):
    """A token's attention is spread evenly over the pixels under it; those beyond the last are like it."""
    rng = np.random.default_rng(0)
    attention, padding = rng.random((tokens, tokens)), rng.random((side, side)).astype(np.float32)
    padding[rng.random((side, side)) < 0.5] = 1
    stride = {16: 4, 2: 32, 18: 4, 9: 8, 5: 16, 3: 32}[tokens]
    expected = 0.0
    for row, col in np.ndindex(tokens, tokens):
        under = [
            padding[min(row * stride + i, side - 1), min(col * stride + j, side - 1)]
            for i in range(stride)
            for j in range(stride)
        ]
        expected += attention[row, col] * np.mean(under)
    assert share_on(attention, padding) == pytest.approx(expected / attention.sum(), rel=1e-5)


def test_padding_is_what_lies_outside_the_image(scene, model_folder):
    model = load_predictor(load_model(model_folder), EXACT)
    inside, corner = (explain_pixel(model, scene, *at, TILE.tile_px) for at in ((45, 70), (0, 0)))
    assert not inside.contexts[0].padding.any()
    assert [s.on_padding for s in inside.stages] == [0.0] * len(inside.stages)
    # The tile lies in the image's corner: a quarter of its side is missing above and at the left.
    expected = np.ones((32, 32))
    expected[8:, 8:] = 0
    np.testing.assert_array_equal(corner.contexts[0].padding, expected)
    for stage in corner.stages:
        first = len(stage.mean) // 4
        if first:
            assert stage.on_padding == pytest.approx(1 - stage.mean[first:, first:].sum(), abs=1e-5)
    assert all(s.gate is None for s in corner.stages)


def test_several_contexts_are_explained_each_by_itself(scene, make_model):
    """The attention of a stage is shared out among them: together it sums to 1 for each head."""
    factors = (2, 4)
    tile = TileConfig(tile_px=32, context_factor=factors)
    folder = make_model((1, 4), tile)
    model = load_predictor(load_model(folder), EXACT)
    found = explain_pixel(model, scene, 2, 60, 32)
    assert [(s.stage, s.context) for s in found.stages] == [(1, 0), (1, 1), (4, 0), (4, 1)]
    for one, other in (found.stages[:2], found.stages[2:]):
        np.testing.assert_allclose(one.heads.sum((1, 2)) + other.heads.sum((1, 2)), 1, rtol=1e-5)
        assert one.share + other.share == pytest.approx(1)
    for context, factor in zip(found.contexts, factors, strict=True):
        alone = scene.region(context_window(found.tile.window, factor))
        np.testing.assert_array_equal(context.image, alone.context(found.tile.window, factor))
        assert context.padding.mean() == pytest.approx(1 - alone.valid.mean())
    assert set(found.probabilities) == {AS_IS, MASKED, SWAPPED}
    assert len([line for line in summary(found, CLASSES.names) if line.startswith("attention on context x ")]) == 2
    whole = explanation_figure(found, CLASSES, "title")
    narrow = found._replace(contexts=found.contexts[:1], stages=tuple(s for s in found.stages if not s.context))
    assert whole.shape[0] > explanation_figure(narrow, CLASSES, "title").shape[0]
