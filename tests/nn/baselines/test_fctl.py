"""FCtL: parameters, FCN-8s at any size, attention to contexts, what each step learns, and that it learns."""

import math
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from caswit.errors import ConfigError
from caswit.nn.baselines import fctl
from caswit.nn.baselines.backbones import VGG16
from caswit.nn.baselines.fctl import AdaptiveWeights, FCtL, NonLocal, enlarged
from nn.baselines.toy import NUM_CLASSES, check_batch, check_gradients, check_loss, check_shapes, noisy, parameters


def narrow(phase=None):
    torch.manual_seed(0)
    network = FCtL(num_classes=NUM_CLASSES, width=0.0625)
    network.phase = phase
    return network


def contexts(batch=2, side=64):
    return torch.randn(batch, 2, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_it_has_the_published_parameters_the_contexts_vggs_included():
    with torch.device("meta"):
        network = FCtL(num_classes=7)
    assert parameters(network) / 1e6 == pytest.approx(170, rel=0.002)
    assert parameters(network, ("context2.", "context3.")) / 1e6 == pytest.approx(140.6, rel=0.002)


def test_interface():
    # Sides need not be multiples of anything: FCN-8s pads and crops.
    check_shapes(narrow(), [(61, 96), (8, 127)], contexts(1))
    check_gradients(narrow(), contexts(side=32), side=32)
    check_loss(narrow(), contexts(side=32), side=32)
    check_batch(narrow(), contexts(3, side=32), side=32)


@pytest.mark.parametrize("side", [504, 508, 512])
def test_logits_of_the_usual_tiles_have_the_tiles_sides(side):
    with torch.device("meta"):
        network = FCtL(num_classes=7).eval()
        image, around = torch.randn(1, 3, side, side), torch.randn(1, 2, 3, side, side)
        assert network(image, around).shape == (1, 7, side, side)


@pytest.mark.equivalence
@torch.no_grad()
def test_the_vgg_is_torchvisions_on_a_padded_image():
    ours = VGG16(0.125)
    cfg = [c if c == "M" else c // 8 for c in torchvision.models.vgg.cfgs["D"]]
    theirs = torchvision.models.vgg.make_layers(cfg)
    theirs.load_state_dict(ours.features.state_dict())
    image = torch.randn(1, 3, 26, 58)  # padded and convolved 224 x 256, so that no pooling rounds
    expected = F.pad(image, [99] * 4)
    for layer in theirs:
        expected = layer(expected)
    maps = ours(image)
    torch.testing.assert_close(maps[-1], expected)
    assert [tuple(x.shape[1:]) for x in maps] == [(32, 28, 32), (64, 14, 16), (64, 7, 8)]


@torch.no_grad()
def test_imagenet_weights_go_into_all_vggs_and_the_head(monkeypatch):
    theirs = VGG16(0.0625)
    classifier = [nn.Linear(32 * 7 * 7, 256), None, None, nn.Linear(256, 256)]
    found = SimpleNamespace(features=theirs.features, classifier=classifier)
    monkeypatch.setattr(fctl, "imagenet_vgg16", lambda width: found)
    network = FCtL(num_classes=2, width=0.0625, pretrained=True)
    for vgg in (network.vgg, network.context2, network.context3):
        assert all(a.equal(b) for a, b in zip(vgg.parameters(), theirs.parameters(), strict=True))
    # fc6 of an image of 224 px is a 7x7 convolution of its 7 x 7 cells.
    cells, hidden = torch.randn(1, 32, 7, 7), torch.randn(1, 256)
    torch.testing.assert_close(network.head.fc6(cells).flatten(1), classifier[0](cells.flatten(1)))
    torch.testing.assert_close(network.head.fc7(hidden[..., None, None]).flatten(1), classifier[3](hidden))


@pytest.mark.equivalence
@pytest.mark.parametrize("factor", [2, 8])
def test_enlarging_is_bilinear_where_no_edge_is_near(factor):
    x = torch.randn(2, 3, 5, 6)
    ours = enlarged(x, factor)
    assert ours.shape[-2:] == (6 * factor, 7 * factor)
    half = factor // 2
    inside = ours[:, :, half:-half, half:-half][:, :, half:-half, half:-half]
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    torch.testing.assert_close(inside, expected[:, :, half:-half, half:-half])


@pytest.mark.equivalence
@torch.no_grad()
def test_scores_lie_above_what_they_are_of():
    """A cell of pool5 whose score stands out is enlarged to where it lies in the image: FCN's offsets are right."""
    head = narrow().head.eval()
    for layer in (head.fc6, head.fc7, head.score, head.score4, head.score3):
        layer.weight.zero_()
        layer.bias.zero_()
    # fc6 takes the middle of its 7x7 cells, the scores the first channel.
    head.fc6.weight[0, 0, 3, 3] = head.fc7.weight[0, 0] = head.score.weight[0, 0] = 1
    pools = [torch.zeros(1, 16, 57, 57), torch.zeros(1, 32, 29, 29), torch.zeros(1, 32, 15, 15)]  # of 256 px
    pools[2][0, 0, 7, 6] = 1
    logits = head(pools, (256, 256))[0, 0]
    rows, cols = (logits.sum(axis) @ torch.arange(256.0) / logits.sum() + 0.5 for axis in (1, 0))
    # Cells of pool5 are 32 px; the first begins 100 px before the image.
    assert (rows - (7.5 * 32 - 100)).abs() <= 4
    assert (cols - (6.5 * 32 - 100)).abs() <= 4


@pytest.mark.equivalence
@torch.no_grad()
def test_attention_is_a_loop_over_cells():
    torch.manual_seed(0)
    read = NonLocal(8)
    for layer in (read.query, read.key, read.value):
        torch.nn.init.normal_(layer.weight, std=0.5)
    read.gamma.fill_(0.7)
    x, other = torch.randn(2, 8, 3, 4), torch.randn(2, 8, 5, 2)
    out = read(x, other)
    assert read.value.bias is None
    for b in range(2):
        keys, values = (layer(other)[b].flatten(1).T for layer in (read.key, read.value))
        for row in range(3):
            for col in range(4):
                weights = torch.stack([key @ read.query(x)[b, :, row, col] for key in keys]).softmax(0)
                torch.testing.assert_close(out[b, :, row, col], 0.7 * sum(w * v for w, v in zip(weights, values)))  # noqa: B905


def test_attention_has_the_dimensions_that_onnx_knows(monkeypatch):
    """Its exporter refuses queries without heads: (B, N, C)."""
    seen = []
    attend = F.scaled_dot_product_attention

    def note(*maps, **settings):
        seen.extend(tuple(x.shape) for x in maps)
        return attend(*maps, **settings)

    monkeypatch.setattr(F, "scaled_dot_product_attention", note)
    NonLocal(8)(torch.randn(2, 8, 3, 4), torch.randn(2, 8, 5, 2))
    assert seen == [(2, 1, 12, 8), (2, 1, 10, 8), (2, 1, 10, 8)]


@pytest.mark.equivalence
@torch.no_grad()
def test_weights_of_the_three_readings_add_up_to_one_at_every_value():
    torch.manual_seed(0)
    weigh = AdaptiveWeights(8)
    for parameter in weigh.parameters():
        torch.nn.init.normal_(parameter)
    same = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(weigh([same, same, same]), same)
    maps = [torch.randn(2, 8, 3, 4) for _ in range(3)]
    joined = weigh.mix(torch.cat([weigh.before[i](maps[i]) for i in range(3)], 1))
    scores = [weigh.after[i](joined[:, 8 * i : 8 * i + 8]).sigmoid().exp() for i in range(3)]
    expected = sum(s * x for s, x in zip(scores, maps, strict=True)) / sum(scores)
    torch.testing.assert_close(weigh(maps), expected)


class TestPhases:
    @pytest.mark.parametrize("phase", FCtL.phases)
    def test_gradients_reach_what_learns_and_nothing_else(self, phase):
        network = noisy(narrow(phase)).train()
        label = torch.randint(NUM_CLASSES, (2, 32, 32))
        network.loss(network(torch.randn(2, 3, 32, 32), contexts(side=32)), label).backward()
        for name, parameter in network.named_parameters():
            learns = name.startswith(FCtL.phases[phase])
            assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name

    @torch.no_grad()
    def test_each_reads_its_contexts(self):
        network, image, around = noisy(narrow()).eval(), torch.randn(1, 3, 32, 32), contexts(1, 32)
        for phase, reads in (("plain", ()), ("context2", (0,)), ("context3", (1,)), ("all", (0, 1)), (None, (0, 1))):
            network.phase = phase
            logits = network(image, around)
            for number in (0, 1):
                other = around.clone()
                other[:, number] += 1
                assert network(image, other).equal(logits) == (number not in reads), (phase, number)

    @torch.no_grad()
    def test_before_anything_is_learned_contexts_change_nothing(self):
        network, image = narrow().eval(), torch.randn(1, 3, 64, 64)
        finished = network(image, contexts(1))
        network.phase = "plain"
        torch.testing.assert_close(network(image), finished)

    @torch.no_grad()
    def test_the_contexts_vggs_follow_the_patchs_until_their_own_step(self):
        network, image = narrow("plain").train(), torch.randn(1, 3, 32, 32)

        def equal_to_the_patchs():
            first = network.vgg.features[0].weight
            return [vgg.features[0].weight.equal(first) for vgg in (network.context2, network.context3)]

        assert equal_to_the_patchs() == [True, True]
        for phase, follow in (("plain", [True, True]), ("context2", [False, True]), ("context3", [False, False])):
            network.phase = phase
            for parameter in network.vgg.parameters():
                parameter += 0.01
            network(image, contexts(1, 32))
            assert equal_to_the_patchs() == follow
        network.eval()
        network.phase = "plain"
        network(image)
        assert equal_to_the_patchs() == [False, False]


def test_it_learns_in_four_steps():
    label = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]]).repeat_interleave(32, 1)[:, None].expand(4, 64, 64)
    torch.manual_seed(0)
    network = FCtL(num_classes=NUM_CLASSES, width=0.125)
    network.head.dropout.p = 0  # a few dozen steps must do
    noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    image = 2 * F.one_hot(label, 3).permute(0, 3, 1, 2).float() - 0.7 + 0.2 * noise
    around = torch.stack([F.avg_pool2d(image, 2)] * 2, dim=1)
    for phase, steps, lr in (("plain", 25, 1e-3), ("context2", 2, 2e-4), ("context3", 2, 2e-4), ("all", 4, 2e-4)):
        network.phase = phase
        network.train()
        learning = [p for name, p in network.named_parameters() if name.startswith(FCtL.phases[phase])]
        optimiser = torch.optim.Adam(learning)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            optimiser.zero_grad()
            network.loss(network(image, around), label).backward()
            optimiser.step()
    network.phase = None
    with torch.no_grad():
        assert (network.eval()(image, around).argmax(1) == label).float().mean() > 0.95
    assert network.read2.gamma.item() != 0


class TestRefusals:
    @pytest.mark.parametrize(
        ("around", "got"), [(None, "no context"), (contexts(1)[:, 0], "one"), (contexts(1)[:, :1], "1")]
    )
    def test_other_than_two_contexts(self, around, got):
        with pytest.raises(ConfigError, match=rf"got {got}; use tile.context_factor \[2, 3\]"):
            narrow().eval()(torch.randn(1, 3, 64, 64), around)

    def test_weights_for_another_width(self):
        with pytest.raises(ConfigError, match=r"model.width 0.125 has no ImageNet weights; use width 1"):
            FCtL(num_classes=2, width=0.125, pretrained=True)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def no_network(**_):
            raise OSError("no route to host")

        monkeypatch.setattr(torchvision.models, "vgg16", no_network)
        with (
            torch.device("meta"),
            pytest.raises(ConfigError, match=r"of VGG16 cannot be downloaded \(no route to host\); start from"),
        ):
            FCtL(num_classes=2, pretrained=True)
