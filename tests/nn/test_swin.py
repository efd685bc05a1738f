"""Our stage-by-stage encoder against whole Swin models written by others."""

import math

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import SwinConfig, SwinModel

from caswit.nn import swin
from caswit.nn.baselines.relay_tokens import visible
from caswit.nn.conv import upsampling
from caswit.nn.swin import SwinEncoder
from caswit.nn.window_partition import windows

pytestmark = pytest.mark.equivalence

NUMBERS = {
    "window 7": {"embed_dim": 12, "depths": (2, 2, 3, 2), "num_heads": (1, 2, 3, 6), "window_size": 7},
    "window 12": {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "window_size": 12},
}
TINY = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": 7}
SMALL = {"embed_dim": 8, "depths": (1, 2, 1, 2), "num_heads": (1, 2, 2, 4), "window_size": 4}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def randomise(network):
    """No bias is 0 and every position bias matters, so that no term can be forgotten."""
    for name, parameter in network.named_parameters():
        if "relative_position_bias_table" in name:
            nn.init.normal_(parameter)
        elif parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
        else:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return network.eval()


def with_weights_of(whole, numbers):
    """Our encoder with the weights of timm's model; its last norm is the classifier's, not ours."""
    encoder = SwinEncoder(**numbers).eval()
    encoder.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("norm.")})
    return encoder


def assert_maps_equal(ours, theirs):
    """Channels-last maps against channels-first ones."""
    assert len(ours) == len(theirs)
    for our_map, their_map in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our_map.permute(0, 3, 1, 2), their_map, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("numbers", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (93, 141), (64, 128), (30, 7)], ids=str)
@torch.no_grad()
def test_stage_by_stage_equals_the_whole_timm_model(numbers, size):
    whole = SwinTransformer(**numbers, num_classes=0, strict_img_size=False, always_partition=True)
    whole.patch_embed.dynamic_img_pad = True  # timm's own way to sides that 4 does not divide
    encoder = with_weights_of(randomise(whole), numbers)
    image = torch.randn(1, 3, *size)
    tokens, maps = encoder.embed(image), []
    for index in range(4):
        tokens = encoder.stage(index, tokens)
        maps.append(tokens)
    assert_maps_equal(maps, whole.forward_intermediates(image, intermediates_only=True))
    assert all(torch.equal(a, b) for a, b in zip(encoder(image), maps, strict=True))


@torch.no_grad()
def test_tiny_equals_the_stock_timm_model_of_a_fixed_size():
    """Where every stage is larger than a window, timm needs none of our options to agree."""
    whole = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0, img_size=(256, 288))
    encoder = with_weights_of(randomise(whole), TINY)
    image = torch.randn(1, 3, 256, 288)
    assert_maps_equal(encoder(image), whole.forward_intermediates(image, intermediates_only=True))


def to_transformers(name, value):
    """Our weight under the names of ``transformers``: q, k and v apart, merging at the end of a stage."""
    name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
    name = name.replace("patch_embed.norm", "embeddings.norm")
    name = name.replace(".norm1.", ".layernorm_before.").replace(".norm2.", ".layernorm_after.")
    name = name.replace("attn.relative", "attention.relative_position_bias.relative")
    name = name.replace("attn.proj", "attention.o_proj")
    if name.startswith("layers."):
        _, stage, *rest = name.split(".")
        name = ".".join(["encoder.layers", str(int(stage) - (rest[0] == "downsample")), *rest])
    if "attn.qkv" not in name:
        return {name: value}
    return {name.replace("attn.qkv", f"attention.{x}_proj"): v for x, v in zip("qkv", value.chunk(3), strict=True)}


@torch.no_grad()
def test_equals_transformers_swin_where_windows_divide_every_stage():
    encoder = randomise(SwinEncoder(**SMALL))
    config = SwinConfig(**{k: list(v) if isinstance(v, tuple) else v for k, v in SMALL.items()}, image_size=128)
    other = SwinModel(config, add_pooling_layer=False).eval()
    weights = {}
    for name, value in encoder.state_dict().items():
        weights |= to_transformers(name, value)
    fit = other.load_state_dict(weights, strict=False)
    assert not fit.unexpected_keys
    assert all(k.startswith("layernorm.") or k.endswith("relative_position_index") for k in fit.missing_keys)
    image = torch.randn(2, 3, 128, 256)
    theirs = other(
        image, output_hidden_states=True, output_hidden_states_before_downsampling=True, always_partition=True
    )
    assert_maps_equal(encoder(image), theirs.reshaped_hidden_states[1:])


