import itertools

import pytest
import timm
import torch
from torch import nn

from caswit.errors import ConfigError, ModelError
from caswit.nn.caswit import SIZES, CASWiT, TrainingLogits
from caswit.nn.decoders import UPerNetHead
from caswit.nn.swin import SwinEncoder

SUBSETS = [s for n in range(5) for s in itertools.combinations((1, 2, 3, 4), n)]
TIMM = {
    "tiny": "swin_tiny_patch4_window7_224",
    "small": "swin_small_patch4_window7_224",
    "base": "swin_base_patch4_window12_384",
    "large": "swin_large_patch4_window12_384",
}
NUM_CLASSES = 5


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def network(**settings):
    """The smallest network with every part, in evaluation mode."""
    settings = {"size": "nano", "decoder_channels": 16, "drop_path": 0.0, **settings}
    return CASWiT(num_classes=NUM_CLASSES, **settings).eval()


def photo(height, width, batch=1):
    return torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8)


def count(module):
    return sum(p.numel() for p in module.parameters())


# Shapes and values of the input


@pytest.mark.parametrize(
    ("size", "context_size"),
    [
        ((1, 1), (1, 1)),
        ((5, 7), (5, 7)),
        ((33, 65), (33, 65)),
        ((64, 64), (64, 64)),
        ((64, 64), (32, 96)),
        ((1, 130), (47, 3)),
        ((96, 31), (1, 1)),
    ],
)
@torch.no_grad()
def test_logits_have_the_resolution_of_the_tile(size, context_size):
    logits = network()(photo(*size), photo(*context_size))
    assert logits.shape == (1, NUM_CLASSES, *size)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_training_returns_logits_of_both_heads_and_evaluation_a_tensor():
    model, hr, context = network(), photo(64, 96, batch=2), photo(33, 65, batch=2)
    logits = model.train()(hr, context)
    assert isinstance(logits, TrainingLogits)
    assert logits.hr.shape == (2, NUM_CLASSES, 64, 96)
    assert logits.context.shape == (2, NUM_CLASSES, 33, 65)
    assert type(model.eval()(hr, context)) is torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
@torch.no_grad()
def test_uint8_and_floating_point_on_the_same_scale_are_the_same(dtype):
    model, hr, context = network(), photo(40, 64), photo(64, 40)
    assert torch.equal(model(hr, context), model(hr.to(dtype), context.to(dtype)))


@torch.no_grad()
def test_the_network_owns_its_normalisation():
    """Its encoders see (image - mean) / std, with the padding at the mean."""
    mean, std = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)
    model = network(mean=mean, std=std)
    seen = []
    for encoder in (model.hr_encoder, model.context_encoder):
        encoder.patch_embed.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    flat = torch.tensor(mean).view(1, 3, 1, 1).expand(1, 3, 6, 7)
    model(flat, flat + torch.tensor(std).view(1, 3, 1, 1))
    hr, context = seen
    assert hr.shape == context.shape == (1, 3, 8, 8)
    assert not hr.any()
    assert (context[..., :6, :7] == 1).all()
    assert context.sum() == 3 * 6 * 7


@torch.no_grad()
def test_whole_numbers_as_mean_and_std_do_not_round_the_image():
    """Mean and std became integer buffers, and floating-point images were cut to integers."""
    image = photo(32, 32) + torch.rand(1, 3, 32, 32)
    whole = network(mean=(120, 110, 100), std=(60, 60, 60), fusion_stages=())
    real = network(mean=(120.0, 110.0, 100.0), std=(60.0, 60.0, 60.0), fusion_stages=())
    real.load_state_dict(whole.state_dict())
    assert torch.equal(whole(image), real(image))
    assert not torch.equal(whole(image), whole(image.floor()))  # the fractions matter


@torch.no_grad()
def test_evaluation_of_an_image_does_not_depend_on_its_batch():
    model, hr, context = network(), photo(48, 64, batch=3), photo(64, 32, batch=3)
    together = model(hr, context)
    for index in range(3):
        alone = model(hr[index : index + 1], context[index : index + 1])
        torch.testing.assert_close(alone, together[index : index + 1], rtol=1e-5, atol=1e-5)


