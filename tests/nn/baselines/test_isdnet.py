"""ISDNet: parameters, shapes, relation-aware fusion, its own losses, and that it learns."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caswit.config import IGNORE_INDEX
from caswit.errors import ConfigError
from caswit.nn.baselines.isdnet import HEAD_WEIGHTS, ISDNet, RelationAwareFusion, similarity_loss, split
from nn.baselines.toy import (
    NUM_CLASSES,
    check_batch,
    check_gradients,
    check_loss,
    check_only_trains,
    check_shapes,
    learned,
    noisy,
    parameters,
)

TRAINING_ONLY = ("heads", "rebuild")


def narrow():
    torch.manual_seed(0)
    return ISDNet(num_classes=NUM_CLASSES, width=0.125)


def test_it_has_the_known_parameters_without_the_parts_that_only_train():
    network = ISDNet(num_classes=8)
    assert parameters(network, TRAINING_ONLY) / 1e6 == pytest.approx(17.2, rel=0.02)


def test_interface():
    check_shapes(narrow(), [(32, 32), (64, 96)])
    check_gradients(narrow())
    check_loss(narrow())
    check_batch(narrow())


def test_parts_that_only_train_are_not_computed_in_evaluation():
    check_only_trains(narrow(), TRAINING_ONLY)


def test_branches_give_maps_at_the_papers_resolutions():
    network = narrow().eval()
    details, small = split(torch.randn(1, 3, 128, 192))
    assert details.shape == (1, 6, 128, 192)
    assert network.aspp(network.deep(small)[-1]).shape == (1, 16, 4, 6)
    assert [tuple(x.shape[2:]) for x in network.shallow(details)] == [(16, 24), (8, 12)]


def test_details_and_a_quarter_of_the_image_give_it_back():
    image = torch.randn(2, 3, 32, 64)
    details, small = split(image)
    enlarged = F.interpolate(F.interpolate(small, scale_factor=2, mode="bilinear"), scale_factor=2, mode="bilinear")
    torch.testing.assert_close(details[:, :3] + details[:, 3:] + enlarged, image)


def slow_fusion(part, deep, shallow):
    """Of one image, value by value where it matters."""
    sides = [project(x)[0] for project, x in zip(part.project, (deep, shallow), strict=True)]
    channels = len(sides[0])
    attention = []
    for linear, x in zip(part.attention, sides, strict=True):
        mean = np.array([float(x[c].mean()) for c in range(channels)])
        attention.append(linear.weight.numpy() @ mean + linear.bias.numpy())
    pieces = [a.reshape(channels // 8, 8) for a in attention]
    relations = [sum(p * q for p, q in zip(one, other, strict=True)) for one in pieces[0] for other in pieces[1]]
    gated = []
    for side in range(2):
        first, _, second = part.relation[side]
        hidden = np.maximum(first.weight.numpy() @ relations + first.bias.numpy(), 0)
        offset = second.weight.numpy() @ hidden + second.bias.numpy()
        gate = 1 / (1 + np.exp(-(attention[side] + float(part.strength[side]) * offset)))
        gated.append(sides[side] * torch.tensor(gate, dtype=torch.float32)[:, None, None])
    large = F.interpolate(gated[0][None], size=shallow.shape[-2:], mode="bilinear", align_corners=False)
    return part.mix(part.smooth[0](large) + part.smooth[1](gated[1][None]))


@pytest.mark.equivalence
@torch.no_grad()
def test_relation_aware_fusion_is_that_of_slow_loops():
    torch.manual_seed(0)
    part = noisy(RelationAwareFusion(16, 24, 32)).eval()
    part.strength.copy_(torch.tensor([0.7, -1.3]))
    deep, shallow = 3 * torch.randn(1, 16, 3, 4), 3 * torch.randn(1, 24, 6, 8)
    torch.testing.assert_close(part(deep, shallow), slow_fusion(part, deep, shallow), rtol=1e-4, atol=1e-5)
    assert part.relation[0][0].in_features == 16
    assert RelationAwareFusion(128, 512, 128).relation[0][0].in_features == 256


@torch.no_grad()
def test_relations_have_no_effect_at_first():
    part = RelationAwareFusion(16, 24, 32).eval()
    deep, shallow = torch.randn(2, 16, 3, 4), torch.randn(2, 24, 6, 8)
    before = part(deep, shallow)
    for relation in part.relation:
        relation[2].bias += 5
    torch.testing.assert_close(part(deep, shallow), before, rtol=0, atol=0)
    part.strength += 1
    assert not torch.allclose(part(deep, shallow), before)


@pytest.mark.equivalence
def test_similarities_are_cosines_between_all_positions():
    first, second = torch.randn(2, 5, 3, 4), torch.randn(2, 7, 6, 8)
    second[0, :, 0] = 0
    small = second.numpy().reshape(2, 7, 3, 2, 4, 2).mean((3, 5))
    total = 0.0
    for image in range(2):
        a, b = first[image].numpy().reshape(5, 12).T, small[image].reshape(7, 12).T
        for i in range(12):
            for j in range(12):
                cosines = [x[i] @ x[j] / (np.linalg.norm(x[i]) * np.linalg.norm(x[j])) for x in (a, b)]
                total += abs(cosines[0] - cosines[1])
    assert similarity_loss(first, second).item() == pytest.approx(total / 288, rel=1e-5)
    assert similarity_loss(first, 3 * first).item() < 1e-6


def test_similarities_of_large_maps_are_compared_on_32_rows_and_columns():
    large = torch.randn(1, 2, 64, 96)
    expected = similarity_loss(F.adaptive_avg_pool2d(large, (32, 32)), large)
    torch.testing.assert_close(similarity_loss(large, large), expected)


def test_the_loss_is_the_sum_of_its_parts():
    network = narrow().train()
    label = torch.randint(NUM_CLASSES, (2, 64, 64))
    label[0, :20] = IGNORE_INDEX
    outputs = network(torch.randn(2, 3, 64, 64))
    assert outputs["rebuilt"].shape == outputs["details"].shape == (2, 3, 32, 32)
    expected = 0.1 * ((outputs["rebuilt"] - outputs["details"]) ** 2).mean()
    expected = expected + similarity_loss(outputs["deep_map"], outputs["rebuilt_map"])
    for name, weight in HEAD_WEIGHTS.items():
        logits = F.interpolate(outputs[name], size=(64, 64), mode="bilinear", align_corners=False)
        expected = expected + weight * F.cross_entropy(logits, label, ignore_index=IGNORE_INDEX)
    torch.testing.assert_close(network.loss(outputs, label), expected)


def test_pretrained_weights_need_the_full_width():
    with pytest.raises(ConfigError, match="no ImageNet weights"):
        ISDNet(num_classes=2, width=0.5, pretrained=True)


def test_it_learns():
    assert learned(narrow()) > 0.95