@settings(derandomize=True, deadline=None, max_examples=15)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 2))
@torch.no_grad()
def test_sides_are_a_quarter_then_halves_rounded_up(height, width, batch):
    encoder = SwinEncoder(**SMALL).eval()
    height_tokens, width_tokens = math.ceil(height / 4), math.ceil(width / 4)
    for stage, tokens in enumerate(encoder(torch.zeros(batch, 3, height, width))):
        assert tokens.shape == (batch, height_tokens, width_tokens, encoder.channels[stage])
        height_tokens, width_tokens = math.ceil(height_tokens / 2), math.ceil(width_tokens / 2)
    assert encoder.channels == [8, 16, 32, 64]


@torch.no_grad()
def test_fewer_depths_are_the_first_stages_of_the_whole():
    whole = randomise(SwinEncoder(**SMALL))
    first = SwinEncoder(embed_dim=8, depths=(1, 2), num_heads=(1, 2), window_size=4).eval()
    first.load_state_dict({k: v for k, v in whole.state_dict().items() if k in first.state_dict()})
    image = torch.randn(1, 3, 50, 70)
    maps = first(image)
    assert len(maps) == len(first.channels) == 2
    assert all(torch.equal(a, b) for a, b in zip(maps, whole(image), strict=False))


@pytest.mark.parametrize("size", [(128, 64), (93, 141), (30, 7)], ids=str)
def test_gradients_are_those_of_timms_blocks(size, monkeypatch):
    """In fp64, where another order of the same sums shows in the last digits only; with and without padding."""
    numbers = {**SMALL, "depths": (2, 2, 2, 2), "drop_path": 0.3}
    ours = randomise(SwinEncoder(**numbers)).double().train()
    monkeypatch.setattr(swin, "Block", lambda block: block)
    theirs = SwinEncoder(**numbers).double().train()
    assert isinstance(theirs.layers[0].blocks[0], SwinTransformerBlock)
    theirs.load_state_dict(ours.state_dict())
    image = torch.randn(2, 3, *size, dtype=torch.double)
    (out, gradients, _), (their_out, their_gradients, _) = (trained_step(x, image) for x in (ours, theirs))
    torch.testing.assert_close(out, their_out, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradients, their_gradients, rtol=1e-10, atol=1e-10)


def trained_step(encoder, image):
    """Map of the last stage, gradients, and how many numbers the forward pass kept for the backward pass."""
    encoder.zero_grad()
    kept = 0

    def keep(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    torch.manual_seed(1)  # stochastic depth draws the same blocks
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = encoder(image)[-1]
    out.square().sum().backward()
    return out.detach(), {name: p.grad.clone() for name, p in encoder.named_parameters()}, kept


def test_checkpointing_gives_the_same_output_and_gradients_and_keeps_less():
    encoder = randomise(SwinEncoder(**SMALL, drop_path=0.3)).train()
    image = torch.randn(2, 3, 61, 40)
    out, gradients, kept = trained_step(encoder, image)
    encoder.checkpoint_gradients()
    out_again, gradients_again, kept_again = trained_step(encoder, image)
    torch.testing.assert_close(out_again, out, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradients_again, gradients, rtol=1e-5, atol=1e-5)
    assert kept_again < kept / 4
    encoder.checkpoint_gradients(False)
    assert trained_step(encoder, image)[2] == kept


def test_tables_that_were_made_while_operations_were_counted_can_be_used():
    """They are kept for the next network, which may be one that learns."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        how = windows((10, 11), (8, 8), (4, 4))
        weights, seen = upsampling(3, 12), visible((10, 11), (4, 4), 2)
    assert float(how.mask.min()) == -100
    assert sorted(how.tokens[how.slots].tolist()) == list(range(110))
    assert weights.tolist()
    assert seen.tolist()