IMAGE = torch.zeros(2, 3, 32, 32)


@pytest.mark.parametrize(
    ("wrong", "fix"),
    [
        (torch.zeros(3, 32, 32), "one image (3, H, W) becomes a batch with [None]"),
        (torch.zeros(2, 32, 48, 3), "move the bands to axis 1 with permute(0, 3, 1, 2)"),
        (torch.zeros(2, 4, 32, 32), "select three bands"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.int16), "16-bit imagery must be rescaled to 0-255 first"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.bool), "must be uint8 or floating point"),
        (torch.zeros(0, 3, 32, 32), "every side must be at least 1"),
        (torch.zeros(2, 3, 0, 32), "every side must be at least 1"),
    ],
    ids=["3-d", "NHWC", "4 bands", "int16", "bool", "no image", "no row"],
)
@pytest.mark.parametrize("which", ["hr", "context"])
def test_wrong_image_is_refused_with_its_shape_or_type_and_the_fix(which, wrong, fix):
    images = {"hr": IMAGE, "context": IMAGE, which: wrong}
    with pytest.raises(ModelError) as caught:
        network()(**images)
    message = str(caught.value)
    assert message.startswith(f"{which} ")
    assert fix in message
    assert str(tuple(wrong.shape)) in message or str(wrong.dtype) in message
    assert "\n" not in message


@pytest.mark.parametrize("training", [False, True])
def test_missing_context_is_refused_with_the_fix(training):
    with pytest.raises(ModelError, match=r"call model\(hr, context\) .* fusion_stages=\(\) takes the tile alone"):
        network().train(training)(IMAGE)


def test_batches_of_different_length_are_refused_with_both():
    with pytest.raises(ModelError, match="must be one batch, got 2 and 1 images"):
        network()(IMAGE, IMAGE[:1])


# Branches, fusion and gates


@pytest.mark.parametrize("stages", SUBSETS, ids=str)
def test_every_choice_of_stages_trains_and_evaluates(stages):
    model, hr, context = network(fusion_stages=stages), photo(32, 40, batch=2), photo(40, 32, batch=2)
    assert list(model.fusion) == [str(s) for s in stages]
    assert model.reads_context == bool(stages)
    logits = model.train()(hr, context)
    assert logits.hr.shape == (2, NUM_CLASSES, 32, 40)
    assert (logits.context is None) == (not stages)
    with torch.no_grad():
        before, after = model.eval()(hr, context), model(hr, 255 - context)
    assert torch.equal(before, after) == (not stages)


def test_gradients_reach_every_parameter():
    """Group norm, for batch norm over two 1 x 1 maps passes only a sign."""
    model = network(gated=True, decoder_norm="group").train()
    for block in model.fusion.values():
        nn.init.constant_(block.gate, 0.5)
    logits = model(photo(64, 96, batch=2), photo(96, 64, batch=2))
    (logits.hr.square().sum() + logits.context.square().sum()).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []
    parts = {name.split(".")[0] for name, _ in model.named_parameters()}
    assert parts == {
        *("hr_encoder", "hr_norms", "decoder", "fusion"),
        *("context_encoder", "context_norms", "context_decoder"),
    }


def test_hr_loss_teaches_the_context_branch():
    model = network(fusion_stages=(2,)).train()
    model(photo(64, 64, batch=2), photo(64, 64, batch=2)).hr.square().sum().backward()
    taught = [stage.blocks[0].mlp.fc1.weight.grad for stage in model.context_encoder.layers]
    assert [g is not None and bool(g.any()) for g in taught] == [True, True, False, False]


def test_context_loss_leaves_the_hr_branch_alone():
    """Information flows from the context to hr, never back."""
    model = network().train()
    model(photo(64, 64, batch=2), photo(64, 64, batch=2)).context.square().sum().backward()
    touched = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None}
    assert touched == {"context_encoder", "context_norms", "context_decoder"}


