"""Relay Tokens beside timm's SwinV2 and a loop over windows, and what the tokens carry from the context to the tile."""

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX, ModelConfig, TileConfig
from caswit.data.classes import ClassTable, LandClass
from caswit.errors import ConfigError
from caswit.nn.baselines import relay_tokens
from caswit.nn.baselines.relay_tokens import TOKENS, WINDOW, RelayTokens, centre, relayed
from caswit.weights.model_folder import ModelInfo, build

K = 3


def awake(network: nn.Module) -> nn.Module:
    """Open the norms that SwinV2 starts at 0, where no block does anything yet."""
    for name, parameter in network.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
        elif "cpb_mlp" in name:
            nn.init.normal_(parameter, 0, 0.1)
    return network


@pytest.fixture
def narrow() -> RelayTokens:
    torch.manual_seed(0)
    return awake(RelayTokens(num_classes=K, width=0.1)).eval()


def images(batch: int = 2, side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(2, batch, 3, side, side, generator=generator))


def test_relay_parts_are_under_two_percent():
    """Of SwinV2-S and of SwinV2-S with its head, a transposed convolution."""
    network = RelayTokens(num_classes=8)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    timms = timm.create_model("swinv2_small_window8_256", num_classes=0)
    assert sizes["backbone"] == sum(p.numel() for p in timms.parameters())
    assert sizes["head"] == 768 * 8 * 32**2 + 8
    added = network.tokens.numel() + sizes["widen"] + sizes["context_embed"]
    assert network.tokens.shape == (TOKENS, 96)
    assert added == pytest.approx(394_176, abs=1000)
    assert added / (sum(sizes.values()) + network.tokens.numel()) < 0.02
    assert added / sizes["backbone"] < 0.02


