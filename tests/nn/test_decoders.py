"""UPerNet and the SegFormer head against the implementations of ``transformers``."""

import pytest
import torch
from torch import nn
from transformers import SegformerConfig, UperNetConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead
from transformers.models.upernet.modeling_upernet import UperNetHead

from caswit.config import ModelConfig
from caswit.nn.decoders import POOL_SCALES, SegformerHead, UPerNetHead
from caswit.weights.model_folder import ModelInfo, build, load_model, save_model
from conftest import CLASSES, TILE

pytestmark = pytest.mark.equivalence

IN_CHANNELS = (8, 12, 16, 20)
WIDTH, NUM_CLASSES = 24, 5
SIDES = {
    "512 px / 8": [(16, 16), (8, 8), (4, 4), (2, 2)],
    "93 x 141 px": [(24, 36), (12, 18), (6, 9), (3, 5)],
    "no ratio": [(17, 9), (11, 10), (7, 3), (2, 5)],
    "deep ones larger": [(6, 5), (7, 9), (8, 8), (13, 11)],
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def to_transformers(name):
    """Our name of a weight -> theirs."""
    box, *rest = name.split(".")
    number = rest.pop(0) if box in ("pools", "laterals", "smooths") else None
    theirs = {
        "pools": f"psp_modules.{number}",
        "bottleneck": "bottleneck",
        "laterals": f"lateral_convs.{number}",
        "smooths": f"fpn_convs.{number}",
        "fuse": "fpn_bottleneck",
        "classify": "classifier",
    }[box]
    if box == "pools":
        assert rest.pop(0) == "1"  # after the pooling itself
        theirs += ".1"
    if box != "classify":
        theirs += {"0": ".conv", "1": ".batch_norm"}[rest.pop(0)]
    return ".".join([theirs, *rest])


def pair():
    """Our head and theirs, with the same random weights and running statistics."""
    ours = UPerNetHead(IN_CHANNELS, channels=WIDTH, num_classes=NUM_CLASSES)
    for name, tensor in ours.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor += 0.1 * torch.randn_like(tensor)
    config = UperNetConfig(hidden_size=WIDTH, pool_scales=POOL_SCALES, num_labels=NUM_CLASSES)
    theirs = UperNetHead(config, IN_CHANNELS)
    theirs.load_state_dict({to_transformers(name): tensor for name, tensor in ours.state_dict().items()})
    return ours.double(), theirs.double()


def stage_maps(sides, batch=2):
    options = {"dtype": torch.double, "requires_grad": True}
    return [torch.randn(batch, c, *side, **options) for c, side in zip(IN_CHANNELS, sides, strict=True)]


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@torch.no_grad()
def test_upernet_equals_transformers_in_evaluation(sides):
    ours, theirs = pair()
    maps = stage_maps(sides)
    logits = ours.eval()(maps)
    assert logits.shape == (2, NUM_CLASSES, *sides[0])
    torch.testing.assert_close(logits, theirs.eval()(maps))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_upernet_equals_transformers_in_training(sides):
    """Logits, gradients of maps and weights, and running statistics."""
    ours, theirs = pair()
    maps = stage_maps(sides)
    upstream = torch.randn(2, NUM_CLASSES, *sides[0], dtype=torch.double)
    results = []
    for head in (ours.train(), theirs.train()):
        logits = head(maps)
        gradients = torch.autograd.grad((logits * upstream).sum(), [*maps, *head.parameters()])
        named = dict(zip([*range(4), *(n for n, _ in head.named_parameters())], gradients, strict=True))
        results.append((logits, named))
    (logits, gradients), (their_logits, their_gradients) = results
    torch.testing.assert_close(logits, their_logits)
    renamed = {n if isinstance(n, int) else to_transformers(n): g for n, g in gradients.items()}
    torch.testing.assert_close(renamed, their_gradients)
    their_state = theirs.state_dict()
    state = {to_transformers(name): tensor for name, tensor in ours.state_dict().items()}
    torch.testing.assert_close(state, dict(their_state))
    assert state["bottleneck.batch_norm.num_batches_tracked"] == 1


def test_group_norm_keeps_images_apart_in_training():
    head = UPerNetHead(IN_CHANNELS, channels=32, num_classes=NUM_CLASSES, norm="group").double().train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in head.modules())
    maps = stage_maps(SIDES["93 x 141 px"], batch=3)
    together = head(maps)
    for index in range(3):
        torch.testing.assert_close(head([m[index : index + 1] for m in maps]), together[index : index + 1])