@torch.no_grad()
def test_baseline_is_swin_and_upernet_and_nothing_else():
    model = network(fusion_stages=())
    numbers = {k: v for k, v in SIZES["nano"].items() if k != "decoder_channels"}
    channels = (32, 64, 128, 256)
    parts = nn.ModuleDict(
        {
            "hr_encoder": SwinEncoder(**numbers),
            "hr_norms": nn.ModuleList(nn.LayerNorm(c) for c in channels),
            "decoder": UPerNetHead(channels, channels=16, num_classes=NUM_CLASSES),
        }
    )
    assert model.state_dict().keys() == parts.state_dict().keys()
    assert model.context_encoder is None
    hr = photo(40, 56)
    assert torch.equal(model(hr), model(hr, photo(9, 9)))


@torch.no_grad()
def test_forward_is_figure_1_box_by_box():
    """Two encoders advanced together, fusion after stages 1 and 3, layer norms, decoder, upsampling."""
    model, hr, context = network(fusion_stages=(1, 3)), photo(64, 96), photo(96, 64)
    x = model.hr_encoder.embed((hr - model.mean) / model.std)
    c = model.context_encoder.embed((context - model.mean) / model.std)
    x, c = model.hr_encoder.stage(0, x), model.context_encoder.stage(0, c)
    x1 = model.fusion["1"](x, c)
    x2, c = model.hr_encoder.stage(1, x1), model.context_encoder.stage(1, c)
    x, c = model.hr_encoder.stage(2, x2), model.context_encoder.stage(2, c)
    x3 = model.fusion["3"](x, c)
    x4 = model.hr_encoder.stage(3, x3)
    maps = [norm(m).movedim(-1, 1) for norm, m in zip(model.hr_norms, (x1, x2, x3, x4), strict=True)]
    logits = nn.functional.interpolate(model.decoder(maps), size=(64, 96), mode="bilinear")
    torch.testing.assert_close(model(hr, context), logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_without_feed_forward_the_hr_encoder_is_on_its_own():
    """The decoder still sees fused maps, but every hr stage reads the map before it as it was."""
    fed, apart = network(), network(feed_forward=False)
    apart.load_state_dict(fed.state_dict())
    hr, context = photo(64, 64), photo(64, 64)
    assert not torch.equal(fed(hr, context), apart(hr, context))
    last_stage = []
    apart.hr_encoder.layers[3].register_forward_hook(lambda *hooked: last_stage.append(hooked[-1]))
    assert not torch.equal(apart(hr, context), apart(hr, 255 - context))
    alone = apart.hr_encoder((hr - apart.mean) / apart.std)[3]
    assert all(torch.equal(seen, alone) for seen in last_stage)


@torch.no_grad()
def test_closed_gates_are_the_baseline_up_to_the_mlp_of_fusion():
    gated, baseline = network(gated=True), network(fusion_stages=())
    baseline.load_state_dict({k: v for k, v in gated.state_dict().items() if k in baseline.state_dict()})
    hr, context = photo(64, 40), photo(40, 64)
    assert not torch.equal(gated(hr, context), baseline(hr))
    for block in gated.fusion.values():
        nn.init.zeros_(block.mlp[-1].weight)  # its bias starts at 0
    assert torch.equal(gated(hr, context), baseline(hr))


@pytest.mark.parametrize("stages", [(1, 2, 3, 4), (1,), (2, 3)], ids=str)
def test_network_without_context_head_takes_a_trained_ones_weights(stages):
    trained = network(fusion_stages=stages).train()
    for step in range(2):
        torch.manual_seed(step)
        trained(photo(32, 32, batch=2), photo(32, 32, batch=2))  # moves the running statistics
    bare = network(fusion_stages=stages, context_head=False)
    state = trained.eval().state_dict()
    assert bare.state_dict().keys() <= state.keys()
    bare.load_state_dict({name: state[name] for name in bare.state_dict()})
    hr, context = photo(64, 64), photo(64, 64)
    with torch.no_grad():
        assert torch.equal(bare(hr, context), trained(hr, context))
    assert len(bare.context_encoder.layers) == stages[-1]
    assert bare.context_decoder is bare.context_norms is None


def test_network_without_context_head_trains_on_the_tile_alone():
    logits = network(fusion_stages=(2,), context_head=False).train()(IMAGE, IMAGE)
    assert logits.context is None
    assert logits.hr.shape == (2, NUM_CLASSES, 32, 32)


def test_checkpointing_reaches_both_encoders_and_changes_no_logits():
    model, hr, context = network().train(), photo(32, 32, batch=2), photo(32, 32, batch=2)
    before = model(hr, context)
    model.checkpoint_gradients()
    stages = [*model.hr_encoder.layers, *model.context_encoder.layers]
    assert all(stage.grad_checkpointing for stage in stages)
    after = model(hr, context)
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    model.checkpoint_gradients(False)
    assert not any(stage.grad_checkpointing for stage in stages)


# Sizes


def test_nano_has_at_most_8_million_parameters_at_inference():
    assert count(CASWiT(num_classes=15, size="nano", context_head=False)) <= 8e6


@pytest.mark.parametrize("size", TIMM)
def test_encoders_have_as_many_parameters_as_timms(size):
    with torch.device("meta"):
        model = CASWiT(num_classes=2, size=size)
        whole = timm.create_model(TIMM[size], num_classes=0)
    expected = count(whole) - count(whole.norm)
    assert count(model.hr_encoder) == count(model.context_encoder) == expected
    assert count(model.decoder) == count(model.context_decoder)
    ours, theirs = (dict(m.named_parameters()) for m in (model.hr_encoder, whole))
    assert {n: p.shape for n, p in ours.items()} == {n: theirs[n].shape for n in ours}


@pytest.mark.parametrize(
    "settings",
    [{"size": "huge"}, {"decoder": "none"}, {"fusion_stages": (0,)}, {"fusion_stages": (2, 1)}, {"decoder_norm": "x"}],
)
def test_settings_that_do_not_exist_are_refused(settings):
    with pytest.raises(ConfigError, match=next(iter(settings))):
        CASWiT(num_classes=2, **{"size": "nano", **settings})


def test_a_shortened_context_branch_drops_as_often_as_the_whole_one():
    def rates(model):
        return [getattr(b.drop_path1, "drop_prob", 0.0) for layer in model.context_encoder.layers for b in layer.blocks]

    whole, short = (
        CASWiT(num_classes=2, size="nano", fusion_stages=(1, 3), drop_path=0.2, context_head=head)
        for head in (True, False)
    )
    assert len(rates(short)) == 8
    assert rates(short) == pytest.approx(rates(whole)[:8])


def test_group_norm_takes_any_width():
    model = CASWiT(num_classes=2, size="nano", fusion_stages=(), decoder_channels=100, decoder_norm="group")
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2, 32, 32)