@pytest.mark.equivalence
@pytest.mark.parametrize("side", [64, 256])
def test_without_relay_tokens_blocks_are_those_of_timm(side: int):
    """At 64 px the deeper maps are smaller than a window, which timm's blocks then are too."""
    torch.manual_seed(0)
    ours = awake(RelayTokens(num_classes=K, width=0.1)).eval()
    theirs = timm.models.swin_transformer_v2.SwinTransformerV2(
        img_size=side, window_size=WINDOW, embed_dim=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=0,
        pretrained_window_sizes=(WINDOW,) * 4,
    ).eval()  # fmt: skip
    theirs.load_state_dict(ours.backbone.state_dict())
    image = images(1, side)[0]
    with torch.no_grad():
        x = ours.backbone.patch_embed(image)
        for stage in ours.backbone.layers:
            x = stage.downsample(x)
            for block in stage.blocks:
                x, nothing = relayed(block, x, x.new_zeros(1, 0, x.shape[-1]))
                assert nothing.numel() == 0
        expected = theirs.forward_features(image)
    torch.testing.assert_close(ours.backbone.norm(x), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.equivalence
@pytest.mark.parametrize("shifted", [False, True])
def test_the_exchange_against_a_loop_over_windows(narrow: RelayTokens, shifted: bool):
    """Each window by itself: its pixels in order, then the relay tokens, with attention written out."""
    stage = narrow.backbone.layers[1]
    block = stage.blocks[int(shifted)]
    torch.manual_seed(2)
    side, channels = 2 * WINDOW, 16
    x, relay = torch.randn(2, side, side, channels), torch.randn(2, TOKENS, channels)
    attn, step = block.attn, WINDOW // 2 if shifted else 0
    assert block.target_shift_size == (step, step)
    table = (
        16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, attn.num_heads)[attn.relative_position_index].sigmoid()
    )
    attended, read = torch.zeros_like(x), torch.zeros_like(relay)
    for image in range(2):
        for top in range(0, side, WINDOW):
            for left in range(0, side, WINDOW):
                rows, cols = (torch.arange(o, o + WINDOW) + step for o in (top, left))
                pixels = [(int(r), int(c)) for r in rows for c in cols]
                # Rows from 16 on come from the other end of the map: they are strangers to those before.
                part = [(r >= side, c >= side) for r, c in pixels]
                tokens = torch.stack([*(x[image, r % side, c % side] for r, c in pixels), *relay[image]])
                qkv = tokens @ attn.qkv.weight.T + torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
                q, k, v = qkv.view(len(tokens), 3, attn.num_heads, -1).permute(1, 2, 0, 3)
                scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * attn.logit_scale.exp()
                scores += 8
                scores[:, : WINDOW**2, : WINDOW**2] += table.permute(2, 0, 1) - 8
                strangers = torch.tensor([[a != b for b in part] for a in part])
                scores[:, : WINDOW**2, : WINDOW**2] += strangers * -1e9
                out = attn.proj((scores.softmax(-1) @ v).transpose(0, 1).flatten(1))
                for (r, c), value in zip(pixels, out, strict=False):
                    attended[image, r % side, c % side] = value
                read[image] += out[WINDOW**2 :] / 4
    expected = []
    for old, new in ((x, attended), (relay, read)):
        old = old + block.norm1(new)
        expected.append(old + block.norm2(block.mlp(old)))
    with torch.no_grad():
        pixels, tokens = relayed(block, x, relay)
    torch.testing.assert_close(pixels, expected[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(tokens, expected[1], atol=1e-5, rtol=1e-4)


def test_padding_is_seen_by_nobody():
    """A map of 10 x 12 fills a part of four windows."""
    seen = relay_tokens.visible((10, 12), (4, 4), TOKENS)
    assert seen.shape == (4, WINDOW**2 + TOKENS, WINDOW**2 + TOKENS)
    assert seen[:, WINDOW**2 :, : WINDOW**2].sum() == TOKENS * 10 * 12  # relay tokens see each pixel once, no padding
    assert bool(seen[:, :, WINDOW**2 :].all())


@pytest.mark.parametrize(("side", "wide"), [(64, 64), (96, 64), (64, 32)])
def test_shapes(narrow: RelayTokens, side: int, wide: int):
    image, context = images(1, side)[0], images(1, wide)[1]
    with torch.no_grad():
        assert narrow(image, context).shape == (1, K, side, side)
        assert torch.equal(narrow(image, context), narrow(image, torch.stack([context * 2, context], 1)))
        outputs = narrow.train()(image, context)
    assert {name: x.shape[1:] for name, x in outputs.items()} == {
        "logits": (K, side, side),
        "context": (K, wide, wide),
    }


def test_gradients_reach_every_parameter(narrow: RelayTokens):
    label = torch.randint(K, (2, 64, 64))
    narrow.loss(narrow.train()(*images()), label).backward()
    untouched = [n for n, p in narrow.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert not untouched


def test_only_the_relay_tokens_carry_the_context(narrow: RelayTokens, monkeypatch: pytest.MonkeyPatch):
    image, context = images()
    with torch.no_grad():
        assert not torch.allclose(narrow(image, context), narrow(image, -context))

        def cut(block: nn.Module, x: Tensor, relay: Tensor) -> tuple[Tensor, Tensor]:
            return relayed(block, x, relay)[0], relay  # what was read is not written back

        monkeypatch.setattr(relay_tokens, "relayed", cut)
        assert torch.equal(narrow(image, context), narrow(image, -context))


def test_evaluation_is_independent_of_the_batch(narrow: RelayTokens):
    image, context = images(3)
    with torch.no_grad():
        alone = torch.cat([narrow(image[i : i + 1], context[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(narrow(image, context), alone, atol=1e-5, rtol=1e-4)


def test_batches_of_any_size_can_be_traced(narrow: RelayTokens, monkeypatch: pytest.MonkeyPatch):
    """As for ONNX, which refused it: the batch of the example had become a constant."""
    narrow.backbone.layers = narrow.backbone.layers[:1]  # for time
    narrow.backbone.layers[0].blocks = narrow.backbone.layers[0].blocks[:1]
    monkeypatch.setattr(RelayTokens, "_decode", lambda _, x: x)
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        traced = torch.export.export(narrow, images(2, 32), dynamic_shapes=({0: batch}, {0: batch}), strict=False)
        torch.testing.assert_close(traced.module()(*images(3, 32)), narrow(*images(3, 32)), atol=1e-5, rtol=1e-4)


@pytest.mark.equivalence
def test_loss_against_a_loop(narrow: RelayTokens):
    """Sides of 32: the tile is the 8 x 8 middle of its context, each pixel of which stands for 4 x 4 labels."""
    generator = torch.Generator().manual_seed(0)
    logits, context = torch.randn(2, 1, K, 32, 32, generator=generator)
    label = torch.randint(K, (1, 32, 32), generator=generator)
    label[0, :5, :5] = IGNORE_INDEX
    tile = [-logits.log_softmax(1)[0, label[0, r, c], r, c] for r in range(32) for c in range(32) if label[0, r, c] < K]
    against_label, agreement = [], []
    for r in range(8):
        for c in range(8):
            log = context.log_softmax(1)[0, :, 12 + r, 12 + c]
            below = label[0, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten()
            if (below < K).all():
                against_label.append(-torch.stack([log[i] for i in below]).mean())
            said = logits.softmax(1)[0, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((1, 2))
            agreement.append(-(said * log).sum())
    assert len(against_label) == 64 - 4
    means = [torch.stack(terms).mean() for terms in (tile, against_label, agreement)]
    found = narrow.loss({"logits": logits, "context": context}, label)
    torch.testing.assert_close(found, means[0] + 0.1 * means[1] + 0.1 * means[2])


def test_nothing_labelled_gives_no_loss_and_a_graph(narrow: RelayTokens):
    loss = narrow.loss(narrow.train()(*images()), torch.full((2, 64, 64), IGNORE_INDEX))
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in narrow.parameters())


def test_the_tile_is_the_middle_of_its_context():
    x = torch.arange(36.0).view(1, 1, 6, 6)
    assert torch.equal(centre(x, 3)[0, 0], x[0, 0, 2:4, 2:4])
    assert torch.equal(centre(x, 1), x)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_loss_knows_how_far_the_context_reaches(factor: int):
    classes = ClassTable(tuple(LandClass(id=i, name=f"class {i}", color="#102030") for i in range(K)))
    settings, tile = ModelConfig(arch="relay_tokens", width=0.1), TileConfig(tile_px=64, context_factor=factor)
    assert build(ModelInfo(model=settings, tile=tile, classes=classes)).network.context_factor == factor


def test_learns_what_only_the_context_shows():
    """Four images: two tiles, each in two surroundings, which decide between two classes on half of the tile."""
    torch.manual_seed(0)
    network = RelayTokens(num_classes=K, width=0.1)
    for stage in network.backbone.layers:
        stage.blocks = stage.blocks[:1]  # for time
    image, context = torch.randn(2, 3, 32, 32).repeat(2, 1, 1, 1), torch.randn(2, 3, 32, 32).repeat_interleave(2, 0)
    context += torch.tensor([3.0, 3, -3, -3]).view(4, 1, 1, 1)
    label = torch.zeros(4, 32, 32, dtype=torch.long)
    label[:, :, 16:] = 1
    label[2:, :, 16:] = 2
    label[1::2, :, :8] = 2
    optimizer = torch.optim.AdamW(network.parameters(), lr=8e-3, betas=(0.9, 0.98), weight_decay=0)
    right = 0.0
    for _ in range(10):
        for _ in range(10):
            optimizer.zero_grad()
            network.loss(network.train()(image, context), label).backward()
            optimizer.step()
        # Stopped early: each ten steps take half a second.
        with torch.no_grad():
            right = float((network.eval()(image, context).argmax(1) == label).float().mean())
        if right > 0.95:
            return
    raise AssertionError(right)


def test_pretrained_weights(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match=r"model.width 0.5 has no ImageNet weights"):
        RelayTokens(num_classes=K, width=0.5, pretrained=True)

    def offline(name: str, **_: object) -> None:
        assert name == "swinv2_small_window8_256"
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ConfigError, match="cannot be downloaded"):
        RelayTokens(num_classes=K, pretrained=True)


def test_pretrained_weights_are_those_of_timm(monkeypatch: pytest.MonkeyPatch):
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **settings: create(name, **settings))
    torch.manual_seed(0)
    network = RelayTokens(num_classes=K, pretrained=True)
    torch.manual_seed(0)
    theirs = create("swinv2_small_window8_256", num_classes=0)
    ours = network.backbone.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.state_dict().items())
    assert torch.equal(network.context_embed[0].weight, theirs.patch_embed.proj.weight)