@pytest.mark.parametrize("width", [8, 16, 96, 512])
def test_group_norm_has_groups_of_16_channels(width):
    head = UPerNetHead(IN_CHANNELS, channels=width, num_classes=NUM_CLASSES, norm="group")
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == len(POOL_SCALES) + 1 + 3 + 3 + 1
    assert {n.num_channels // n.num_groups for n in norms} == {min(width, 16)}


def segformer_pair(dropout):
    """Our SegFormer head and theirs, with the same random weights and running statistics."""
    config = SegformerConfig(
        hidden_sizes=list(IN_CHANNELS),
        num_encoder_blocks=4,
        decoder_hidden_size=WIDTH,
        num_labels=NUM_CLASSES,
        classifier_dropout_prob=dropout,
    )
    theirs = SegformerDecodeHead(config)
    for name, tensor in theirs.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2)
        elif tensor.is_floating_point():
            tensor += 0.1 * torch.randn_like(tensor)
    state = theirs.state_dict()
    ours = SegformerHead(IN_CHANNELS, channels=WIDTH, num_classes=NUM_CLASSES, dropout=dropout)
    copied = {f"norm.{name}": state[f"batch_norm.{name}"] for name in ours.norm.state_dict()}
    copied |= {f"classify.{name}": state[f"classifier.{name}"] for name in ("weight", "bias")}
    parts = state["linear_fuse.weight"].chunk(4, dim=1)[::-1]  # they concatenate deep to shallow
    for number, part in enumerate(parts):
        projection = f"linear_projections.{number}.proj"
        copied |= {
            f"fuse.{number}.weight": part,
            f"projections.{number}.weight": state[f"{projection}.weight"][..., None, None],
            f"projections.{number}.bias": state[f"{projection}.bias"],
        }
    ours.load_state_dict(copied)
    return ours.double(), theirs.double()


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
@torch.no_grad()
def test_segformer_equals_transformers_in_evaluation(sides):
    ours, theirs = segformer_pair(dropout=0.1)
    maps = stage_maps(sides)
    logits = ours.eval()(maps)
    assert logits.shape == (2, NUM_CLASSES, *sides[0])
    torch.testing.assert_close(logits, theirs.eval()(maps))


@pytest.mark.parametrize("sides", SIDES.values(), ids=SIDES)
def test_segformer_equals_transformers_in_training(sides):
    """Logits, gradients of the maps, gradient of the mixing weights, running statistics."""
    ours, theirs = segformer_pair(dropout=0.0)
    maps = stage_maps(sides)
    upstream = torch.randn(2, NUM_CLASSES, *sides[0], dtype=torch.double)
    logits, their_logits = ours.train()(maps), theirs.train()(maps)
    torch.testing.assert_close(logits, their_logits)
    gradients = torch.autograd.grad((logits * upstream).sum(), [*maps, *(f.weight for f in ours.fuse)])
    theirs_too = torch.autograd.grad((their_logits * upstream).sum(), [*maps, theirs.linear_fuse.weight])
    torch.testing.assert_close(gradients[:4], theirs_too[:4])
    torch.testing.assert_close(torch.cat(gradients[:3:-1], dim=1), theirs_too[4])
    torch.testing.assert_close(ours.norm.running_var, theirs.batch_norm.running_var)


def test_segformer_drops_only_in_training():
    ours, _ = segformer_pair(dropout=0.5)
    maps = [x.detach() for x in stage_maps([(4, 4), (2, 2), (1, 1), (1, 1)])]
    assert not torch.equal(ours.train()(maps), ours(maps))
    assert torch.equal(ours.eval()(maps), ours(maps))


def test_caswit_takes_the_segformer_head(tmp_path):
    """In both branches, and through a model folder."""
    settings = ModelConfig(size="pico", decoder="segformer", decoder_channels=16)
    info = ModelInfo(model=settings, tile=TILE, classes=CLASSES)
    network = build(info, context_head=True).train()
    assert isinstance(network.decoder, SegformerHead)
    assert isinstance(network.context_decoder, SegformerHead)
    images = torch.rand(2, 3, 64, 64) * 255, torch.rand(2, 3, 64, 64) * 255
    assert [tuple(x.shape) for x in network(*images)[:2]] == [(2, 3, 64, 64)] * 2
    save_model(network, info, tmp_path / "model")
    loaded = load_model(tmp_path / "model").network
    torch.testing.assert_close(loaded(*images), network.eval()(*images))
