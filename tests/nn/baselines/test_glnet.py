"""GLNet: parameters, what each step learns, patches in small groups, and that it learns."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError
from caswit.nn.baselines.backbones import ResNet50
from caswit.nn.baselines.focal import focal_loss
from caswit.nn.baselines.glnet import GLNet
from caswit.nn.baselines.patches import crop, patch_corners
from nn.baselines.toy import NUM_CLASSES, check_batch, check_gradients, check_loss, check_shapes, noisy, parameters


def narrow(phase=None, **options):
    torch.manual_seed(0)
    sizes = {"global_px": 32, "patch_px": 40, "overlap_px": 8}
    network = GLNet(num_classes=NUM_CLASSES, width=0.0625, **(sizes | options))
    network.phase = phase
    return network


def test_both_branches_have_the_parameters_that_the_authors_count():
    """The finished network also holds the backbone that the local branch learned to read."""
    with torch.device("meta"):
        network = GLNet(num_classes=7)
    assert parameters(network, ("view.resnet.",)) / 1e6 == pytest.approx(79.2, rel=0.002)
    assert parameters(network) / 1e6 == pytest.approx(102.7, rel=0.002)


def test_interface():
    check_shapes(narrow(), [(32, 32), (40, 48), (68, 100)])
    check_gradients(narrow())
    check_loss(narrow())
    check_batch(narrow())


@pytest.mark.equivalence
@torch.no_grad()
def test_the_backbone_is_timms_resnet50_at_any_width():
    ours = ResNet50().eval()
    theirs = timm.create_model("resnet50", num_classes=0).eval()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    image = torch.randn(1, 3, 32, 48)
    torch.testing.assert_close(ours(image)[-1], theirs.forward_features(image))
    narrow_one = ResNet50(0.25)
    assert [x.shape[1] for x in narrow_one.eval()(image)] == list(narrow_one.channels) == [64, 128, 256, 512]
    assert narrow_one.stem[0].out_channels == 16


class TestPhases:
    @pytest.mark.parametrize("phase", GLNet.phases)
    def test_gradients_reach_what_learns_and_nothing_else(self, phase):
        network = noisy(narrow(phase)).train()
        image, label = torch.randn(2, 3, 64, 64), torch.randint(NUM_CLASSES, (2, 64, 64))
        network.loss(network(image), label).backward()
        for name, parameter in network.named_parameters():
            learns = name.startswith(GLNet.phases[phase])
            assert (parameter.grad is not None and bool(parameter.grad.any())) == learns, name

    @pytest.mark.parametrize("phase", GLNet.phases)
    def test_what_is_fixed_keeps_its_statistics(self, phase):
        network = noisy(narrow(phase)).train()
        before = {name: value.clone() for name, value in network.state_dict().items()}
        network(torch.randn(2, 3, 64, 64))
        changed = {name.split(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])}
        # The branch of the last step follows the view's backbone until its own step begins.
        assert changed == {
            "global": {"view", "view_again"},
            "local": {"local", "view_again"},
            "global_again": {"view_again"},
        }[phase]  # fmt: skip

    def test_the_last_step_starts_from_the_backbone_of_the_first(self):
        network = noisy(narrow("local")).train()
        network(torch.randn(1, 3, 40, 40))
        ours, theirs = network.view_again.resnet.state_dict(), network.view.resnet.state_dict()
        assert all(value.equal(theirs[name]) for name, value in ours.items())
        network.phase = "global_again"
        kept = {name: value.clone() for name, value in theirs.items()}
        with torch.no_grad():
            network.view_again.resnet.stem[0].weight += 1
        network(torch.randn(1, 3, 40, 40))
        assert all(value.equal(kept[name]) for name, value in network.view.resnet.state_dict().items())
        assert not network.view_again.resnet.stem[0].weight.equal(network.view.resnet.stem[0].weight)

    @torch.no_grad()
    def test_each_predicts_with_the_branches_it_knows(self):
        network, image = noisy(narrow()).eval(), torch.randn(1, 3, 64, 64)
        called = set()
        for name in ("view", "local", "view_again"):
            getattr(network, name).register_forward_hook(lambda *_, name=name: called.add(name))
        reads = {"global": ("view",), "local": ("view", "local"), "global_again": ("view", "local", "view_again")}
        for phase, branches in (*reads.items(), (None, reads["global_again"])):
            network.phase = phase
            called.clear()
            network(image)
            assert called == set(branches)

    @torch.no_grad()
    def test_the_first_step_is_a_network_on_the_reduced_image(self):
        network, image = noisy(narrow("global")).eval(), torch.randn(2, 3, 64, 96)
        small = F.interpolate(image, size=(32, 32), mode="bilinear", antialias=True)
        expected = F.interpolate(network.view(small).logits, size=(64, 96), mode="bilinear")
        torch.testing.assert_close(network(image), expected, rtol=1e-4, atol=1e-5)


def slow_logits(network, image):
    """The finished network with all features kept, patch by patch, as the paper draws it; patches of 32 px."""
    sides = image.shape[-2:]
    corners = patch_corners(tuple(sides), (32, 32), 8)
    small = F.interpolate(image, size=(32, 32), mode="bilinear", antialias=True)
    view = network.view(small)
    locals_ = []
    for corner in corners:
        row, col = corner.tolist()
        crops = network._crops(view, corner[None], (32, 32), tuple(sides))
        locals_.append(network.local(image[:, :, row : row + 32, col : col + 32], crops))
    maps = []
    for level, whole in enumerate(view.maps):
        pixels, count = torch.zeros(whole.shape[1], *sides), torch.zeros(1, *sides)
        for (row, col), local in zip(corners.tolist(), locals_, strict=True):
            pixels[:, row : row + 32, col : col + 32] += F.interpolate(local.maps[level], size=(32, 32))[0]
            count[:, row : row + 32, col : col + 32] += 1
        maps.append((area_mean(pixels, whole.shape[-2:]) / area_mean(count, whole.shape[-2:]))[None])
    again = network.view_again(small, maps)
    total, count = torch.zeros(NUM_CLASSES, *sides), torch.zeros(sides)
    for corner, local in zip(corners, locals_, strict=True):
        row, col = corner.tolist()
        both = torch.cat([local.features, crop(again.features, corner[None], (32, 32), tuple(sides), (8, 8))], dim=1)
        enlarged = F.interpolate(network.ensemble(both), size=(32, 32), mode="bilinear")
        total[:, row : row + 32, col : col + 32] += enlarged[0]
        count[row : row + 32, col : col + 32] += 1
    return (total / count)[None]


def area_mean(pixels, size):
    """Average (C, H, W) over the pixels' shares in each of ``size`` equal cells: on a grid that both divide."""
    fine = pixels.repeat_interleave(size[0], 1).repeat_interleave(size[1], 2)
    return F.avg_pool2d(fine[None], pixels.shape[-2:])[0]


