import math

import pytest
import torch
from torch import nn

from caswit.config import MaskConfig, ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.nn.decoders import UPerNetHead
from caswit.nn.fusion import CrossAttention
from caswit.nn.swin import Block
from caswit.weights.model_folder import (
    LoadedModel,
    ModelInfo,
    PretrainedInfo,
    build,
    build_simmim,
    save_model,
    save_pretrained,
)
from caswit.weights.summary import costs, describe

CLASSES = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#102030") for i in range(5)))
TILE_PX, CHANNELS, WINDOW = 64, 32, 8  # of nano's stage 1: 16 x 16 tokens, 2 x 2 windows


def loaded(tile_px=TILE_PX, **settings):
    info = ModelInfo(
        model=ModelConfig(**{"size": "nano", "decoder_channels": 16, **settings}),
        tile=TileConfig(tile_px=tile_px),
        classes=CLASSES,
    )
    return LoadedModel(build(info).eval(), info, "model", "0" * 16)


@pytest.mark.parametrize("stages", [(), (1,), (1, 2, 3, 4)], ids=str)
def test_parts_sum_to_all_parameters(stages):
    model = loaded(fusion_stages=stages)
    parts = costs(model).parameters
    assert sum(parts.values()) == sum(p.numel() for p in model.network.parameters())
    assert parts["hr encoder"] == sum(p.numel() for p in model.network.hr_encoder.parameters())
    assert ("fusion" in parts) == ("context encoder" in parts) == bool(stages)


def fuse_by_hand(head, sides):
    """FLOPs of the last convolution: the first map as it is, others mixed for nine taps, then enlarged."""
    width, (height, wide) = head.classify.in_channels, sides[0]
    total = 2 * 9 * width**2 * height * wide
    for h, w in sides[1:]:
        total += 2 * width * (9 * width * h * w + 3 * h * (3 * w) * wide + height * (3 * h) * wide)
    return total


def count_by_hand(network, *images):
    """Twice the multiply-adds of every linear layer, convolution and attention of a forward pass."""
    total = 0

    def count(module, inputs, output):
        nonlocal total
        match module:
            case nn.Linear():
                total += 2 * output.numel() * module.in_features
            case nn.Conv2d():
                total += 2 * output.numel() * module.weight[0].numel()
            case Block():  # padded to whole windows: tokens x tokens scores, twice
                tall, wide = (math.ceil(n / s) for n, s in zip(output.shape[1:3], module.window_size, strict=True))
                total += 4 * tall * wide * math.prod(module.window_size) ** 2 * output.shape[-1]
            case UPerNetHead():
                total += fuse_by_hand(module, [tuple(x.shape[2:]) for x in inputs[0]])
            case CrossAttention():  # every hr token with all context tokens, twice
                total += 4 * output.numel() * inputs[1].shape[1:3].numel()

    for module in network.modules():
        module.register_forward_hook(count)
    with torch.no_grad():
        network(*images)
    return total


@pytest.mark.parametrize("stages", [(), (2,), (1, 2, 3, 4)], ids=str)
@pytest.mark.parametrize("tile_px", [64, 100])
def test_flops_equal_a_count_by_hand(stages, tile_px):
    model = loaded(tile_px, fusion_stages=stages)
    image = torch.zeros(1, 3, tile_px, tile_px)
    assert costs(model).flops == count_by_hand(model.network, image, image)


def test_fusion_at_stage_1_costs_its_formula():
    """4 N M C of cross-attention among them."""
    n = m = (TILE_PX // 4) ** 2
    c = CHANNELS
    cross_attention = 2 * n * c * c + 2 * m * c * 2 * c + 4 * n * m * c + 2 * n * c * c
    mlp = 2 * (2 * n * c * 4 * c)
    embed = 2 * m * c * 3 * 4 * 4
    block = 2 * m * c * 3 * c + 4 * m * WINDOW**2 * c + 2 * m * c * c + 2 * (2 * m * c * 4 * c)
    fused, baseline = costs(loaded(fusion_stages=(1,))), costs(loaded(fusion_stages=()))
    assert fused.flops - baseline.flops == cross_attention + mlp + embed + 2 * block


def test_page_says_what_the_model_is(tmp_path):
    model = loaded(fusion_stages=(1, 2), gated=True, stem="conv", feed_forward=False)
    torch.nn.init.constant_(model.network.fusion["2"].gate, 0.5)
    save_model(model.network, model.info, tmp_path / "model")
    page = describe(tmp_path / "model")
    parameters = sum(p.numel() for p in model.network.parameters())
    for said in (
        f"{parameters / 1e6:.2f} M",
        "network        CASWiT-nano\n",
        "conv stem, windows of 8 x 8 tokens",
        "widths 32 64 128 256; blocks 2 2 4 2; heads 1 2 4 8",
        f"after stages 1, 2, for the decoder only; gates tanh(g) 0.000 (stage 1), {math.tanh(0.5):.3f} (stage 2)",
        "upernet, 16 channels, batch norm",
        "bands [1, 2, 3]",
        "tile 64 x 64 px",
        "128 x 128 px around it, averaged by 2 (the context factor)",
        "ground pixel   unknown",
        *(f"{c.id:>3}  {c.color}  {c.name}" for c in CLASSES.predicted),
    ):
        assert said in page, said


@pytest.mark.parametrize(("stages", "said"), [((), "fusion       none"), ((4,), "after stage 4, feeding")])
def test_page_of_a_pretrained_model(tmp_path, stages, said):
    info = PretrainedInfo(
        model=ModelConfig(size="pico", fusion_stages=stages),
        tile=TileConfig(tile_px=64, context_factor=4, read_gsd_m=0.3),
        mask=MaskConfig(ratio=0.6),
        bands=(4, 1, 2),
    )
    network = build_simmim(info)
    save_pretrained(network, info, tmp_path / "model")
    page = describe(tmp_path / "model")
    assert said in page
    assert f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M" in page
    assert "pretrained without labels" in page
    assert ("Swin-pico (no context)" if not stages else "CASWiT-pico") in page
    assert "widths 24 48 96 192" in page
    assert "bands [4, 1, 2]" in page
    assert "0.3 m, which images are resampled to" in page
    assert "0.6 of the tile, in cells of 32 px" in page
    assert "decoder" not in page
    assert ("256 x 256 px around it" in page) == bool(stages)


@pytest.mark.parametrize(
    ("settings", "title"),
    [
        ({}, "CASWiT-nano"),
        ({"decoder": "segformer"}, "CASWiT-nano + SegFormer"),
        ({"fusion_stages": ()}, "Swin-nano + UPerNet (no context)"),
        ({"fusion_stages": (), "decoder": "segformer"}, "Swin-nano + SegFormer (no context)"),
    ],
)
def test_a_network_without_context_is_not_called_caswit(settings, title):
    """The models called swin-nano-... were described as CASWiT-nano."""
    assert ModelConfig(size="nano", **settings).title == title