@pytest.mark.parametrize("size", [(64, 64), (37, 90)])
def test_a_conv_stem_makes_the_same_tokens_as_patches(size):
    """As many tokens of as many channels, so that everything behind the stem is the same network."""
    patch, conv = (CASWiT(num_classes=3, size="nano", stem=stem).eval() for stem in ("patch", "conv"))
    image = torch.rand(2, 3, *size)
    assert patch.hr_encoder.embed(image).shape == conv.hr_encoder.embed(image).shape
    behind = [{k: v.shape for k, v in m.state_dict().items() if "patch_embed" not in k} for m in (patch, conv)]
    assert behind[0] == behind[1]
    assert conv(255 * image, 255 * image).shape == (2, 3, *size)


def test_a_conv_stem_is_four_convolutions():
    stem = CASWiT(num_classes=3, size="nano", stem="conv", decoder_norm="group").eval().hr_encoder.patch_embed
    image = torch.rand(2, 3, 32, 48)
    x = image
    for layer, stride in zip(stem.layers[:3], (2, 1, 2), strict=True):
        conv, norm, _ = layer
        x = norm(torch.nn.functional.conv2d(x, conv.weight, stride=stride, padding=1)).relu()
    x = torch.einsum("oi,bihw->bhwo", stem.layers[3].weight[..., 0, 0], x) + stem.layers[3].bias
    torch.testing.assert_close(stem(image), stem.norm(x))