@pytest.mark.equivalence
@torch.no_grad()
def test_logits_are_those_of_the_network_written_out():
    network, image = noisy(narrow(patch_px=32)).eval(), torch.randn(1, 3, 56, 60)
    torch.testing.assert_close(network(image), slow_logits(network, image), rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_mixed_precision_changes_little():
    network, image = noisy(narrow()).eval(), torch.randn(1, 3, 64, 76)
    exact = network(image)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(image)
    assert mixed.dtype == torch.float32
    assert (mixed - exact).norm() < 0.05 * exact.norm()


@torch.no_grad()
def test_what_goes_through_the_branches_does_not_grow_with_the_image():
    network = narrow(patch_batch=3).eval()
    seen = {"largest": 0, "patches": 0}

    def note(module, inputs, output):
        seen["largest"] = max(seen["largest"], inputs[0].numel() // inputs[0].shape[1])
        seen["patches"] += inputs[0].shape[0] if module is network.local else 0

    for name in ("view", "local", "view_again"):
        getattr(network, name).register_forward_hook(note)
    largest = set()
    for side, patches in ((72, 4), (136, 16)):
        seen.update(largest=0, patches=0)
        network(torch.randn(1, 3, side, side))
        assert seen["patches"] == patches
        largest.add(seen["largest"])
    assert largest == {3 * 40 * 40}


class TestTraining:
    def test_a_pass_labels_a_few_patches_drawn_by_torchs_seed(self):
        network, image = narrow("local", train_patches=3).train(), torch.randn(2, 3, 136, 136)
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(network(image)["corners"])
        assert drawn[0].shape == (2, 3, 2)
        assert drawn[0].equal(drawn[1])
        assert not drawn[0].equal(drawn[2])
        assert not drawn[0][0].equal(drawn[0][1])
        assert all(len(corners.unique(dim=0)) == 3 for corners in drawn[0])

    def test_all_patches_where_they_are_few(self):
        corners = narrow("local")(torch.randn(1, 3, 64, 64))["corners"][0]
        assert corners.tolist() == patch_corners((64, 64), (40, 40), 8).tolist()

    def test_the_loss_of_the_local_step_is_its_three_terms(self):
        network, image = narrow("local").train(), torch.randn(2, 3, 64, 64)
        label = torch.randint(NUM_CLASSES, (2, 64, 64))
        label[0, :30] = IGNORE_INDEX
        out = network(image)
        patches = [
            label[b, row : row + 40, col : col + 40][2::4, 2::4]
            for b in range(2)
            for row, col in out["corners"][b].tolist()
        ]
        expected = focal_loss(out["local"], torch.stack(patches)) + focal_loss(out["ensemble"], torch.stack(patches))
        torch.testing.assert_close(network.loss(out, label), expected + 0.15 * out["difference"])
        # As floats too, as which tensors come from mixed precision.
        floats = {name: x.float() for name, x in out.items()}
        torch.testing.assert_close(network.loss(floats, label), network.loss(out, label))

    def test_logits_for_scores_are_the_patches_mean_and_the_views_elsewhere(self):
        network, image = narrow("local", train_patches=1).train(), torch.randn(1, 3, 104, 104)
        out = network(image)
        row, col = out["corners"][0, 0].tolist()
        inside = torch.zeros(104, 104, dtype=torch.bool)
        inside[row : row + 40, col : col + 40] = True
        patch = F.interpolate(out["ensemble"], size=(40, 40), mode="bilinear")[0]
        torch.testing.assert_close(out["logits"][0, :, inside], patch.flatten(1))
        network.phase = "global"
        with torch.no_grad():
            torch.testing.assert_close(out["logits"][0, :, ~inside], network.eval()(image)[0, :, ~inside])

    def test_it_learns_in_three_steps(self):
        label = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2]]).repeat_interleave(32, 1)[:, None].expand(4, 64, 64)
        torch.manual_seed(0)
        network = GLNet(num_classes=3, width=0.125, global_px=32, patch_px=40, overlap_px=8)
        for norm in network.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.3  # a few dozen steps must do
        noise = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
        image = 2 * F.one_hot(label, 3).permute(0, 3, 1, 2).float() - 0.7 + 0.2 * noise
        for phase, steps in (("global", 12), ("local", 30), ("global_again", 15)):
            network.phase = phase
            network.train()
            learning = [p for name, p in network.named_parameters() if name.startswith(GLNet.phases[phase])]
            optimiser = torch.optim.Adam(learning)
            for step in range(steps):
                optimiser.param_groups[0]["lr"] = 0.003 * (1 + math.cos(math.pi * step / steps)) / 2
                optimiser.zero_grad()
                network.loss(network(image), label).backward()
                optimiser.step()
        network.phase = None
        with torch.no_grad():
            assert (network.eval()(image).argmax(1) == label).float().mean() > 0.95


class TestRefusals:
    def test_an_overlap_of_whole_patches(self):
        with pytest.raises(ConfigError, match="overlap_px must be from 0 to below patch_px, 40, got 40"):
            narrow(overlap_px=40)

    def test_weights_for_another_width(self):
        with pytest.raises(ConfigError, match=r"model.width 0.0625 has no ImageNet weights; use width 1"):
            narrow(pretrained=True)

    def test_weights_that_cannot_be_downloaded(self, monkeypatch):
        def no_network(*_, **__):
            raise OSError("no route to host")

        monkeypatch.setattr(timm, "create_model", no_network)
        with pytest.raises(ConfigError, match=r"of ResNet-50 cannot be downloaded \(no route to host\); start from"):
            GLNet(num_classes=2, pretrained=True)
